package conformance;

import static conformance.Client.MESSAGES;
import static conformance.Client.PREFETCH;
import static conformance.Client.bytes;
import static conformance.Client.count;
import static conformance.Client.declareQueue;
import static conformance.Client.drain;
import static conformance.Client.expect;
import static conformance.Client.expectChannelError;
import static conformance.Client.expectEqual;
import static conformance.Client.fill;
import static conformance.Client.number;
import static conformance.Client.receive;
import static conformance.Client.text;
import static conformance.Client.until;

import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.AMQP.Queue;
import com.rabbitmq.client.AuthenticationFailureException;
import com.rabbitmq.client.CancelCallback;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.LongString;
import com.rabbitmq.client.Return;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.util.Date;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/** The checks: each throws when the broker does not do what RabbitMQ does. */
final class Checks {
    private static final CancelCallback NO_CANCEL = tag -> {};

    private final Client client;

    Checks(Client client) {
        this.client = client;
    }

    Map<String, Client.Check> all() {
        Map<String, Client.Check> all = new LinkedHashMap<>();
        all.put("wrong-password", this::wrongPassword);
        all.put("declare", this::declare);
        all.put("bind-default", this::bindDefault);
        Routing.all().forEach((kind, table) -> all.put("bind-" + kind, () -> bind(kind, table)));
        all.put("bind-exchange", this::bindExchange);
        all.put("confirms", this::confirms);
        all.put("consume-two", this::consumeTwo);
        all.put("nack-requeue", this::nackRequeue);
        all.put("get", this::get);
        all.put("mandatory-return", this::mandatoryReturn);
        all.put("passive-missing", this::passiveMissing);
        all.put("exclusive-locked", this::exclusiveLocked);
        all.put("rpc-reply-to", this::rpcReplyTo);
        all.put("tx", this::tx);
        all.put("close", this::close);
        all.putAll(new Queues(client).all());
        return all;
    }

    private void wrongPassword() throws Exception {
        ConnectionFactory factory = client.factory();
        factory.setUsername("guest");
        factory.setPassword("not the password");
        try {
            factory.newConnection().close();
        } catch (AuthenticationFailureException refused) {
            expect(refused.getMessage().contains("ACCESS_REFUSED"), refused.getMessage());
            return;
        }
        throw new AssertionError("a wrong password was let in");
    }

