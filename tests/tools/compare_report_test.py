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
TWINS = ("active-tokens", "active-seconds", "total-seconds")


def run(*arguments):
    return subprocess.run([sys.executable, "-B", str(SCRIPT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class CompareReport(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def write(self, name, held_out, seconds, speed, losses):
        """A run of `seconds` at `speed` tokens/s, whose validation losses were measured at equal distances."""
        folder = self.folder / name
        (folder / "run").mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps(
            {"tokens": seconds * speed, "seconds": seconds, "tokens_per_s": speed, "parameters_total": 7e6, "parameters_active": 3e6,
             "dtype": "bf16", "isa": "avx2", "threads": 2}))
        (folder / "eval.json").write_text(json.dumps({"bits_per_byte": held_out}))
        lines = [{"step": 1, "seconds": 1, "tokens": speed}]  # a step without an evaluation
        lines += [{"seconds": seconds * i / len(losses), "tokens": speed * seconds * i / len(losses), "bits_per_byte": loss}
                  for i, loss in enumerate(losses, 1)]
        (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def rows(self, text, title):
        lines = text[text.index(title):].splitlines()[1:4]
        return [line.split()[-3:] for line in lines]

    def test_report(self):
        for seed, held_out in ((1, 2.0), (2, 2.2)):
            self.write(f"moe-{seed}", held_out, 100, 10000, (3.0, 2.5, 2.0, 1.9))
            self.write(f"active-tokens-{seed}", 2.4, 80, 12500, (3.2, 2.25))
            self.write(f"active-seconds-{seed}", 2.3, 100, 12500, (3.2, 2.0))
            self.write(f"total-seconds-{seed}", 2.5, 100, 5000, (3.5, 1.8))
        done = run(str(self.folder))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("MoE 7.00 / 3.00 M", done.stdout)
        self.assertEqual(self.rows(done.stdout, "held-out novel")[:2], [["2.000", "2.200", "2.100"], ["2.400", "2.400", "2.400"]])
        self.assertEqual(self.rows(done.stdout, "step speed"), [["0.80"] * 3, ["0.80"] * 3, ["2.00"] * 3])
        # 2.25 lies in the middle between the evaluations after 50 and 75 s; 1.8 is never reached.
        self.assertEqual(self.rows(done.stdout, "seconds until"), [["62"] * 3, ["75"] * 3, ["seconds", "never", "never"]])
        self.assertEqual(self.rows(done.stdout, "million tokens until")[1], ["0.75"] * 3)
        self.assertEqual(self.rows(done.stdout, "the same, share")[0], ["0.78"] * 3)

    def test_a_run_is_missing(self):
        self.write("moe-1", 2.0, 100, 10000, (3.0, 2.0))
        done = run(str(self.folder))
        self.assertEqual(done.returncode, 1)
        self.assertIn("active-tokens-1", done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1)

    def test_nothing_there(self):
        done = run(str(self.folder))
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("expected what scripts/compare.sh leaves", done.stderr)

    def test_usage(self):
        self.assertEqual(run().returncode, 2)
        self.assertEqual(run("--help").returncode, 2)


if __name__ == "__main__":
    unittest.main()
