"""The checks of what queues do with messages by themselves, through pika.

Times are short, but no check relies on a broker being quick: what must go is waited for.
"""

import datetime
import time

import pika
from pika.exceptions import NackError

from common import DELIVERY_LIMIT, EXPIRES_MS, PRIORITIES, ROUNDS, TTL_MS, expect, expect_equal
from common import expect_death
from pika_session import connect, count, drain, expect_channel_error, run, until


def declare(channel, label, durable=False, **arguments):
    """Declares a queue; x_message_ttl=1 stands for the argument x-message-ttl."""
    queue = run.queue(label)
    arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
    channel.queue_declare(queue, durable=durable, arguments=arguments)
    return queue


def send(channel, queue, body, **properties):
    """Publishes to the queue; whether the broker acked it, on a confirming channel."""
    try:
        channel.basic_publish("", queue, str(body), pika.BasicProperties(**properties))
    except NackError:
        return False
    return True


def confirming(connection):
    channel = connection.channel()
    channel.confirm_delivery()
    return channel


def get(connection, channel, queue):
    """Waits for a message in the queue."""
    got = []

    def there():
        got[:] = channel.basic_get(queue, auto_ack=True)
        return got[0] is not None

    until(connection, there, f"a message in {queue}")
    return got


class Consumer:
    """A consumer that settles nothing, and what it got."""

    def __init__(self, connection, queue, prefetch=0, **arguments):
        self.connection = connection
        self.channel = connection.channel()
        self.channel.basic_qos(prefetch_count=prefetch)
        self.got = []
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.tag = self.channel.basic_consume(
            queue, lambda *delivery: self.got.append(delivery[1:]), arguments=arguments
        )

    def wait(self, number):
        until(self.connection, lambda: len(self.got) >= number, f"delivery {number}")
        expect_equal(len(self.got), number, "deliveries")
        return self.got[-1]

    def bodies(self):
        return [int(body) for _, _, body in self.got]


def ttl():
    with connect() as connection:
        channel = confirming(connection)
        by_queue = declare(channel, "ttl.queue", x_message_ttl=TTL_MS)
        by_message = declare(channel, "ttl.message", x_message_ttl=3_600_000)
        began = time.monotonic()
        send(channel, by_queue, 0)
        send(channel, by_queue, 1, expiration="3600000")
        send(channel, by_message, 2, expiration=str(TTL_MS))
        send(channel, by_message, 3)
        expect_equal([count(channel, by_queue), count(channel, by_message)], [2, 2], "at first")
        left = lambda: [count(channel, by_queue), count(channel, by_message)]
        until(connection, lambda: left() == [0, 1], "the messages to expire")
        expect(time.monotonic() - began >= TTL_MS / 1000, "the messages expired early")
        expect_equal(drain(channel, by_queue), [], "delivered of the expired")
        expect_equal(drain(channel, by_message), [3], "delivered of the rest")
        expect_channel_error(
            406, lambda: send(channel, by_queue, 4, expiration="soon"), "a wrong expiration"
        )


def queue_expires():
    with connect() as connection:
        channel = connection.channel()
        queue = declare(channel, "expires", x_expires=EXPIRES_MS)
        consumer = Consumer(connection, queue)
        connection.sleep(2 * EXPIRES_MS / 1000)
        expect_equal(count(channel, queue), 0, "messages in the queue in use")
        consumer.channel.basic_cancel(consumer.tag)
        # Asking for the queue is a use of it, so it is asked for at longer intervals.
        deadline = time.monotonic() + 10
        while True:
            connection.sleep(1.5 * EXPIRES_MS / 1000)
            try:
                connection.channel().queue_declare(queue, passive=True)
            except pika.exceptions.ChannelClosedByBroker as error:
                expect_equal(error.reply_code, 404, "an expired queue")
                return
            expect(time.monotonic() < deadline, "the queue does not expire")


