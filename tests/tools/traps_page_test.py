#!/usr/bin/env python3
"""docs/testing.md lists every trap and its tests: no test is missing there, and none is named that is not there."""

import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class TrapsPage(unittest.TestCase):
    def test_lists_the_tests_that_are_there(self):
        page = (ROOT / "docs" / "testing.md").read_text()
        listed = re.findall(r"`(Trap\d\d_\w+)`", page)
        there = {name for path in (ROOT / "tests").rglob("*_test.cc")
                 for name in re.findall(r"TEST(?:_F|_P)?\(\w+,\s*(Trap\d\d_\w+)\)", path.read_text())}
        self.assertEqual(len(listed), len(set(listed)), "named twice")
        self.assertEqual(set(listed), there)

    def test_has_a_row_for_every_trap(self):
        page = (ROOT / "docs" / "testing.md").read_text()
        rows = {int(number): cells for number, cells in re.findall(r"^\| (\d+) \| (.*) \|$", page, re.MULTILINE)}
        self.assertEqual(sorted(rows), list(range(1, 27)))
        for number, cells in rows.items():
            names = re.findall(r"`Trap(\d\d)_", cells)
            self.assertTrue(all(int(name) == number for name in names), cells)
            self.assertTrue(names or "does not apply" in cells, cells)


if __name__ == "__main__":
    unittest.main()
