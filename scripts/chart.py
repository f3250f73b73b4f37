"""What plot_rows.py and plot_sweep.py share: curves over two logarithmic axes, as SVG."""

import html
import json
import math
import pathlib
import sys

WIDTH, HEIGHT = 760, 420
RIGHT, BOTTOM = 20, 52
TENTHS = tuple(1 + i / 10 for i in range(90))


def ticks(low, high, finest=TENTHS):
    """1, 2 and 5 times powers of ten, from `low` to `high`; finer steps where these are fewer than four."""
    for bases in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), finest):
        steps = [base * 10.0**power for power in range(-9, 5) for base in bases]
        shown = [step for step in steps if low <= step <= high]
        if len(shown) >= 4:
            break
    return shown


class Chart:
    """Margins `left` and `top`; x from `first` to `last`, y from a little below `values` to a little above."""

    def __init__(self, title, below, left, top, first, last, values):
        self.left, self.top, self.first, self.last = left, top, first, max(last, first + 1)
        self.low, self.high = min(values) / 1.15, max(values) * 1.15
        self.curves = 0
        self.out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
                    'font-family="sans-serif" font-size="13">',
                    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
                    f'<text x="{left}" y="22" font-size="15" font-weight="bold">{html.escape(title)}</text>',
                    f'<text x="{left}" y="42" fill="#555555">{html.escape(below)}</text>']

    def x(self, value):
        return self.left + (WIDTH - self.left - RIGHT) * math.log(value / self.first) / math.log(self.last / self.first)

    def y(self, value):
        return HEIGHT - BOTTOM - (HEIGHT - self.top - BOTTOM) * math.log(value / self.low) / math.log(self.high / self.low)

    def grid(self, unit, strong=None, finest=TENTHS):
        """Lines across, darker where the value is `strong`."""
        for value in ticks(self.low, self.high, finest):
            at, colour = self.y(value), "#333333" if value == strong else "#dddddd"
            self.out.append(f'<line x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{colour}"/>')
            self.out.append(f'<text x="{self.left - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}{unit}</text>')

    def x_axis(self, values, name, apart=0):
        """Labels at least `apart` from one another, and the axis' name."""
        shown = -math.inf
        for value in values:
            if self.x(value) - shown >= apart:
                shown = self.x(value)
                self.out.append(f'<text x="{shown:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{value}</text>')
        self.out.append(f'<text x="{(self.left + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{name}</text>')

    def curve(self, points, colour, radius, legend, legend_top):
        """points: (x, y, what the mouse is told). Legends stand in two columns from `legend_top` down."""
        points = [(self.x(x), self.y(y), tip) for x, y, tip in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        self.out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for x, y, tip in points:
            self.out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">'
                            f'<title>{html.escape(tip)}</title></circle>')
        at, height = self.left + 340 * (self.curves % 2), legend_top + 20 * (self.curves // 2)
        self.out.append(f'<line x1="{at}" x2="{at + 26}" y1="{height}" y2="{height}" stroke="{colour}" stroke-width="2.5"/>')
        self.out.append(f'<text x="{at + 34}" y="{height + 4}">{html.escape(legend)}</text>')
        self.curves += 1

    def svg(self):
        return "\n".join([*self.out, "</svg>", ""])


def main(arguments, script, doc, draw):
    """Draws the JSON of the first argument into the second; what cannot be drawn is one line."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(doc.strip())
        return 0
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(doc.strip(), file=sys.stderr)
        return 2
    try:
        pathlib.Path(arguments[1]).write_text(draw(json.loads(pathlib.Path(arguments[0]).read_text())))
    except KeyError as error:
        print(f"{script}: [{arguments[0]}] got no {error}, expected it; {script} --help says what writes it", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError) as error:
        print(f"{script}: [{arguments[0]}] {error}, expected the JSON that {script} --help names", file=sys.stderr)
        return 1
    return 0
