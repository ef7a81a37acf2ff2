"""The conformance checks through pika's blocking connection.

Each check runs on connections of its own, in a thread that is given up at its deadline.
"""

import os
import sys
import threading
import time
import traceback

import pika
from pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelClosedByBroker,
    ProbableAuthenticationError,
    UnroutableError,
)

import common
import pika_queues
from common import MESSAGES, PREFETCH, ROUTING, expect, expect_equal
from pika_session import connect, count, drain, expect_channel_error, run, until


def wrong_password():
    try:
        connect(run.wrong_password_uri()).close()
    except (AuthenticationError, ProbableAuthenticationError) as error:
        expect("403" in repr(error), f"no 403 in {error!r}")
        return
    raise AssertionError("a wrong password was let in")


def declare():
    with connect() as connection:
        channel = connection.channel()
        queue, exchange = run.queue("declare"), run.exchange("declare")
        arguments = {"x-max-length": 1000}
        for _ in range(2):
            ok = channel.queue_declare(queue, durable=True, arguments=arguments).method
            expect_equal(
                (ok.queue, ok.message_count, ok.consumer_count), (queue, 0, 0), "declare-ok"
            )
            channel.exchange_declare(exchange, "direct", durable=True)
        named = channel.queue_declare("", exclusive=True).method.queue
        expect(named.startswith("amq.gen-"), f"server-named queue is {named!r}")
        channel.basic_publish("", queue, b"1")
        until(connection, lambda: count(channel, queue) == 1, "the message in the queue")
        expect_equal(channel.queue_purge(queue).method.message_count, 1, "purged")
        other = connection.channel()
        expect_channel_error(
            406, lambda: other.queue_declare(queue, durable=False), "inequivalent declare"
        )
        channel.exchange_delete(exchange)
        expect_equal(channel.queue_delete(queue).method.message_count, 0, "deleted with")
        expect_channel_error(
            404, lambda: channel.exchange_declare(exchange, passive=True), "deleted exchange"
        )


def bind_default():
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        queues = [run.queue("default.a"), run.queue("default.b")]
        for queue in queues:
            channel.queue_declare(queue)
        for index, key in enumerate([*queues, run.prefix + ".nowhere"]):
            channel.basic_publish("", key, str(index))
        expect_equal([drain(channel, queue) for queue in queues], [[0], [1]], "routed")


def bind_type(kind):
    bindings, messages, wanted = ROUTING[kind]
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        exchange = run.exchange(kind)
        channel.exchange_declare(exchange, kind)
        queues = {label: run.queue(f"{kind}.{label}") for label in wanted}
        for queue in queues.values():
            channel.queue_declare(queue)
        for label, key, arguments in bindings:
            channel.queue_bind(queues[label], exchange, key, arguments)
        for index, (key, headers) in enumerate(messages):
            properties = pika.BasicProperties(headers=headers)
            channel.basic_publish(exchange, key, str(index), properties)
        got = {label: drain(channel, queue) for label, queue in queues.items()}
        expect_equal(got, wanted, "routed")
        label, key, arguments = bindings[0]
        channel.queue_unbind(queues[label], exchange, key, arguments)
        key, headers = messages[0]
        channel.basic_publish(exchange, key, "0", pika.BasicProperties(headers=headers))
        left = [0] if kind == "headers" and label == "b" else []
        expect_equal(drain(channel, queues[label]), left, "routed after unbind")


def bind_exchange():
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        source, target = run.exchange("source"), run.exchange("target")
        queue = run.queue("chained")
        channel.exchange_declare(source, "topic")
        channel.exchange_declare(target, "fanout")
        channel.queue_declare(queue)
        channel.queue_bind(queue, target)
        channel.exchange_bind(target, source, "k.#")
        for index, key in enumerate(["k.1", "x"]):
            channel.basic_publish(source, key, str(index))
        expect_equal(drain(channel, queue), [0], "routed")


def confirms():
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        queue = run.queue("confirms")
        channel.queue_declare(queue)
        for index in range(MESSAGES):
            channel.basic_publish("", queue, str(index))
        expect_equal(count(channel, queue), MESSAGES, "messages in the queue")


