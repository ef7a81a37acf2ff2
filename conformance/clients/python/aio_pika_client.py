"""The conformance checks through aio-pika, on plain (not self-healing) connections.

Each check runs on connections of its own, as a task that is cancelled at its deadline.
"""

import asyncio
import datetime
import sys
import traceback

from aio_pika import DeliveryMode, Message
from aio_pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    ProbableAuthenticationError,
    PublishError,
)
from aiormq.exceptions import ChannelLockedResource

import aio_pika_queues
import common
from aio_pika_session import connect, count, drain, expect_channel_error, publish, run, until
from common import MESSAGES, PREFETCH, ROUTING, expect, expect_equal


async def wrong_password():
    try:
        await (await connect(run.wrong_password_uri())).close()
    except (AuthenticationError, ProbableAuthenticationError) as error:
        expect("ACCESS_REFUSED" in repr(error), f"no ACCESS_REFUSED in {error!r}")
        return
    raise AssertionError("a wrong password was let in")


async def declare():
    async with await connect() as connection:
        channel = await connection.channel()
        name, exchange = run.queue("declare"), run.exchange("declare")
        for _ in range(2):
            queue = await channel.declare_queue(
                name, durable=True, arguments={"x-max-length": 1000}
            )
            ok = queue.declaration_result
            expect_equal(
                (ok.queue, ok.message_count, ok.consumer_count), (name, 0, 0), "declare-ok"
            )
            declared = await channel.declare_exchange(exchange, "direct", durable=True)
        named = await channel.declare_queue(None, exclusive=True)
        expect(named.name.startswith("amq.gen-"), f"server-named queue is {named.name!r}")
        await publish(channel, "", name, 1)
        expect_equal((await queue.purge()).message_count, 1, "purged")
        other = await connection.channel()
        await expect_channel_error(
            ChannelPreconditionFailed, other.declare_queue(name), "inequivalent declare"
        )
        await declared.delete()
        expect_equal((await queue.delete()).message_count, 0, "deleted with")
        await expect_channel_error(
            ChannelNotFoundEntity,
            channel.declare_exchange(exchange, passive=True),
            "deleted exchange",
        )


async def bind_default():
    async with await connect() as connection:
        channel = await connection.channel()
        names = [run.queue("default.a"), run.queue("default.b")]
        queues = [await channel.declare_queue(name) for name in names]
        for index, key in enumerate([*names, run.prefix + ".nowhere"]):
            await publish(channel, "", key, index)
        expect_equal([await drain(queue) for queue in queues], [[0], [1]], "routed")


async def bind_type(kind):
    bindings, messages, wanted = ROUTING[kind]
    async with await connect() as connection:
        channel = await connection.channel()
        exchange = run.exchange(kind)
        await channel.declare_exchange(exchange, kind)
        queues = {
            label: await channel.declare_queue(run.queue(f"{kind}.{label}")) for label in wanted
        }
        for label, key, arguments in bindings:
            await queues[label].bind(exchange, key, arguments=arguments)
        for index, (key, headers) in enumerate(messages):
            await publish(channel, exchange, key, index, headers)
        got = {label: await drain(queue) for label, queue in queues.items()}
        expect_equal(got, wanted, "routed")
        label, key, arguments = bindings[0]
        await queues[label].unbind(exchange, key, arguments=arguments)
        await publish(channel, exchange, messages[0][0], 0, messages[0][1])
        expect_equal(await drain(queues[label]), [], "routed after unbind")


async def bind_exchange():
    async with await connect() as connection:
        channel = await connection.channel()
        source = await channel.declare_exchange(run.exchange("source"), "topic")
        target = await channel.declare_exchange(run.exchange("target"), "fanout")
        queue = await channel.declare_queue(run.queue("chained"))
        await queue.bind(target)
        await target.bind(source, "k.#")
        for index, key in enumerate(["k.1", "x"]):
            await publish(channel, source.name, key, index)
        expect_equal(await drain(queue), [0], "routed")


async def confirms():
    async with await connect() as connection:
        channel = await connection.channel()
        name = run.queue("confirms")
        await channel.declare_queue(name)
        for start in range(0, MESSAGES, 1000):
            batch = [publish(channel, "", name, start + index) for index in range(1000)]
            for confirmed in await asyncio.gather(*batch):
                expect_equal(type(confirmed).__name__, "Ack", "confirm")
        expect_equal(await count(channel, name), MESSAGES, "messages in the queue")


