#!/usr/bin/env python3
"""tools/check_layers.py finds each kind of wrong include in a small tree, and nothing wrong in ours."""

import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_layers  # noqa: E402

GOOD = {
    "moe/LAYERS": "# comment\nbase:\nops: base\ncli: base ops\n",
    "moe/base/a.h": "#pragma once\n#include <vector>\n",
    "moe/base/a.cc": '#include "moe/base/a.h"\n',
    "moe/ops/b.h": '#include "moe/base/a.h"\n',
    "moe/cli/main.cc": '  #  include "moe/ops/b.h"\n',
    "testing/t.h": '#include "moe/ops/b.h"\n#include "testing/u.h"\n',
    "testing/u.h": "#pragma once\n",
    "tests/ops/b_test.cc": '#include "testing/t.h"\n',
}


class CheckLayers(unittest.TestCase):
    def errors(self, **changes):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            for name, text in {**GOOD, **changes.pop("files", {})}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(text)
            return check_layers.check(root)[0]

    def expect(self, files, fragment):
        errors = self.errors(files=files)
        self.assertEqual(len(errors), 1, errors)
        self.assertIn(fragment, errors[0])

    def test_a_good_tree(self):
        self.assertEqual(self.errors(), [])

    def test_our_tree(self):
        errors, count = check_layers.check(ROOT)
        self.assertEqual(errors, [])
        self.assertGreater(count, 50)

    def test_an_include_upwards(self):
        self.expect({"moe/base/a.cc": '\n#include "moe/ops/b.h"\n'}, "moe/base/a.cc:2")

    def test_an_include_that_is_not_listed(self):
        self.expect({"moe/LAYERS": "base:\nops: base\ncli: base\n"}, "cli may include base (moe/LAYERS), not ops")

    def test_a_cycle(self):
        self.expect({"moe/LAYERS": "base:\nops: base cli\ncli: base ops\n"}, "ops names cli, which has no line above it")

    def test_a_folder_on_itself(self):
        self.expect({"moe/LAYERS": "base: base\nops: base\ncli: base ops\n"}, "base names base")

    def test_two_lines_for_a_folder(self):
        self.expect({"moe/LAYERS": "base:\nbase:\nops: base\ncli: base ops\n"}, "two lines")

    def test_a_line_that_is_none(self):
        self.expect({"moe/LAYERS": "base:\nops: base\ncli: base ops\nnonsense\n"}, "got 'nonsense'")

    def test_a_folder_without_a_line(self):
        self.expect({"moe/stray/c.cc": "#include <vector>\n"}, "moe/stray has no line")

    def test_a_file_in_no_folder(self):
        self.expect({"moe/c.cc": "#include <vector>\n"}, "lies in no folder")

    def test_testing_inside_the_product(self):
        self.expect({"moe/ops/c.cc": '#include "testing/t.h"\n'}, "moe/ops/c.cc:1")

    def test_an_include_not_from_the_root(self):
        self.expect({"moe/base/a.cc": '#include "a.h"\n'}, 'only "moe/..."')
        self.expect({"tests/ops/b_test.cc": '#include "t.h"\n'}, "expected one of: moe tests testing")

    def test_an_include_of_ours_in_angle_brackets(self):
        self.expect({"moe/base/a.cc": "#include <moe/ops/b.h>\n"}, "in quotes")

    def test_an_include_that_does_not_exist(self):
        self.expect({"moe/ops/b.h": '#include "moe/base/gone.h"\n'}, "does not exist")

    def test_tests_inside_testing(self):
        self.expect({"testing/u.h": '#include "tests/ops/b_test.cc"\n'}, "testing/u.h:1")

    def test_an_empty_tree(self):
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "moe").mkdir()
            (pathlib.Path(folder) / "moe/LAYERS").write_text("base:\n")
            self.assertIn("no #include found", check_layers.check(pathlib.Path(folder))[0][0])


if __name__ == "__main__":
    unittest.main()