def consume_two():
    with connect() as connection:
        publisher = connection.channel()
        queue = run.queue("consume")
        publisher.queue_declare(queue)
        seen, pending = {"one": [], "two": []}, {"one": [], "two": []}
        channels = {}
        hold = True

        def settle(label):
            # One consumer acks each message, the other fifty at a time.
            tags = pending[label]
            if label == "one":
                for tag in tags:
                    channels[label].basic_ack(tag)
                tags.clear()
            elif len(tags) >= 50 or sum(map(len, seen.values())) == MESSAGES:
                if tags:
                    channels[label].basic_ack(tags[-1], multiple=True)
                tags.clear()

        def start(label):
            def deliver(_channel, method, _properties, body):
                seen[label].append(int(body))
                pending[label].append(method.delivery_tag)
                if not hold:
                    settle(label)

            channels[label] = connection.channel()
            channels[label].basic_qos(prefetch_count=PREFETCH)
            channels[label].basic_consume(queue, deliver, consumer_tag=label)

        for label in seen:
            start(label)
        for index in range(MESSAGES):
            publisher.basic_publish("", queue, str(index))
        # Nothing is acked yet: each consumer holds its prefetch and not one message more.
        full = lambda: all(len(bodies) == PREFETCH for bodies in seen.values())
        until(connection, full, "two full prefetch windows")
        ready = MESSAGES - 2 * PREFETCH
        until(connection, lambda: count(publisher, queue) == ready, f"{ready} ready messages")
        expect(full(), "more deliveries than the prefetch allows")
        hold = False
        for label in seen:
            settle(label)
        done = lambda: sum(map(len, seen.values())) >= MESSAGES
        until(connection, done, "all messages", common.BULK_SECONDS)
        for label in seen:
            settle(label)
            channels[label].basic_cancel(label)
            channels[label].close()
        common.expect_complete(seen, MESSAGES)
        expect_equal(count(publisher, queue), 0, "messages left after all acks")


def nack_requeue():
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        queue = run.queue("nack")
        channel.queue_declare(queue)
        got = []
        channel.basic_qos(prefetch_count=3)
        for index in range(3):
            channel.basic_publish("", queue, str(index))
        channel.basic_consume(
            queue, lambda _c, method, _p, body: got.append((int(body), method)), consumer_tag="c"
        )
        until(connection, lambda: len(got) == 3, "three deliveries")
        expect_equal([body for body, _ in got], [0, 1, 2], "bodies")
        expect(not any(method.redelivered for _, method in got), "redelivered at first delivery")
        channel.basic_nack(got[1][1].delivery_tag, requeue=True)
        until(connection, lambda: len(got) == 4, "the requeued message")
        expect_equal((got[3][0], got[3][1].redelivered), (1, True), "came back as")
        channel.basic_reject(got[0][1].delivery_tag, requeue=False)
        channel.basic_nack(got[3][1].delivery_tag, multiple=True, requeue=False)
        channel.basic_cancel("c")
        channel.close()
        expect_equal(count(connection.channel(), queue), 0, "messages left")


def get():
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        queue = run.queue("get")
        channel.queue_declare(queue)
        expect(channel.basic_get(queue)[0] is None, "an empty queue gave a message")
        sent = pika.BasicProperties(
            content_type="text/plain",
            content_encoding="identity",
            headers={"text": "\u00fc", "number": 1 << 40, "flag": True, "list": [1, "two"]},
            delivery_mode=2,
            priority=3,
            correlation_id="correlation",
            reply_to="reply",
            message_id="id",
            expiration="3600000",
            timestamp=1_700_000_000,
            type="type",
            app_id="app",
        )
        channel.basic_publish("", queue, b"first", sent)
        channel.basic_publish("", queue, b"")
        method, properties, body = channel.basic_get(queue)
        expect_equal(body, b"first", "body")
        expect_equal(
            (method.exchange, method.routing_key, method.message_count, method.redelivered),
            ("", queue, 1, False),
            "get-ok",
        )
        expect_equal(vars(properties), vars(sent), "properties")
        channel.basic_ack(method.delivery_tag)
        expect_equal(channel.basic_get(queue, auto_ack=True)[2], b"", "second body")
        expect(channel.basic_get(queue)[0] is None, "the queue is not empty")


def mandatory_return():
    with connect() as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        key = run.prefix + ".nowhere"
        try:
            channel.basic_publish("amq.direct", key, b"back", mandatory=True)
        except UnroutableError as error:
            expect_equal(len(error.messages), 1, "returned messages")
            back = error.messages[0]
            got = (back.method.reply_code, back.method.reply_text, back.method.exchange)
            expect_equal(got, (312, "NO_ROUTE", "amq.direct"), "return")
            expect_equal((back.method.routing_key, back.body), (key, b"back"), "return")
            return
        raise AssertionError("an unroutable mandatory message was not returned")


def expect_usable(connection):
    channel = connection.channel()
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"7")
    expect_equal(drain(channel, queue), [7], "a new channel on the same connection")


def passive_missing():
    with connect() as connection:
        channel, missing = connection.channel(), run.prefix + ".missing"
        text = expect_channel_error(
            404, lambda: channel.queue_declare(missing, passive=True), "passive declare"
        )
        expect(missing in text, f"the reply text does not name the queue: {text!r}")
        expect(connection.is_open, "the connection is closed")
        expect_usable(connection)


