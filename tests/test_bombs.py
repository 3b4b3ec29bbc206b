"""A small file that claims to become a huge one is streamed, or refused by its name, within the memory bound."""

import bz2
import gzip
import itertools
import lzma
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import REPOSITORY

from pipeline import unpacked_sizes
from pipeline.documents import read_documents
from pipeline.parquet_rows import rows_at_once
from pipeline.unpacked_sizes import read_page_header, walk_pages

FRAME_BYTES = 8 << 20
ZEROS = bytes(FRAME_BYTES)
PACKERS = {
    ".zst": lambda data: zstandard.compress(data, 19),
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
LINE = b'{"text": "a"}\n'


def write_bomb(path, frame, claimed_bytes):
    """A packed file that says the same frame again and again: about `claimed_bytes` of it."""
    packed = PACKERS[path.suffix](frame)
    path.write_bytes(packed * (claimed_bytes // len(frame)))
    return path


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_one_endless_line_is_refused_at_the_limit_with_its_file(tmp_path, monkeypatch, kind, packing):
    monkeypatch.setattr("pipeline.documents.LONGEST_LINE_BYTES", 16 << 20)
    claimed_bytes = 100_000_000_000 if packing == ".zst" else 1_000_000_000
    path = write_bomb(tmp_path / f"bomb{kind}{packing}", ZEROS, claimed_bytes)
    assert path.stat().st_size < 13_000_000
    with pytest.raises(ValueError, match=rf"bomb\{kind}\{packing}: row 0 is longer than 16 MiB"):
        list(read_documents(path, text_field="text"))


def test_endless_lines_are_streamed(tmp_path):
    path = write_bomb(tmp_path / "bomb.jsonl.zst", LINE * (FRAME_BYTES // len(LINE)), 100_000_000_000)
    batches = list(itertools.islice(read_documents(path, text_field="text"), 4))
    assert all(batch.texts.nbytes < 8 * FRAME_BYTES for batch in batches)
    assert batches[3].rows[0] == sum(batch.num_rows for batch in batches[:3])


def test_a_page_of_parquet_that_claims_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked_sizes, "LARGE_BYTES", 1 << 20)
    path = tmp_path / "bomb.parquet"
    how = {"compression": "zstd", "use_dictionary": False}
    pq.write_table(pa.table({"text": ["fine", "a" * (4 << 20)], "other": ["b" * (4 << 20)] * 2}), path, **how)
    with pytest.raises(ValueError, match=r"bomb\.parquet: a page has [\d,]+ bytes and claims to become 4,19"):
        list(read_documents(path, text_field="text"))
    pq.write_table(pa.table({"text": ["fine"], "other": ["b" * (4 << 20)]}), path, **how)
    assert len(list(read_documents(path, text_field="text"))) == 1  # what is not read may claim what it likes


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_the_pages_of_a_column_are_found_with_their_sizes(tmp_path, use_dictionary, version):
    texts = [str(number) * (number % 90) for number in range(20_000)]
    how = {"use_dictionary": use_dictionary, "data_page_version": version, "data_page_size": 10_000}
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd", **how)
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0)
    with pa.OSFile(str(tmp_path / "a.parquet")) as file:
        sizes = list(walk_pages(file, column))
    assert len(sizes) > 10
    claimed_bytes, packed_bytes = np.sum(sizes, axis=0)
    heads = column.total_compressed_size - packed_bytes
    assert 0 < heads < 200 * len(sizes) and claimed_bytes == column.total_uncompressed_size - heads


def test_a_page_header_that_is_none_is_left_to_the_reader():
    with pytest.raises(IndexError):
        read_page_header(b"\x15\x00\x15")
    with pytest.raises(KeyError):
        read_page_header(b"\x00")


def test_a_text_that_many_rows_repeat_is_read_a_few_times_at_once(tmp_path):
    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "a.parquet")
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    assert [rows_at_once(group, page) for page in (100, 32 << 20, 300 << 20)] == [64, 4, 1]


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "stream"])
def test_a_batch_of_arrow_that_claims_too_much_is_refused(tmp_path, monkeypatch, as_file):
    path, table = tmp_path / "bomb.arrow", pa.table({"text": ["a" * (4 << 20)], "few": ["b"]})
    make = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with make(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    assert len(list(read_documents(path, text_field="text"))) == 1
    monkeypatch.setattr(unpacked_sizes, "LARGE_BYTES", 1 << 20)
    with pytest.raises(
        ValueError, match=r"bomb\.arrow: a batch at byte [\d,]+ has [\d,]+ bytes and claims to become 4,"
    ):
        list(read_documents(path, text_field="text"))


MEASURE = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pipeline.documents import read_documents
try:
    for batch in itertools.islice(read_documents(Path(sys.argv[2]), text_field="text"), 20):
        del batch
except ValueError as error:
    print(error)
print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024)  # ru_maxrss counts the parent's too
"""


@pytest.mark.long
@pytest.mark.parametrize("frame", [ZEROS, b"\n" * FRAME_BYTES, b"1\n" * (FRAME_BYTES // 2), LINE * (FRAME_BYTES // 14)])
def test_a_bomb_takes_no_more_memory_than_a_line_may(tmp_path, frame):
    path = write_bomb(tmp_path / "bomb.jsonl.zst", frame, 100_000_000_000)
    command = [sys.executable, "-c", MEASURE, str(REPOSITORY), str(path)]
    *said, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(peak) < 800, f"{peak} MiB"
    assert [f"{path}: row 0 is longer than 256 MiB" in line for line in said] == [True] * (frame == ZEROS)
