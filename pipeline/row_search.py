"""Where in a dataset's tables a row of a raw file is: without reading what cannot hold it.

A shard is a range of places, and a place is a hash of a document's content: who has the text finds the shard in a few
steps. Who has not reads the tables of all shards, but those whose statistics exclude the row. The files of drops are in
the order of raw files.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.remote_dataset import bring
from pipeline.shard import documents_path
from pipeline.source_shards import SourceShards


def find_shard(shards: SourceShards, text: str, *, seed: int) -> int:
    """The number of the shard into whose range of places a text falls, by the first places of some shards."""
    from pipeline.ingest import find_places
    from pipeline.kernels import HASH_SEEDS, hash_documents

    def first_place(number: int) -> int:
        path = bring_documents(shards.paths[number])
        first = next(pq.ParquetFile(path).iter_batches(1, columns=["content_hash"]))["content_hash"][0].as_py()
        return int(find_places(np.frombuffer(first, "<u8").reshape(1, 2), seed=seed)[0])

    data = np.frombuffer(text.encode(), np.uint8)
    hashes = hash_documents(data, np.array([0, len(data)]), np.array(HASH_SEEDS))
    place = int(find_places(hashes, seed=seed)[0])
    return max(0, bisect.bisect_right(range(len(shards.paths)), place, key=first_place) - 1)


def find_in_table(path: Path, identity: tuple[int, int]) -> int | None:
    """The number of a document in a shard, by the shard's table; None where it is not there."""
    file, before = pq.ParquetFile(bring_documents(path)), 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        if may_hold(group, identity):
            table = file.read_row_group(number, columns=["raw_file", "row"], use_threads=False)
            is_it = pc.and_(pc.equal(table["raw_file"], identity[0]), pc.equal(table["row"], identity[1]))
            index = pc.index(is_it, True).as_py()
            if index >= 0:
                return before + index
        before += group.num_rows
    return None


def may_hold(group: Any, identity: tuple[int, int]) -> bool:
    """Whether a row group of a table may hold a document, by its statistics of raw_file and row, the first columns."""
    found = [group.column(number).statistics for number in range(2)]
    pairs = zip(found, identity, strict=True)
    return all(one is None or not one.has_min_max or one.min <= value <= one.max for one, value in pairs)


@cache
def read_rows(path: Path) -> np.ndarray:
    """The raw file and row of each document of a shard: uint64, shape (documents, 2)."""
    table = pq.read_table(bring_documents(path), columns=["raw_file", "row"])
    return np.stack([table[name].to_numpy().astype(np.uint64) for name in ("raw_file", "row")], axis=1)


def bring_documents(path: Path) -> Path:
    """The table of a shard's documents, fetched where the dataset is published and it is not here yet."""
    bring(documents_path(path))
    return documents_path(path)


def find_drops(paths: Sequence[Path], identity: tuple[int, int]) -> list[dict[str, Any]]:
    """What the files of drops of a source say of a row: one entry or none."""

    def last_raw_file(path: Path) -> int:
        bring(path)
        metadata = pq.read_metadata(path)
        return metadata.row_group(metadata.num_row_groups - 1).column(0).statistics.max

    first = bisect.bisect_left(paths, identity[0], key=last_raw_file)
    filters = [("raw_file", "=", identity[0]), ("row", "=", identity[1])]
    return [drop for path in paths[first : first + 1] for drop in pq.read_table(path, filters=filters).to_pylist()]
