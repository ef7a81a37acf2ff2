"""The checks of what queues do with messages by themselves, through aio-pika.

Times are short, but no check relies on a broker being quick: what must go is waited for.
"""

import asyncio
import datetime
import time

from aio_pika import Message
from aio_pika.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)

from aio_pika_session import connect, count, drain, expect_channel_error, run, until
from common import DELIVERY_LIMIT, EXPIRES_MS, PRIORITIES, ROUNDS, TTL_MS, expect, expect_equal
from common import expect_death


async def declare(channel, label, durable=False, **arguments):
    """Declares a queue; x_message_ttl=1 stands for the argument x-message-ttl."""
    arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
    return await channel.declare_queue(run.queue(label), durable=durable, arguments=arguments)


async def send(channel, queue, body, **properties):
    """Publishes to the queue; whether the broker acked it."""
    message = Message(str(body).encode(), **properties)
    try:
        await channel.default_exchange.publish(message, queue.name, mandatory=False)
    except DeliveryError:
        return False
    return True


async def get(queue):
    """Waits for a message in the queue."""
    got = []

    async def there():
        got[:] = [await queue.get(no_ack=True, fail=False)]
        return got[0] is not None

    await until(there, f"a message in {queue.name}")
    return got[0]


class Consumer:
    """A consumer that settles nothing, and what it got."""

    @classmethod
    async def start(cls, connection, queue, prefetch=0, **arguments):
        self = cls()
        self.channel = await connection.channel()
        await self.channel.set_qos(prefetch_count=prefetch)
        self.queue = await self.channel.get_queue(queue.name, ensure=False)
        self.got = []

        async def deliver(message):
            self.got.append(message)

        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.tag = await self.queue.consume(deliver, arguments=arguments)
        return self

    async def wait(self, number):
        async def arrived():
            return len(self.got) >= number

        await until(arrived, f"delivery {number}")
        expect_equal(len(self.got), number, "deliveries")
        return self.got[-1]

    def bodies(self):
        return [int(message.body) for message in self.got]


async def ttl():
    async with await connect() as connection:
        channel = await connection.channel()
        by_queue = await declare(channel, "ttl.queue", x_message_ttl=TTL_MS)
        by_message = await declare(channel, "ttl.message", x_message_ttl=3_600_000)

        async def left():
            return [await count(channel, queue.name) for queue in (by_queue, by_message)]

        async def gone():
            return await left() == [0, 1]

        began = time.monotonic()
        await send(channel, by_queue, 0)
        await send(channel, by_queue, 1, expiration=3600)
        await send(channel, by_message, 2, expiration=TTL_MS / 1000)
        await send(channel, by_message, 3)
        expect_equal(await left(), [2, 2], "at first")
        await until(gone, "the messages to expire")
        expect(time.monotonic() - began >= TTL_MS / 1000, "the messages expired early")
        expect_equal(await drain(by_queue), [], "delivered of the expired")
        expect_equal(await drain(by_message), [3], "delivered of the rest")


async def queue_expires():
    async with await connect() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "expires", x_expires=EXPIRES_MS)
        consumer = await Consumer.start(connection, queue)
        await asyncio.sleep(2 * EXPIRES_MS / 1000)
        expect_equal(await count(channel, queue.name), 0, "messages in the queue in use")
        await consumer.queue.cancel(consumer.tag)
        # Asking for the queue is a use of it, so it is asked for at longer intervals.
        deadline = time.monotonic() + 10
        while True:
            await asyncio.sleep(1.5 * EXPIRES_MS / 1000)
            try:
                await (await connection.channel()).declare_queue(queue.name, passive=True)
            except ChannelNotFoundEntity:
                return
            expect(time.monotonic() < deadline, "the queue does not expire")


