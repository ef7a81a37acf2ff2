"""What the checks through aio-pika share: the run, its connections and the steps they repeat.

It decides nothing about what a broker must do; the checks do.
"""

import asyncio
import time

import aio_pika
from aio_pika import Message

import common
from common import expect

run = common.Run("aio-pika")


async def connect(uri=None):
    return await aio_pika.connect(uri or run.uri, timeout=10)


async def until(condition, what, seconds=10.0):
    """Asks the condition, a coroutine function, until it holds."""
    deadline = time.monotonic() + seconds
    while not await condition():
        expect(time.monotonic() < deadline, f"timed out waiting for {what}")
        await asyncio.sleep(0.01)


async def expect_channel_error(kind, action, what):
    try:
        await action
    except kind as error:
        return str(error)
    raise AssertionError(f"{what}: no channel error")


async def publish(channel, exchange, key, body, headers=None, **more):
    """Publishes and waits for the confirm, as every aio-pika channel does by default."""
    target = channel.default_exchange
    if exchange:
        target = await channel.get_exchange(exchange, ensure=False)
    message = Message(str(body).encode(), headers=headers or {})
    return await target.publish(message, key, mandatory=False, **more)


async def drain(queue):
    """The bodies in the queue, oldest first."""
    bodies = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        bodies.append(int(message.body))
    return bodies


async def count(channel, name):
    queue = await channel.declare_queue(name, passive=True)
    return queue.declaration_result.message_count
