#!/usr/bin/env python3
"""Proves that instructions beyond the base line stay inside the files that are compiled for them.

  tools/check_isa_symbols.py BUILD_FOLDER      (of a release build)

The linker keeps one copy of a weak symbol (an inline function, a template) and may take it from any object. If a file compiled for
AVX-512 defines one, the whole program can end up with its copy and die on a machine without AVX-512. So:
  objects of moe/kernels/cpu/isa/ define no weak symbol;
  all other objects of moe/, and isa/scalar.cc, hold no AVX instruction.
"""

import pathlib
import re
import subprocess
import sys

WEAK = re.compile(r"^[0-9a-f]+ ([WVu]) (.+)$")
# Every instruction with a VEX or EVEX prefix begins with v; of those without, only verr and verw do.
AVX = re.compile(r"\t(v(?!err|erw)[a-z0-9]+\s.*%[xyz]mm\d+|vzeroupper|vzeroall)")


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def weak_symbols(path):
    return [match[2] for line in run("nm", "-C", str(path)).splitlines() if (match := WEAK.match(line))]


def avx_instructions(path):
    text = run("objdump", "-d", "--no-show-raw-insn", str(path))
    return [match[1].strip() for line in text.splitlines() if (match := AVX.search(line))]


def check(folder):
    """(what is wrong, objects read)"""
    errors = []
    objects = sorted(p for p in folder.rglob("*.o") if re.search(r"CMakeFiles/moe(_[a-z]+)?\.dir/moe/", str(p)))
    isa = [p for p in objects if "kernels/cpu/isa/" in str(p)]
    for path in isa:
        for symbol in weak_symbols(path):
            errors.append(f"{path.name}: defines the weak symbol {symbol}")
    for path in objects:
        if path not in isa or path.name.startswith("scalar."):
            found = avx_instructions(path)
            if found:
                errors.append(f"{path.name}: holds {len(found)} AVX instructions, the first: {found[0]}")
    if not isa:
        errors.append(f"{folder}: no object of moe/kernels/cpu/isa/ found, expected a build")
    return errors, objects


def main():
    if len(sys.argv) != 2:
        print("usage: check_isa_symbols.py BUILD_FOLDER", file=sys.stderr)
        return 2
    errors, objects = check(pathlib.Path(sys.argv[1]))
    for error in errors:
        print(error, file=sys.stderr)
    if not errors:
        print(f"{len(objects)} objects keep to their instruction sets")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
