// The conformance checks through amqplib's promise API.
//
// Each check runs on connections of its own and is given up at its deadline. amqplib offers no
// transactions, so that check is not applicable here.

import { setTimeout as pause } from 'node:timers/promises';
import assert from 'node:assert/strict';
import { CHECKS as QUEUE_CHECKS } from './queues.mjs';
import {
  MESSAGES, PREFETCH, CHECK_MS, BULK_MS, uri, prefix, queues, exchanges, open, queueName,
  exchangeName, connect, withConnection, channelOf, confirmingChannelOf, until,
  expectChannelError, publishAll, drain, count, expectUsable,
} from './session.mjs';

async function wrongPassword() {
  const wrong = new URL(uri);
  wrong.username = 'guest';
  wrong.password = 'not the password';
  try {
    await (await connect(wrong.href)).close();
  } catch (error) {
    // amqplib has no class for this: the message with the broker's 403 is its exception.
    assert.match(error.message, /Handshake terminated by server: 403 \(ACCESS-REFUSED\)/);
    return;
  }
  assert.fail('a wrong password was let in');
}

async function declare() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const queue = queueName('declare');
    const exchange = exchangeName('declare');
    for (let round = 0; round < 2; round++) {
      const ok = await channel.assertQueue(queue, { durable: true, maxLength: 1000 });
      assert.deepEqual({ ...ok }, { queue, messageCount: 0, consumerCount: 0 });
      await channel.assertExchange(exchange, 'direct', { durable: true });
    }
    const named = await channel.assertQueue('', { exclusive: true });
    assert.ok(named.queue.startsWith('amq.gen-'), `server-named queue is ${named.queue}`);
    await publishAll(channel, '', [[queue]]);
    assert.equal((await channel.purgeQueue(queue)).messageCount, 1, 'purged');
    const other = await channelOf(connection);
    const inequivalent = other.assertQueue(queue, { durable: false });
    await expectChannelError(406, inequivalent, 'inequivalent declare');
    await channel.deleteExchange(exchange);
    assert.equal((await channel.deleteQueue(queue)).messageCount, 0, 'deleted with');
    await expectChannelError(404, channel.checkExchange(exchange), 'deleted exchange');
  });
}

async function bindDefault() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const names = [queueName('default.a'), queueName('default.b')];
    for (const name of names) await channel.assertQueue(name, { durable: false });
    await publishAll(channel, '', [...names, `${prefix}.nowhere`].map((key) => [key]));
    assert.deepEqual(await drain(channel, names[0]), [0]);
    assert.deepEqual(await drain(channel, names[1]), [1]);
  });
}

// Exchange type -> bindings as [queue, key, arguments], messages as [key, headers], and for each
// queue the indices of the messages that it must hold, in this order and nothing else.
const ROUTING = {
  direct: {
    bindings: [['a', 'red'], ['a', 'blue'], ['b', 'green']],
    messages: [['red'], ['green'], ['blue'], ['black']],
    wanted: { a: [0, 2], b: [1] },
  },
  fanout: {
    bindings: [['a', ''], ['b', 'ignored']],
    messages: [[''], ['other']],
    wanted: { a: [0, 1], b: [0, 1] },
  },
  topic: {
    bindings: [
      ['a', 'stock.*.nyse'],
      ['b', 'stock.#'],
      ['c', '#'],
      ['d', '*.usd'],
      // A second path to the same queue must not make a second copy.
      ['b', 'stock.usd'],
    ],
    messages: [['stock.usd.nyse'], ['stock'], ['stock.usd'], ['weather'], ['stock.a.b.nyse']],
    wanted: { a: [0], b: [0, 1, 2, 4], c: [0, 1, 2, 3, 4], d: [2] },
  },
  headers: {
    bindings: [
      ['a', '', { 'x-match': 'all', kind: 'pdf', pages: 3 }],
      ['b', '', { 'x-match': 'any', kind: 'pdf', pages: 3 }],
    ],
    messages: [
      ['', { kind: 'pdf', pages: 3 }],
      ['', { kind: 'pdf', pages: 4 }],
      ['', { kind: 'doc' }],
      ['', {}],
    ],
    wanted: { a: [0], b: [0, 1] },
  },
};

