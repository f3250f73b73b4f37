#!/usr/bin/env python3
"""scripts/plot_rows.py draws the time per row of what `moe bench gemm` and gemm_bench measured."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "plot_rows.py"
SVG = "{http://www.w3.org/2000/svg}"


def case(rows, seconds, group="decode", **more):
    return {"group": group, "name": f"bf16/{rows}x2048x2048", "run_s": seconds, "fraction": 0.5, **more}


def bench(*cases):
    return {"ceilings": {"cpu": "Some <CPU>", "isa": "avx2", "threads": 2}, "cases": list(cases)}


class PlotRows(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.addCleanup(self.temporary.cleanup)
        self.folder = pathlib.Path(self.temporary.name)

    def run_on(self, text):
        (self.folder / "b.json").write_text(text)
        return subprocess.run([sys.executable, "-B", str(SCRIPT), str(self.folder / "b.json"), str(self.folder / "b.svg")],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def points(self):
        root = xml.etree.ElementTree.parse(self.folder / "b.svg").getroot()
        return root, [[tuple(map(float, point.split(","))) for point in line.get("points").split()]
                      for line in root.iter(SVG + "polyline")]

    def test_time_is_per_row_and_rows_ascend(self):
        done = self.run_on(json.dumps(bench(case(4, 8e-6), case(1, 8e-6), case(2, 8e-6), case(128, 1, group="dense"))))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        root, (ours, least) = self.points()
        self.assertEqual(len(ours), 3)
        self.assertAlmostEqual(ours[1][0] - ours[0][0], ours[2][0] - ours[1][0], places=0)  # 1, 2, 4 on a log scale
        self.assertAlmostEqual(ours[1][1] - ours[0][1], ours[2][1] - ours[1][1], places=0)  # 8, 4, 2 us a row
        self.assertGreater(ours[1][1], ours[0][1])  # down the page
        self.assertAlmostEqual(least[0][1], ours[1][1], places=0)  # half of 8 us
        text = "".join(root.itertext())
        for part in ("Some <CPU>", "ours, bf16 2048x2048", "4 rows: 2 us per row", "at least, bf16 2048x2048"):
            self.assertIn(part, text)

    def test_a_peer_has_a_curve_of_its_own(self):
        cases = [case(m, 8e-6, peers=[{"peer": "onednn", "peer_ratio": 2}]) for m in (1, 2)]
        for c in cases:
            c["name"] += "/threads:2"
        self.assertEqual(self.run_on(json.dumps(bench(*cases))).returncode, 0)
        root, (ours, _, theirs) = self.points()
        self.assertAlmostEqual(ours[0][1], theirs[1][1], places=0)  # 8 us a row: our one row, their two
        self.assertIn("onednn, bf16 2048x2048, threads 2", "".join(root.itertext()))

    def test_one_case_alone(self):
        self.assertEqual(self.run_on(json.dumps(bench(case(16, 1e-4)))).returncode, 0)
        self.assertEqual([len(line) for line in self.points()[1]], [1, 1])

    def test_what_cannot_be_drawn_is_one_line(self):
        for text, part in (("{", "expected the JSON"), ("{}", "got no 'cases'"), ("[]", "expected the JSON"), (json.dumps(bench()), "no product of group 'decode'"),
                           (json.dumps(bench(case(128, 1, group="dense"))), "no product of group 'decode'")):
            done = self.run_on(text)
            self.assertEqual(done.returncode, 1)
            self.assertIn(part, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertFalse((self.folder / "b.svg").exists())


if __name__ == "__main__":
    unittest.main()
