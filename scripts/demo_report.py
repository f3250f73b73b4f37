#!/usr/bin/python3
"""Prints what the demo measured, from the files that its commands left.

  scripts/demo_report.py losses FOLDER    loss of the MoE and its dense twin, against tokens and seconds
  scripts/demo_report.py summary FOLDER   everything in one table, and where the files are
"""

import json
import pathlib
import sys

ROWS = 12  # of the loss table
QUIET = 0.02  # of the time that threads may wait for a core, as in `moe sweep`
# Persuasion, 466,853 bytes: alone, and with the training text before it, less the training text alone. Compressors learn as they read.
YARDSTICKS = (("xz -9e", 2.470, 2.133), ("zpaq -m5", 1.851, 1.574))


def read_json(path):
    return json.loads(path.read_text())


def read_steps(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def smooth(steps, last, count):
    """Bits per byte of the text trained on, mean of the `count` steps up to step `last`."""
    window = steps[max(0, last - count):last]
    return sum(step["train_bits_per_byte"] for step in window) / len(window)


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def losses(folder):
    moe, dense = read_steps(folder / "moe"), read_steps(folder / "dense")
    shared = min(len(moe), len(dense))
    every = max(1, -(-shared // ROWS))
    lines = ["Bits per byte of the text being trained on, at equal tokens (seconds of training, evaluations not counted):", "",
             f"{'tokens':>10}  {'MoE':>7} {'at':>6}  {'dense':>7} {'at':>6}"]
    for last in sorted({*range(every, shared + 1, every), shared}):
        lines.append(f"{moe[last - 1]['tokens']:>10,}  {smooth(moe, last, every):>7.3f} {clock(moe[last - 1]['seconds']):>6}"
                     f"  {smooth(dense, last, every):>7.3f} {clock(dense[last - 1]['seconds']):>6}")
    # At equal seconds: what the slower one had reached when the faster one was done.
    end = min(moe[-1]["seconds"], dense[-1]["seconds"])
    reached = [sum(1 for step in steps if step["seconds"] <= end) for steps in (moe, dense)]
    lines += ["", f"At equal seconds, after {clock(end)}: MoE {smooth(moe, max(1, reached[0]), every):.3f}, "
              f"dense {smooth(dense, max(1, reached[1]), every):.3f}"]
    return lines


def summary(folder):
    names = ("moe", "dense")
    train = {name: read_json(folder / f"{name}-train.json") for name in names}
    test = {name: read_json(folder / f"{name}-eval.json") for name in names}
    rows = [("parameters", [f"{train[name]['parameters_total'] / 1e6:.2f} M" for name in names]),
            ("active per token", [f"{train[name]['parameters_active'] / 1e6:.2f} M" for name in names]),
            ("tokens trained on", [f"{train[name]['tokens']:,}" for name in names]),
            ("seconds in steps", [f"{train[name]['seconds']:.0f}" for name in names]),
            ("tokens per second", [f"{train[name]['tokens_per_s']:,.0f}" for name in names]),
            ("held-out novel, bits/byte", [f"{test[name]['bits_per_byte']:.3f}" for name in names])]
    lines = [f"{'':<27}{'MoE':>12}{'dense twin':>12}"]
    lines += [f"{label:<27}{values[0]:>12}{values[1]:>12}" for label, values in rows]
    ratio = train["moe"]["tokens_per_s"] / train["dense"]["tokens_per_s"]  # one after the other: drift of the machine is in it
    gain = test["dense"]["bits_per_byte"] - test["moe"]["bits_per_byte"]
    lines += ["", f"Training speed MoE / dense {ratio:.2f}, one after the other; at equal tokens the MoE is {abs(gain):.3f} bits/byte "
              f"{'better' if gain > 0 else 'worse'} on a novel that neither has seen.",
              "Compressors on the same novel, bits/byte (they go on learning while they read it, the models do not):"]
    lines += [f"  {name:<9} {alone:.3f} alone, {primed:.3f} after the training text" for name, alone, primed in YARDSTICKS]
    for name, what in (("sweep", "this MoE"), ("sweep-wide", "a wide MoE (64 experts, top-8)")):
        ratios = [(row["batch"], row["speedup_total"]) for row in read_json(folder / f"{name}.json")["rows"]]
        best, worst = max(ratios, key=lambda r: r[1]), min(ratios, key=lambda r: r[1])
        lines += [f"Decoding, {what} over a dense model of its size: {best[1]:.2f}x at batch {best[0]} (best), "
                  f"{worst[1]:.2f}x at batch {worst[0]} (least)."]
    waited = max(read_json(folder / f"{name}.json")["core_wait"] for name in ("sweep", "sweep-wide"))
    if waited > QUIET:
        lines += [f"Other programs ran meanwhile: threads waited {waited:.0%} of the sweeps' time for a core, so speeds and their ratios are doubtful."]
    lines += ["", "Files:"]
    shown = (("moe/", "the MoE: config.json, model.safetensors, tokenizer.json, metrics.jsonl; best/ is its best state"),
             ("dense/", "its dense twin of equal active parameters, the same"),
             ("moe-eval.json, dense-eval.json", "held-out novel, expert load of every layer"),
             ("paragraph.txt", "what the MoE wrote"), ("sweep.txt, .json, .svg", "speed at every batch size; the picture opens in a browser"),
             ("sweep-wide.txt, .json, .svg", "the same for the wide model"))
    lines += [f"  {folder}/{name:<31} {what}" for name, what in shown]
    lines += ["", "Next:", f"  build/release/bin/moe generate --model {folder}/moe/best --prompt 'She had always'",
              f"  build/release/bin/moe sweep --model {folder}/moe --batches 1,2,4,8 --dtype f32"]
    return lines


def main(arguments):
    commands = {"losses": losses, "summary": summary}
    if len(arguments) != 2 or arguments[0] not in commands:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    try:
        print("\n".join(commands[arguments[0]](pathlib.Path(arguments[1]))))
    except (OSError, ValueError, KeyError) as error:
        print(f"demo_report.py: [{arguments[1]}] {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
