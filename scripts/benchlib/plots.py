"""Draws charts as SVG, readable on light and dark pages: lines over one axis, each logarithmic or
not, with the lowest and highest value of each point."""

import html
import math

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 76, 58

# One colour for each broker (a colour-blind reader can tell them apart), one dash for each line of
# a broker.
COLOURS = [("#0b62c4", "#58a6ff"), ("#c2410c", "#ff9d5c"), ("#047857", "#4fd1a5"),
           ("#9333a8", "#d79bec")]
DASHES = ["", "7 4", "2 4"]

STYLE = """
.page { fill: #ffffff; } .grid { stroke: #d5dae0; } .axis { stroke: #57606a; }
text { fill: #24292f; font: 13px system-ui, sans-serif; }
.title { font-size: 15px; font-weight: 600; }
""" + "".join(
    f".c{i} {{ stroke: {light}; fill: {light}; }}\n" for i, (light, _) in enumerate(COLOURS)
) + """@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; } .grid { stroke: #30363d; } .axis { stroke: #8b949e; }
text { fill: #e6edf3; }
""" + "".join(
    f".c{i} {{ stroke: {dark}; fill: {dark}; }}\n" for i, (_, dark) in enumerate(COLOURS)
) + "}\n"


def short_number(value):
    """1500 as 1.5 k."""
    for factor, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{sign}"
    return f"{value:g}"


def short_bytes(value):
    for factor, sign in ((1024**3, " GiB"), (1024**2, " MiB"), (1024, " KiB")):
        if value >= factor:
            return f"{value / factor:g}{sign}"
    return f"{value:g} B"


class Axis:
    """From values to places, and where its marks are."""

    def __init__(self, label, values, place, is_log=True, marks=None, text=short_number):
        self.label, self.text, self.is_log = label, text, is_log
        low, high = min(values), max(values)
        self.marks = marks or (log_marks(low, high) if is_log else linear_marks(high))
        scale = math.log10 if is_log else float
        self.low = scale(min(low, self.marks[0]) if is_log else 0)
        self.high = scale(max(high, self.marks[-1]))
        self.scale, self.place = scale, place

    def at(self, value):
        begin, end = self.place
        span = self.high - self.low or 1
        return begin + (self.scale(value) - self.low) / span * (end - begin)


def log_marks(low, high):
    """Powers of ten around the values; with 2 and 5 between them, where they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1,) if last - first > 2 else (1, 2, 5)
    marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    below = max((mark for mark in marks if mark <= low), default=marks[0])
    above = min((mark for mark in marks if mark >= high), default=marks[-1])
    return [mark for mark in marks if below <= mark <= above]


def linear_marks(high):
    step = 10 ** math.floor(math.log10(high or 1))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if high / (step * part) <= 6)
    return [step * number for number in range(math.ceil(high / step) + 1)]


class Line:
    """`points` are (x, lowest, median, highest); lines of one `colour` number are one broker's."""

    def __init__(self, name, points, colour, dash=0):
        self.name, self.points = name, sorted(points)
        self.colour, self.dash = colour % len(COLOURS), DASHES[dash % len(DASHES)]

    def mark(self, x1, x2, y):
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return (f'<path class="c{self.colour}" d="M{x1:.1f} {y:.1f}H{x2:.1f}" '
                f'stroke-width="2.5"{dash}/>')

    def draw(self, x_axis, y_axis):
        places = [(x_axis.at(x), y_axis.at(y)) for x, _, y, _ in self.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        yield f'<path class="c{self.colour}" d="{path}" style="fill: none" stroke-width="2"{dash}/>'
        for (x, y), (_, low, _, high) in zip(places, self.points):
            spread = f"M{x:.1f} {y_axis.at(low):.1f}V{y_axis.at(high):.1f}"
            yield f'<path class="c{self.colour}" d="{spread}" stroke-width="1"/>'
            yield f'<circle class="c{self.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def text(x, y, content, anchor="middle", more=""):
    content = html.escape(content)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{content}</text>'


def legend(lines):
    x, y = LEFT, 50
    for line in lines:
        width = 40 + 7.2 * len(line.name)
        if x + width > WIDTH - RIGHT and x > LEFT:
            x, y = LEFT, y + 18
        yield line.mark(x, x + 26, y - 4)
        yield text(x + 32, y, line.name, "start")
        x += width + 8


def frame(x_axis, y_axis):
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for mark in x_axis.marks:
        x = x_axis.at(mark)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
        yield text(x, bottom + 18, x_axis.text(mark))
    for mark in y_axis.marks:
        y = y_axis.at(mark)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield text(LEFT - 8, y + 4, y_axis.text(mark), "end")
    yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}" style="fill: none"/>'
    yield text((LEFT + right) / 2, HEIGHT - 14, x_axis.label)
    middle = (TOP + bottom) / 2
    yield text(18, middle, y_axis.label, more=f' transform="rotate(-90 18 {middle:.1f})"')


def chart(title, x, y, lines):
    """An SVG document. `x` and `y` are keywords for the axes: at least `label`."""
    xs = [point[0] for line in lines for point in line.points]
    ys = [value for line in lines for point in line.points for value in point[1:]]
    x_axis = Axis(values=xs, place=(LEFT, WIDTH - RIGHT - 12), **x)
    y_axis = Axis(values=ys, place=(HEIGHT - BOTTOM, TOP), **y)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'width="{WIDTH}" height="{HEIGHT}" aria-label="{html.escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        text(LEFT, 26, title, "start", ' class="title"'),
        *legend(lines),
        *frame(x_axis, y_axis),
    ]
    for line in lines:
        parts += line.draw(x_axis, y_axis)
    return "\n".join([*parts, "</svg>", ""])
