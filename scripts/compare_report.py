#!/usr/bin/python3
"""Prints how an MoE did against its dense twins, from the files that scripts/compare.sh left.

  scripts/compare_report.py FOLDER
"""

import json
import pathlib
import statistics
import sys

KINDS = (("moe", "MoE"), ("active-tokens", "dense, equal active, same tokens"), ("active-seconds", "dense, equal active, same seconds"),
         ("total-seconds", "dense, equal total, same seconds"))


def read_run(folder):
    train = json.loads((folder / "train.json").read_text())
    curve = [(line["seconds"], line["tokens"], line["bits_per_byte"])
             for line in map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines()) if "bits_per_byte" in line]
    return {"train": train, "curve": curve, "held_out": json.loads((folder / "eval.json").read_text())["bits_per_byte"]}


def reached(curve, loss):
    """(seconds, tokens) at which a validation curve first is at `loss` or below, on a line between two evaluations; or None."""
    previous = None
    for point in curve:
        if point[2] <= loss:
            if previous is None:
                return point[:2]
            share = (previous[2] - loss) / (previous[2] - point[2])
            return tuple(a + share * (b - a) for a, b in zip(previous[:2], point[:2]))
        previous = point
    return None


def row(label, values, form):
    shown = ["never" if value is None else form(value) for value in values]
    mean = "" if None in values else form(statistics.mean(values))
    return f"{label:<48}" + "".join(f"{value:>10}" for value in [*shown, mean]).rstrip()


def report(folder):
    seeds = sorted(int(path.name.removeprefix("moe-")) for path in folder.glob("moe-*"))
    if not seeds:
        raise ValueError("no moe-1 there, expected what scripts/compare.sh leaves")
    runs = {kind: [read_run(folder / f"{kind}-{seed}") for seed in seeds] for kind, _ in KINDS}
    lines = []

    def table(title, rows, form):
        lines.extend([f"{title:<48}" + "".join(f"{column:>10}" for column in [*(f"seed {seed}" for seed in seeds), "mean"])])
        lines.extend(row("  " + label, values, form) for label, values in rows)
        lines.append("")

    def each(value):
        return [(label, [value(run) for run in runs[kind]]) for kind, label in KINDS]

    first = runs["moe"][0]["train"]
    lines += [f"parameters, total / active: " + "; ".join(
        f"{label} {run['parameters_total'] / 1e6:.2f} / {run['parameters_active'] / 1e6:.2f} M"
        for label, run in (("MoE", first), ("dense of equal active", runs["active-tokens"][0]["train"]),
                           ("of equal total", runs["total-seconds"][0]["train"]))),
              f"{first['dtype']}, {first['isa']}, {first['threads']} threads; seconds are those in training steps", ""]
    table("held-out novel, bits per byte", each(lambda run: run["held_out"]), "{:.3f}".format)
    table("tokens trained on, million", each(lambda run: run["train"]["tokens"] / 1e6), "{:.2f}".format)
    table("seconds", each(lambda run: run["train"]["seconds"]), "{:.0f}".format)
    speed = {kind: [run["train"]["tokens_per_s"] for run in runs[kind]] for kind, _ in KINDS}
    table("step speed, MoE / twin", [(label, [a / b for a, b in zip(speed["moe"], speed[kind])]) for kind, label in KINDS[1:]],
          "{:.2f}".format)
    to_reach = {kind: [reached(moe["curve"], twin["curve"][-1][2]) for moe, twin in zip(runs["moe"], runs[kind])] for kind, _ in KINDS}
    for index, (title, form) in enumerate((("seconds", "{:.0f}"), ("million tokens", "{:.2f}"))):
        scale = (1, 1e-6)[index]
        table(f"{title} until the MoE has the final loss of", [
            (label, [point and point[index] * scale for point in to_reach[kind]]) for kind, label in KINDS[1:]], form.format)
    table("the same, share of the twin's own seconds", [
        (label, [point and point[0] / twin["train"]["seconds"] for point, twin in zip(to_reach[kind], runs[kind])])
        for kind, label in KINDS[1:]], "{:.2f}".format)
    lines.append("The loss of these is the validation text's; the held-out novel is read once, at the end.")
    return lines


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        print("\n".join(report(pathlib.Path(arguments[0]))))
    except (OSError, ValueError, KeyError, IndexError) as error:
        print(f"compare_report.py: [{arguments[0]}] {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
