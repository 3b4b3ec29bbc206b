"""A finished dataset in formats that put something before the ids, or cut them: written anew, whole shard by shard.

    llmc     OUT/<source>_<train|val|test>_000000.bin: 1,024 bytes of header, then uint16 ids, an EOS before the first
    litdata  OUT/<source>/<split>/chunk-0-0.bin, index.json: an item per document, for its TokensLoader
    mds      OUT/<split>/shard.00000.mds, index.json: a row per sample, a column `tokens`
    hf       OUT/data/<split>-00000-of-00001.parquet: a row per sample, a column `input_ids`; load_dataset("OUT")

Rows of mds and hf have --seq-len tokens and follow the order of the mix and --seed, one epoch; neighbours in a shard
share a token, so that a model which shifts labels by itself learns each token once.
Formats: llm.c/dev/data/data_common.py, litdata/streaming/writer.py, streaming/base/format/mds/writer.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.dataset import PackedDataset
from pipeline.export_views import NANOGPT_SPLITS, View
from pipeline.shard import index_path
from pipeline.storage import open_new, write_file, write_json

LLMC_MAGIC, LLMC_VERSION, LLMC_HEADER = 20240520, 1, 256
LITDATA_CHUNK_BYTES, LITDATA_NUMPY_CODES = 64 << 20, {"uint16": 5, "uint32": 6}
MDS_SHARD_BYTES = 1 << 26
PARQUET_ROWS = 100_000


def copy_for_llmc(view: View) -> None:
    """Headers before copies. An EOS first: these readers look for a document's start behind one.

    Raises ValueError for uint32 ids, or a shard of 2**31 tokens or more.
    """
    view.need_uint16("llm.c")
    numbers: dict[tuple[str, str], int] = {}
    for source, split, path, shard in view.shards():
        num_tokens = shard["tokens"] + 1
        if num_tokens >= 1 << 31:
            raise ValueError(f"{path} has {shard['tokens']:,} tokens; a file of llm.c holds less than 2,147,483,648")
        number = numbers.setdefault((source, split), 0)
        numbers[source, split] += 1
        header = np.zeros(LLMC_HEADER, dtype="<i4")
        header[:3] = LLMC_MAGIC, LLMC_VERSION, num_tokens
        first = np.array([view.catalogue.eos_id], dtype="<u2")
        ids = np.memmap(path, dtype=np.uint8, mode="r")
        name = f"{source}_{NANOGPT_SPLITS[split]}_{number:06d}.bin"
        write_file(view.out / name, [header.tobytes(), first.tobytes(), ids])


def copy_for_litdata(view: View) -> None:
    """Chunks of about 64 MB of whole documents, and an index per source and split."""
    folders: dict[Path, list[dict]] = {}
    for source, split, path, shard in view.shards():
        chunks = folders.setdefault(view.out / source / split, [])
        ends = np.fromfile(index_path(path), dtype="<u8", count=shard["documents"]).astype(np.int64)
        ids = np.memmap(path, dtype=view.catalogue.dtype, mode="r")
        for first, last in cut_chunks(ends, most_tokens=LITDATA_CHUNK_BYTES // ids.itemsize):
            start = int(ends[first - 1]) if first else 0
            target = view.out / source / split / f"chunk-0-{len(chunks)}.bin"
            chunks.append(write_chunk(target, ends[first:last] - start, ids[start : ends[last - 1]]))
    for folder, chunks in folders.items():
        code = LITDATA_NUMPY_CODES[view.catalogue.dtype.name]
        config = {
            "compression": None, "chunk_size": None, "chunk_bytes": LITDATA_CHUNK_BYTES, "encryption": None,
            "data_format": [f"no_header_numpy:{code}"], "data_spec": '[1, {"type": null, "context": null, '
            '"children_spec": []}]', "item_loader": "TokensLoader",
        }  # fmt: skip
        write_json(folder / "index.json", {"chunks": chunks, "config": config})


def cut_chunks(ends: np.ndarray, *, most_tokens: int) -> Iterator[tuple[int, int]]:
    """Ranges of documents (ending at `ends`) of at most so many tokens, or of a single document."""
    first = 0
    while first < len(ends):
        start = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, start + most_tokens, side="right")))
        yield first, last
        first = last


def write_chunk(path: Path, ends: np.ndarray, ids: np.ndarray) -> dict:
    """Write a chunk of litdata; returns its entry. Raises ValueError for one of 4 GiB or more."""
    header_bytes = 4 * (len(ends) + 2)
    offsets = header_bytes + np.concatenate([[0], ends]) * ids.itemsize
    if offsets[-1] >= 1 << 32:
        raise ValueError(f"a document of {ids.nbytes:,} bytes of ids fits into no chunk of litdata, which end at 4 GiB")
    write_file(path, [np.uint32(len(ends)).tobytes(), offsets.astype("<u4").tobytes(), ids.tobytes()])
    return {"chunk_bytes": int(ids.nbytes), "chunk_size": len(ends), "dim": len(ids), "filename": path.name}


def copy_for_mds(view: View) -> str:
    """Shards of at most 64 MB of rows, fixed in length. Returns what was written."""
    seq_len = need_seq_len(view)
    encoding = f"ndarray:{view.catalogue.dtype.name}:{seq_len}"
    row_bytes = seq_len * view.catalogue.dtype.itemsize
    settings = {
        "column_encodings": [encoding], "column_names": ["tokens"], "column_sizes": [row_bytes], "compression": None,
        "format": "mds", "hashes": [], "size_limit": MDS_SHARD_BYTES, "version": 2,
    }  # fmt: skip
    config = json.dumps(settings, sort_keys=True).encode()
    for split in view.splits:
        shards = []
        for number, rows in enumerate(read_rows(view, split, rows_at_once=max(1, MDS_SHARD_BYTES // row_bytes))):
            name = f"shard.{number:05d}.mds"
            offsets = 4 * (len(rows) + 2) + len(config) + np.arange(len(rows) + 1) * row_bytes
            data = [np.uint32(len(rows)).tobytes(), offsets.astype("<u4").tobytes(), config, rows.tobytes()]
            write_file(view.out / split / name, data)
            raw = {"basename": name, "bytes": sum(map(len, data)), "hashes": {}}
            shards.append({**settings, "raw_data": raw, "samples": len(rows), "zip_data": None})
        write_json(view.out / split / "index.json", {"version": 2, "shards": shards})
    return describe_rows(view)


def copy_for_hf(view: View) -> str:
    """Parquet files that `datasets` loads by the folder's name. Returns what was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    seq_len = need_seq_len(view)
    values = pa.uint16() if view.catalogue.dtype.itemsize == 2 else pa.uint32()
    for split in view.splits:
        num_rows = len(open_rows(view, split))
        num_files = -(-num_rows // PARQUET_ROWS)
        for number, rows in enumerate(read_rows(view, split, rows_at_once=PARQUET_ROWS)):
            offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int64) * seq_len)
            column = pa.LargeListArray.from_arrays(offsets, pa.array(rows.reshape(-1), values))
            with open_new(view.out / f"data/{split}-{number:05d}-of-{num_files:05d}.parquet") as file:
                pq.write_table(pa.table({"input_ids": column.cast(pa.list_(values))}), file, compression="zstd")
    return describe_rows(view)