def exclusive_locked():
    with connect() as second:
        with connect() as owner:
            queue = run.queue("exclusive")
            owner.channel().queue_declare(queue, exclusive=True)
            for passive in (True, False):
                channel = second.channel()
                declare = lambda: channel.queue_declare(queue, passive=passive, exclusive=True)
                expect_channel_error(405, declare, "declare from a second connection")
            channel = second.channel()
            consume = lambda: channel.basic_consume(queue, lambda *_: None)
            expect_channel_error(405, consume, "consume from a second connection")
            expect_usable(second)

        def gone():
            try:
                second.channel().queue_declare(queue, passive=True)
            except ChannelClosedByBroker as error:
                return error.reply_code == 404
            return False

        until(second, gone, "the exclusive queue to go with its connection")


def rpc_reply_to():
    with connect() as server, connect() as client:
        queue = run.queue("rpc")
        answering = server.channel()
        answering.queue_declare(queue)

        def answer(channel, method, properties, body):
            expect(
                properties.reply_to.startswith("amq.rabbitmq.reply-to."),
                f"reply_to was not rewritten: {properties.reply_to!r}",
            )
            same = pika.BasicProperties(correlation_id=properties.correlation_id)
            channel.basic_publish("", properties.reply_to, body + b"!", same)
            channel.basic_ack(method.delivery_tag)

        answering.basic_consume(queue, answer)
        calling, replies = client.channel(), {}

        def reply(_channel, _method, properties, body):
            replies[properties.correlation_id] = body

        calling.basic_consume("amq.rabbitmq.reply-to", reply, auto_ack=True)
        for index in range(10):
            call = pika.BasicProperties(
                reply_to="amq.rabbitmq.reply-to", correlation_id=str(index)
            )
            calling.basic_publish("", queue, str(index), call)
            deadline = time.monotonic() + 10
            while str(index) not in replies:
                expect(time.monotonic() < deadline, f"no reply to call {index}")
                server.process_data_events(time_limit=0.01)
                client.process_data_events(time_limit=0.01)
            expect_equal(replies[str(index)], f"{index}!".encode(), "reply")


def tx():
    with connect() as connection:
        channel, watcher = connection.channel(), connection.channel()
        queue = run.queue("tx")
        channel.queue_declare(queue)
        channel.tx_select()
        for index in range(3):
            channel.basic_publish("", queue, str(index))
        expect_equal(count(watcher, queue), 0, "messages before the commit")
        channel.tx_commit()
        expect_equal(count(watcher, queue), 3, "messages after the commit")
        channel.basic_publish("", queue, b"3")
        channel.tx_rollback()
        channel.tx_commit()
        expect_equal(count(watcher, queue), 3, "messages after the rollback")
        channel.basic_ack(channel.basic_get(queue)[0].delivery_tag)
        channel.tx_commit()
        channel.basic_ack(channel.basic_get(queue)[0].delivery_tag)
        channel.tx_rollback()
        channel.close()
        until(connection, lambda: count(watcher, queue) == 2, "the rolled back ack's message")
        method, _, body = watcher.basic_get(queue, auto_ack=True)
        expect_equal((int(body), method.redelivered), (1, True), "after the rolled back ack")


def close():
    connection = connect()
    first, second = connection.channel(), connection.channel()
    first.close()
    expect(first.is_closed and second.is_open, "closing a channel touched another")
    expect_usable(connection)
    connection.close()
    expect(connection.is_closed and second.is_closed, "the connection is not closed")
    with connect() as again:
        expect_usable(again)


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
    *pika_queues.CHECKS,
]


def sweep():
    """Deletes what the checks left, failed ones included."""
    with connect() as connection:
        for names, delete in ((run.queues, "queue_delete"), (run.exchanges, "exchange_delete")):
            for name in names:
                try:
                    getattr(connection.channel(), delete)(name)
                except AMQPError as error:
                    print(f"sweep: {name}: {error!r}", file=sys.stderr)


def within(seconds, action):
    """Runs the action in a thread; returns its error, or one that says it hung."""
    outcome = []

    def body():
        try:
            action()
            outcome.append(None)
        except Exception as error:
            traceback.print_exc()
            outcome.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no end within {seconds:.0f} s"


def main():
    for name, check in CHECKS:
        bulk = name in ("confirms", "consume-two")
        error = within(common.BULK_SECONDS if bulk else common.CHECK_SECONDS, check)
        if error is None:
            run.passed(name)
        else:
            run.fail(name, error)
    error = within(10.0, sweep)
    if error:
        print(f"sweep: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread that hangs in a check must not keep the process.
    os._exit(1 if run.failed else 0)


if __name__ == "__main__":
    main()