async def dead_letter():
    async with await connect() as connection:
        channel = await connection.channel()
        exchange, dead = run.exchange("dlx"), await declare(channel, "dead")
        await channel.declare_exchange(exchange, "direct")
        await dead.bind(exchange, "dead-key")
        dlx = {"x_dead_letter_exchange": exchange, "x_dead_letter_routing_key": "dead-key"}
        rejecting = await declare(channel, "dl.rejected", **dlx)
        expiring = await declare(channel, "dl.expired", **dlx)
        short = await declare(channel, "dl.maxlen", x_max_length=1, **dlx)

        async def expect_dead(body, queue, reason, expiration=None):
            message = await get(dead)
            place = (int(message.body), message.exchange, message.routing_key, message.expiration)
            expect_equal(place, (body, exchange, "dead-key", None), "dead letter")
            headers = message.headers
            first = [headers[f"x-first-death-{what}"] for what in ("queue", "reason", "exchange")]
            expect_equal(first, [queue.name, reason, ""], "first death")
            expect_equal(len(headers["x-death"]), 1, "deaths")
            death = headers["x-death"][0]
            expect_equal(death.get("original-expiration"), expiration, "original expiration")
            expect_death(death, queue.name, reason, 1)
            at = death["time"]
            expect(isinstance(at, datetime.datetime), f"the time of death is {at!r}")
            age = datetime.datetime.now(datetime.timezone.utc) - at
            expect(abs(age.total_seconds()) < 3600, f"the time of death is {at}")

        await send(channel, rejecting, 0)
        await (await rejecting.get()).reject(requeue=False)
        await expect_dead(0, rejecting, "rejected")
        await send(channel, expiring, 1, expiration=0.05)
        await expect_dead(1, expiring, "expired", "50")
        await send(channel, short, 2)
        await send(channel, short, 3)
        await expect_dead(2, short, "maxlen")
        expect_equal(await drain(short), [3], "left in the short queue")


async def retry_loop():
    async with await connect() as connection:
        channel = await connection.channel()
        names = run.prefix + ".retry.work", run.prefix + ".retry.wait"
        dlx = {"x_dead_letter_exchange": ""}
        work = await declare(channel, "retry.work", x_dead_letter_routing_key=names[1], **dlx)
        wait = await declare(
            channel, "retry.wait", x_dead_letter_routing_key=names[0], x_message_ttl=50, **dlx
        )
        consumer = await Consumer.start(connection, work)
        await send(channel, work, 7)
        for attempt in range(1, ROUNDS + 1):
            await (await consumer.wait(attempt)).reject(requeue=False)
        message = await consumer.wait(ROUNDS + 1)
        expect_equal((message.body, message.redelivered), (b"7", False), "came back as")
        deaths = message.headers["x-death"]
        expect_equal(len(deaths), 2, "deaths")
        # The last death comes first.
        expect_death(deaths[0], wait.name, "expired", ROUNDS)
        expect_death(deaths[1], work.name, "rejected", ROUNDS)
        await message.ack()
        await consumer.channel.close()
        left = [await count(channel, queue.name) for queue in (work, wait)]
        expect_equal(left, [0, 0], "messages left")


async def max_length():
    async with await connect() as connection:
        channel = await connection.channel()
        newest = await declare(channel, "maxlen.drop", x_max_length=3)
        for body in range(5):
            expect(await send(channel, newest, body), "a nack of drop-head")
        expect_equal(await drain(newest), [2, 3, 4], "kept by drop-head")
        overflow = {"x_max_length": 2, "x_overflow": "reject-publish"}
        oldest = await declare(channel, "maxlen.reject", **overflow)
        acked = [await send(channel, oldest, body) for body in range(4)]
        expect_equal(acked, [True, True, False, False], "acked of reject-publish")
        expect_equal(await drain(oldest), [0, 1], "kept by reject-publish")
        expect(await send(channel, oldest, 4), "a nack although there is room again")
        dead = await declare(channel, "maxlen.dead")
        passing = await declare(
            channel,
            "maxlen.dlx",
            x_max_length=1,
            x_overflow="reject-publish-dlx",
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=dead.name,
        )
        acked = [await send(channel, passing, body) for body in range(2)]
        expect_equal(acked, [True, False], "acked of reject-publish-dlx")
        message = await get(dead)
        expect_equal(message.body, b"1", "the dead letter")
        expect_death(message.headers["x-death"][0], passing.name, "maxlen", 1)


