#!/usr/bin/python3
"""Tests of corpus.py that need neither network nor packages."""

import contextlib
import importlib.util
import io
import lzma
import pathlib
import random
import struct
import sys
import tempfile
import unittest
import unittest.mock
import zlib

sys.dont_write_bytecode = True
spec = importlib.util.spec_from_file_location("corpus", pathlib.Path(__file__).with_name("corpus.py"))
corpus = importlib.util.module_from_spec(spec)
spec.loader.exec_module(corpus)


def character_vector(lines):
    body = b"".join(struct.pack(">ii", 0x00040009, len(line)) + line for line in lines)
    return b"X\n" + struct.pack(">i", 0x00030500) + b"\x00\x00\x00\x10" + struct.pack(">i", len(lines)) + body


def record(data, use_lzma):
    if use_lzma:
        return struct.pack(">I", len(data)) + b"Z" + lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return struct.pack(">I", len(data)) + zlib.compress(data)


class Records(unittest.TestCase):
    def test_both_compressions_round_trip(self):
        texts = [[b"EMMA", b"", b"line two"], [b"PERSUASION", b"x" * 5000], [b"A"]]
        rdb = b"".join(record(character_vector(lines), i % 2 == 0) for i, lines in enumerate(texts))
        self.assertEqual([corpus.character_vector(data) for data in corpus.records(rdb)], texts)

    def test_damage_is_an_error(self):
        rdb = record(character_vector([b"EMMA", b"words"]), False)
        for bad in (rdb[:-3], rdb[:2], struct.pack(">I", 7) + rdb[4:]):
            with self.assertRaises((corpus.CorpusError, struct.error, zlib.error)):
                list(corpus.records(bad))
        with self.assertRaises((corpus.CorpusError, struct.error)):
            corpus.character_vector(character_vector([b"EMMA", b"words"])[:-2])

    def test_another_type_is_passed_over(self):
        self.assertIsNone(corpus.character_vector(b"X\n\x00\x00\x00\x0d"))


class Cut(unittest.TestCase):
    def source(self, seed):
        rng = random.Random(seed)
        return b"".join(b"w" * rng.randrange(120) + b"\n" for _ in range(rng.randrange(20_000))) + b"no newline at the end"

    def test_every_byte_is_on_one_side_and_lines_stay_whole(self):
        for seed in range(5):
            source = self.source(seed)
            spans = corpus.passages(source)
            at = 0
            for begin, end in spans:
                self.assertTrue(at <= begin < end <= len(source))
                self.assertEqual(source[begin - 1:begin], b"\n")
                self.assertEqual(source[end - 1:end], b"\n")
                self.assertTrue(corpus.PASSAGE <= end - begin < corpus.PASSAGE + 200)
                at = end
            rest, held_out = corpus.cut(source)
            self.assertEqual(len(rest) + len(held_out), len(source))
            self.assertEqual(held_out, b"".join(source[begin:end] for begin, end in spans))
            self.assertEqual(len(spans), max(0, -(-(len(source) - corpus.PASSAGE - corpus.PERIOD // 2) // corpus.PERIOD)))

    def test_short_sources_give_none(self):
        for source in (b"", b"\n", b"x" * 200_000):
            self.assertEqual(corpus.cut(source), (source, b""))


class Make(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.out = pathlib.Path(self.folder.name)
        self.texts = {name: name.encode() * 10 for name in corpus.FILES}
        files = {name: corpus.digest(text) for name, text in self.texts.items()}
        for target, value in (("FILES", files), ("unpack", lambda *_: None), ("build", lambda _: self.texts)):
            patch = unittest.mock.patch.object(corpus, target, value)
            patch.start()
            self.addCleanup(patch.stop)

    def make(self, packages):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            corpus.make(self.out, packages)
        return printed.getvalue()

    def test_writes_repairs_and_leaves_alone(self):
        self.assertEqual(len(self.make(self.out).splitlines()), 1 + len(self.texts))
        train = self.out / "debian-prose-1/train.txt"
        before = train.stat().st_mtime_ns
        with unittest.mock.patch.object(corpus, "unpack", side_effect=AssertionError("nothing is missing")):
            self.make(self.out)
        self.assertEqual(train.stat().st_mtime_ns, before)
        train.write_bytes(b"damaged")
        self.make(self.out)
        self.assertEqual(train.read_bytes(), self.texts["train.txt"])
        self.assertEqual(sorted(path.name for path in train.parent.iterdir()), sorted(self.texts))

    def test_other_bytes_are_refused_and_not_written(self):
        self.texts["valid.txt"] += b"!"
        with self.assertRaisesRegex(corpus.CorpusError, r"\[valid.txt\] got 91 bytes"):
            self.make(self.out)
        self.assertEqual([path.name for path in (self.out / "debian-prose-1").iterdir()], [])

    def test_missing_packages_are_named(self):
        with self.assertRaisesRegex(corpus.CorpusError, "bible-kjv_"):
            unittest.mock.patch.stopall()
            corpus.unpack(self.out, self.out)


if __name__ == "__main__":
    unittest.main()