async function bindType(kind) {
  const { bindings, messages, wanted } = ROUTING[kind];
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const exchange = exchangeName(kind);
    await channel.assertExchange(exchange, kind, { durable: false });
    const names = {};
    for (const label of Object.keys(wanted)) {
      names[label] = queueName(`${kind}.${label}`);
      await channel.assertQueue(names[label], { durable: false });
    }
    for (const [label, key, args] of bindings) {
      await channel.bindQueue(names[label], exchange, key, args);
    }
    await publishAll(channel, exchange, messages);
    for (const [label, bodies] of Object.entries(wanted)) {
      assert.deepEqual(await drain(channel, names[label]), bodies, `routed to ${label}`);
    }
    const [label, key, args] = bindings[0];
    await channel.unbindQueue(names[label], exchange, key, args);
    await publishAll(channel, exchange, messages.slice(0, 1));
    assert.deepEqual(await drain(channel, names[label]), [], 'routed after unbind');
  });
}

async function bindExchange() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const source = exchangeName('source');
    const target = exchangeName('target');
    const queue = queueName('chained');
    await channel.assertExchange(source, 'topic', { durable: false });
    await channel.assertExchange(target, 'fanout', { durable: false });
    await channel.assertQueue(queue, { durable: false });
    await channel.bindQueue(queue, target, '');
    await channel.bindExchange(target, source, 'k.#');
    await publishAll(channel, source, [['k.1'], ['x']]);
    assert.deepEqual(await drain(channel, queue), [0]);
  });
}

async function fill(channel, queue) {
  let confirmed = 0;
  for (let index = 0; index < MESSAGES; index++) {
    const onConfirm = (error) => {
      if (!error) confirmed++;
    };
    const room = channel.sendToQueue(queue, Buffer.from(String(index)), {}, onConfirm);
    if (!room) await new Promise((resolve) => channel.once('drain', resolve));
  }
  await channel.waitForConfirms();
  assert.equal(confirmed, MESSAGES, 'confirms');
}

async function confirms() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const queue = queueName('confirms');
    await channel.assertQueue(queue, { durable: false });
    await fill(channel, queue);
    assert.equal(await count(channel, queue), MESSAGES, 'messages in the queue');
  });
}

// A consumer that acks each message alone, or fifty at a time.
async function startConsumer(connection, queue, step) {
  const channel = await channelOf(connection);
  const consumer = { channel, bodies: [], pending: [], hold: true };
  consumer.settle = (all) => {
    if (step === 1) {
      consumer.pending.forEach((message) => channel.ack(message));
    } else if (consumer.pending.length >= step || (all && consumer.pending.length > 0)) {
      channel.ack(consumer.pending.at(-1), true);
    } else {
      return;
    }
    consumer.pending = [];
  };
  await channel.prefetch(PREFETCH);
  const { consumerTag } = await channel.consume(queue, (message) => {
    consumer.bodies.push(Number(message.content.toString()));
    consumer.pending.push(message);
    if (!consumer.hold) consumer.settle(false);
  });
  consumer.tag = consumerTag;
  return consumer;
}

function expectComplete(consumers) {
  for (const { bodies } of consumers) {
    assert.ok(bodies.length > 0, 'a consumer got nothing');
    const ascending = bodies.every((body, index) => index === 0 || bodies[index - 1] < body);
    assert.ok(ascending, 'a consumer saw messages out of order');
  }
  const all = consumers.flatMap(({ bodies }) => bodies).sort((left, right) => left - right);
  assert.equal(all.length, MESSAGES, 'deliveries');
  assert.ok(all.every((body, index) => body === index), 'a message was lost or came twice');
}

async function consumeTwo() {
  await withConnection(async (connection) => {
    const publisher = await confirmingChannelOf(connection);
    const queue = queueName('consume');
    await publisher.assertQueue(queue, { durable: false });
    const consumers = [
      await startConsumer(connection, queue, 1),
      await startConsumer(connection, queue, 50),
    ];
    await fill(publisher, queue);
    // Nothing is acked yet: each consumer holds its prefetch and not one message more.
    const full = () => consumers.every(({ bodies }) => bodies.length === PREFETCH);
    await until(full, 'two full prefetch windows');
    assert.equal(await count(publisher, queue), MESSAGES - 2 * PREFETCH, 'ready messages');
    assert.ok(full(), 'more deliveries than the prefetch allows');
    for (const consumer of consumers) {
      consumer.hold = false;
      consumer.settle(false);
    }
    const total = () => consumers.reduce((sum, { bodies }) => sum + bodies.length, 0);
    // The last few messages wait in a batch that never fills, so they are settled here.
    await until(() => total() >= MESSAGES, 'all messages', BULK_MS);
    for (const consumer of consumers) {
      consumer.settle(true);
      await consumer.channel.cancel(consumer.tag);
      await consumer.channel.close();
    }
    expectComplete(consumers);
    assert.equal(await count(publisher, queue), 0, 'messages left after all acks');
  });
}

