"""What scripts/bench measures: each scenario, what it asks of `leveret perf`, and its figures."""

import time

from . import machine, perf, wire
from .brokers import Failed
from .figures import shown

# Figures: key of `leveret perf --json`, how the table calls it, and its kind.
RATE = ("delivered_per_s", "delivered msgs/s", "rate")
CONFIRMED = ("confirmed_per_s", "confirmed msgs/s", "rate")
CPU = ("broker_cpu_us_per_message", "broker CPU per message", "us")
OWN = ("generator_cpu_us_per_message", "generator CPU per message", "us")
PEAK = ("broker_resident_peak", "broker memory, peak", "bytes")
FLOW = (RATE, CPU, OWN, PEAK)

OPERATIONS = (
    ("operations_per_s", "operations per second", "rate"),
    ("p50_us", "time of one, p50", "us"),
    ("p99_us", "time of one, p99", "us"),
    ("broker_cpu_us_per_operation", "broker CPU for each", "us"),
)

KEPT = "--keep-queues --queue-prefix bench"
ACKED = "--confirms 1000 --ack-every 100 --prefetch 1000"
SIZES = (16, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
SHARES = (10, 25, 50, 75)
COMMON_RATE = 20_000

THROUGHPUT, ROUTING, LATENCY, MEMORY, CLIENTS, SCALE = (
    "Throughput", "Routing", "Latency", "Memory", "Clients and declarations", "Scale",
)

# What takes a broker longer (seconds) is not asked of it ten times over.
PATIENCE = 5


class Scale:
    """How much of everything: a whole run, or a quick one."""

    def __init__(self, is_quick):
        self.sizes = (16, 1024, 65536, 1048576) if is_quick else SIZES
        self.bindings = 10_000 if is_quick else 100_000
        self.backlog = 100_000 if is_quick else 1_000_000
        self.connections = (100, 1000) if is_quick else (100, 1000, 10_000)
        self.shares = (25, 75) if is_quick else SHARES
        self.queues = (1000, 10_000) if is_quick else (10_000, 100_000)
        self.many_bindings = (10_000, 100_000) if is_quick else (10_000, 100_000, 1_000_000)
        self.fan = 100 if is_quick else 1000


class Run:
    """One run of a scenario with one broker: what it may use, and where its figures go. `make`
    gives a fresh broker."""

    def __init__(self, args, scenario, name, make, results):
        self.args, self.scenario, self.name, self.make = args, scenario, name, make
        self.results = results
        self.first_figure = None

    def fresh(self):
        return self.make(self.scenario.has_store)

    def note(self, figure, value, kind, is_compared=True):
        part = self.scenario.name
        self.results.note(part, figure, self.name, value, kind, is_compared=is_compared)
        if self.first_figure is None:
            self.first_figure = f"{figure} {shown(value, kind)}"

    def point(self, plot, line, key, x, y):
        self.results.point(plot, f"{self.name}{line}", key, x, y)

    def perf(self, broker, options, seconds=120, documented=None):
        self.results.command(self.scenario.name, self.name, documented or options)
        figures = perf.run(self.args.binary, broker, options, seconds)
        for remark in figures["notes"]:
            # A busy share differs from run to run, and the rest of the sentence says enough.
            self.results.remark(self.scenario.name, self.name, remark.split(":")[0].strip())
        self.results.head["servers"].setdefault(self.name, figures.get("server"))
        return figures

    def timed(self, broker, options, documented=None):
        """Runs the generator for the time of a measurement."""
        seconds = self.args.seconds
        length = f" --duration {seconds:g}"
        documented = documented + length if documented else None
        return self.perf(broker, (options + length).strip(), seconds, documented)

    def note_all(self, figures, wanted, prefix=""):
        for key, title, kind in wanted:
            if key in figures:
                self.note(prefix + title, figures[key], kind)


class Scenario:
    """`measure` is called with a `Run`; `counted` are options and two numbers of messages, for the
    counting of instructions; `weight` is how long it takes, in measurements."""

    def __init__(self, name, section, title, measure, weight=1, counted=None, has_store=False):
        self.name, self.section, self.title, self.measure = name, section, title, measure
        self.weight, self.counted, self.has_store = weight, counted, has_store


def flow(name, title, options, section=THROUGHPUT, figures=FLOW, counted=None):
    """Messages as fast as they go."""

    def measure(run):
        with run.fresh() as broker:
            run.note_all(run.timed(broker, options), figures)

    return Scenario(name, section, title, measure, counted=counted or (options, 50_000, 250_000))


def churn(name, title, options, has_store=False, counts=(50, 250)):
    options = f"--churn {options}"

    def measure(run):
        with run.fresh() as broker:
            run.note_all(run.timed(broker, options), OPERATIONS)

    counted = (options, *counts)
    return Scenario(name, CLIENTS, title, measure, counted=counted, has_store=has_store)


def sizes(scale):
    def measure(run):
        for size in scale.sizes:
            with run.fresh() as broker:
                figures = run.timed(broker, f"--size {size}")
            prefix = f"{size_name(size)}: "
            run.note_all(figures, (RATE, CPU, PEAK), prefix)
            run.point("sizes", "", size, size, figures["delivered_per_s"])
            run.point("bytes", "", size, size, figures["delivered_per_s"] * size)

    title = "1 producer, 1 queue, 1 consumer, auto-ack, by size of the body"
    counted = ("--size 65536", 1000, 4000)
    return Scenario("sizes", THROUGHPUT, title, measure, weight=len(scale.sizes), counted=counted)


def size_name(size):
    if size < 1024:
        return f"{size} B"
    return f"{size // 1024} KiB" if size < 1024**2 else f"{size // 1024**2} MiB"


def routes(scale):
    """Remembered routes and forgotten ones: few routing keys, and more than anybody remembers."""
    bindings = scale.bindings
    for name, keys, how in (("few-keys", 100, "100"), ("many-keys", 20_000, "20,000")):
        title = f"topic exchange, {bindings:,} bindings, one of which matches, {how} routing keys"
        # Kept, for RabbitMQ takes minutes to delete a queue with so many bindings.
        options = f"--exchange topic --bindings {bindings} --routing-keys {keys} {KEPT}"
        # Below valgrind, so many bindings would take longer than the messages.
        few = f"--exchange topic --bindings 1000 --routing-keys {keys}"
        yield flow(f"topic-{name}", title, options, ROUTING, counted=(few, 50_000, 150_000))


def ping_pong(run):
    with run.fresh() as broker:
        run.note_all(run.timed(broker, "--latency"), PINGS)


PINGS = (
    ("p50_us", "publish to delivery, p50", "us"),
    ("p99_us", "publish to delivery, p99", "us"),
    ("broker_cpu_us_per_round_trip", "broker CPU per round trip", "us"),
)


def beside_flood(run, flood, load, wanted):
    # Longer than the load with its warm-up, which begins when the flood is at its height.
    flood = f"{flood} --duration {run.args.seconds + 4:g}".strip()
    with run.fresh() as broker, perf.Background(run.args.binary, broker, flood) as background:
        run.results.command(run.scenario.name, run.name, f"{flood} &")
        time.sleep(1.5)
        figures = run.timed(broker, load)
        if not background.is_running():
            raise Failed("the flood ended before what was measured beside it")
        run.note_all(figures, wanted)
        run.note_all(background.finish(60), (("delivered_per_s", "flood's msgs/s", "rate"),))


def ping_pong_beside_flood(run):
    beside_flood(run, "", "--latency", PINGS[:2])


def rates(scale):
    def measure(run):
        with run.fresh() as broker:
            most = run.timed(broker, "")["delivered_per_s"]
            run.note("the most it delivers, msgs/s", most, "rate")
            for share in scale.shares:
                # Of other rates: not to be compared.
                at_rate(run, broker, f"{share} % of that", most * share / 100, False)
            if COMMON_RATE < most:
                at_rate(run, broker, f"{COMMON_RATE:,} msgs/s", COMMON_RATE, True)

    title = "from when a message was due to its delivery, 16 B, auto-ack, by rate"
    return Scenario("rates", LATENCY, title, measure, weight=len(scale.shares) + 2)


def at_rate(run, broker, title, rate, is_compared):
    figures = run.timed(broker, f"--latency --rate {rate:.0f}", "--latency --rate RATE")
    for key, name in (("p50_us", "p50"), ("p99_us", "p99"), ("p999_us", "p99.9")):
        run.note(f"{title}: {name}", figures[key], "us", is_compared)
        run.point("latency", f", {name}", title, rate, figures[key])


def fill(scale):
    count = scale.backlog

    def measure(run):
        with run.fresh() as broker:
            figures = run.perf(broker, f"--fill {count} --deadline 300", 300)
        run.note_all(figures, (
            ("filled_per_s", "filled msgs/s", "rate"),
            ("drained_per_s", "drained msgs/s", "rate"),
            ("broker_bytes_per_message", "broker memory for each message", "bytes"),
            ("fill_broker_cpu_us_per_message", "broker CPU per message, filling", "us"),
            ("drain_broker_cpu_us_per_message", "broker CPU per message, draining", "us"),
            PEAK,
        ))

    return Scenario("fill", MEMORY, f"{count:,} messages of 16 B wait, then leave", measure)


def backlog(scale):
    def measure(run):
        with run.fresh() as broker:
            if not broker.pid:
                return
            client, name, waiting = wire.Client(broker.uri), "backlog", 0
            client.declare(name)
            block, count = wire.publish(name) * 1000, 1000
            while count <= scale.backlog:
                for _ in range((count - waiting) // 1000):
                    client.send(block)
                waiting = client.waiting(name)
                # What publishing took for itself is given back by then.
                time.sleep(1)
                run.note(f"{count:,} messages", machine.resident(broker), "bytes")
                run.point("memory", "", count, count, machine.resident(broker))
                count *= 10
            client.delete(name)
            client.close()

    title = "broker memory (resident) with so many messages of 16 B in one queue"
    return Scenario("backlog", MEMORY, title, measure)


def idle(scale):
    figures = (
        ("broker_bytes_per_connection", "broker memory per connection", "bytes"),
        ("broker_cpu_us_per_connection", "broker CPU to open one", "us"),
        ("opened_per_s", "opened one by one, per second", "rate"),
    )

    def measure(run):
        for count in scale.connections:
            with run.fresh() as broker:
                found = run.perf(broker, f"--idle-connections {count} --duration 1", 120)
            run.note_all(found, figures, f"{count:,}: ")
            if "broker_resident" in found:
                run.point("connections", "", count, count, found["broker_resident"])

    title = "so many idle connections, one channel each"
    return Scenario("idle", CLIENTS, title, measure, weight=len(scale.connections))


def newcomers(run):
    wanted = (*OPERATIONS[1:3], ("max_us", "time of one, the longest", "us"))
    beside_flood(run, "--producers 4 --consumers 4", "--churn connections", wanted)


def many(name, title, options, counts, thing):
    """So many of something, as long as the broker does not take too long."""

    def measure(run):
        for count in counts:
            with run.fresh() as broker:
                found = run.perf(broker, f"{options} --count {count}", 300)
            run.note_all(found, (
                ("operations_per_s", "per second", "rate"),
                ("broker_cpu_us_per_operation", "broker CPU for each", "us"),
                ("broker_bytes_per_operation", f"broker memory for each {thing}", "bytes"),
            ), f"{count:,}: ")
            if found["seconds"] > PATIENCE:
                return

    return Scenario(name, SCALE, title, measure, weight=len(counts))


def all_scenarios(is_quick):
    scale = Scale(is_quick)
    return [
        flow("auto-ack", "1 producer, 1 queue, 1 consumer, 16 B, transient, auto-ack", ""),
        flow(
            "confirms",
            "the same with confirms (1,000 outstanding) and manual ack by 100 (prefetch 1,000)",
            ACKED,
            figures=(RATE, CONFIRMED, CPU, OWN, PEAK),
        ),
        flow(
            "one-queue",
            "4 producers, 1 queue, 4 consumers, 16 B, prefetch 100, ack by 10",
            "--producers 4 --consumers 4 --prefetch 100 --ack-every 10",
        ),
        flow(
            "four-queues",
            "4 producers, 4 queues, 4 consumers, 16 B, auto-ack",
            "--producers 4 --queues 4 --consumers 4",
        ),
        sizes(scale),
        flow(
            "priorities",
            "as auto-ack, with a priority queue of 10 levels, all of them in use",
            "--priorities 10",
        ),
        flow(
            "dead-letter",
            "as auto-ack, each message dead-lettered once on its way (it expires in another queue)",
            "--dead-letter",
        ),
        flow(
            "fanout",
            "1 producer, fanout exchange, 10 queues, 10 consumers, 16 B (deliveries are counted)",
            "--exchange fanout --queues 10 --consumers 10",
            ROUTING,
            counted=("--exchange fanout --queues 10 --consumers 10", 5000, 25_000),
        ),
        flow(
            "topic",
            "as auto-ack, through a topic exchange with 1,000 bindings, one of which matches",
            "--exchange topic --bindings 1000",
            ROUTING,
        ),
        *routes(scale),
        Scenario("ping-pong", LATENCY, "one message of 16 B in flight", ping_pong),
        Scenario(
            "flood",
            LATENCY,
            "the same beside a flood of messages through another queue (1 producer, 1 consumer)",
            ping_pong_beside_flood,
            weight=2,
        ),
        Scenario(
            "newcomers",
            LATENCY,
            "a client connects, opens a channel and closes, over and over, beside a flood "
            "(4 producers, 4 consumers, 1 queue)",
            newcomers,
            weight=2,
        ),
        rates(scale),
        fill(scale),
        backlog(scale),
        idle(scale),
        churn(
            "connect",
            "4 clients open a connection with a channel and close it, over and over",
            "connections --producers 4",
        ),
        churn("channels", "1 client opens a channel and closes it", "channels"),
        churn(
            "session",
            "4 clients connect, declare a queue, publish, get and close, over and over",
            "session --producers 4",
        ),
        churn("queues", "1 client declares a queue and deletes it", "queues"),
        churn(
            "declare",
            "1 client declares durable queues and binds each, 50 at once (Leveret with its store)",
            "declare --persistent --pipeline 50",
            has_store=True,
            counts=(500, 2500),
        ),
        many(
            "many-queues",
            "1 client declares so many queues and binds each",
            "--churn declare --pipeline 50",
            scale.queues,
            "queue and its bindings",
        ),
        many(
            "many-bindings",
            "1 client binds one queue with so many keys",
            "--churn bind --pipeline 50",
            scale.many_bindings,
            "binding",
        ),
        flow(
            "wide-fanout",
            f"1 producer, fanout exchange, {scale.fan:,} queues, as many consumers, 16 B "
            "(deliveries are counted)",
            f"--exchange fanout --queues {scale.fan} --consumers {scale.fan}",
            SCALE,
            counted=("--exchange fanout --queues 100 --consumers 100", 500, 1500),
        ),
    ]
