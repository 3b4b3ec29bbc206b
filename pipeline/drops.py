"""What is not kept, document by document: OUT/<source>/drops/*.parquet, one file per ingest task with drops.

Columns: raw_file, row, reason, num_bytes, partner_source, partner_raw_file, partner_row, similarity. A partner is the
document that stays in place of a duplicate; other rows have none. Also leaves each task's dropped documents for pack.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedup import DUPLICATE
from pipeline.storage import checksum_file, open_new, write_array
from pipeline.token_file import DROP_REASONS

SCHEMA = pa.schema(
    [
        ("raw_file", pa.uint32()),
        ("row", pa.uint64()),
        ("reason", pa.string()),
        ("num_bytes", pa.uint64()),
        ("partner_source", pa.string()),
        ("partner_raw_file", pa.uint32()),
        ("partner_row", pa.uint64()),
        ("similarity", pa.float32()),
    ]
)


@dataclass(frozen=True)
class DropsTask:
    """One ingest task's drops: from its own drops.npy and from every range of places."""

    name: str
    number: int  # the ingest task's number in the plan
    ingest_folder: str
    duplicates_paths: tuple[str, ...]
    source_names: tuple[str, ...]
    dropped_path: str  # indices of dropped documents in the task's table, for pack
    out: str  # the dataset's folder
    table_name: str  # of the parquet file, relative to it
    fingerprint: str  # of all raw files

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return self.table_name

    def list_outputs(self, result: dict[str, Any] | None) -> list[Path]:
        """The indices, and the table if there is one."""
        return [Path(self.dropped_path), *([Path(self.out) / self.table_name] if result else [])]


@dataclass(frozen=True)
class DropsFile:
    """One finished file of drops, as dataset.json lists it."""

    path: str
    documents: int
    xxh3_128: str


def run_drops(task: DropsTask) -> dict[str, Any] | None:
    """Write a task's drops; returns its DropsFile as a dict, or None where nothing was dropped."""
    duplicates = read_duplicates(task)
    write_array(Path(task.dropped_path), np.sort(duplicates["index"]))
    drops = np.load(Path(task.ingest_folder) / "drops.npy")
    if not len(drops) + len(duplicates):
        return None
    table = pa.concat_tables([drops_table(drops), duplicates_table(duplicates, task)])
    table = table.sort_by([("raw_file", "ascending"), ("row", "ascending")])
    path = Path(task.out) / task.table_name
    with open_new(path) as file:
        pq.write_table(table, file, compression="zstd")
    return asdict(DropsFile(task.table_name, len(table), checksum_file(path)))


def read_duplicates(task: DropsTask) -> np.ndarray:
    """The DUPLICATE records of one ingest task."""
    parts = [np.empty(0, DUPLICATE)]
    for path in task.duplicates_paths:
        duplicates = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(duplicates["task"], [task.number, task.number + 1])
        parts.append(np.array(duplicates[first:last]))
    return np.concatenate(parts)


def drops_table(drops: np.ndarray) -> pa.Table:
    """Rows that ingest did not keep."""
    nothing = pa.nulls(len(drops))
    reasons = pa.array(DROP_REASONS).take(pa.array(drops["reason"]))
    columns = [drops["raw_file"], drops["row"], reasons, drops["num_bytes"], *[nothing] * 4]
    return pa.table([pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def duplicates_table(duplicates: np.ndarray, task: DropsTask) -> pa.Table:
    """Documents that are copies of one that stays."""
    num_bytes = np.load(Path(task.ingest_folder) / "documents.npy", mmap_mode="r")["num_bytes"][duplicates["index"]]
    columns = [
        duplicates["raw_file"],
        duplicates["row"],
        pa.repeat("duplicate_exact", len(duplicates)),
        num_bytes,
        pa.array(task.source_names, pa.string()).take(pa.array(duplicates["partner_source"])),
        duplicates["partner_raw_file"],
        duplicates["partner_row"],
        np.ones(len(duplicates), np.float32),
    ]
    return pa.table([pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)