async function nackRequeue() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const queue = queueName('nack');
    await channel.assertQueue(queue, { durable: false });
    await channel.prefetch(3);
    await publishAll(channel, '', [[queue], [queue], [queue]]);
    const got = [];
    const { consumerTag } = await channel.consume(queue, (message) => got.push(message));
    await until(() => got.length === 3, 'three deliveries');
    assert.deepEqual(got.map(({ content }) => Number(content.toString())), [0, 1, 2]);
    assert.ok(!got.some(({ fields }) => fields.redelivered), 'redelivered at first delivery');
    channel.nack(got[1], false, true);
    await until(() => got.length === 4, 'the requeued message');
    assert.equal(got[3].content.toString(), '1', 'came back as');
    assert.equal(got[3].fields.redelivered, true, 'the redelivered flag');
    channel.reject(got[0], false);
    channel.nack(got[3], true, false);
    await channel.cancel(consumerTag);
    await channel.close();
    assert.equal(await count(await channelOf(connection), queue), 0, 'messages left');
  });
}

async function getOne() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const queue = queueName('get');
    await channel.assertQueue(queue, { durable: false });
    assert.equal(await channel.get(queue), false, 'an empty queue gave a message');
    const sent = {
      contentType: 'text/plain',
      contentEncoding: 'identity',
      headers: { text: '\u00fc', number: 2 ** 40, flag: true, list: [1, 'two'] },
      deliveryMode: 2,
      priority: 3,
      correlationId: 'correlation',
      replyTo: 'reply',
      messageId: 'id',
      expiration: '3600000',
      timestamp: 1_700_000_000,
      type: 'type',
      appId: 'app',
    };
    channel.sendToQueue(queue, Buffer.from('first'), sent);
    channel.sendToQueue(queue, Buffer.alloc(0));
    await channel.waitForConfirms();
    const message = await channel.get(queue);
    assert.equal(message.content.toString(), 'first', 'body');
    const { exchange, routingKey, messageCount, redelivered } = message.fields;
    assert.deepEqual([exchange, routingKey, messageCount, redelivered], ['', queue, 1, false]);
    for (const [field, value] of Object.entries(sent)) {
      assert.deepEqual(message.properties[field], value, field);
    }
    channel.ack(message);
    assert.equal((await channel.get(queue, { noAck: true })).content.length, 0, 'second body');
    assert.equal(await channel.get(queue), false, 'the queue is not empty');
  });
}

async function mandatoryReturn() {
  await withConnection(async (connection) => {
    const channel = await confirmingChannelOf(connection);
    const order = [];
    channel.on('return', (message) => order.push(message));
    const key = `${prefix}.nowhere`;
    const onConfirm = (error) => order.push(error ?? 'confirmed');
    channel.publish('amq.direct', key, Buffer.from('back'), { mandatory: true }, onConfirm);
    await channel.waitForConfirms();
    assert.equal(order.length, 2, 'the return and the confirm');
    const [back, confirmed] = order;
    const { replyCode, replyText, exchange, routingKey } = back.fields;
    const wanted = [312, 'NO_ROUTE', 'amq.direct', key];
    assert.deepEqual([replyCode, replyText, exchange, routingKey], wanted);
    assert.equal(back.content.toString(), 'back', 'returned body');
    assert.equal(confirmed, 'confirmed', 'the confirm comes after the return');
  });
}

async function passiveMissing() {
  await withConnection(async (connection) => {
    const channel = await channelOf(connection);
    const missing = `${prefix}.missing`;
    const text = await expectChannelError(404, channel.checkQueue(missing), 'passive declare');
    assert.ok(text.includes(missing), `the reply text does not name the queue: ${text}`);
    assert.deepEqual(connection.errors, [], 'errors on the connection');
    await expectUsable(connection);
  });
}

