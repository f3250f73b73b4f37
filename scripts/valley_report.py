#!/usr/bin/python3
"""Sums up the sweeps of scripts/valley.sh.

  scripts/valley_report.py FOLDER      FOLDER: SHAPE.PHASE.json, what `moe sweep --verify --json` wrote
"""

import json
import pathlib
import sys

PHASES = ("decode", "prefill", "train")
MODELS = ("moe", "dense_active", "dense_total")


def percent(x):
    return "-" if x is None else f"{100 * x:.1f} %"


def batch(x):
    return "-" if x is None else f"{x:.1f}"


def boundary(b):
    exact = b["predicted"] is not None and b["measured"] is not None
    said = f"{batch(b['predicted'])}, {batch(b['measured'])} ({'' if exact else '≥ '}{b['factor']:.2f})"
    return said if b["factor"] <= 1.25 else f"{said} [{batch(b['measured_from'])} to {batch(b['measured_to'])}]"


def plateau(sweep, key):
    start = sweep[key + "_from"]
    return f"{start:.0f} to {2 * start:.0f}" if sweep[key] else "-"


def main(folder):
    sweeps = []
    for path in sorted(folder.glob("*.*.json")):
        shape, phase, _ = path.name.rsplit(".", 2)
        sweeps.append((PHASES.index(phase), shape, json.loads(path.read_text())))
    if not sweeps:
        raise ValueError(f"{folder}: got no SHAPE.PHASE.json, expected what scripts/valley.sh writes there")
    sweeps.sort(key=lambda s: s[:2])
    print("| phase | shape | error, adjacent probe | cached probe | by memory / middle / compute | repeats | plateau predicted; "
          "measured | speed-up at the largest batch / FLOP ratio; expert layers alone | boundaries: predicted, measured (factor) "
          "[beyond 1.25: where the measured one may lie, within the sweep's own error] |")
    print("|---|---|---|---|---|---|---|---|---|")
    sums = {}
    for phase, shape, sweep in sweeps:
        mape, rows = sweep["mape"], sweep["rows"]
        boundaries = "; ".join(map(boundary, sweep["boundaries"]))
        gain = sweep["gain_at_largest_batch"]
        print(f"| {PHASES[phase]} | {shape} | {percent(mape['all'])} | {percent(sweep['mape_cached']['all'])} | "
              f"{percent(mape['memory'])} / {percent(mape['middle'])} / {percent(mape['compute'])} | {percent(sweep['repeat_error'])} | "
              f"{plateau(sweep, 'plateau_predicted')}; {plateau(sweep, 'plateau')} | "
              f"{gain['whole']['share']:.2f}; {gain['expert_layers']['share']:.2f} | {boundaries or '-'} |")
        errors = [abs(row[model]["predicted"]["error"]) for row in rows for model in MODELS if model in row]
        cached = [abs(row[model]["predicted"]["error_cached"]) for row in rows for model in MODELS if model in row]
        sums.setdefault(phase, ([], [], []))
        for all_of, some in zip(sums[phase], (errors, cached, sweep["boundaries"])):
            all_of.extend(some)
    print()
    print("; ".join(f"{PHASES[phase]}: error {percent(sum(e) / len(e))} over {len(e)} cells ({percent(sum(c) / len(c))} cached), "
                    f"{sum(x['factor'] <= 1.25 for x in b)} of {len(b)} boundaries within 1.25, "
                    f"{sum(x['factor'] > 1.25 and x['within_repeats'] for x in b)} more within what the sweep's own error leaves open"
                    for phase, (e, c, b) in sorted(sums.items())))


if __name__ == "__main__":
    try:
        if len(sys.argv) != 2:
            raise ValueError(__doc__.strip())
        main(pathlib.Path(sys.argv[1]))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"valley_report.py: {error}")
