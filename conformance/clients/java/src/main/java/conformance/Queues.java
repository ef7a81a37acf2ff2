package conformance;

import static conformance.Client.bytes;
import static conformance.Client.count;
import static conformance.Client.drain;
import static conformance.Client.expect;
import static conformance.Client.expectChannelError;
import static conformance.Client.expectEqual;
import static conformance.Client.number;
import static conformance.Client.receive;
import static conformance.Client.until;

import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.Envelope;
import com.rabbitmq.client.GetResponse;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * The checks of what queues do with messages by themselves.
 *
 * <p>Times are short, but no check relies on a broker being quick: what must go is waited for.
 */
final class Queues {
    private static final int TTL_MILLIS = 300;
    private static final int EXPIRES_MILLIS = 300;
    private static final long ROUNDS = 3;
    private static final int DELIVERY_LIMIT = 2;

    private final Client client;

    Queues(Client client) {
        this.client = client;
    }

    Map<String, Client.Check> all() {
        Map<String, Client.Check> all = new LinkedHashMap<>();
        all.put("ttl", this::ttl);
        all.put("queue-expires", this::queueExpires);
        all.put("dead-letter", this::deadLetter);
        all.put("retry-loop", this::retryLoop);
        all.put("max-length", this::maxLength);
        all.put("priority-queue", this::priorityQueue);
        all.put("single-active", this::singleActive);
        all.put("consumer-priority", this::consumerPriority);
        all.put("delivery-limit", this::deliveryLimit);
        all.put("quorum-declare", this::quorumDeclare);
        return all;
    }

    private String declare(
            Channel channel, String label, boolean durable, Map<String, Object> arguments)
            throws Exception {
        String queue = client.queue(label);
        channel.queueDeclare(queue, durable, false, false, arguments);
        return queue;
    }

    private String declare(Channel channel, String label, Map<String, Object> arguments)
            throws Exception {
        return declare(channel, label, false, arguments);
    }

    /** Publishes to the queue; whether the broker acked it. */
    private static boolean send(
            Channel channel, String queue, int body, BasicProperties.Builder properties)
            throws Exception {
        channel.basicPublish("", queue, properties.build(), bytes(String.valueOf(body)));
        return channel.waitForConfirms(TimeUnit.SECONDS.toMillis(Client.WAIT_SECONDS));
    }

    private static List<Boolean> sendAll(Channel channel, String queue, int number)
            throws Exception {
        List<Boolean> acked = new ArrayList<>();
        for (int body = 0; body < number; body++) {
            acked.add(send(channel, queue, body, plain()));
        }
        return acked;
    }

    private static BasicProperties.Builder plain() {
        return new BasicProperties.Builder();
    }

    /** Waits for a message in the queue. */
    private static GetResponse await(Channel channel, String queue) throws Exception {
        GetResponse[] got = new GetResponse[1];
        until(
                "a message in " + queue,
                () -> {
                    got[0] = channel.basicGet(queue, true);
                    return got[0] != null;
                });
        return got[0];
    }

    /** A consumer that settles nothing, and what it got. */
    private static final class Consumer {
        final Channel channel;
        final String tag;
        final BlockingQueue<Delivery> arrived = new LinkedBlockingQueue<>();

        Consumer(Connection connection, String queue, int prefetch, Map<String, Object> arguments)
                throws Exception {
            channel = connection.createChannel();
            channel.basicQos(prefetch);
            tag =
                    channel.basicConsume(
                            queue,
                            false,
                            arguments,
                            (ignored, delivery) -> arrived.add(delivery),
                            ignored -> {});
        }

        Consumer(Connection connection, String queue) throws Exception {
            this(connection, queue, 0, Map.of());
        }

        /** Receives so many deliveries, of these bodies, and returns the last one's envelope. */
        Envelope expectBodies(String what, Integer... bodies)
                throws Exception {
            List<Integer> got = new ArrayList<>();
            Delivery last = null;
            for (int index = 0; index < bodies.length; index++) {
                last = receive(arrived, what);
                got.add(number(last.getBody()));
            }
            expectEqual(got, Arrays.asList(bodies), what);
            return last.getEnvelope();
        }
    }

    @SuppressWarnings("unchecked")
    private static List<Map<String, Object>> deaths(BasicProperties properties) {
        return (List<Map<String, Object>>) properties.getHeaders().get("x-death");
    }

