#!/usr/bin/env python3
"""tools/check_isa_symbols.py finds a weak symbol in an isa object, and AVX elsewhere."""

import pathlib
import platform
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_isa_symbols  # noqa: E402

SUM = "float Sum(const float* x) { float s = 0; for (int i = 0; i < 64; ++i) s += x[i]; return s; }\n"
WEAK = "__attribute__((noinline)) inline float Half(float x) { return x / 2; }\nfloat F(float x) { return Half(x); }\n"


@unittest.skipUnless(platform.machine() == "x86_64", "AVX is a thing of x86-64")
class CheckIsaSymbols(unittest.TestCase):
    def errors(self, objects):
        """objects: path below moe/ -> (source, flags)"""
        with tempfile.TemporaryDirectory() as folder:
            for name, (source, flags) in objects.items():
                path = pathlib.Path(folder) / "CMakeFiles" / f"moe_{name.split('/')[0]}.dir" / "moe" / (name + ".o")
                path.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["g++", "-x", "c++", "-O3", "-ffast-math", *flags, "-c", "-o", str(path), "-"], input=source,
                               text=True, check=True)
            return check_isa_symbols.check(pathlib.Path(folder))[0]

    def test_a_good_build(self):
        self.assertEqual(self.errors({"kernels/cpu/isa/avx2.cc": (SUM, ["-mavx2"]), "kernels/cpu/isa/scalar.cc": (SUM, []),
                                      "ops/norm.cc": (SUM + WEAK, [])}), [])

    def test_a_weak_symbol(self):
        errors = self.errors({"kernels/cpu/isa/avx2.cc": (WEAK, ["-mavx2"])})
        self.assertEqual(errors, ["avx2.cc.o: defines the weak symbol Half(float)"])

    def test_avx_outside(self):
        for flags in (["-mavx2"], ["-mavx"], ["-mavx512f", "-mprefer-vector-width=512"]):
            errors = self.errors({"kernels/cpu/isa/avx2.cc": (SUM, ["-mavx2"]), "ops/norm.cc": (SUM, flags)})
            self.assertEqual(len(errors), 1, errors)
            self.assertIn("norm.cc.o: holds", errors[0])

    def test_avx_in_the_scalar_table(self):
        errors = self.errors({"kernels/cpu/isa/scalar.cc": (SUM, ["-mavx2"])})
        self.assertEqual(len(errors), 1, errors)
        self.assertIn("scalar.cc.o: holds", errors[0])

    def test_no_build(self):
        self.assertIn("no object", self.errors({"ops/norm.cc": (SUM, [])})[0])


if __name__ == "__main__":
    unittest.main()
