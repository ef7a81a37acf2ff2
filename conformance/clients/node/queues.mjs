// The checks of what queues do with messages by themselves, through amqplib.
//
// Times are short, but no check relies on a broker being quick: what must go is waited for.

import { setTimeout as pause } from 'node:timers/promises';
import assert from 'node:assert/strict';
import {
  channelOf, confirmingChannelOf, connect, count, drain, exchangeName, expectChannelError,
  prefix, queueName, until, withConnection,
} from './session.mjs';

const TTL_MS = 300;
const EXPIRES_MS = 300;
const ROUNDS = 3;
const DELIVERY_LIMIT = 2;

async function declare(channel, label, options = {}) {
  const queue = queueName(label);
  await channel.assertQueue(queue, { durable: false, ...options });
  return queue;
}

// Publishes to the queue; whether the broker acked it.
function send(channel, queue, body, properties = {}) {
  return new Promise((resolve) => {
    const onConfirm = (error) => resolve(!error);
    channel.sendToQueue(queue, Buffer.from(String(body)), properties, onConfirm);
  });
}

async function sendAll(channel, queue, number) {
  const acked = [];
  for (let body = 0; body < number; body++) acked.push(await send(channel, queue, body));
  return acked;
}

// Waits for a message in the queue.
async function get(channel, queue) {
  let message;
  const there = async () => (message = await channel.get(queue, { noAck: true }));
  await until(there, `a message in ${queue}`);
  return message;
}

// A consumer that settles nothing, and what it got.
async function consume(connection, queue, prefetch = 0, options = {}) {
  const consumer = { channel: await channelOf(connection), got: [] };
  await consumer.channel.prefetch(prefetch);
  const onMessage = (message) => consumer.got.push(message);
  const { consumerTag } = await consumer.channel.consume(queue, onMessage, options);
  consumer.tag = consumerTag;
  consumer.bodies = () => consumer.got.map(({ content }) => Number(content.toString()));
  consumer.wait = async (number) => {
    await until(() => consumer.got.length >= number, `delivery ${number}`);
    assert.equal(consumer.got.length, number, 'deliveries');
    return consumer.got.at(-1);
  };
  return consumer;
}

// Compares an entry of x-death, of a message published to the queue by its name.
function expectDeath(death, queue, reason, times) {
  const got = [death.queue, death.reason, death.count, death.exchange, death['routing-keys']];
  assert.deepEqual(got, [queue, reason, times, '', [queue]], 'x-death');
}

async function ttl() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const byQueue = await declare(channel, 'ttl.queue', { messageTtl: TTL_MS });
    const byMessage = await declare(channel, 'ttl.message', { messageTtl: 3_600_000 });
    const left = async () => [await count(channel, byQueue), await count(channel, byMessage)];
    const began = Date.now();
    await send(channel, byQueue, 0);
    await send(channel, byQueue, 1, { expiration: 3_600_000 });
    await send(channel, byMessage, 2, { expiration: TTL_MS });
    await send(channel, byMessage, 3);
    assert.deepEqual(await left(), [2, 2], 'at first');
    await until(async () => String(await left()) === '0,1', 'the messages to expire');
    // A millisecond less, because both ends are rounded.
    assert.ok(Date.now() - began >= TTL_MS - 1, 'the messages expired early');
    assert.deepEqual(await drain(channel, byQueue), [], 'delivered of the expired');
    assert.deepEqual(await drain(channel, byMessage), [3], 'delivered of the rest');
  });
}

async function queueExpires() {
  await withConnection(async (connection) => {
    const channel = await channelOf(connection);
    const queue = await declare(channel, 'expires', { expires: EXPIRES_MS });
    const consumer = await consume(connection, queue);
    await pause(2 * EXPIRES_MS);
    assert.equal(await count(channel, queue), 0, 'messages in the queue in use');
    await consumer.channel.cancel(consumer.tag);
    // Asking for the queue is a use of it, so it is asked for at longer intervals.
    const gone = async () => {
      await pause(1.5 * EXPIRES_MS);
      const asking = await channelOf(connection);
      return asking.checkQueue(queue).then(() => false, (error) => error.code === 404);
    };
    await until(gone, 'the queue to expire');
  });
}

