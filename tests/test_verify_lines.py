"""The build's reader of JSON lines is checked against Python's own json, gzip and zstandard."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from test_documents import BAD_LINES

from pipeline import documents
from pipeline.documents import read_documents
from pipeline.verify_lines import verify_lines

GOOD = [json.dumps({"text": f"é {number}\n"}).encode() for number in range(40)]
LINES = [*GOOD[:20], b"", *BAD_LINES, b" \r", *GOOD[20:]]


def problems_of(path, batches, *, choose=lambda rows: np.ones(len(rows), bool)):
    return [text for _, said in verify_lines(path, iter(batches), text_field="text", choose=choose) for text in said]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_right_reader_is_right_in_every_packing(tmp_path, monkeypatch, suffix, pack):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 100)  # many batches
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(b"\n".join(LINES[:30]) + b"\n") + pack(b"\n".join(LINES[30:])))
    assert problems_of(path, read_documents(path, text_field="text")) == []


def test_a_wrong_text_a_lost_row_and_a_wrong_reason_are_found_where_they_are_looked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(LINES) + b"\n")
    (batch,) = read_documents(path, text_field="text")
    texts = batch.texts.to_pylist()
    wrong = replace(batch, texts=pa.array(["other", *texts[1:]]))
    assert problems_of(path, [wrong]) == [f"{path} row 0: the build's reader and json read different texts"]
    lost = replace(batch, texts=batch.texts[1:], rows=batch.rows[1:])
    assert problems_of(path, [lost]) == [f"{path} row 0: the build's reader says blank, json a document"]
    assert problems_of(path, [lost], choose=lambda rows: rows > 0) == []
    bad_rows = batch.bad_rows.copy()
    bad_rows["reason"][0] = 3
    (problem,) = problems_of(path, [replace(batch, bad_rows=bad_rows)], choose=lambda rows: np.zeros(len(rows), bool))
    assert problem == f"{path} row 21: the build's reader says bad_text_missing, json bad_utf8"


def test_other_kinds_of_files_pass_through(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    assert problems_of(path, read_documents(path, text_field="text")) == []