async function exclusiveLocked() {
  await withConnection(async (second) => {
    const queue = queueName('exclusive');
    await withConnection(async (owner) => {
      await (await channelOf(owner)).assertQueue(queue, { exclusive: true });
      const attempts = {
        check: (channel) => channel.checkQueue(queue),
        declare: (channel) => channel.assertQueue(queue, { exclusive: true }),
        consume: (channel) => channel.consume(queue, () => {}),
      };
      for (const [what, attempt] of Object.entries(attempts)) {
        const channel = await channelOf(second);
        await expectChannelError(405, attempt(channel), `${what} from a second connection`);
      }
      await expectUsable(second);
    });
    const gone = async () => {
      const channel = await channelOf(second);
      return channel.checkQueue(queue).then(() => false, (error) => error.code === 404);
    };
    await until(gone, 'the exclusive queue to go with its connection');
  });
}

async function rpcReplyTo() {
  await withConnection((server) => withConnection(async (client) => {
    const answering = await channelOf(server);
    const queue = queueName('rpc');
    await answering.assertQueue(queue, { durable: false });
    const replyNames = [];
    await answering.consume(queue, (message) => {
      const { replyTo, correlationId } = message.properties;
      replyNames.push(replyTo);
      answering.sendToQueue(replyTo, Buffer.from(`${message.content}!`), { correlationId });
      answering.ack(message);
    });
    const calling = await channelOf(client);
    const replies = [];
    const pseudo = 'amq.rabbitmq.reply-to';
    await calling.consume(pseudo, (message) => replies.push(message), { noAck: true });
    for (let index = 0; index < 10; index++) {
      const call = { replyTo: pseudo, correlationId: String(index) };
      calling.sendToQueue(queue, Buffer.from(String(index)), call);
      await until(() => replies.length > index, `the reply to call ${index}`);
      assert.equal(replies[index].content.toString(), `${index}!`, 'reply');
      assert.equal(replies[index].properties.correlationId, String(index), 'correlation');
    }
    const rewritten = (name) => name.startsWith('amq.rabbitmq.reply-to.');
    assert.ok(replyNames.every(rewritten), `reply_to was not rewritten: ${replyNames[0]}`);
  }));
}

async function close() {
  const connection = await connect();
  const closed = new Promise((resolve) => connection.once('close', resolve));
  const first = await channelOf(connection);
  const second = await channelOf(connection);
  await first.close();
  await second.assertQueue('', { exclusive: true });
  await expectUsable(connection);
  await connection.close();
  const error = await closed;
  assert.ok(!error, `closed with ${error}`);
  assert.deepEqual(connection.errors, [], 'errors on the connection');
  await withConnection(expectUsable);
}

const CHECKS = {
  'wrong-password': wrongPassword,
  declare,
  'bind-default': bindDefault,
  ...Object.fromEntries(Object.keys(ROUTING).map((kind) => [`bind-${kind}`, () => bindType(kind)])),
  'bind-exchange': bindExchange,
  confirms,
  'consume-two': consumeTwo,
  'nack-requeue': nackRequeue,
  get: getOne,
  'mandatory-return': mandatoryReturn,
  'passive-missing': passiveMissing,
  'exclusive-locked': exclusiveLocked,
  'rpc-reply-to': rpcReplyTo,
  close,
  ...QUEUE_CHECKS,
};

async function within(ms, action) {
  const timer = new AbortController();
  const hung = pause(ms, undefined, { signal: timer.signal }).then(() => {
    throw new Error(`no end within ${ms / 1000} s`);
  });
  hung.catch(() => {});
  try {
    await Promise.race([action(), hung]);
  } finally {
    timer.abort();
  }
}

// Deletes what the checks left, failed ones included, and drops the connections that they kept.
async function sweep() {
  for (const left of open) left.connection.stream.destroy();
  const connection = await connect();
  for (const name of queues) await (await channelOf(connection)).deleteQueue(name);
  for (const name of exchanges) await (await channelOf(connection)).deleteExchange(name);
  await connection.close();
}

let failed = 0;
for (const [name, check] of Object.entries(CHECKS)) {
  try {
    await within(['confirms', 'consume-two'].includes(name) ? BULK_MS : CHECK_MS, check);
    console.log(`ok ${name}`);
  } catch (error) {
    failed++;
    console.error(error);
    console.log(`FAIL ${name}: ${String(error.message).replace(/\s+/g, ' ')}`);
  }
}
console.log('n/a tx: amqplib has no transactions');
await within(10_000, sweep).catch((error) => console.error('sweep:', error));
process.exit(failed ? 1 : 0);