async def consume_two():
    async with await connect() as connection:
        publisher = await connection.channel()
        name = run.queue("consume")
        await publisher.declare_queue(name)
        seen, pending = {"one": [], "two": []}, {"one": [], "two": []}
        queues, hold = {}, True

        async def settle(label):
            # One consumer acks each message, the other fifty at a time.
            pending[label], messages = [], pending[label]
            if label == "one":
                for message in messages:
                    await message.ack()
            elif len(messages) >= 50 or sum(map(len, seen.values())) == MESSAGES:
                if messages:
                    await messages[-1].ack(multiple=True)
            else:
                pending[label] = messages

        async def start(label):
            async def deliver(message):
                seen[label].append(int(message.body))
                pending[label].append(message)
                if not hold:
                    await settle(label)

            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queues[label] = await channel.get_queue(name, ensure=False)
            await queues[label].consume(deliver, consumer_tag=label)
            return channel

        channels = {label: await start(label) for label in seen}
        for first in range(0, MESSAGES, 1000):
            await asyncio.gather(
                *(publish(publisher, "", name, first + index) for index in range(1000))
            )

        # Nothing is acked yet: each consumer holds its prefetch and not one message more.
        async def full():
            return all(len(bodies) == PREFETCH for bodies in seen.values())

        await until(full, "two full prefetch windows")
        expect_equal(await count(publisher, name), MESSAGES - 2 * PREFETCH, "ready messages")
        expect(await full(), "more deliveries than the prefetch allows")
        hold = False
        for label in seen:
            await settle(label)

        async def done():
            return sum(map(len, seen.values())) >= MESSAGES

        await until(done, "all messages", common.BULK_SECONDS)
        for label, channel in channels.items():
            await settle(label)
            await queues[label].cancel(label)
            await channel.close()
        common.expect_complete(seen, MESSAGES)
        expect_equal(await count(publisher, name), 0, "messages left after all acks")


async def nack_requeue():
    async with await connect() as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=3)
        queue = await channel.declare_queue(run.queue("nack"))
        for index in range(3):
            await publish(channel, "", queue.name, index)
        arrived = asyncio.Queue()
        tag = await queue.consume(arrived.put)
        first = [await asyncio.wait_for(arrived.get(), 10) for _ in range(3)]
        expect_equal([int(message.body) for message in first], [0, 1, 2], "bodies")
        expect(not any(message.redelivered for message in first), "redelivered at first delivery")
        await first[1].nack(requeue=True)
        back = await asyncio.wait_for(arrived.get(), 10)
        expect_equal((int(back.body), back.redelivered), (1, True), "came back as")
        await first[0].reject(requeue=False)
        await back.nack(multiple=True, requeue=False)
        await queue.cancel(tag)
        await channel.close()
        expect_equal(await count(await connection.channel(), queue.name), 0, "messages left")


async def get():
    async with await connect() as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(run.queue("get"))
        expect(await queue.get(fail=False) is None, "an empty queue gave a message")
        sent = Message(
            b"first",
            content_type="text/plain",
            content_encoding="identity",
            headers={"text": "\u00fc", "number": 1 << 40, "flag": True, "list": [1, "two"]},
            delivery_mode=DeliveryMode.PERSISTENT,
            priority=3,
            correlation_id="correlation",
            reply_to="reply",
            message_id="id",
            expiration=3600,
            timestamp=datetime.datetime.fromtimestamp(1_700_000_000, datetime.timezone.utc),
            type="type",
            app_id="app",
        )
        await channel.default_exchange.publish(sent, queue.name)
        await channel.default_exchange.publish(Message(b""), queue.name)
        message = await queue.get()
        expect_equal(message.body, b"first", "body")
        expect_equal(
            (message.exchange, message.routing_key, message.message_count, message.redelivered),
            ("", queue.name, 1, False),
            "get-ok",
        )
        for field in (
            "content_type content_encoding headers delivery_mode priority correlation_id "
            "reply_to message_id expiration timestamp type app_id"
        ).split():
            expect_equal(getattr(message, field), getattr(sent, field), field)
        await message.ack()
        expect_equal((await queue.get(no_ack=True)).body, b"", "second body")
        expect(await queue.get(fail=False) is None, "the queue is not empty")


async def mandatory_return():
    async with await connect() as connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange("amq.direct", ensure=False)
        key = run.prefix + ".nowhere"
        try:
            await exchange.publish(Message(b"back"), key, mandatory=True)
        except PublishError as error:
            back = error.message
            got = (back.delivery.reply_code, back.delivery.reply_text, back.delivery.exchange)
            expect_equal(got, (312, "NO_ROUTE", "amq.direct"), "return")
            expect_equal((back.delivery.routing_key, back.body), (key, b"back"), "return")
            return
        raise AssertionError("an unroutable mandatory message was not returned")


async def expect_usable(connection):
    channel = await connection.channel()
    queue = await channel.declare_queue(None, exclusive=True)
    await publish(channel, "", queue.name, 7)
    expect_equal(await drain(queue), [7], "a new channel on the same connection")


async def passive_missing():
    async with await connect() as connection:
        channel, missing = await connection.channel(), run.prefix + ".missing"
        text = await expect_channel_error(
            ChannelNotFoundEntity, channel.declare_queue(missing, passive=True), "passive declare"
        )
        expect(missing in text, f"the reply text does not name the queue: {text!r}")
        expect(not connection.is_closed, "the connection is closed")
        await expect_usable(connection)


