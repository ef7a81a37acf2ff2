"""What the checks through pika share: the run, its connections and the steps they repeat.

It decides nothing about what a broker must do; the checks do.
"""

import time

import pika
from pika.exceptions import ChannelClosedByBroker

import common
from common import expect, expect_equal

run = common.Run("pika")


def connect(uri=None):
    return pika.BlockingConnection(pika.URLParameters(uri or run.uri))


def until(connection, condition, what, seconds=10.0):
    """Serves the connection until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        expect(time.monotonic() < deadline, f"timed out waiting for {what}")
        connection.process_data_events(time_limit=0.1)


def expect_channel_error(code, action, what):
    try:
        action()
    except ChannelClosedByBroker as error:
        expect_equal(error.reply_code, code, what)
        return error.reply_text
    raise AssertionError(f"{what}: no channel error")


def drain(channel, queue):
    """The bodies in the queue, oldest first."""
    bodies = []
    while True:
        method, _, body = channel.basic_get(queue, auto_ack=True)
        if method is None:
            return bodies
        bodies.append(int(body))


def count(channel, queue):
    return channel.queue_declare(queue, passive=True).method.message_count