def dead_letter():
    with connect() as connection:
        channel = confirming(connection)
        exchange, dead = run.exchange("dlx"), declare(channel, "dead")
        channel.exchange_declare(exchange, "direct")
        channel.queue_bind(dead, exchange, "dead-key")
        dlx = {"x_dead_letter_exchange": exchange, "x_dead_letter_routing_key": "dead-key"}
        rejecting = declare(channel, "dl.rejected", **dlx)
        expiring = declare(channel, "dl.expired", **dlx)
        short = declare(channel, "dl.maxlen", x_max_length=1, **dlx)

        def expect_dead(body, queue, reason, expiration=None):
            method, properties, got = get(connection, channel, dead)
            place = (int(got), method.exchange, method.routing_key, properties.expiration)
            expect_equal(place, (body, exchange, "dead-key", None), "dead letter")
            headers = properties.headers
            first = [headers[f"x-first-death-{what}"] for what in ("queue", "reason", "exchange")]
            expect_equal(first, [queue, reason, ""], "first death")
            expect_equal(len(headers["x-death"]), 1, "deaths")
            death = headers["x-death"][0]
            expect_equal(death.get("original-expiration"), expiration, "original expiration")
            expect_death(death, queue, reason, 1)
            at = death["time"]
            expect(isinstance(at, datetime.datetime), f"the time of death is {at!r}")
            at = at.replace(tzinfo=datetime.timezone.utc)
            age = datetime.datetime.now(datetime.timezone.utc) - at
            expect(abs(age.total_seconds()) < 3600, f"the time of death is {at}")

        send(channel, rejecting, 0)
        channel.basic_reject(channel.basic_get(rejecting)[0].delivery_tag, requeue=False)
        expect_dead(0, rejecting, "rejected")
        send(channel, expiring, 1, expiration="50")
        expect_dead(1, expiring, "expired", "50")
        send(channel, short, 2)
        send(channel, short, 3)
        expect_dead(2, short, "maxlen")
        expect_equal(drain(channel, short), [3], "left in the short queue")


def retry_loop():
    with connect() as connection:
        channel = confirming(connection)
        names = run.prefix + ".retry.work", run.prefix + ".retry.wait"
        dlx = {"x_dead_letter_exchange": ""}
        work = declare(channel, "retry.work", x_dead_letter_routing_key=names[1], **dlx)
        wait = declare(
            channel, "retry.wait", x_dead_letter_routing_key=names[0], x_message_ttl=50, **dlx
        )
        consumer = Consumer(connection, work)
        send(channel, work, 7)
        for attempt in range(1, ROUNDS + 1):
            method, _, _ = consumer.wait(attempt)
            consumer.channel.basic_reject(method.delivery_tag, requeue=False)
        method, properties, body = consumer.wait(ROUNDS + 1)
        expect_equal((body, method.redelivered), (b"7", False), "came back as")
        deaths = properties.headers["x-death"]
        expect_equal(len(deaths), 2, "deaths")
        # The last death comes first.
        expect_death(deaths[0], wait, "expired", ROUNDS)
        expect_death(deaths[1], work, "rejected", ROUNDS)
        consumer.channel.basic_ack(method.delivery_tag)
        consumer.channel.close()
        expect_equal([count(channel, work), count(channel, wait)], [0, 0], "messages left")


def max_length():
    with connect() as connection:
        channel = confirming(connection)
        newest = declare(channel, "maxlen.drop", x_max_length=3)
        for body in range(5):
            expect(send(channel, newest, body), "a nack of drop-head")
        expect_equal(drain(channel, newest), [2, 3, 4], "kept by drop-head")
        oldest = declare(channel, "maxlen.reject", x_max_length=2, x_overflow="reject-publish")
        acked = [send(channel, oldest, body) for body in range(4)]
        expect_equal(acked, [True, True, False, False], "acked of reject-publish")
        expect_equal(drain(channel, oldest), [0, 1], "kept by reject-publish")
        expect(send(channel, oldest, 4), "a nack although there is room again")
        dead = declare(channel, "maxlen.dead")
        passing = declare(
            channel,
            "maxlen.dlx",
            x_max_length=1,
            x_overflow="reject-publish-dlx",
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=dead,
        )
        acked = [send(channel, passing, body) for body in range(2)]
        expect_equal(acked, [True, False], "acked of reject-publish-dlx")
        _, properties, body = get(connection, channel, dead)
        expect_equal(body, b"1", "the dead letter")
        expect_death(properties.headers["x-death"][0], passing, "maxlen", 1)