def describe_rows(view: View) -> str:
    """How many rows and tokens the splits gave, and how many rows were left when the first source ended."""
    said = []
    for split in view.splits:
        dataset = open_rows(view, split)
        num_rows = len(dataset)
        num_left = sum(dataset.num_windows(name) for name in dataset.sources) - num_rows
        left = f" ({num_left:,} rows left out: there the mix's first source ends)" if num_left else ""
        said.append(f"{num_rows:,} rows, {num_rows * need_seq_len(view):,} tokens of {split}{left}")
    return "; ".join(said)


def need_seq_len(view: View) -> int:
    """The length of rows. Raises ValueError where it is not given."""
    if view.seq_len is None or view.seq_len < 2:
        raise ValueError(f"rows need --seq-len, tokens per row, 2 or more; found {view.seq_len}")
    return view.seq_len


def open_rows(view: View, split: str) -> PackedDataset:
    """The samples that become rows: one token shorter windows, for a sample has one more than its inputs."""
    mix = view.mix
    return PackedDataset(
        view.catalogue.paths, seq_len=need_seq_len(view) - 1, mix=mix, seed=view.seed, split=split, max_epochs=1
    )


def read_rows(view: View, split: str, *, rows_at_once: int) -> Iterator[np.ndarray]:
    """The rows of one epoch in order, so many at once: (rows, seq_len)."""
    dataset = open_rows(view, split)
    for first in range(0, len(dataset), rows_at_once):
        yield dataset.samples(range(first, min(first + rows_at_once, len(dataset))))
