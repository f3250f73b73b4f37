#!/usr/bin/env python3
"""scripts/plot_sweep.py draws what a sweep measured."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "plot_sweep.py"
SVG = "{http://www.w3.org/2000/svg}"


def sweep(total, active):
    rows = [{"batch": 2**i, "moe": {}, "dense_total": {}, "dense_active": {}, "speedup_total": t, "speedup_active": a}
            for i, (t, a) in enumerate(zip(total, active))]
    return {"model": "runs/a & b", "dtype": "bf16", "context": 64, "rows": rows,
            "machine": {"cpu": "Some <CPU>", "isa": "avx2", "threads": 2},
            "models": {"moe": {"parameters_total": 7.6e6, "parameters_active": 2.9e6, "experts": 8, "top_k": 2}}}


class PlotSweep(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def run_on(self, text):
        (self.folder / "s.json").write_text(text)
        return subprocess.run([sys.executable, "-B", str(SCRIPT), str(self.folder / "s.json"), str(self.folder / "s.svg")],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def points(self):
        root = xml.etree.ElementTree.parse(self.folder / "s.svg").getroot()
        return root, [[tuple(map(float, point.split(","))) for point in line.get("points").split()]
                      for line in root.iter(SVG + "polyline")]

    def test_curves_follow_the_rows(self):
        done = self.run_on(json.dumps(sweep((4, 1, 2), (1, 0.25, 0.5))))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        root, (total, active) = self.points()
        self.assertEqual(len(total), 3)
        self.assertAlmostEqual(total[1][0] - total[0][0], total[2][0] - total[1][0], places=0)  # batches on a log scale
        self.assertAlmostEqual(total[1][1] - total[0][1], 2 * (active[1][1] - active[2][1]), places=0)  # 4 to 1 is twice 0.25 to 0.5
        self.assertEqual(total[1][1], active[0][1])  # both 1
        text = "".join(root.itertext())
        for part in ("a & b: 7.6 M parameters, 2.9 M active, 8 experts, top-2", "Some <CPU>", "batch 2: 0.25x", "batch 1: 4.00x"):
            self.assertIn(part, text)

    def test_a_narrow_range_has_marks_too(self):
        self.assertEqual(self.run_on(json.dumps(sweep((1.05, 1.27), (0.87, 0.8)))).returncode, 0)
        root, _ = self.points()
        marks = [text.text for text in root.iter(SVG + "text") if text.text.endswith("x")]
        self.assertGreaterEqual(len(marks), 4, marks)

    def test_one_batch_alone(self):
        self.assertEqual(self.run_on(json.dumps(sweep((2,), (0.5,)))).returncode, 0)
        self.assertEqual([len(line) for line in self.points()[1]], [1, 1])

    def test_what_cannot_be_drawn_is_one_line(self):
        alone = sweep((2,), (0.5,))
        del alone["rows"][0]["dense_total"], alone["rows"][0]["dense_active"]
        empty = sweep((), ())
        for text, part in (("{", "expected the JSON"), ("{}", "got no 'rows'"), (json.dumps(alone), "without dense twins"), (json.dumps(empty), "got none")):
            done = self.run_on(text)
            self.assertEqual(done.returncode, 1)
            self.assertIn(part, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertFalse((self.folder / "s.svg").exists())


if __name__ == "__main__":
    unittest.main()