async def exclusive_locked():
    async with await connect() as second:
        async with await connect() as owner:
            name = run.queue("exclusive")
            await (await owner.channel()).declare_queue(name, exclusive=True)
            for passive in (True, False):
                channel = await second.channel()
                await expect_channel_error(
                    ChannelLockedResource,
                    channel.declare_queue(name, passive=passive, exclusive=True),
                    "declare from a second connection",
                )
            queue = await (await second.channel()).get_queue(name, ensure=False)
            await expect_channel_error(
                ChannelLockedResource,
                queue.consume(lambda _: None),
                "consume from a second connection",
            )
            await expect_usable(second)

        async def gone():
            try:
                await (await second.channel()).declare_queue(name, passive=True)
            except ChannelNotFoundEntity:
                return True
            except ChannelLockedResource:
                pass
            return False

        await until(gone, "the exclusive queue to go with its connection")


async def rpc_reply_to():
    async with await connect() as server, await connect() as client:
        answering = await server.channel()
        queue = await answering.declare_queue(run.queue("rpc"))
        reply_names = []

        async def answer(message):
            reply_names.append(message.reply_to)
            reply = Message(message.body + b"!", correlation_id=message.correlation_id)
            await answering.default_exchange.publish(reply, message.reply_to)
            await message.ack()

        await queue.consume(answer)
        calling = await client.channel()
        replies = asyncio.Queue()
        pseudo = await calling.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await pseudo.consume(replies.put, no_ack=True)
        for index in range(10):
            call = Message(
                str(index).encode(), reply_to="amq.rabbitmq.reply-to", correlation_id=str(index)
            )
            await calling.default_exchange.publish(call, queue.name)
            reply = await asyncio.wait_for(replies.get(), 10)
            expect_equal(
                (reply.correlation_id, reply.body), (str(index), f"{index}!".encode()), "reply"
            )
        for name in reply_names:
            expect(
                name.startswith("amq.rabbitmq.reply-to."), f"reply_to was not rewritten: {name!r}"
            )


async def tx():
    async with await connect() as connection:
        channel = await connection.channel(publisher_confirms=False)
        watcher = await connection.channel()
        queue = await channel.declare_queue(run.queue("tx"))
        transaction = channel.transaction()
        await transaction.select()
        for index in range(3):
            await publish(channel, "", queue.name, index)
        expect_equal(await count(watcher, queue.name), 0, "messages before the commit")
        await transaction.commit()
        expect_equal(await count(watcher, queue.name), 3, "messages after the commit")
        await publish(channel, "", queue.name, 3)
        await transaction.rollback()
        await transaction.commit()
        expect_equal(await count(watcher, queue.name), 3, "messages after the rollback")
        await (await queue.get()).ack()
        await transaction.commit()
        await (await queue.get()).ack()
        await transaction.rollback()
        await channel.close()

        async def back():
            return await count(watcher, queue.name) == 2

        await until(back, "the rolled back ack's message")
        again = await watcher.get_queue(queue.name, ensure=False)
        message = await again.get(no_ack=True)
        expect_equal(
            (int(message.body), message.redelivered), (1, True), "after the rolled back ack"
        )


async def close():
    connection = await connect()
    first, second = await connection.channel(), await connection.channel()
    await first.close()
    expect(first.is_closed and not second.is_closed, "closing a channel touched another")
    await expect_usable(connection)
    await connection.close()
    expect(connection.is_closed, "the connection is not closed")
    async with await connect() as again:
        await expect_usable(again)


CHECKS = [
    ("wrong-password", wrong_password),
    ("declare", declare),
    ("bind-default", bind_default),
    *[(f"bind-{kind}", lambda kind=kind: bind_type(kind)) for kind in ROUTING],
    ("bind-exchange", bind_exchange),
    ("confirms", confirms),
    ("consume-two", consume_two),
    ("nack-requeue", nack_requeue),
    ("get", get),
    ("mandatory-return", mandatory_return),
    ("passive-missing", passive_missing),
    ("exclusive-locked", exclusive_locked),
    ("rpc-reply-to", rpc_reply_to),
    ("tx", tx),
    ("close", close),
    *aio_pika_queues.CHECKS,
]


async def sweep():
    """Deletes what the checks left, failed ones included."""
    async with await connect() as connection:
        for names, delete in ((run.queues, "queue_delete"), (run.exchanges, "exchange_delete")):
            for name in names:
                channel = await connection.channel()
                try:
                    await getattr(channel, delete)(name)
                except (AMQPError, ChannelClosed) as error:
                    print(f"sweep: {name}: {error!r}", file=sys.stderr)


async def main():
    for name, check in CHECKS:
        bulk = name in ("confirms", "consume-two")
        seconds = common.BULK_SECONDS if bulk else common.CHECK_SECONDS
        try:
            await asyncio.wait_for(check(), seconds)
            run.passed(name)
        except asyncio.TimeoutError:
            run.fail(name, f"no end within {seconds:.0f} s")
        except Exception as error:
            traceback.print_exc()
            run.fail(name, f"{type(error).__name__}: {error}")
    try:
        await asyncio.wait_for(sweep(), 10)
    except Exception as error:
        print(f"sweep: {error!r}", file=sys.stderr)
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
