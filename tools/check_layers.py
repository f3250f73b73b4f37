#!/usr/bin/env python3
"""Holds every #include of the tree against moe/LAYERS.

  tools/check_layers.py [ROOT]

A folder of moe/ may include itself and what its line in LAYERS names; lines name only folders above them, so there is no cycle.
Nothing in moe/ includes testing/ or tests/. Quoted includes are written from the root ("moe/base/check.h") and exist.
"""

import pathlib
import re
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
LINE = re.compile(r"^([a-z_]+):\s*([a-z_ ]*)$")
# What files outside moe/ may include by a quoted name, besides their own folder and all of moe/.
OUTSIDE = {"testing": (), "tests": ("testing",), "fuzz": ("testing",), "benches": ("testing",), "lab": ("testing",), "examples": ()}


def read_layers(path, errors):
    """folder -> the folders it may include."""
    layers = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.match(line)
        if not match:
            errors.append(f"{path}:{number}: got '{line}', expected 'folder: folder folder'")
            continue
        folder, allowed = match[1], match[2].split()
        if folder in layers:
            errors.append(f"{path}:{number}: {folder} has two lines")
        for other in allowed:
            if other not in layers:
                errors.append(f"{path}:{number}: {folder} names {other}, which has no line above it")
        layers[folder] = set(allowed)
    return layers


def sources(folder):
    return sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cc", ".cu", ".inc")) if folder.is_dir() else []


def includes(path):
    """(line number, quote, name) of each #include."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match[1], match[2]


def check_include(root, quote, name, own, allowed, outside):
    """What is wrong with it, or None. own: the folder of moe/ that includes, None outside moe/."""
    top = name.split("/")[0]
    ours = top == "moe" or top in OUTSIDE
    if quote == "<":
        return f"<{name}> is ours: include it in quotes" if ours and (root / name).exists() else None
    if own is not None and top != "moe":
        return f'"{name}": a file of moe/ includes only "moe/..." in quotes'
    if own is None and top not in ("moe", *outside):
        return f'"{name}": got {top}/, expected one of: moe {" ".join(outside)}'
    if not (root / name).is_file():
        return f'"{name}" does not exist'
    if own is not None:
        folder = name.split("/")[1]
        if folder != own and folder not in allowed:
            return f'"{name}": {own} may include {" ".join(sorted(allowed)) or "nothing"} (moe/LAYERS), not {folder}'
    return None


def check(root):
    """(what is wrong, how many includes were read)"""
    errors, count = [], 0
    layers = read_layers(root / "moe/LAYERS", errors)
    for path in sources(root / "moe"):
        parts = path.relative_to(root / "moe").parts
        if len(parts) == 1:
            errors.append(f"{path}: lies in no folder")
        elif parts[0] not in layers and not any(f"moe/{parts[0]} has no line" in e for e in errors):
            errors.append(f"moe/{parts[0]} has no line in moe/LAYERS")
    for top in ("moe", *OUTSIDE):
        for path in sources(root / top):
            parts = path.relative_to(root).parts
            own = parts[1] if top == "moe" and len(parts) > 2 else None
            for number, quote, name in includes(path):
                count += 1
                wrong = check_include(root, quote, name, own, layers.get(own, set()), (top, *OUTSIDE.get(top, ())))
                if wrong:
                    errors.append(f"{path.relative_to(root)}:{number}: {wrong}")
    if count == 0:
        errors.append(f"{root}: no #include found")
    return errors, count


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent).resolve()
    errors, count = check(root)
    for error in errors:
        print(error, file=sys.stderr)
    if not errors:
        print(f"{count} includes respect moe/LAYERS")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
