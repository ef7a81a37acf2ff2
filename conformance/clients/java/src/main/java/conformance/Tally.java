package conformance;

import static conformance.Client.MESSAGES;
import static conformance.Client.PREFETCH;
import static conformance.Client.expect;
import static conformance.Client.expectEqual;

import com.rabbitmq.client.Channel;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

/**
 * Two consumers of one queue and what they saw, together.
 *
 * <p>Until {@link #release} they only count; then each acks in steps of its own size.
 */
final class Tally {
    private final Consumer[] consumers = new Consumer[2];
    private final CountDownLatch all = new CountDownLatch(MESSAGES);
    private boolean released;

    /** One consumer, its unacked tags in order, and the bodies that it saw. */
    private static final class Consumer {
        final Channel channel;
        final int step;
        final List<Integer> bodies = new ArrayList<>();
        final List<Long> unacked = new ArrayList<>();
        String tag;

        Consumer(Channel channel, int step) {
            this.channel = channel;
            this.step = step;
        }

        void settle(int step) throws IOException {
            if (unacked.size() < step || unacked.isEmpty()) {
                return;
            }
            if (step == 1 && this.step == 1) {
                for (long tag : unacked) {
                    channel.basicAck(tag, false);
                }
            } else {
                channel.basicAck(unacked.get(unacked.size() - 1), true);
            }
            unacked.clear();
        }
    }

    void start(int which, Channel channel, String queue, int step) throws Exception {
        Consumer consumer = new Consumer(channel, step);
        consumers[which] = consumer;
        channel.basicQos(PREFETCH);
        consumer.tag =
                channel.basicConsume(
                        queue,
                        false,
                        (tag, delivery) -> {
                            synchronized (this) {
                                consumer.bodies.add(Client.number(delivery.getBody()));
                                consumer.unacked.add(delivery.getEnvelope().getDeliveryTag());
                                if (released) {
                                    consumer.settle(consumer.step);
                                }
                            }
                            all.countDown();
                        },
                        tag -> {});
    }

    synchronized boolean isFull() {
        return consumers[0].bodies.size() == PREFETCH && consumers[1].bodies.size() == PREFETCH;
    }

    synchronized void release() throws Exception {
        released = true;
        for (Consumer consumer : consumers) {
            consumer.settle(1);
        }
    }

    /** Waits for all messages, acks the rest and ends the consumers. */
    void finish() throws Exception {
        expect(all.await(Client.BULK_SECONDS, TimeUnit.SECONDS), "timed out waiting for messages");
        for (Consumer consumer : consumers) {
            synchronized (this) {
                consumer.settle(1);
            }
            consumer.channel.basicCancel(consumer.tag);
            consumer.channel.close();
        }
    }

    synchronized void expectComplete() {
        List<Integer> together = new ArrayList<>();
        for (Consumer consumer : consumers) {
            expect(!consumer.bodies.isEmpty(), "a consumer got nothing");
            for (int index = 1; index < consumer.bodies.size(); index++) {
                boolean ascending = consumer.bodies.get(index - 1) < consumer.bodies.get(index);
                expect(ascending, "a consumer saw messages out of order");
            }
            together.addAll(consumer.bodies);
        }
        expectEqual(together.size(), MESSAGES, "deliveries");
        long different = together.stream().distinct().count();
        expectEqual(different, (long) MESSAGES, "different messages");
    }
}
