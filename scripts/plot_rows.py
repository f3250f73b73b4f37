#!/usr/bin/python3
"""Draws the time per row of a product with cold weights over its rows M: a kernel that falls off a cliff at some M shows it.

  scripts/plot_rows.py BENCH.json OUT.svg      BENCH.json: what `moe bench gemm --shapes benches/shapes/rows.txt --filter decode`
                                               or gemm_bench wrote with --json; peers are drawn too
"""

import html
import json
import math
import pathlib
import re
import sys

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 96, 52
COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#a16207", "#0e7490")
NAME = re.compile(r"(?P<format>\w+)/(?P<M>\d+)x(?P<NK>\d+x\d+)(?P<rest>(/threads:\d+)?)$")


def ticks(low, high):
    """1, 2 and 5 times powers of ten, from `low` to `high`; finer steps where these are fewer than four."""
    for bases in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(1 + i / 10 for i in range(90))):
        steps = [base * 10.0**power for power in range(-9, 5) for base in bases]
        shown = [step for step in steps if low <= step <= high]
        if len(shown) >= 4:
            break
    return shown


def curves_of(cases):
    """{"ours, bf16 2048x2048": {M: seconds per row}}"""
    curves = {}
    for case in cases:
        name = NAME.match(case["name"])
        if case["group"] != "decode" or not name:
            continue
        rows, what = int(name["M"]), f'{name["format"]} {name["NK"]}{name["rest"].replace("/threads:", ", threads ")}'
        curves.setdefault(f"ours, {what}", {})[rows] = case["run_s"] / rows
        for peer in case.get("peers", []):
            curves.setdefault(f'{peer["peer"]}, {what}', {})[rows] = case["run_s"] * peer["peer_ratio"] / rows
    if not curves:
        raise ValueError("cases: got no product of group 'decode', expected those of benches/shapes/rows.txt")
    return curves


def draw(bench):
    curves = curves_of(bench["cases"])
    values = [value * 1e6 for curve in curves.values() for value in curve.values()]
    low, high = min(values) / 1.15, max(values) * 1.15
    batches = sorted({rows for curve in curves.values() for rows in curve})
    first, last = batches[0], max(batches[-1], batches[0] + 1)
    top = TOP + 20 * ((len(curves) - 1) // 2)

    def x(rows):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(rows / first) / math.log(last / first)

    def y(microseconds):
        return HEIGHT - BOTTOM - (HEIGHT - top - BOTTOM) * math.log(microseconds / low) / math.log(high / low)

    machine = bench["ceilings"]
    below = f'{machine["cpu"]}, {machine["isa"]}, {machine["threads"]} threads'
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
           f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">Time per row, weights from memory</text>',
           f'<text x="{LEFT}" y="42" fill="#555555">{html.escape(below)}</text>']
    for value in ticks(low, high):
        at = y(value)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g} us</text>')
    shown = -math.inf
    for rows in batches:
        if x(rows) - shown >= 24:
            shown = x(rows)
            out.append(f'<text x="{shown:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{rows}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">rows M</text>')
    for number, (label, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x(rows), y(value * 1e6), rows, value * 1e6) for rows, value in sorted(curve.items())]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        for px, py, rows, value in points:
            out.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}">'
                       f'<title>{html.escape(label)}, {rows} rows: {value:.3g} us per row</title></circle>')
        at, height = LEFT + 340 * (number % 2), 62 + 20 * (number // 2)
        out.append(f'<line x1="{at}" x2="{at + 26}" y1="{height}" y2="{height}" stroke="{colour}" stroke-width="2.5"/>')
        out.append(f'<text x="{at + 34}" y="{height + 4}">{html.escape(label)}</text>')
    return "\n".join([*out, "</svg>", ""])


def main(arguments):
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        pathlib.Path(arguments[1]).write_text(draw(json.loads(pathlib.Path(arguments[0]).read_text())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"plot_rows.py: [{arguments[0]}] {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