def priority_queue():
    with connect() as connection:
        channel = confirming(connection)
        queue = declare(channel, "priority", x_max_priority=5)
        sent, wanted = PRIORITIES
        for body, priority in enumerate(sent):
            send(channel, queue, body, priority=priority)
        expect_equal(drain(channel, queue), wanted, "order")


def single_active():
    with connect() as publishing, connect() as one, connect() as two, connect() as three:
        channel = confirming(publishing)
        queue = declare(channel, "single", x_single_active_consumer=True)
        first, second, third = [Consumer(each, queue) for each in (one, two, three)]
        for body in range(3):
            send(channel, queue, body)
        first.wait(3)
        expect_equal(first.bodies(), [0, 1, 2], "the first consumer's")
        first.channel.basic_ack(0, multiple=True)
        first.channel.basic_cancel(first.tag)
        send(channel, queue, 3)
        second.wait(1)
        expect_equal(second.bodies(), [3], "after the cancel")
        # What the closed connection held goes to the next consumer.
        two.close()
        method, _, body = third.wait(1)
        expect_equal((int(body), method.redelivered), (3, True), "after the close")


def consumer_priority():
    with connect() as connection:
        channel = confirming(connection)
        queue = declare(channel, "consumers")
        low = Consumer(connection, queue)
        high = Consumer(connection, queue, prefetch=2, x_priority=10)
        for body in range(4):
            send(channel, queue, body)
        high.wait(2)
        low.wait(2)
        expect_equal([high.bodies(), low.bodies()], [[0, 1], [2, 3]], "the high and the low one's")


def delivery_limit():
    with connect() as connection:
        channel = confirming(connection)
        dead = declare(channel, "limit.dead")
        queue = declare(
            channel,
            "limit",
            durable=True,
            x_queue_type="quorum",
            x_delivery_limit=DELIVERY_LIMIT,
            x_dead_letter_exchange="",
            x_dead_letter_routing_key=dead,
        )
        send(channel, queue, 7)
        consumer = Consumer(connection, queue)
        for number in range(DELIVERY_LIMIT + 1):
            method, properties, _ = consumer.wait(number + 1)
            got = (properties.headers or {}).get("x-delivery-count")
            expect_equal((got, method.redelivered), (number or None, number > 0), "came as")
            consumer.channel.basic_nack(method.delivery_tag, requeue=True)
        _, properties, body = get(connection, channel, dead)
        expect_equal(body, b"7", "the dead letter")
        expect_death(properties.headers["x-death"][0], queue, "delivery_limit", 1)
        expect_equal(len(consumer.got), DELIVERY_LIMIT + 1, "deliveries")


def quorum_declare():
    with connect() as connection:
        channel = confirming(connection)
        quorum = {"x_queue_type": "quorum", "x_delivery_limit": 3, "x_max_length": 10}
        for _ in range(2):
            queue = declare(channel, "quorum", durable=True, **quorum)
        expect(send(channel, queue, 1, delivery_mode=2), "a nack")
        method, _, body = get(connection, channel, queue)
        expect_equal((body, method.redelivered), (b"1", False), "the message")
        for what, durable, arguments in [
            ("the same name as a classic queue", True, {}),
            ("a transient quorum queue", False, quorum),
            ("a quorum queue with priorities", True, {**quorum, "x_max_priority": 5}),
        ]:
            label = "quorum" if what.startswith("the same") else "quorum.refused"
            other = connection.channel()
            expect_channel_error(406, lambda: declare(other, label, durable, **arguments), what)
        expect_equal(channel.queue_delete(queue).method.message_count, 0, "deleted with")


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
