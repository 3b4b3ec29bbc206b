"""The bytes of a shard are exactly the layout at the top of shard.py."""

import struct

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.shard import (
    REQUIRED_KEYS,
    check_size,
    open_document_ends,
    open_tokens,
    read_dataset_json,
    token_dtype,
    write_dataset_json,
    write_shard,
)

NAME = "web/train/shard-00000.bin"


def write(folder, documents, dtype="<u2"):
    lengths = np.array([len(document) for document in documents], np.int64)
    columns = {
        "raw_file": np.arange(len(documents), dtype=np.uint32),
        "row": np.arange(len(documents), dtype=np.uint64) * 10,
        "content_hash": np.arange(2 * len(documents), dtype="<u8").reshape(-1, 2),
    }
    ids = np.concatenate(documents).astype(dtype)
    return write_shard(folder, NAME, ids=ids, lengths=lengths, documents=columns)


def test_the_four_files_hold_the_documented_bytes(tmp_path):
    shard = write(tmp_path, [[5, 6, 2], [7, 2], [65_535, 2]])
    folder = tmp_path / "web/train"
    assert (folder / "shard-00000.bin").read_bytes() == struct.pack("<7H", 5, 6, 2, 7, 2, 65_535, 2)
    assert (folder / "shard-00000.bin.index").read_bytes() == struct.pack("<3Q", 3, 5, 7)
    assert (folder / "shard-00000.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 3, 4)
        + struct.pack("<3i", 3, 2, 2)
        + struct.pack("<3q", 0, 6, 10)
        + struct.pack("<4q", 0, 1, 2, 3)
    )
    table = pq.read_table(folder / "shard-00000.docs.parquet").to_pydict()
    assert table == {
        "raw_file": [0, 1, 2],
        "row": [0, 10, 20],
        "num_tokens": [3, 2, 2],
        "content_hash": [struct.pack("<2Q", 2 * i, 2 * i + 1) for i in range(3)],
    }
    assert (shard.path, shard.bytes, shard.tokens, shard.documents, shard.largest_id) == (NAME, 14, 7, 3, 65_535)
    assert len(shard.xxh3_128) == len(shard.docs_xxh3_128) == 32


def test_ids_beyond_uint16_take_four_bytes(tmp_path):
    shard = write(tmp_path, [[100_000, 2]], dtype="<u4")
    assert (tmp_path / NAME).read_bytes() == struct.pack("<2I", 100_000, 2)
    assert (tmp_path / NAME).with_suffix(".idx").read_bytes()[17] == 4
    assert (shard.bytes, shard.largest_id) == (8, 100_000)
    assert [token_dtype(size).name for size in (65_536, 65_537)] == ["uint16", "uint32"]


def test_reading_is_a_read_only_view(tmp_path):
    write(tmp_path, [[5, 6, 2], [7, 2]])
    tokens = open_tokens(tmp_path / NAME, dtype=np.dtype("<u2"), num_tokens=5)
    assert tokens.tolist() == [5, 6, 2, 7, 2]
    assert open_document_ends(tmp_path / NAME, num_documents=2).tolist() == [3, 5]
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_a_cut_shard_is_refused_with_both_sizes(tmp_path):
    write(tmp_path, [[5, 6, 2], [7, 2]])
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"has 8 bytes, dataset\.json says 10"):
        open_tokens(path, dtype=np.dtype("<u2"), num_tokens=5)
    with pytest.raises(FileNotFoundError, match="is missing"):
        check_size(tmp_path / "no.bin", 1)


def test_nothing_is_left_under_the_final_name_when_writing_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, [[5, 2]])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_without_dataset_json_is_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no finished dataset .* python pipeline/build\.py"):
        read_dataset_json(tmp_path)


def test_a_folder_with_a_dataset_for_each_tokenizer_names_them(tmp_path):
    for name in ("llama2", "gpt2"):
        (tmp_path / name).mkdir()
        write_dataset_json(tmp_path / name, {key: {} for key in REQUIRED_KEYS})
    with pytest.raises(FileNotFoundError, match=r"no dataset itself .*: \S+/gpt2, \S+/llama2$"):
        read_dataset_json(tmp_path)


def test_a_dataset_of_another_format_version_is_refused(tmp_path):
    write_dataset_json(tmp_path, {key: {} for key in REQUIRED_KEYS})
    assert read_dataset_json(tmp_path)["sources"] == {}
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ValueError, match="has format version 99, this program reads 1"):
        read_dataset_json(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a tokenmill dataset"):
        read_dataset_json(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_dataset_json(tmp_path)