async def priority_queue():
    async with await connect() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "priority", x_max_priority=5)
        sent, wanted = PRIORITIES
        for body, priority in enumerate(sent):
            await send(channel, queue, body, priority=priority)
        expect_equal(await drain(queue), wanted, "order")


async def single_active():
    async with await connect() as publishing, await connect() as one, await connect() as three:
        two = await connect()
        channel = await publishing.channel()
        queue = await declare(channel, "single", x_single_active_consumer=True)
        first, second, third = [await Consumer.start(each, queue) for each in (one, two, three)]
        for body in range(3):
            await send(channel, queue, body)
        await (await first.wait(3)).ack(multiple=True)
        expect_equal(first.bodies(), [0, 1, 2], "the first consumer's")
        await first.queue.cancel(first.tag)
        await send(channel, queue, 3)
        await second.wait(1)
        expect_equal(second.bodies(), [3], "after the cancel")
        # What the closed connection held goes to the next consumer.
        await two.close()
        message = await third.wait(1)
        expect_equal((int(message.body), message.redelivered), (3, True), "after the close")


async def consumer_priority():
    async with await connect() as connection:
        channel = await connection.channel()
        queue = await declare(channel, "consumers")
        low = await Consumer.start(connection, queue)
        high = await Consumer.start(connection, queue, prefetch=2, x_priority=10)
        for body in range(4):
            await send(channel, queue, body)
        await high.wait(2)
        await low.wait(2)
        expect_equal([high.bodies(), low.bodies()], [[0, 1], [2, 3]], "the high and the low one's")


async def delivery_limit():
    async with await connect() as connection:
        channel = await connection.channel()
        dead = await declare(channel, "limit.dead")
        queue = await declare(
            channel,
            "limit",
            durable=True,
            x_queue_type="quorum",
            x_delivery_limit=DELIVERY_LIMIT,
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=dead.name,
        )
        await send(channel, queue, 7)
        consumer = await Consumer.start(connection, queue)
        for number in range(DELIVERY_LIMIT + 1):
            message = await consumer.wait(number + 1)
            got = (message.headers.get("x-delivery-count"), message.redelivered)
            expect_equal(got, (number or None, number > 0), "came as")
            await message.nack(requeue=True)
        message = await get(dead)
        expect_equal(message.body, b"7", "the dead letter")
        expect_death(message.headers["x-death"][0], queue.name, "delivery_limit", 1)
        expect_equal(len(consumer.got), DELIVERY_LIMIT + 1, "deliveries")


async def quorum_declare():
    async with await connect() as connection:
        channel = await connection.channel()
        quorum = {"x_queue_type": "quorum", "x_delivery_limit": 3, "x_max_length": 10}
        for _ in range(2):
            queue = await declare(channel, "quorum", durable=True, **quorum)
        expect(await send(channel, queue, 1, delivery_mode=2), "a nack")
        message = await get(queue)
        expect_equal((message.body, message.redelivered), (b"1", False), "the message")
        for what, durable, arguments in [
            ("the same name as a classic queue", True, {}),
            ("a transient quorum queue", False, quorum),
            ("a quorum queue with priorities", True, {**quorum, "x_max_priority": 5}),
        ]:
            label = "quorum" if what.startswith("the same") else "quorum.refused"
            other = await connection.channel()
            differently = declare(other, label, durable, **arguments)
            await expect_channel_error(ChannelPreconditionFailed, differently, what)
        # aio-pika's default is if-unused, which RabbitMQ refuses for quorum queues.
        deleted = await queue.delete(if_unused=False, if_empty=False)
        expect_equal(deleted.message_count, 0, "deleted with")


CHECKS = [
    ("ttl", ttl),
    ("queue-expires", queue_expires),
    ("dead-letter", dead_letter),
    ("retry-loop", retry_loop),
    ("max-length", max_length),
    ("priority-queue", priority_queue),
    ("single-active", single_active),
    ("consumer-priority", consumer_priority),
    ("delivery-limit", delivery_limit),
    ("quorum-declare", quorum_declare),
]
