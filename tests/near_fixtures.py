"""Texts whose similarity is planted, and builds of them."""

import numpy as np
import pyarrow.parquet as pq
from conftest import write_rows

from pipeline.dataset import read_dataset_json

FEW_DOCUMENTS = "--valid-fraction 0"


def draw_words(rng, count):
    return [f"w{number}" for number in rng.integers(0, 10**7, count)]


def change_end(words, count):
    """The same words but the last `count`: of n words the shingles shared are n - 4 - count of n - 4 + count."""
    return [*words[: len(words) - count], *(f"{word}x" for word in words[len(words) - count :])]


def write_texts(folder, texts, name="a.jsonl"):
    return write_rows(folder / name, [{"text": text} for text in texts])


def build(run_build, folder, model, more="", mix="web:1"):
    """Build raw/ into out/; returns drops as (source, row) -> (reason, partner source, partner row, similarity)."""
    out = folder / "out"
    outcome = run_build(
        f"--mix {mix} --raw {folder}/raw --out {out} --tokenizer {model} --workers 1 --max-dup-fraction 1 {more}"
    )
    assert outcome.code == 0, outcome.error
    return read_duplicates(out)


def read_duplicates(out):
    dropped = {}
    for name, source in read_dataset_json(out)["sources"].items():
        for file in source["drops"]:
            for row in pq.read_table(out / file["path"]).to_pylist():
                similarity = None if row["similarity"] is None else np.float32(row["similarity"])
                dropped[name, row["row"]] = (row["reason"], row["partner_source"], row["partner_row"], similarity)
    return dropped
