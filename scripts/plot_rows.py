#!/usr/bin/python3
"""Draws the time per row of a product with cold weights over its rows M: a kernel that falls off a cliff at some M shows it.

  scripts/plot_rows.py BENCH.json OUT.svg      BENCH.json: what `moe bench gemm --shapes benches/shapes/rows.txt --filter decode`
                                               or gemm_bench wrote with --json; peers are drawn too
"""

import re
import sys

import chart

COLOURS = ("#c2410c", "#1d4ed8", "#15803d", "#7e22ce", "#a16207", "#0e7490")
NAME = re.compile(r"(?P<format>\w+)/(?P<M>\d+)x(?P<NK>\d+x\d+)(?P<rest>(/threads:\d+)?)$")


def curves_of(cases):
    """{"ours, bf16 2048x2048": {M: seconds per row}}; "at least": what memory and peak allowed beside each run"""
    curves = {}
    for case in cases:
        name = NAME.match(case["name"])
        if case["group"] != "decode" or not name:
            continue
        rows, what = int(name["M"]), f'{name["format"]} {name["NK"]}{name["rest"].replace("/threads:", ", threads ")}'
        curves.setdefault(f"ours, {what}", {})[rows] = case["run_s"] / rows
        curves.setdefault(f"at least, {what}", {})[rows] = case["run_s"] * case["fraction"] / rows
        for peer in case.get("peers", []):
            curves.setdefault(f'{peer["peer"]}, {what}', {})[rows] = case["run_s"] * peer["peer_ratio"] / rows
    if not curves:
        raise ValueError("cases: got no product of group 'decode', expected those of benches/shapes/rows.txt")
    return curves


def draw(bench):
    curves = curves_of(bench["cases"])
    batches = sorted({rows for curve in curves.values() for rows in curve})
    machine = bench["ceilings"]
    picture = chart.Chart("Time per row, weights from memory", f'{machine["cpu"]}, {machine["isa"]}, {machine["threads"]} threads',
                          left=76, top=96 + 20 * ((len(curves) - 1) // 2), first=batches[0], last=batches[-1],
                          values=[value * 1e6 for curve in curves.values() for value in curve.values()])
    picture.grid(" us")
    picture.x_axis(batches, "rows M", apart=24)
    for number, (label, curve) in enumerate(curves.items()):
        picture.curve([(rows, value * 1e6, f"{label}, {rows} rows: {value * 1e6:.3g} us per row")
                       for rows, value in sorted(curve.items())],
                      COLOURS[number % len(COLOURS)], 3, label, legend_top=62)
    return picture.svg()


if __name__ == "__main__":
    sys.exit(chart.main(sys.argv[1:], "plot_rows.py", __doc__, draw))
