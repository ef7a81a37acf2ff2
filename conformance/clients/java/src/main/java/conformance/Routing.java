package conformance;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Bindings, messages, and which messages, by index, each queue must hold: in order, no others. */
final class Routing {
    /** One queue's binding. */
    static final class Binding {
        final String queue;
        final String key;
        final Map<String, Object> arguments;

        Binding(String queue, String key, Map<String, Object> arguments) {
            this.queue = queue;
            this.key = key;
            this.arguments = arguments;
        }
    }

    /** One message to publish. */
    static final class Message {
        final String key;
        final Map<String, Object> headers;

        Message(String key, Map<String, Object> headers) {
            this.key = key;
            this.headers = headers;
        }
    }

    final List<Binding> bindings;
    final List<Message> messages;
    final Map<String, List<Integer>> wanted;

    private Routing(
            List<Binding> bindings, List<Message> messages, Map<String, List<Integer>> wanted) {
        this.bindings = bindings;
        this.messages = messages;
        this.wanted = wanted;
    }

    private static Binding bind(String queue, String key) {
        return new Binding(queue, key, Map.of());
    }

    private static Binding pdf(String queue, String match) {
        return new Binding(queue, "", Map.of("x-match", match, "kind", "pdf", "pages", 3));
    }

    private static Message send(String key) {
        return new Message(key, Map.of());
    }

    static Map<String, Routing> all() {
        Map<String, Routing> all = new LinkedHashMap<>();
        all.put(
                "direct",
                new Routing(
                        List.of(bind("a", "red"), bind("a", "blue"), bind("b", "green")),
                        List.of(send("red"), send("green"), send("blue"), send("black")),
                        Map.of("a", List.of(0, 2), "b", List.of(1))));
        all.put(
                "fanout",
                new Routing(
                        List.of(bind("a", ""), bind("b", "ignored")),
                        List.of(send(""), send("other")),
                        Map.of("a", List.of(0, 1), "b", List.of(0, 1))));
        all.put(
                "topic",
                new Routing(
                        List.of(
                                bind("a", "stock.*.nyse"),
                                bind("b", "stock.#"),
                                bind("c", "#"),
                                bind("d", "*.usd"),
                                // A second path to the same queue must not make a second copy.
                                bind("b", "stock.usd")),
                        List.of(
                                send("stock.usd.nyse"),
                                send("stock"),
                                send("stock.usd"),
                                send("weather"),
                                send("stock.a.b.nyse")),
                        Map.of(
                                "a", List.of(0),
                                "b", List.of(0, 1, 2, 4),
                                "c", List.of(0, 1, 2, 3, 4),
                                "d", List.of(2))));
        all.put(
                "headers",
                new Routing(
                        List.of(pdf("a", "all"), pdf("b", "any")),
                        List.of(
                                new Message("", Map.of("kind", "pdf", "pages", 3)),
                                new Message("", Map.of("kind", "pdf", "pages", 4)),
                                new Message("", Map.of("kind", "doc")),
                                send("")),
                        Map.of("a", List.of(0), "b", List.of(0, 1))));
        return all;
    }
}
