// What the checks through amqplib share: the run, its connections and the steps they repeat.
//
// It decides nothing about what a broker must do; the checks do.

import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import assert from 'node:assert/strict';
import amqp from 'amqplib';

export const MESSAGES = 10_000;
export const PREFETCH = 100;
export const CHECK_MS = 30_000;
export const BULK_MS = 60_000;

export const uri = process.argv[2] || process.env.AMQP_URI;
if (!uri) {
  console.error('usage: client.mjs amqp://user:password@host:port/%2F   (or set AMQP_URI)');
  process.exit(2);
}
export const prefix = `conformance.amqplib.${randomBytes(6).toString('hex')}`;
export const queues = [];
export const exchanges = [];
export const open = new Set();

// Names of this run; the sweep at the end deletes what carries them.
export function queueName(label) {
  queues.push(`${prefix}.${label}`);
  return queues.at(-1);
}

export function exchangeName(label) {
  exchanges.push(`${prefix}.${label}`);
  return exchanges.at(-1);
}

export async function connect(to = uri) {
  const connection = await amqp.connect(to);
  connection.errors = [];
  connection.on('error', (error) => connection.errors.push(error));
  connection.on('close', () => open.delete(connection));
  open.add(connection);
  return connection;
}

export async function withConnection(body) {
  const connection = await connect();
  const result = await body(connection);
  await connection.close();
  assert.deepEqual(connection.errors, [], 'errors on the connection');
  return result;
}

// A channel's errors also reach the caller's promise; without a listener Node would exit.
export async function channelOf(connection) {
  const channel = await connection.createChannel();
  channel.on('error', () => {});
  return channel;
}

export async function confirmingChannelOf(connection) {
  const channel = await connection.createConfirmChannel();
  channel.on('error', () => {});
  return channel;
}

export async function until(condition, what, ms = 10_000) {
  const deadline = Date.now() + ms;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `timed out waiting for ${what}`);
    await pause(10);
  }
}

export async function expectChannelError(code, action, what) {
  try {
    await action;
  } catch (error) {
    assert.equal(error.code, code, `${what}: ${error.message}`);
    return error.message;
  }
  assert.fail(`${what}: no channel error`);
}

export async function publishAll(channel, exchange, messages) {
  messages.forEach(([key, headers], index) => {
    channel.publish(exchange, key, Buffer.from(String(index)), { headers });
  });
  await channel.waitForConfirms();
}

// The bodies in the queue, oldest first.
export async function drain(channel, queue) {
  const bodies = [];
  for (;;) {
    const message = await channel.get(queue, { noAck: true });
    if (!message) return bodies;
    bodies.push(Number(message.content.toString()));
  }
}

export async function count(channel, queue) {
  return (await channel.checkQueue(queue)).messageCount;
}

export async function expectUsable(connection) {
  const channel = await confirmingChannelOf(connection);
  const { queue } = await channel.assertQueue('', { exclusive: true });
  channel.sendToQueue(queue, Buffer.from('7'));
  await channel.waitForConfirms();
  assert.deepEqual(await drain(channel, queue), [7], 'a new channel on the same connection');
}
