"""Writes docs/benchmarks.md with its plots."""

import statistics

from . import figures, plots, scenarios

# By name: section, title, both axes, and what a value is divided by.
PLOTS = {
    "sizes": (
        scenarios.THROUGHPUT,
        "Throughput by size of the body",
        {"label": "body", "text": plots.short_bytes, "marks": scenarios.SIZES},
        {"label": "delivered messages per second"},
        1,
    ),
    "bytes": (
        scenarios.THROUGHPUT,
        "Bytes delivered by size of the body",
        {"label": "body", "text": plots.short_bytes, "marks": scenarios.SIZES},
        {"label": "bodies (MB per second)"},
        10**6,
    ),
    "latency": (
        scenarios.LATENCY,
        "End-to-end latency by rate",
        {"label": "messages per second"},
        {"label": "due to delivered (microseconds)"},
        1,
    ),
    "memory": (
        scenarios.MEMORY,
        "Memory by backlog",
        {"label": "messages of 16 B that wait"},
        {"label": "resident memory of the broker (MiB)"},
        1024**2,
    ),
    "connections": (
        scenarios.CLIENTS,
        "Memory by idle connections",
        {"label": "connections"},
        {"label": "resident memory of the broker (MiB)"},
        1024**2,
    ),
}

INTRODUCTION = """\
# Benchmarks

Written by `make bench`; do not edit. The generator, `leveret perf`, shares the machine's
cores with the broker, so that rates depend on both; the broker's CPU time per message
and the ratios between brokers of one run say most. Every run has a fresh broker with
its default settings (Leveret without a store, unless a title says otherwise), and the
brokers take turns. A ratio says how many times better Leveret is: more messages, or less
time or memory. The lines in the plots go through medians, the upright ones from the
lowest value to the highest."""

INSTRUCTIONS = """\
What Leveret itself executes in user space, without a store, counted by valgrind
(`scripts/benchlib/instructions.py` says how). Other work on the machine hardly shows in it, so
that a change by a few percent means something."""


def charts(results):
    """SVG documents by name."""
    names = results.head["names"]
    drawn = {}
    for plot, lines in results.plots.items():
        _, title, x_axis, y_axis, unit = PLOTS[plot]
        drawn_lines, dashes = [], {}
        for name, points in lines.items():
            broker = next(one for one in names if name == one or name.startswith(f"{one},"))
            dash = dashes[broker] = dashes.get(broker, -1) + 1
            medians = [point(values, unit) for values in points.values()]
            drawn_lines.append(plots.Line(name, medians, names.index(broker), dash))
        drawn[plot] = plots.chart(title, x_axis, y_axis, drawn_lines)
    return drawn


def point(values, unit):
    """Median place and spread of what the rounds found."""
    ys = [y / unit for _, y in values]
    return statistics.median(x for x, _ in values), min(ys), statistics.median(ys), max(ys)


def text(results, all_scenarios, plot_files):
    """The document; `plot_files` are the plots' file names by plot."""
    head = results.head
    names = head["names"]
    lines = [INTRODUCTION, "", *head["facts"]]
    section = None
    for scenario in all_scenarios:
        if scenario.name not in results.parts:
            continue
        if scenario.section != section:
            section = scenario.section
            lines += ["", f"## {section}"]
            for plot, file in plot_files.items():
                if PLOTS[plot][0] == section:
                    lines += ["", f"![{PLOTS[plot][1]}]({file})"]
        lines += ["", f"### {scenario.name}: {scenario.title}", ""]
        lines += results.table(scenario.name, names)
    lines += instructions(results)
    lines += ["", "## Commands", "", "Brokers:", "", "```"]
    measured = [scenario for scenario in all_scenarios if scenario.name in results.parts]
    for has_store, store in ((False, "--no-store"), (True, "--data-dir data")):
        if any(scenario.has_store == has_store for scenario in measured):
            lines.append(f"leveret serve {store} --amqp-listen 127.0.0.1:0 --ready-file FILE")
    if "RabbitMQ" in names:
        lines.append("RABBITMQ_NODE_PORT=PORT rabbitmq-server    # no plugins, empty configuration")
    lines += ["```", "", "Load:", "", "```", *results.command_lines(names), "```", ""]
    return "\n".join(lines)


def instructions(results):
    counts = results.instructions
    if not counts:
        return
    yield from ["", "## Instructions", "", INSTRUCTIONS, ""]
    yield from ["| scenario | load | instructions for each message or operation |"]
    yield from ["| --- | --- | ---: |"]
    for name, (options, count) in counts.items():
        count = count if isinstance(count, str) else figures.shown(count, "count")
        yield f"| {name} | `{options or '(defaults)'}` | {count} |"
