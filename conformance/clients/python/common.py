"""What the two Python clients share: the run's names, the routing tables and the report.

It knows no AMQP library, so that neither client's behaviour can leak into the other's checks.
"""

import os
import secrets
import sys
from urllib.parse import quote, urlsplit, urlunsplit

MESSAGES = 10_000
PREFETCH = 100
# A check that hangs is a failed check; the next one still runs, on a connection of its own.
CHECK_SECONDS = 30.0
BULK_SECONDS = 60.0

# A queue's own times in milliseconds: short, yet longer than a busy machine's hiccups.
TTL_MS = 300
EXPIRES_MS = 300
# How often a message goes round in the retry loop, and back into the quorum queue.
ROUNDS = 3
DELIVERY_LIMIT = 2
# The priorities of the messages, by index, in a queue of five, and the order that comes of them.
PRIORITIES = ([1, 5, None, 3, 9], [1, 4, 3, 0, 2])

# exchange type -> (bindings as (queue, key, arguments), messages as (key, headers), and for each
# queue the indices of the messages that it must hold, in this order and nothing else).
ROUTING = {
    "direct": (
        [("a", "red", {}), ("a", "blue", {}), ("b", "green", {})],
        [("red", {}), ("green", {}), ("blue", {}), ("black", {})],
        {"a": [0, 2], "b": [1]},
    ),
    "fanout": (
        [("a", "", {}), ("b", "ignored", {})],
        [("", {}), ("other", {})],
        {"a": [0, 1], "b": [0, 1]},
    ),
    "topic": (
        [
            ("a", "stock.*.nyse", {}),
            ("b", "stock.#", {}),
            ("c", "#", {}),
            ("d", "*.usd", {}),
            # A second path to the same queue must not make a second copy.
            ("b", "stock.usd", {}),
        ],
        [
            ("stock.usd.nyse", {}),
            ("stock", {}),
            ("stock.usd", {}),
            ("weather", {}),
            ("stock.a.b.nyse", {}),
        ],
        {"a": [0], "b": [0, 1, 2, 4], "c": [0, 1, 2, 3, 4], "d": [2]},
    ),
    "headers": (
        [
            ("a", "", {"x-match": "all", "kind": "pdf", "pages": 3}),
            ("b", "", {"x-match": "any", "kind": "pdf", "pages": 3}),
        ],
        [
            ("", {"kind": "pdf", "pages": 3}),
            ("", {"kind": "pdf", "pages": 4}),
            ("", {"kind": "doc"}),
            ("", {}),
        ],
        {"a": [0], "b": [0, 1]},
    ),
}


class Run:
    """One run against one broker: the URI, unique names, and the outcome of each check."""

    def __init__(self, client):
        arguments = [arg for arg in sys.argv[1:] if arg]
        self.uri = arguments[0] if arguments else os.environ.get("AMQP_URI", "")
        if not self.uri:
            sys.exit("usage: PROGRAM amqp://user:password@host:port/%2F   (or set AMQP_URI)")
        self.prefix = f"conformance.{client}.{secrets.token_hex(6)}"
        self.queues = []
        self.exchanges = []
        self.failed = 0

    def queue(self, label):
        """A queue name of this run, which the sweep at the end deletes."""
        name = f"{self.prefix}.{label}"
        self.queues.append(name)
        return name

    def exchange(self, label):
        """An exchange name of this run, which the sweep at the end deletes."""
        name = f"{self.prefix}.{label}"
        self.exchanges.append(name)
        return name

    def wrong_password_uri(self):
        """The run's URI as the user guest with a password that is not his."""
        parts = urlsplit(self.uri)
        address = parts.netloc.rpartition("@")[2]
        netloc = f"guest:{quote('not the password')}@{address}"
        return urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))

    def passed(self, name):
        print(f"ok {name}", flush=True)

    def fail(self, name, reason):
        self.failed += 1
        print(f"FAIL {name}: {' '.join(str(reason).split())}", flush=True)


def expect(condition, message):
    """Fails the check with a reason; `assert` would vanish under -O."""
    if not condition:
        raise AssertionError(message)


def expect_equal(actual, wanted, what):
    expect(actual == wanted, f"{what}: got {actual!r}, wanted {wanted!r}")


def expect_complete(seen, messages):
    """Checks what two consumers saw: everything once, each in ascending order, both some."""
    for label, bodies in seen.items():
        expect(bodies, f"consumer {label} got nothing")
        expect(
            all(left < right for left, right in zip(bodies, bodies[1:])),
            f"consumer {label} saw messages out of order",
        )
    everything = sorted(body for bodies in seen.values() for body in bodies)
    expect_equal(len(everything), messages, "deliveries")
    expect(everything == list(range(messages)), "a message was lost or came twice")


def expect_death(death, queue, reason, times):
    """Compares an entry of x-death, of a message published to the queue by its name."""
    got = [death.get(field) for field in ("queue", "reason", "count", "exchange", "routing-keys")]
    expect_equal(got, [queue, reason, times, "", [queue]], "x-death")