async function deadLetter() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const exchange = exchangeName('dlx');
    const dead = await declare(channel, 'dead');
    await channel.assertExchange(exchange, 'direct', { durable: false });
    await channel.bindQueue(dead, exchange, 'dead-key');
    const dlx = { deadLetterExchange: exchange, deadLetterRoutingKey: 'dead-key' };
    const rejecting = await declare(channel, 'dl.rejected', dlx);
    const expiring = await declare(channel, 'dl.expired', dlx);
    const short = await declare(channel, 'dl.maxlen', { maxLength: 1, ...dlx });

    const expectDead = async (body, queue, reason, expiration) => {
      const { content, fields, properties } = await get(channel, dead);
      const place = [fields.exchange, fields.routingKey, properties.expiration];
      assert.equal(content.toString(), String(body), 'the dead letter');
      assert.deepEqual(place, [exchange, 'dead-key', undefined], 'where it came from');
      const { headers } = properties;
      const first = ['queue', 'reason', 'exchange'].map((what) => headers[`x-first-death-${what}`]);
      assert.deepEqual(first, [queue, reason, ''], 'first death');
      assert.equal(headers['x-death'].length, 1, 'deaths');
      const [death] = headers['x-death'];
      assert.equal(death['original-expiration'], expiration, 'original expiration');
      expectDeath(death, queue, reason, 1);
      assert.equal(death.time['!'], 'timestamp', 'the type of the time of death');
      const age = Date.now() / 1000 - death.time.value;
      assert.ok(Math.abs(age) < 3600, `the time of death is ${death.time.value}`);
    };

    await send(channel, rejecting, 0);
    channel.reject(await channel.get(rejecting), false);
    await expectDead(0, rejecting, 'rejected');
    await send(channel, expiring, 1, { expiration: 50 });
    await expectDead(1, expiring, 'expired', '50');
    await send(channel, short, 2);
    await send(channel, short, 3);
    await expectDead(2, short, 'maxlen');
    assert.deepEqual(await drain(channel, short), [3], 'left in the short queue');
  });
}

async function retryLoop() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const round = (key) => ({ deadLetterExchange: '', deadLetterRoutingKey: `${prefix}.${key}` });
    const work = await declare(channel, 'retry.work', round('retry.wait'));
    const waiting = { messageTtl: 50, ...round('retry.work') };
    const wait = await declare(channel, 'retry.wait', waiting);
    const consumer = await consume(connection, work);
    await send(channel, work, 7);
    for (let attempt = 1; attempt <= ROUNDS; attempt++) {
      consumer.channel.reject(await consumer.wait(attempt), false);
    }
    const message = await consumer.wait(ROUNDS + 1);
    const came = [message.content.toString(), message.fields.redelivered];
    assert.deepEqual(came, ['7', false], 'came back as');
    const deaths = message.properties.headers['x-death'];
    assert.equal(deaths.length, 2, 'deaths');
    // The last death comes first.
    expectDeath(deaths[0], wait, 'expired', ROUNDS);
    expectDeath(deaths[1], work, 'rejected', ROUNDS);
    consumer.channel.ack(message);
    await consumer.channel.close();
    const left = [await count(channel, work), await count(channel, wait)];
    assert.deepEqual(left, [0, 0], 'messages left');
  });
}

async function maxLength() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const newest = await declare(channel, 'maxlen.drop', { maxLength: 3 });
    assert.ok((await sendAll(channel, newest, 5)).every((acked) => acked), 'a nack of drop-head');
    assert.deepEqual(await drain(channel, newest), [2, 3, 4], 'kept by drop-head');
    const rejecting = { maxLength: 2, overflow: 'reject-publish' };
    const oldest = await declare(channel, 'maxlen.reject', rejecting);
    const acked = await sendAll(channel, oldest, 4);
    assert.deepEqual(acked, [true, true, false, false], 'acked of reject-publish');
    assert.deepEqual(await drain(channel, oldest), [0, 1], 'kept by reject-publish');
    assert.ok(await send(channel, oldest, 4), 'a nack although there is room again');
    const dead = await declare(channel, 'maxlen.dead');
    const passing = await declare(channel, 'maxlen.dlx', {
      maxLength: 1,
      overflow: 'reject-publish-dlx',
      deadLetterExchange: '',
      deadLetterRoutingKey: dead,
    });
    const passed = await sendAll(channel, passing, 2);
    assert.deepEqual(passed, [true, false], 'acked of reject-publish-dlx');
    const { content, properties } = await get(channel, dead);
    assert.equal(content.toString(), '1', 'the dead letter');
    expectDeath(properties.headers['x-death'][0], passing, 'maxlen', 1);
  });
}

