#!/usr/bin/env python3
"""scripts/demo_report.py says what the files of a demo hold."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "demo_report.py"


def run(*arguments):
    return subprocess.run([sys.executable, "-B", str(SCRIPT), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class DemoReport(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def write_steps(self, name, count, seconds_per_step, bits):
        folder = self.folder / name
        folder.mkdir()
        lines = [{"step": i, "tokens": 1000 * i, "seconds": seconds_per_step * i, "train_bits_per_byte": bits(i)}
                 for i in range(1, count + 1)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def test_losses(self):
        self.write_steps("moe", 24, 3, lambda i: 2.0)
        self.write_steps("dense", 24, 2, lambda i: 3.0 if i <= 12 else 2.5)
        done = run("losses", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = [line.split() for line in done.stdout.splitlines() if line.strip() and line.split()[0].replace(",", "").isdigit()]
        self.assertEqual(len(rows), 12)
        self.assertEqual(rows[0], ["2,000", "2.000", "0:06", "3.000", "0:04"])
        self.assertEqual(rows[-1], ["24,000", "2.000", "1:12", "2.500", "0:48"])
        self.assertIn("At equal seconds, after 0:48: MoE 2.000, dense 2.500", done.stdout)

    def test_losses_of_a_very_short_run(self):
        self.write_steps("moe", 1, 3, lambda i: 2.0)
        self.write_steps("dense", 1, 2, lambda i: 3.0)
        done = run("losses", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1,000    2.000   0:03    3.000   0:02", done.stdout)

    def test_summary(self):
        for name, total, speed, bits in (("moe", 7.6e6, 6000, 2.31), ("dense", 2.9e6, 8000, 2.35)):
            (self.folder / f"{name}-train.json").write_text(json.dumps(
                {"parameters_total": total, "parameters_active": 2.9e6, "tokens": 123456, "seconds": 100, "tokens_per_s": speed}))
            (self.folder / f"{name}-eval.json").write_text(json.dumps({"bits_per_byte": bits}))
        rows = [{"batch": b, "speedup_total": s, "speedup_active": 0.9} for b, s in ((1, 2.5), (8, 1.1), (256, 1.9))]
        (self.folder / "sweep.json").write_text(json.dumps({"rows": rows, "core_wait": 0.01}))
        (self.folder / "sweep-wide.json").write_text(json.dumps({"rows": [{"batch": 4, "speedup_total": 3.5}], "core_wait": 0.4}))
        done = run("summary", str(self.folder))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("threads waited 40% of the sweeps' time for a core", done.stdout)
        for part in ("7.60 M", "123,456", "Training speed MoE / dense 0.75", "0.040 bits/byte better",
                     "xz -9e    2.470 alone, 2.133 after", "zpaq -m5  1.851 alone, 1.574 after", "2.50x at batch 1 (best)",
                     "1.10x at batch 8 (least)", "top-8) over a dense model of its size: 3.50x at batch 4", f"{self.folder}/moe/"):
            self.assertIn(part, done.stdout)

    def test_bad_input_is_one_line(self):
        for arguments, code in ((("losses", str(self.folder)), 1), (("frobnicate", str(self.folder)), 2), ((), 2)):
            done = run(*arguments)
            self.assertEqual(done.returncode, code)
            self.assertEqual(done.stdout, "")
        self.assertEqual(len(run("losses", str(self.folder)).stderr.splitlines()), 1)


if __name__ == "__main__":
    unittest.main()
