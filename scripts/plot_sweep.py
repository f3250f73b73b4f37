#!/usr/bin/python3
"""Draws the valley: how many times faster a decode step of an MoE is than that of its dense twins, at every batch size.

  scripts/plot_sweep.py SWEEP.json OUT.svg      SWEEP.json: what `moe sweep --json` wrote
"""

import pathlib
import sys

import chart

CURVES = (("speedup_total", "dense_total", "#c2410c", "dense of equal total size"),
          ("speedup_active", "dense_active", "#1d4ed8", "dense of equal active size"))
FINEST_TICKS = (1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)


def millions(count):
    return f"{count / 1e6:,.3g} M" if count < 1e9 else f"{count / 1e9:,.3g} B"


def draw(sweep):
    rows = sweep["rows"]
    if not rows:
        raise ValueError("rows: got none, expected one per batch size")
    curves = [(key, colour, label) for key, twin, colour, label in CURVES if twin in rows[0]]
    if not curves:
        raise ValueError("got a sweep without dense twins, expected one with --against dense-active,dense-total")
    machine = sweep["machine"]
    model = sweep["models"]["moe"]
    title = (f"{pathlib.Path(sweep['model']).name}: {millions(model['parameters_total'])} parameters, "
             f"{millions(model['parameters_active'])} active, {model['experts']} experts, top-{model['top_k']}")
    below = (f"one decode step of B sequences, {sweep['dtype']}, context {sweep['context']}; {machine['cpu']}, "
             f"{machine['isa']}, {machine['threads']} threads")
    picture = chart.Chart(title, below, left=64, top=88, first=rows[0]["batch"], last=rows[-1]["batch"],
                          values=[row[key] for row in rows for key, _, _ in curves] + [1.0])
    picture.grid("x", strong=1, finest=FINEST_TICKS)
    picture.x_axis([row["batch"] for row in rows], "batch size B (sequences)")
    for key, colour, label in curves:
        picture.curve([(row["batch"], row[key], f'batch {row["batch"]}: {row[key]:.2f}x') for row in rows],
                      colour, 4, f"speed-up over {label}", legend_top=60)
    return picture.svg()


if __name__ == "__main__":
    sys.exit(chart.main(sys.argv[1:], "plot_sweep.py", __doc__, draw))