    /** Compares an entry of x-death, of a message published to the queue by its name. */
    private static void expectDeath(
            Map<String, Object> death, String queue, String reason, long times) {
        expectEqual(String.valueOf(death.get("queue")), queue, "the queue of x-death");
        expectEqual(String.valueOf(death.get("reason")), reason, "the reason of x-death");
        expectEqual(death.get("count"), times, "the count of x-death");
        expectEqual(String.valueOf(death.get("exchange")), "", "the exchange of x-death");
        String keys = String.valueOf(death.get("routing-keys"));
        expectEqual(keys, "[" + queue + "]", "the routing keys of x-death");
    }

    private void ttl() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String byQueue = declare(channel, "ttl.queue", Map.of("x-message-ttl", TTL_MILLIS));
            String byMessage = declare(channel, "ttl.message", Map.of("x-message-ttl", 3_600_000));
            long began = System.nanoTime();
            send(channel, byQueue, 0, plain());
            send(channel, byQueue, 1, plain().expiration("3600000"));
            send(channel, byMessage, 2, plain().expiration(String.valueOf(TTL_MILLIS)));
            send(channel, byMessage, 3, plain());
            expectEqual(count(channel, byQueue), 2, "messages at first");
            expectEqual(count(channel, byMessage), 2, "messages at first");
            until("the queue's messages to expire", () -> count(channel, byQueue) == 0);
            until("the message to expire", () -> count(channel, byMessage) == 1);
            long took = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - began);
            expect(took >= TTL_MILLIS, "the messages expired early, after " + took + " ms");
            expectEqual(drain(channel, byQueue), List.of(), "delivered of the expired");
            expectEqual(drain(channel, byMessage), List.of(3), "delivered of the rest");
        }
    }

    private void queueExpires() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = connection.createChannel();
            String queue = declare(channel, "expires", Map.of("x-expires", EXPIRES_MILLIS));
            Consumer consumer = new Consumer(connection, queue);
            Thread.sleep(2 * EXPIRES_MILLIS);
            expectEqual(count(channel, queue), 0, "messages in the queue in use");
            consumer.channel.basicCancel(consumer.tag);
            // Asking for the queue is a use of it, so it is asked for at longer intervals.
            until(
                    "the queue to expire",
                    () -> {
                        Thread.sleep(3 * EXPIRES_MILLIS / 2);
                        try {
                            connection.createChannel().queueDeclarePassive(queue);
                            return false;
                        } catch (IOException refused) {
                            return String.valueOf(refused.getCause()).contains("code=404");
                        }
                    });
        }
    }

    private void deadLetter() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String exchange = client.exchange("dlx");
            String dead = declare(channel, "dead", Map.of());
            channel.exchangeDeclare(exchange, "direct");
            channel.queueBind(dead, exchange, "dead-key");
            Map<String, Object> dlx = new HashMap<>();
            dlx.put("x-dead-letter-exchange", exchange);
            dlx.put("x-dead-letter-routing-key", "dead-key");
            String rejecting = declare(channel, "dl.rejected", dlx);
            String expiring = declare(channel, "dl.expired", dlx);
            dlx.put("x-max-length", 1);
            String shortened = declare(channel, "dl.maxlen", dlx);

            send(channel, rejecting, 0, plain());
            GetResponse got = channel.basicGet(rejecting, false);
            channel.basicReject(got.getEnvelope().getDeliveryTag(), false);
            expectDead(await(channel, dead), exchange, 0, rejecting, "rejected", null);
            send(channel, expiring, 1, plain().expiration("50"));
            expectDead(await(channel, dead), exchange, 1, expiring, "expired", "50");
            send(channel, shortened, 2, plain());
            send(channel, shortened, 3, plain());
            expectDead(await(channel, dead), exchange, 2, shortened, "maxlen", null);
            expectEqual(drain(channel, shortened), List.of(3), "left in the short queue");
        }
    }

    private static void expectDead(
            GetResponse letter,
            String exchange,
            int body,
            String queue,
            String reason,
            String expiration) {
        expectEqual(number(letter.getBody()), body, "the dead letter");
        expectEqual(letter.getEnvelope().getExchange(), exchange, "dead-lettered through");
        expectEqual(letter.getEnvelope().getRoutingKey(), "dead-key", "dead-lettered with the key");
        BasicProperties properties = letter.getProps();
        expectEqual(properties.getExpiration(), null, "the expiration of a dead letter");
        Map<String, Object> headers = properties.getHeaders();
        expectEqual(String.valueOf(headers.get("x-first-death-queue")), queue, "first queue");
        expectEqual(String.valueOf(headers.get("x-first-death-reason")), reason, "first reason");
        expectEqual(String.valueOf(headers.get("x-first-death-exchange")), "", "first exchange");
        expectEqual(deaths(properties).size(), 1, "deaths");
        Map<String, Object> death = deaths(properties).get(0);
        expectDeath(death, queue, reason, 1);
        Object original = death.get("original-expiration");
        expectEqual(
                original == null ? null : original.toString(), expiration, "original expiration");
        expect(death.get("time") instanceof Date, "the time of death is " + death.get("time"));
        long age = System.currentTimeMillis() - ((Date) death.get("time")).getTime();
        expect(Math.abs(age) < 3_600_000, "the time of death is " + death.get("time"));
    }

    private void retryLoop() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            Map<String, Object> round = new HashMap<>();
            round.put("x-dead-letter-exchange", "");
            round.put("x-dead-letter-routing-key", client.prefix + ".retry.wait");
            String work = declare(channel, "retry.work", round);
            round.put("x-dead-letter-routing-key", work);
            round.put("x-message-ttl", 50);
            String wait = declare(channel, "retry.wait", round);
            Consumer consumer = new Consumer(connection, work);
            send(channel, work, 7, plain());
            for (int attempt = 0; attempt < ROUNDS; attempt++) {
                long tag = consumer.expectBodies("an attempt", 7).getDeliveryTag();
                consumer.channel.basicReject(tag, false);
            }
            Delivery last = receive(consumer.arrived, "the last attempt");
            expectEqual(number(last.getBody()), 7, "came back");
            expect(!last.getEnvelope().isRedeliver(), "came back as redelivered");
            List<Map<String, Object>> deaths = deaths(last.getProperties());
            expectEqual(deaths.size(), 2, "deaths");
            // The last death comes first.
            expectDeath(deaths.get(0), wait, "expired", ROUNDS);
            expectDeath(deaths.get(1), work, "rejected", ROUNDS);
            consumer.channel.basicAck(last.getEnvelope().getDeliveryTag(), false);
            consumer.channel.close();
            expectEqual(count(channel, work) + count(channel, wait), 0, "messages left");
        }
    }

    private void maxLength() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String newest = declare(channel, "maxlen.drop", Map.of("x-max-length", 3));
            expect(!sendAll(channel, newest, 5).contains(false), "a nack of drop-head");
            expectEqual(drain(channel, newest), List.of(2, 3, 4), "kept by drop-head");
            Map<String, Object> rejecting = new HashMap<>();
            rejecting.put("x-max-length", 2);
            rejecting.put("x-overflow", "reject-publish");
            String oldest = declare(channel, "maxlen.reject", rejecting);
            List<Boolean> half = List.of(true, true, false, false);
            expectEqual(sendAll(channel, oldest, 4), half, "acked of reject-publish");
            expectEqual(drain(channel, oldest), List.of(0, 1), "kept by reject-publish");
            expect(send(channel, oldest, 4, plain()), "a nack although there is room again");
            String dead = declare(channel, "maxlen.dead", Map.of());
            rejecting.put("x-max-length", 1);
            rejecting.put("x-overflow", "reject-publish-dlx");
            rejecting.put("x-dead-letter-exchange", "");
            rejecting.put("x-dead-letter-routing-key", dead);
            String passing = declare(channel, "maxlen.dlx", rejecting);
            List<Boolean> acked = sendAll(channel, passing, 2);
            expectEqual(acked, List.of(true, false), "acked of reject-publish-dlx");
            GetResponse letter = await(channel, dead);
            expectEqual(number(letter.getBody()), 1, "the dead letter");
            expectDeath(deaths(letter.getProps()).get(0), passing, "maxlen", 1);
        }
    }

    private void priorityQueue() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String queue = declare(channel, "priority", Map.of("x-max-priority", 5));
            List<Integer> priorities = Arrays.asList(1, 5, null, 3, 9);
            for (int body = 0; body < priorities.size(); body++) {
                send(channel, queue, body, plain().priority(priorities.get(body)));
            }
            expectEqual(drain(channel, queue), List.of(1, 4, 3, 0, 2), "order");
        }
    }

    private void singleActive() throws Exception {
        try (Connection publishing = client.connect();
                Connection one = client.connect();
                Connection three = client.connect()) {
            Connection two = client.connect();
            Channel channel = client.confirming(publishing);
            Map<String, Object> single = Map.of("x-single-active-consumer", true);
            String queue = declare(channel, "single", single);
            Consumer first = new Consumer(one, queue);
            Consumer second = new Consumer(two, queue);
            Consumer third = new Consumer(three, queue);
            sendAll(channel, queue, 3);
            long last = first.expectBodies("the first consumer's", 0, 1, 2).getDeliveryTag();
            first.channel.basicAck(last, true);
            first.channel.basicCancel(first.tag);
            send(channel, queue, 3, plain());
            second.expectBodies("after the cancel", 3);
            // What the closed connection held goes to the next consumer.
            two.close();
            expect(third.expectBodies("after the close", 3).isRedeliver(), "not redelivered");
        }
    }

    private void consumerPriority() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String queue = declare(channel, "consumers", Map.of());
            Consumer low = new Consumer(connection, queue);
            Consumer high = new Consumer(connection, queue, 2, Map.of("x-priority", 10));
            sendAll(channel, queue, 4);
            high.expectBodies("the high consumer's", 0, 1);
            low.expectBodies("the low consumer's", 2, 3);
        }
    }

    private void deliveryLimit() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            String dead = declare(channel, "limit.dead", Map.of());
            Map<String, Object> quorum = new HashMap<>();
            quorum.put("x-queue-type", "quorum");
            quorum.put("x-delivery-limit", DELIVERY_LIMIT);
            quorum.put("x-dead-letter-exchange", "");
            quorum.put("x-dead-letter-routing-key", dead);
            String queue = declare(channel, "limit", true, quorum);
            send(channel, queue, 7, plain());
            Consumer consumer = new Consumer(connection, queue);
            for (int times = 0; times <= DELIVERY_LIMIT; times++) {
                Delivery delivery = receive(consumer.arrived, "a delivery");
                Map<String, Object> headers = delivery.getProperties().getHeaders();
                Object counted = headers == null ? null : headers.get("x-delivery-count");
                String wanted = times == 0 ? "null" : String.valueOf(times);
                expectEqual(String.valueOf(counted), wanted, "x-delivery-count");
                expectEqual(delivery.getEnvelope().isRedeliver(), times > 0, "redelivered");
                consumer.channel.basicNack(delivery.getEnvelope().getDeliveryTag(), false, true);
            }
            GetResponse letter = await(channel, dead);
            expectEqual(number(letter.getBody()), 7, "the dead letter");
            expectDeath(deaths(letter.getProps()).get(0), queue, "delivery_limit", 1);
            expect(consumer.arrived.isEmpty(), "a delivery beyond the limit");
        }
    }

    private void quorumDeclare() throws Exception {
        try (Connection connection = client.connect()) {
            Channel channel = client.confirming(connection);
            Map<String, Object> quorum = new HashMap<>();
            quorum.put("x-queue-type", "quorum");
            quorum.put("x-delivery-limit", 3);
            quorum.put("x-max-length", 10);
            String queue = declare(channel, "quorum", true, quorum);
            declare(channel, "quorum", true, quorum);
            expect(send(channel, queue, 1, plain().deliveryMode(2)), "a nack");
            GetResponse message = await(channel, queue);
            expectEqual(number(message.getBody()), 1, "the message");
            expect(!message.getEnvelope().isRedeliver(), "redelivered at first delivery");
            expectChannelError(
                    406,
                    "the same name as a classic queue",
                    () -> declare(connection.createChannel(), "quorum", true, Map.of()));
            expectChannelError(
                    406,
                    "a transient quorum queue",
                    () -> declare(connection.createChannel(), "quorum.refused", false, quorum));
            quorum.put("x-max-priority", 5);
            expectChannelError(
                    406,
                    "a quorum queue with priorities",
                    () -> declare(connection.createChannel(), "quorum.refused", true, quorum));
            expectEqual(channel.queueDelete(queue).getMessageCount(), 0, "deleted with");
        }
    }
}