async function priorityQueue() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const queue = await declare(channel, 'priority', { maxPriority: 5 });
    for (const [body, priority] of [1, 5, undefined, 3, 9].entries()) {
      await send(channel, queue, body, { priority });
    }
    assert.deepEqual(await drain(channel, queue), [1, 4, 3, 0, 2], 'order');
  });
}

async function singleActive() {
  await withConnection((one) => withConnection(async (three) => {
    const two = await connect();
    const channel = await confirmingChannelOf(three);
    const single = { arguments: { 'x-single-active-consumer': true } };
    const queue = await declare(channel, 'single', single);
    const first = await consume(one, queue);
    const second = await consume(two, queue);
    const third = await consume(three, queue);
    await sendAll(channel, queue, 3);
    first.channel.ack(await first.wait(3), true);
    assert.deepEqual(first.bodies(), [0, 1, 2], "the first consumer's");
    await first.channel.cancel(first.tag);
    await send(channel, queue, 3);
    await second.wait(1);
    assert.deepEqual(second.bodies(), [3], 'after the cancel');
    // What the closed connection held goes to the next consumer.
    await two.close();
    const { content, fields } = await third.wait(1);
    assert.deepEqual([content.toString(), fields.redelivered], ['3', true], 'after the close');
  }));
}

async function consumerPriority() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const queue = await declare(channel, 'consumers');
    const low = await consume(connection, queue);
    const high = await consume(connection, queue, 2, { priority: 10 });
    await sendAll(channel, queue, 4);
    await high.wait(2);
    await low.wait(2);
    assert.deepEqual([high.bodies(), low.bodies()], [[0, 1], [2, 3]], 'the high and the low one');
  });
}

async function deliveryLimit() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const dead = await declare(channel, 'limit.dead');
    const queue = await declare(channel, 'limit', {
      durable: true,
      deadLetterExchange: '',
      deadLetterRoutingKey: dead,
      arguments: { 'x-queue-type': 'quorum', 'x-delivery-limit': DELIVERY_LIMIT },
    });
    await send(channel, queue, 7);
    const consumer = await consume(connection, queue);
    for (let number = 0; number <= DELIVERY_LIMIT; number++) {
      const message = await consumer.wait(number + 1);
      const got = [message.properties.headers['x-delivery-count'], message.fields.redelivered];
      assert.deepEqual(got, [number || undefined, number > 0], 'came as');
      consumer.channel.nack(message, false, true);
    }
    const { content, properties } = await get(channel, dead);
    assert.equal(content.toString(), '7', 'the dead letter');
    expectDeath(properties.headers['x-death'][0], queue, 'delivery_limit', 1);
    assert.equal(consumer.got.length, DELIVERY_LIMIT + 1, 'deliveries');
  });
}

async function quorumDeclare() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const quorum = { 'x-queue-type': 'quorum', 'x-delivery-limit': 3, 'x-max-length': 10 };
    let queue;
    for (let round = 0; round < 2; round++) {
      queue = await declare(channel, 'quorum', { durable: true, arguments: quorum });
    }
    assert.ok(await send(channel, queue, 1, { persistent: true }), 'a nack');
    const { content, fields } = await get(channel, queue);
    assert.deepEqual([content.toString(), fields.redelivered], ['1', false], 'the message');
    const refused = [
      ['the same name as a classic queue', 'quorum', { durable: true }],
      ['a transient quorum queue', 'quorum.refused', { arguments: quorum }],
      [
        'a quorum queue with priorities',
        'quorum.refused',
        { durable: true, maxPriority: 5, arguments: quorum },
      ],
    ];
    for (const [what, label, options] of refused) {
      const other = await channelOf(connection);
      await expectChannelError(406, declare(other, label, options), what);
    }
    assert.equal((await channel.deleteQueue(queue)).messageCount, 0, 'deleted with');
  });
}

export const CHECKS = {
  ttl,
  'queue-expires': queueExpires,
  'dead-letter': deadLetter,
  'retry-loop': retryLoop,
  'max-length': maxLength,
  'priority-queue': priorityQueue,
  'single-active': singleActive,
  'consumer-priority': consumerPriority,
  'delivery-limit': deliveryLimit,
  'quorum-declare': quorumDeclare,
};
