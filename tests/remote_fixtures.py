"""What the tests of builds from elsewhere share: raw files of every kind, the flags of a build, and what it must not say."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from build_fixtures import hashes
from conftest import write_rows

WORDS = ["mill", "stone", "grain", "water", "wheel", "flour", "sack", "weir", "été", "x=1", "</s>", "🌾"]


def make_texts(seed, number):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(number)]


def flags(mix, out, model, more=""):
    return f"--mix {mix} --out {out} --tokenizer {model} --max-bad-fraction 0.1 --workers 1 {more}"


def read_log(out):
    return [json.loads(line) for line in (out / "build-log.jsonl").read_text().splitlines()]


def check_secret(secret, outcome, *folders):
    """That a secret is in nothing that was said or written."""
    written = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 3 and secret.encode() not in b"".join(written)
    assert secret not in outcome.out + outcome.error


def check_same(out, local):
    assert hashes(out) == hashes(local)
    assert not (out / "work").exists()


def write_corpus(folder):
    """Raw files of every kind, with rows that are bad and texts that are there twice; returns their bytes by path."""
    for number in range(4):
        texts = make_texts(number, 40)
        padding = "x" * 50_000 * (number == 3)  # a file of more than a chunk
        rows = [{"text": text, "meta": {"n": 1, "padding": padding}} for text in [*texts, texts[0]]]
        write_rows(folder / f"train/plain-{number}.jsonl", rows)
    lines = (folder / "train/plain-0.jsonl").read_bytes()
    (folder / "train/packed.jsonl.zst").write_bytes(zstandard.compress(lines + b"{\n"))
    (folder / "train/more").mkdir()
    (folder / "train/more/packed.json.gz").write_bytes(gzip.compress(lines[:2000].rpartition(b"\n")[0], mtime=0))
    pq.write_table(pa.table({"text": make_texts(9, 50), "id": range(50)}), folder / "train/rows.parquet")
    write_rows(folder / "validation/few.jsonl", [{"text": text} for text in make_texts(11, 10)])
    (folder / "README.md").write_text("not a raw file")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