    private void declare() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String queue = client.queue("declare");
            String exchange = client.exchange("declare");
            for (int round = 0; round < 2; round++) {
                Map<String, Object> arguments = Map.of("x-max-length", 1000);
                Queue.DeclareOk ok = channel.queueDeclare(queue, true, false, false, arguments);
                expectEqual(ok.getQueue(), queue, "declare-ok");
                expectEqual(ok.getMessageCount() + ok.getConsumerCount(), 0, "declare-ok counts");
                channel.exchangeDeclare(exchange, "direct", true);
            }
            String named = channel.queueDeclare().getQueue();
            expect(named.startsWith("amq.gen-"), "server-named queue is " + named);
            publish(channel, "", queue, "1");
            expectEqual(channel.queuePurge(queue).getMessageCount(), 1, "purged");
            expectChannelError(
                    406,
                    "inequivalent declare",
                    () -> declareQueue(connection.createChannel(), queue));
            channel.exchangeDelete(exchange);
            expectEqual(channel.queueDelete(queue).getMessageCount(), 0, "deleted with");
            expectChannelError(
                    404, "deleted exchange", () -> channel.exchangeDeclarePassive(exchange));
        }
    }

    private static void publish(Channel channel, String exchange, String key, String body)
            throws Exception {
        channel.basicPublish(exchange, key, null, bytes(body));
        channel.waitForConfirmsOrDie(TimeUnit.SECONDS.toMillis(Client.WAIT_SECONDS));
    }

    private void bindDefault() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String first = client.queue("default.a");
            String second = client.queue("default.b");
            declareQueue(channel, first);
            declareQueue(channel, second);
            publish(channel, "", first, "0");
            publish(channel, "", second, "1");
            publish(channel, "", client.prefix + ".nowhere", "2");
            expectEqual(drain(channel, first), List.of(0), "routed");
            expectEqual(drain(channel, second), List.of(1), "routed");
        }
    }

    private void bind(String kind, Routing table) throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String exchange = client.exchange(kind);
            channel.exchangeDeclare(exchange, kind);
            Map<String, String> names = new LinkedHashMap<>();
            for (String label : table.wanted.keySet()) {
                names.put(label, client.queue(kind + "." + label));
                declareQueue(channel, names.get(label));
            }
            for (Routing.Binding bound : table.bindings) {
                channel.queueBind(names.get(bound.queue), exchange, bound.key, bound.arguments);
            }
            for (int index = 0; index < table.messages.size(); index++) {
                publish(channel, exchange, table.messages.get(index), index);
            }
            for (String label : names.keySet()) {
                List<Integer> bodies = drain(channel, names.get(label));
                expectEqual(bodies, table.wanted.get(label), "routed to " + label);
            }
            Routing.Binding first = table.bindings.get(0);
            String queue = names.get(first.queue);
            channel.queueUnbind(queue, exchange, first.key, first.arguments);
            publish(channel, exchange, table.messages.get(0), 0);
            expectEqual(drain(channel, queue), List.of(), "routed after unbind");
        }
    }

    private static void publish(
            Channel channel, String exchange, Routing.Message message, int index)
            throws Exception {
        BasicProperties properties = new BasicProperties.Builder().headers(message.headers).build();
        channel.basicPublish(exchange, message.key, properties, bytes(String.valueOf(index)));
        channel.waitForConfirmsOrDie(TimeUnit.SECONDS.toMillis(Client.WAIT_SECONDS));
    }

    private void bindExchange() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String source = client.exchange("source");
            String target = client.exchange("target");
            String queue = client.queue("chained");
            channel.exchangeDeclare(source, "topic");
            channel.exchangeDeclare(target, "fanout");
            declareQueue(channel, queue);
            channel.queueBind(queue, target, "");
            channel.exchangeBind(target, source, "k.#");
            publish(channel, source, "k.1", "0");
            publish(channel, source, "x", "1");
            expectEqual(drain(channel, queue), List.of(0), "routed");
        }
    }

    private void confirms() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String queue = client.queue("confirms");
            declareQueue(channel, queue);
            fill(channel, queue);
            expectEqual(count(channel, queue), MESSAGES, "messages in the queue");
        }
    }

    private void consumeTwo() throws Exception {
        try (Connection publishing = client.connect();
                Connection one = client.connect();
                Connection two = client.connect()) {
            Channel publisher = client.confirming(publishing);
            String queue = client.queue("consume");
            declareQueue(publisher, queue);
            Tally seen = new Tally();
            seen.start(0, one.createChannel(), queue, 1);
            seen.start(1, two.createChannel(), queue, 50);
            fill(publisher, queue);
            // Nothing is acked yet: each consumer holds its prefetch and not one message more.
            until("two full prefetch windows", seen::isFull);
            expectEqual(count(publisher, queue), MESSAGES - 2 * PREFETCH, "ready messages");
            expect(seen.isFull(), "more deliveries than the prefetch allows");
            seen.release();
            seen.finish();
            seen.expectComplete();
            expectEqual(count(publisher, queue), 0, "messages left after all acks");
        }
    }

    private void nackRequeue() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String queue = client.queue("nack");
            declareQueue(channel, queue);
            channel.basicQos(3);
            for (int index = 0; index < 3; index++) {
                publish(channel, "", queue, String.valueOf(index));
            }
            BlockingQueue<Delivery> arrived = new LinkedBlockingQueue<>();
            String tag =
                    channel.basicConsume(
                            queue, false, (ignored, delivery) -> arrived.add(delivery), NO_CANCEL);
            long[] tags = new long[3];
            for (int index = 0; index < 3; index++) {
                Delivery delivery = receive(arrived, "a delivery");
                expectEqual(number(delivery.getBody()), index, "body");
                expect(!delivery.getEnvelope().isRedeliver(), "redelivered at first delivery");
                tags[index] = delivery.getEnvelope().getDeliveryTag();
            }
            channel.basicNack(tags[1], false, true);
            Delivery back = receive(arrived, "the requeued message");
            expectEqual(number(back.getBody()), 1, "came back");
            expect(back.getEnvelope().isRedeliver(), "the redelivered flag is missing");
            channel.basicReject(tags[0], false);
            channel.basicNack(back.getEnvelope().getDeliveryTag(), true, false);
            channel.basicCancel(tag);
            channel.close();
            expectEqual(count(connection.createChannel(), queue), 0, "messages left");
        }
    }

    private void get() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String queue = client.queue("get");
            declareQueue(channel, queue);
            expect(channel.basicGet(queue, false) == null, "an empty queue gave a message");
            Map<String, Object> headers = new LinkedHashMap<>();
            headers.put("number", 1L << 40);
            headers.put("flag", true);
            headers.put("list", List.of(1, 2L));
            BasicProperties.Builder common =
                    new BasicProperties.Builder()
                            .contentType("text/plain")
                            .contentEncoding("identity")
                            .deliveryMode(2)
                            .priority(3)
                            .correlationId("correlation")
                            .replyTo("reply")
                            .messageId("id")
                            .expiration("3600000")
                            .timestamp(new Date(1_700_000_000_000L))
                            .type("type")
                            .appId("app");
            BasicProperties wanted = common.headers(headers).build();
            Map<String, Object> sent = new LinkedHashMap<>(headers);
            sent.put("text", "\u00fc");
            channel.basicPublish("", queue, common.headers(sent).build(), bytes("first"));
            publish(channel, "", queue, "");
            GetResponse first = channel.basicGet(queue, false);
            expectEqual(text(first.getBody()), "first", "body");
            expectEqual(first.getEnvelope().getExchange(), "", "exchange");
            expectEqual(first.getEnvelope().getRoutingKey(), queue, "routing key");
            expectEqual(first.getMessageCount(), 1, "message count");
            expect(!first.getEnvelope().isRedeliver(), "redelivered at first delivery");
            // Texts in tables come back as LongString, so this one is compared by itself.
            Map<String, Object> got = new LinkedHashMap<>(first.getProps().getHeaders());
            LongString text = (LongString) got.remove("text");
            expectEqual(text.toString(), "\u00fc", "text header");
            expectEqual(first.getProps().builder().headers(got).build(), wanted, "properties");
            channel.basicAck(first.getEnvelope().getDeliveryTag(), false);
            expectEqual(channel.basicGet(queue, true).getBody().length, 0, "second body");
            expect(channel.basicGet(queue, false) == null, "the queue is not empty");
        }
    }

    private void mandatoryReturn() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            BlockingQueue<Object> order = new LinkedBlockingQueue<>();
            channel.addReturnListener((Return back) -> order.add(back));
            channel.addConfirmListener(
                    (tag, multiple) -> order.add("ack"), (tag, multiple) -> order.add("nack"));
            String key = client.prefix + ".nowhere";
            channel.basicPublish("amq.direct", key, true, null, bytes("back"));
            Object first = order.poll(Client.WAIT_SECONDS, TimeUnit.SECONDS);
            expect(first instanceof Return, "instead of a return came " + first);
            Return back = (Return) first;
            expectEqual(back.getReplyCode(), 312, "reply code");
            expectEqual(back.getReplyText(), "NO_ROUTE", "reply text");
            expectEqual(back.getExchange() + " " + back.getRoutingKey(), "amq.direct " + key, "to");
            expectEqual(text(back.getBody()), "back", "returned body");
            Object second = order.poll(Client.WAIT_SECONDS, TimeUnit.SECONDS);
            expectEqual(second, "ack", "the confirm after the return");
        }
    }

    private void passiveMissing() throws Exception {
        try (Connection connection = client.connect()) {
            String missing = client.prefix + ".missing";
            Channel channel = connection.createChannel();
            String reason =
                    expectChannelError(
                            404, "passive declare", () -> channel.queueDeclarePassive(missing));
            expect(reason.contains(missing), "the reply text does not name the queue: " + reason);
            expect(connection.isOpen() && !channel.isOpen(), "more than the channel is closed");
            client.expectUsable(connection);
        }
    }

    private void exclusiveLocked() throws Exception {
        String queue = client.queue("exclusive");
        try (Connection second = client.connect()) {
            try (Connection owner = client.connect()) {
                owner.createChannel().queueDeclare(queue, false, true, false, null);
                expectChannelError(
                        405,
                        "passive declare from a second connection",
                        () -> second.createChannel().queueDeclarePassive(queue));
                expectChannelError(
                        405,
                        "declare from a second connection",
                        () -> second.createChannel().queueDeclare(queue, false, true, false, null));
                expectChannelError(
                        405,
                        "consume from a second connection",
                        () ->
                                second.createChannel()
                                        .basicConsume(queue, (tag, delivery) -> {}, NO_CANCEL));
                client.expectUsable(second);
            }
            until("the exclusive queue to go with its connection", () -> isMissing(second, queue));
        }
    }

    private static boolean isMissing(Connection connection, String queue) throws Exception {
        try {
            connection.createChannel().queueDeclarePassive(queue);
            return false;
        } catch (IOException error) {
            return String.valueOf(error.getCause()).contains("reply-code=404");
        }
    }

    private void rpcReplyTo() throws Exception {
        try (Connection server = client.connect();
                Connection caller = client.connect()) {
            String queue = client.queue("rpc");
            Channel answering = server.createChannel();
            declareQueue(answering, queue);
            BlockingQueue<String> replyNames = new LinkedBlockingQueue<>();
            answering.basicConsume(
                    queue,
                    false,
                    (tag, call) -> {
                        BasicProperties asked = call.getProperties();
                        replyNames.add(asked.getReplyTo());
                        BasicProperties answer =
                                new BasicProperties.Builder()
                                        .correlationId(asked.getCorrelationId())
                                        .build();
                        byte[] body = bytes(text(call.getBody()) + "!");
                        answering.basicPublish("", asked.getReplyTo(), answer, body);
                        answering.basicAck(call.getEnvelope().getDeliveryTag(), false);
                    },
                    NO_CANCEL);
            Channel calling = caller.createChannel();
            String pseudo = "amq.rabbitmq.reply-to";
            BlockingQueue<Delivery> replies = new LinkedBlockingQueue<>();
            calling.basicConsume(pseudo, true, (tag, reply) -> replies.add(reply), NO_CANCEL);
            for (int index = 0; index < 10; index++) {
                String id = String.valueOf(index);
                BasicProperties call =
                        new BasicProperties.Builder().replyTo(pseudo).correlationId(id).build();
                calling.basicPublish("", queue, call, bytes(id));
                Delivery reply = receive(replies, "the reply to call " + id);
                expectEqual(reply.getProperties().getCorrelationId(), id, "correlation");
                expectEqual(text(reply.getBody()), id + "!", "reply");
                String name = replyNames.take();
                expect(name.startsWith(pseudo + "."), "reply_to was not rewritten: " + name);
            }
        }
    }

    private void tx() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = connection.createChannel();
            Channel watcher = connection.createChannel();
            String queue = client.queue("tx");
            declareQueue(channel, queue);
            channel.txSelect();
            for (int index = 0; index < 3; index++) {
                channel.basicPublish("", queue, null, bytes(String.valueOf(index)));
            }
            expectEqual(count(watcher, queue), 0, "messages before the commit");
            channel.txCommit();
            expectEqual(count(watcher, queue), 3, "messages after the commit");
            channel.basicPublish("", queue, null, bytes("3"));
            channel.txRollback();
            channel.txCommit();
            expectEqual(count(watcher, queue), 3, "messages after the rollback");
            channel.basicAck(channel.basicGet(queue, false).getEnvelope().getDeliveryTag(), false);
            channel.txCommit();
            channel.basicAck(channel.basicGet(queue, false).getEnvelope().getDeliveryTag(), false);
            channel.txRollback();
            channel.close();
            until("the rolled back ack's message", () -> count(watcher, queue) == 2);
            GetResponse again = watcher.basicGet(queue, true);
            expectEqual(text(again.getBody()), "1", "after the rolled back ack");
            expect(again.getEnvelope().isRedeliver(), "the redelivered flag is missing");
        }
    }

    private void close() throws Exception {
        Connection connection = client.connect();
        CompletableFuture<ShutdownSignalException> closed = new CompletableFuture<>();
        connection.addShutdownListener(closed::complete);
        Channel first = connection.createChannel();
        Channel second = connection.createChannel();
        first.close();
        expect(!first.isOpen() && second.isOpen(), "closing a channel touched another");
        client.expectUsable(connection);
        connection.close();
        ShutdownSignalException signal = closed.get(Client.WAIT_SECONDS, TimeUnit.SECONDS);
        expect(signal.isInitiatedByApplication(), "the broker closed it: " + signal);
        expect(!connection.isOpen() && !second.isOpen(), "the connection is not closed");
        try (Connection again = client.connect()) {
            client.expectUsable(again);
        }
    }
}
