#!/usr/bin/python3
"""Prints how an MoE did against its dense twins, from the files that scripts/compare.sh left.

  scripts/compare_report.py speed FOLDER           step times, measured in turns
  scripts/compare_report.py steps FOLDER MINUTES   steps that each model does in so many minutes at these times
  scripts/compare_report.py summary FOLDER         everything, seed by seed
"""

import json
import pathlib
import statistics
import sys

SPEEDS = (("moe", "MoE"), ("dense-active", "dense, equal active"), ("dense-total", "dense, equal total"))
KINDS = (("moe", "moe", "MoE"), ("active-tokens", "dense-active", "dense, equal active, same tokens"),
         ("active-seconds", "dense-active", "dense, equal active, same seconds"),
         ("total-seconds", "dense-total", "dense, equal total, same seconds"))
WARM_UP = 10  # steps at the begin of each turn that are not counted


def read_steps(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def step_times(folder):
    """{ffn: seconds of a step}. A machine's slow phases outlast a turn, so a twin's time is the MoE's times the median ratio of their
    turns side by side: neighbours mostly share a phase."""
    def turn_medians(ffn):
        turns = [read_steps(path / "run")[WARM_UP:] for path in sorted(folder.glob(f"speed/{ffn}-*"))]
        return [statistics.median(sum(step["seconds_by_part"].values()) for step in turn) for turn in turns]

    moe = turn_medians("moe")
    return {ffn: statistics.median(moe) * statistics.median(mine / of_moe for mine, of_moe in zip(turn_medians(ffn), moe))
            for ffn, _ in SPEEDS}


def reached(curve, loss):
    """Tokens at which a validation curve [(tokens, loss)] first is at `loss` or below, on a line between evaluations; or None."""
    previous = None
    for tokens, here in curve:
        if here <= loss:
            if previous is None:
                return tokens
            return previous[0] + (previous[1] - loss) / (previous[1] - here) * (tokens - previous[0])
        previous = tokens, here
    return None


def speed(folder):
    times = step_times(folder)
    return [f"{label:<22}{times[ffn] * 1e3:7.1f} ms a step" + (f", MoE / it {times[ffn] / times['moe']:.2f}" if ffn != "moe" else "")
            for ffn, label in SPEEDS]


def steps(folder, minutes):
    times = step_times(folder)
    return [" ".join(str(max(1, int(float(minutes) * 60 / times[ffn]))) for ffn, _ in SPEEDS)]


def summary(folder):
    seeds = sorted(int(path.name.removeprefix("moe-")) for path in folder.glob("moe-*"))
    if not seeds:
        raise ValueError("no moe-1 there, expected what scripts/compare.sh leaves")
    times = step_times(folder)

    def read_run(kind, ffn, seed):
        run = folder / f"{kind}-{seed}"
        train = json.loads((run / "train.json").read_text())
        evaluated = [step for step in read_steps(run / "run") if "bits_per_byte" in step]
        return {"train": train, "curve": [(step["tokens"], step["bits_per_byte"]) for step in evaluated],
                "held_out": json.loads((run / "eval.json").read_text())["bits_per_byte"],
                "seconds": train["steps"] * times[ffn]}

    runs = {kind: [read_run(kind, ffn, seed) for seed in seeds] for kind, ffn, _ in KINDS}
    of_moe = [run["train"]["tokens"] / run["seconds"] for run in runs["moe"]]  # tokens a second
    lines = []

    def table(title, values, form):
        lines.append(f"{title:<52}" + "".join(f"{column:>9}" for column in [*(f"seed {seed}" for seed in seeds), "mean"]))
        for label, row in values:
            shown = [*("never" if value is None else form.format(value) for value in row),
                     "" if None in row else form.format(statistics.mean(row))]
            lines.append((f"  {label:<50}" + "".join(f"{value:>9}" for value in shown)).rstrip())
        lines.append("")

    def each(value, kinds=KINDS):
        return [(label, [value(run) for run in runs[kind]]) for kind, _, label in kinds]

    def until(value):
        return [(label, [value(reached(mine["curve"], twin["curve"][-1][1]), rate, twin)
                         for mine, rate, twin in zip(runs["moe"], of_moe, runs[kind])]) for kind, _, label in KINDS[1:]]

    first = runs["moe"][0]["train"]
    sizes = "; ".join(f"{label} {run['parameters_total'] / 1e6:.2f} / {run['parameters_active'] / 1e6:.2f} M" for label, run in (
        ("MoE", first), ("equal active", runs["active-tokens"][0]["train"]), ("equal total", runs["total-seconds"][0]["train"])))
    lines += [f"parameters, total / active: {sizes}", f"{first['dtype']}, {first['isa']}, {first['threads']} threads", ""]
    lines += [*speed(folder), ""]
    table("held-out novel, bits per byte", each(lambda run: run["held_out"]), "{:.3f}")
    table("tokens trained on, million", each(lambda run: run["train"]["tokens"] / 1e6), "{:.2f}")
    table("seconds (steps by the step times above)", each(lambda run: run["seconds"]), "{:.0f}")
    table("seconds that passed in steps", each(lambda run: run["train"]["seconds"]), "{:.0f}")
    table("million tokens until the MoE has the final loss of", until(lambda at, rate, twin: at and at / 1e6), "{:.2f}")
    table("seconds until the MoE has the final loss of", until(lambda at, rate, twin: at and at / rate), "{:.0f}")
    table("the same, share of the twin's own seconds", until(lambda at, rate, twin: at and at / rate / twin["seconds"]), "{:.2f}")
    lines.append("The loss of these is the validation text's; the held-out novel is read once, at the end.")
    return lines


def main(arguments):
    commands = {("speed", 1): speed, ("steps", 2): steps, ("summary", 1): summary}
    command = commands.get((arguments[0], len(arguments) - 1)) if arguments else None
    if command is None:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        print("\n".join(command(pathlib.Path(arguments[1]), *arguments[2:])))
    except (OSError, ValueError, KeyError, IndexError) as error:
        print(f"compare_report.py: [{arguments[1]}] {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
