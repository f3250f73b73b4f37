#!/usr/bin/env python3
"""scripts/compare_report.py says what the files of a comparison hold."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "compare_report.py"


def run(*arguments):
    return subprocess.run([sys.executable, "-B", str(SCRIPT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class CompareReport(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def write_speed(self, times):
        """Turns whose first steps are slow. The machine is twice as slow in the second and while the MoE has its third."""
        for ffn, seconds in times.items():
            for turn, phase in ((1, 1), (2, 2), (3, 2 if ffn == "moe" else 1)):
                path = self.folder / "speed" / f"{ffn}-{turn}" / "run"
                path.mkdir(parents=True)
                lines = [{"seconds_by_part": {"model": 9 if i < 10 else seconds * phase - 0.01, "optimizer": 0.01}} for i in range(20)]
                (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(self, name, held_out, steps, losses):
        """A run of `steps` steps of 1000 tokens, whose validation losses were measured at equal distances."""
        folder = self.folder / name
        (folder / "run").mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps(
            {"steps": steps, "tokens": steps * 1000, "seconds": 321, "parameters_total": 7e6, "parameters_active": 3e6,
             "dtype": "bf16", "isa": "avx2", "threads": 2}))
        (folder / "eval.json").write_text(json.dumps({"bits_per_byte": held_out}))
        lines = [{"step": 1, "tokens": 1000}]  # a step without an evaluation
        lines += [{"tokens": steps * 1000 * i / len(losses), "bits_per_byte": loss} for i, loss in enumerate(losses, 1)]
        (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def rows(self, text, title, count=3):
        lines = text[text.index(title):].splitlines()[1:count + 1]
        return [line.split()[-3:] for line in lines]

    def test_speeds_are_compared_turn_by_turn(self):
        self.write_speed({"moe": 0.1, "dense-active": 0.08, "dense-total": 0.2})
        done = run("speed", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([line.split()[-5:] for line in done.stdout.splitlines()[1:]],
                         [["step,", "MoE", "/", "it", ratio] for ratio in ("0.80", "2.00")])
        self.assertIn("200.0 ms", done.stdout)
        self.assertEqual(run("steps", str(self.folder), "2").stdout, "600 750 300\n")

    def test_summary(self):
        self.write_speed({"moe": 0.1, "dense-active": 0.08, "dense-total": 0.2})
        for seed, held_out in ((1, 2.0), (2, 2.2)):
            self.write(f"moe-{seed}", held_out, 1000, (3.0, 2.5, 2.0, 1.9))
            self.write(f"active-tokens-{seed}", 2.4, 1000, (3.2, 2.25))
            self.write(f"active-seconds-{seed}", 2.3, 1250, (3.2, 2.0))
            self.write(f"total-seconds-{seed}", 2.5, 500, (3.5, 1.8))
        done = run("summary", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("MoE 7.00 / 3.00 M", done.stdout)
        self.assertEqual(self.rows(done.stdout, "held-out novel", 2), [["2.000", "2.200", "2.100"], ["2.400", "2.400", "2.400"]])
        self.assertEqual(self.rows(done.stdout, "seconds (steps", 4), [["200"] * 3, ["160"] * 3, ["200"] * 3, ["200"] * 3])
        # 2.25 lies in the middle between the evaluations after 0.50 and 0.75 M tokens; 1.8 is never reached.
        self.assertEqual(self.rows(done.stdout, "million tokens until"), [["0.62"] * 3, ["0.75"] * 3, ["seconds", "never", "never"]])
        self.assertEqual(self.rows(done.stdout, "seconds until")[:2], [["125"] * 3, ["150"] * 3])
        self.assertEqual(self.rows(done.stdout, "the same, share")[:2], [["0.78"] * 3, ["0.75"] * 3])

    def test_a_run_is_missing(self):
        self.write_speed({"moe": 0.1, "dense-active": 0.08, "dense-total": 0.2})
        self.write("moe-1", 2.0, 100, (3.0, 2.0))
        done = run("summary", str(self.folder))
        self.assertEqual(done.returncode, 1)
        self.assertIn("active-tokens-1", done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_nothing_there(self):
        for command in (["speed"], ["steps"], ["summary"]):
            done = run(*command, str(self.folder), *(["1"] if command == ["steps"] else []))
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_usage(self):
        for arguments in ((), ("--help",), ("steps", "x"), ("frobnicate", "x")):
            self.assertEqual(run(*arguments).returncode, 2)


if __name__ == "__main__":
    unittest.main()
