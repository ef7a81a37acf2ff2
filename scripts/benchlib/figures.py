"""Keeps what was measured, and makes tables of it."""

import datetime
import statistics
import sys

from . import machine, perf


def shown(value, kind):
    """A value of a kind: rate, us, bytes, s, number, times, count."""
    if kind in ("rate", "count"):
        return f"{value:,.0f}"
    if kind == "us":
        return f"{value:,.3f} us" if value < 10 else f"{value:,.0f} us"
    if kind == "s":
        return f"{value:,.3f} s" if value < 10 else f"{value:,.1f} s"
    if kind == "number":
        return f"{value:,.2f}"
    if kind == "times":
        return f"{value:,.2f} x"
    if value < 20 * 1024:
        return f"{value:,.0f} B"
    return f"{value / 1024:,.1f} KiB" if value < 20 * 1024**2 else f"{value / 1024**2:,.1f} MiB"


def ratio(ours, theirs, kind):
    """How many times better ours is: of rates more is better, of all else less."""
    better, worse = (ours, theirs) if kind == "rate" else (theirs, ours)
    if worse <= 0:
        return "-"
    factor = better / worse
    digits = 2 if factor < 1 else 1 if factor < 100 else 0
    return f"{factor:,.{digits}f} x"


def judged(value, kind, wanted):
    if wanted is None:
        return ""
    sign, limit = wanted
    text = f"{sign} {shown(limit, kind)}"
    if value is None:
        return text
    is_met = value >= limit if sign == ">=" else value <= limit
    return f"{text}: {'met' if is_met else '**missed**'}"


class Results:
    """Figures by part and name, with their values by broker, in the order of their coming; points
    of plots; and which commands were run. All of it is plain data, so that it can be kept."""

    def __init__(self, kept=None):
        kept = kept or {}
        self.parts = kept.get("parts", {})
        self.plots = kept.get("plots", {})
        self.commands = kept.get("commands", {})
        self.others = kept.get("others", {})
        self.notes = kept.get("notes", {})
        self.instructions = kept.get("instructions", {})
        self.head = kept.get("head", {})

    def note(self, part, figure, broker, value, kind, wanted=None, is_compared=True):
        """`wanted` is a sign and a limit; what is not compared gets no ratio."""
        row = self.parts.setdefault(part, {}).setdefault(figure, {})
        row.update(kind=kind, wanted=wanted, is_compared=is_compared)
        row.setdefault("values", {}).setdefault(broker, []).append(value)

    def point(self, plot, line, key, x, y):
        """A point of a line; those of one key belong together."""
        points = self.plots.setdefault(plot, {}).setdefault(line, {})
        points.setdefault(str(key), []).append([x, y])

    def remark(self, part, broker, remark):
        """A sentence that goes below the table."""
        remarks = self.notes.setdefault(part, {}).setdefault(broker, {})
        remarks[remark] = remarks.get(remark, 0) + 1

    def command(self, part, broker, options):
        """The order in which a part's commands first ran, apart by broker where they differ."""
        brokers = self.commands.setdefault(part, {}).setdefault(options, [])
        if broker not in brokers:
            brokers.append(broker)

    def table(self, part, names):
        """Markdown lines; a broker that is compared has the ratio to the first one beside it."""
        rows = self.parts.get(part, {})
        # What is wanted is wanted of Leveret.
        has_wanted = names[0] == "Leveret" and any(row["wanted"] for row in rows.values())
        first, *compared = names
        head, marks = [first], " ---: |"
        for name in compared:
            head += [name, "ratio"]
            marks += " ---: | ---: |"
        if has_wanted:
            head.append("wanted of Leveret")
            marks += " --- |"
        yield f"| median (lowest - highest) | {' | '.join(head)} |"
        yield f"| --- |{marks}"
        for figure, row in rows.items():
            yield f"| {figure} | {' | '.join(self.cells(row, names, has_wanted))} |"
        for name, remarks in self.notes.get(part, {}).items():
            for remark, count in remarks.items():
                yield from ["", f"{name}, {count} times: {remark}."]
        if part in self.others:
            low, high = min(self.others[part]), max(self.others[part])
            yield from ["", f"Other work just before each run: {low:.2f} to {high:.2f} cores."]

    @staticmethod
    def cells(row, names, has_wanted):
        kind, cells, medians = row["kind"], [], {}
        for name in names:
            values = row["values"].get(name)
            if values:
                medians[name] = statistics.median(values)
                low, high = shown(min(values), kind), shown(max(values), kind)
                spread = f" ({low} - {high})" if len(values) > 1 else ""
                cells.append(f"**{shown(medians[name], kind)}**{spread}")
            else:
                cells.append("-")
            if name != names[0]:
                both = [medians.get(names[0]), medians.get(name)]
                is_compared = row["is_compared"] and None not in both
                cells.append(ratio(*both, kind) if is_compared else "-")
        if has_wanted:
            cells.append(judged(medians.get(names[0]), kind, row["wanted"]))
        return cells

    def command_lines(self, names):
        """The load's commands, by part."""
        for part, commands in self.commands.items():
            for options, brokers in commands.items():
                only = "" if brokers == names else f", {' and '.join(brokers)}"
                yield f"# ({part}{only})"
                yield perf.documented(options)


def facts(script, versions, rounds, *more):
    """What a document says first."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return [
        f"- Date: {date}",
        f"- Machine: {machine.machine()}",
        *more,
        f"- Brokers: {', '.join(versions)}",
        f"- Rounds: {rounds}",
        f"- Command: `{' '.join([script, *sys.argv[1:]])}`",
    ]
