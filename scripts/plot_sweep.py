#!/usr/bin/python3
"""Draws the valley: how many times faster a decode step of an MoE is than that of its dense twins, at every batch size.

  scripts/plot_sweep.py SWEEP.json OUT.svg      SWEEP.json: what `moe sweep --json` wrote
"""

import html
import json
import math
import pathlib
import sys

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 88, 52
CURVES = (("speedup_total", "dense_total", "#c2410c", "dense of equal total size"),
          ("speedup_active", "dense_active", "#1d4ed8", "dense of equal active size"))


def ticks(low, high):
    """1, 2 and 5 times powers of ten, from `low` to `high`; finer steps where these are fewer than four."""
    for bases in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        steps = [base * 10.0**power for power in range(-3, 5) for base in bases]
        shown = [step for step in steps if low <= step <= high]
        if len(shown) >= 4:
            break
    return shown


def millions(count):
    return f"{count / 1e6:,.3g} M" if count < 1e9 else f"{count / 1e9:,.3g} B"


def draw(sweep):
    rows = sweep["rows"]
    if not rows:
        raise ValueError("rows: got none, expected one per batch size")
    curves = [(key, colour, label) for key, twin, colour, label in CURVES if twin in rows[0]]
    if not curves:
        raise ValueError("got a sweep without dense twins, expected one with --against dense-active,dense-total")
    values = [row[key] for row in rows for key, _, _ in curves] + [1.0]
    low, high = min(values) / 1.15, max(values) * 1.15
    first, last = rows[0]["batch"], max(rows[-1]["batch"], rows[0]["batch"] + 1)

    def x(batch):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(batch / first) / math.log(last / first)

    def y(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(value / low) / math.log(high / low)

    machine = sweep["machine"]
    model = sweep["models"]["moe"]
    title = (f"{pathlib.Path(sweep['model']).name}: {millions(model['parameters_total'])} parameters, "
             f"{millions(model['parameters_active'])} active, {model['experts']} experts, top-{model['top_k']}")
    below = (f"one decode step of B sequences, {sweep['dtype']}, context {sweep['context']}; {machine['cpu']}, "
             f"{machine['isa']}, {machine['threads']} threads")
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
           f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{html.escape(title)}</text>',
           f'<text x="{LEFT}" y="42" fill="#555555">{html.escape(below)}</text>']
    for value in ticks(low, high):
        at = y(value)
        strong = value == 1
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="{"#333333" if strong else "#dddddd"}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}x</text>')
    for row in rows:
        out.append(f'<text x="{x(row["batch"]):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{row["batch"]}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">batch size B (sequences)</text>')
    for number, (key, colour, label) in enumerate(curves):
        points = [(x(row["batch"]), y(row[key]), row) for row in rows]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for px, py, row in points:
            out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}">'
                       f'<title>batch {row["batch"]}: {row[key]:.2f}x</title></circle>')
        at = LEFT + 340 * number
        out.append(f'<line x1="{at}" x2="{at + 26}" y1="60" y2="60" stroke="{colour}" stroke-width="2.5"/>')
        out.append(f'<text x="{at + 34}" y="64">speed-up over {label}</text>')
    return "\n".join([*out, "</svg>", ""])


def main(arguments):
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        pathlib.Path(arguments[1]).write_text(draw(json.loads(pathlib.Path(arguments[0]).read_text())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"plot_sweep.py: [{arguments[0]}] {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
