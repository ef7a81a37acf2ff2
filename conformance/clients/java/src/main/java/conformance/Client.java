package conformance;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.Method;
import com.rabbitmq.client.ShutdownSignalException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * The run: names, connections, deadlines, the report, and what the checks share.
 *
 * <p>Each check runs on connections of its own, in a thread that is given up at its deadline.
 */
public final class Client {
    static final int MESSAGES = 10_000;
    static final int PREFETCH = 100;
    static final long CHECK_SECONDS = 30;
    static final long BULK_SECONDS = 60;
    static final long WAIT_SECONDS = 10;

    /** A check throws to fail; the exception's message is the reason. */
    interface Check {
        void run() throws Exception;
    }

    /** Something that may be asked again until it holds. */
    interface Condition {
        boolean holds() throws Exception;
    }

    final String uri;
    final String prefix;
    private final List<String> queues = Collections.synchronizedList(new ArrayList<>());
    private final List<String> exchanges = Collections.synchronizedList(new ArrayList<>());

    private Client(String uri) {
        this.uri = uri;
        String random = UUID.randomUUID().toString().replace("-", "").substring(0, 12);
        this.prefix = "conformance.amqp-client." + random;
    }

    public static void main(String[] args) {
        String uri = args.length > 0 ? args[0] : System.getenv("AMQP_URI");
        if (uri == null || uri.isEmpty()) {
            System.err.println("usage: Client amqp://user:password@host:port/%2F (or AMQP_URI)");
            System.exit(2);
        }
        Client client = new Client(uri);
        ExecutorService threads = Executors.newCachedThreadPool();
        int failed = 0;
        for (Map.Entry<String, Check> entry : new Checks(client).all().entrySet()) {
            String name = entry.getKey();
            boolean bulk = name.equals("confirms") || name.equals("consume-two");
            String reason =
                    within(threads, bulk ? BULK_SECONDS : CHECK_SECONDS, entry.getValue());
            if (reason == null) {
                System.out.println("ok " + name);
            } else {
                failed++;
                System.out.println("FAIL " + name + ": " + reason.replaceAll("\\s+", " "));
            }
        }
        String reason = within(threads, WAIT_SECONDS, client::sweep);
        if (reason != null) {
            System.err.println("sweep: " + reason);
        }
        // A thread that hangs in a check must not keep the process.
        System.out.flush();
        Runtime.getRuntime().halt(failed == 0 ? 0 : 1);
    }

    /** Runs the check and returns why it failed, or null. */
    private static String within(ExecutorService threads, long seconds, Check check) {
        Callable<Void> body =
                () -> {
                    check.run();
                    return null;
                };
        Future<Void> outcome = threads.submit(body);
        try {
            outcome.get(seconds, TimeUnit.SECONDS);
            return null;
        } catch (TimeoutException hung) {
            outcome.cancel(true);
            return "no end within " + seconds + " s";
        } catch (ExecutionException failure) {
            Throwable error = failure.getCause();
            error.printStackTrace();
            return error instanceof AssertionError ? error.getMessage() : describe(error);
        } catch (InterruptedException stopped) {
            return "interrupted";
        }
    }

    private static String describe(Throwable error) {
        String cause = error.getCause() == null ? "" : " caused by " + error.getCause();
        return error + cause;
    }

    /** A queue name of this run, which the sweep at the end deletes. */
    String queue(String label) {
        queues.add(prefix + "." + label);
        return prefix + "." + label;
    }

    /** An exchange name of this run, which the sweep at the end deletes. */
    String exchange(String label) {
        exchanges.add(prefix + "." + label);
        return prefix + "." + label;
    }

    /** Deletes what the checks left, failed ones included. */
    private void sweep() throws Exception {
        try (Connection connection = connect()) {
            for (String name : queues) {
                connection.createChannel().queueDelete(name);
            }
            for (String name : exchanges) {
                connection.createChannel().exchangeDelete(name);
            }
        }
    }

    ConnectionFactory factory() throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(uri);
        // A connection that heals itself would hide what the broker did to it.
        factory.setAutomaticRecoveryEnabled(false);
        return factory;
    }

    Connection connect() throws Exception {
        return factory().newConnection();
    }

    Channel confirming(Connection connection) throws Exception {
        Channel channel = connection.createChannel();
        channel.confirmSelect();
        return channel;
    }

    static void expect(boolean condition, String message) {
        if (!condition) {
            throw new AssertionError(message);
        }
    }

    static void expectEqual(Object got, Object wanted, String what) {
        expect(Objects.equals(got, wanted), what + ": got " + got + ", wanted " + wanted);
    }

    /** Runs an action that the broker must answer by closing the channel with this code. */
    static String expectChannelError(int code, String what, Check action) throws Exception {
        try {
            action.run();
        } catch (Exception error) {
            Throwable signal = error;
            while (signal != null && !(signal instanceof ShutdownSignalException)) {
                signal = signal.getCause();
            }
            expect(signal != null, what + ": no channel error but " + error);
            expect(!((ShutdownSignalException) signal).isHardError(), what + ": a hard error");
            Method reason = ((ShutdownSignalException) signal).getReason();
            expect(reason instanceof AMQP.Channel.Close, what + ": closed by " + reason);
            AMQP.Channel.Close close = (AMQP.Channel.Close) reason;
            expectEqual(close.getReplyCode(), code, what);
            return close.getReplyText();
        }
        throw new AssertionError(what + ": no channel error");
    }

    static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static String text(byte[] body) {
        return new String(body, StandardCharsets.UTF_8);
    }

    static int number(byte[] body) {
        return Integer.parseInt(text(body));
    }

    static void declareQueue(Channel channel, String name) throws Exception {
        channel.queueDeclare(name, false, false, false, null);
    }

    static int count(Channel channel, String queue) throws Exception {
        return channel.queueDeclarePassive(queue).getMessageCount();
    }

    /** The bodies in the queue, oldest first. */
    static List<Integer> drain(Channel channel, String queue) throws Exception {
        List<Integer> bodies = new ArrayList<>();
        GetResponse response;
        while ((response = channel.basicGet(queue, true)) != null) {
            bodies.add(number(response.getBody()));
        }
        return bodies;
    }

    /** Publishes all messages with up to a thousand confirms outstanding. */
    static void fill(Channel channel, String queue) throws Exception {
        for (int index = 0; index < MESSAGES; index++) {
            channel.basicPublish("", queue, null, bytes(String.valueOf(index)));
            if (index % 1000 == 999) {
                channel.waitForConfirmsOrDie(TimeUnit.SECONDS.toMillis(BULK_SECONDS));
            }
        }
    }

    static void until(String what, Condition condition) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(WAIT_SECONDS);
        while (!condition.holds()) {
            expect(System.nanoTime() < deadline, "timed out waiting for " + what);
            Thread.sleep(10);
        }
    }

    static Delivery receive(BlockingQueue<Delivery> deliveries, String what) throws Exception {
        Delivery delivery = deliveries.poll(WAIT_SECONDS, TimeUnit.SECONDS);
        expect(delivery != null, "timed out waiting for " + what);
        return delivery;
    }

    /** Shows that a connection still works, with a new channel. */
    void expectUsable(Connection connection) throws Exception {
        Channel channel = confirming(connection);
        String queue = channel.queueDeclare().getQueue();
        channel.basicPublish("", queue, null, bytes("7"));
        channel.waitForConfirmsOrDie(TimeUnit.SECONDS.toMillis(WAIT_SECONDS));
        expectEqual(drain(channel, queue), List.of(7), "a new channel on the same connection");
    }
}
