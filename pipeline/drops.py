"""What is not kept, document by document: OUT/<source>/drops/*.parquet, one file per ingest task with drops.

Columns: raw_file, row, reason, num_bytes, partner_source, partner_raw_file, partner_row, similarity. A partner is the
document that stays in place of a duplicate; other rows have none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dedup import DUPLICATE
from pipeline.storage import checksum_file, open_new
from pipeline.token_file import DROP_REASONS, open_documents, open_drops
from pipeline.work import Stretch

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
class Limited:
    """A stretch of documents of which those at `place` or behind are beyond the limit of their source."""

    stretch: Stretch
    place: int


@dataclass(frozen=True)
class DropsTask:
    """One ingest task's drops: from its own drops.npy and from every range of places."""

    name: str
    number: int  # the ingest task's number in the plan
    ingest_folder: str
    first_row: int  # where the ingest task begins in its raw file
    num_tokenizers: int
    duplicates_paths: tuple[str, ...]
    limited: tuple[Limited, ...]
    source_names: tuple[str, ...]
    out: str  # the dataset's folder
    table_name: str  # of the parquet file, relative to it
    fingerprint: str  # of all raw files

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return self.table_name

    def list_outputs(self, result: dict[str, Any]) -> list[Path]:
        """The table, if there is one."""
        return [Path(self.out) / self.table_name] if result["file"] else []


@dataclass(frozen=True)
class DropsFile:
    """One finished file of drops, as dataset.json lists it."""

    path: str
    documents: int
    xxh3_128: str


def run_drops(task: DropsTask) -> dict[str, Any]:
    """Write a task's drops.

    Returns its DropsFile as a dict or None where nothing was dropped, and the documents and bytes beyond the limit.
    """
    duplicates, drops = read_duplicates(task), np.array(open_drops(Path(task.ingest_folder)))
    drops["row"] += np.uint64(task.first_row)
    beyond = read_beyond(task, duplicates)
    counts = {"documents": len(beyond), "bytes": int(beyond["num_bytes"].sum())}
    if not len(drops) + len(duplicates) + len(beyond):
        return {"file": None, "beyond": counts}
    reasons = pa.array(DROP_REASONS).take(pa.array(drops["reason"]))
    tables = (drops_table(drops, reasons), drops_table(beyond, "beyond_tokens"), duplicates_table(duplicates, task))
    table = pa.concat_tables(tables).sort_by([("raw_file", "ascending"), ("row", "ascending")])
    path = Path(task.out) / task.table_name
    with open_new(path) as file:
        pq.write_table(table, file, compression="zstd")
    return {"file": asdict(DropsFile(task.table_name, len(table), checksum_file(path))), "beyond": counts}


def read_beyond(task: DropsTask, duplicates: np.ndarray) -> np.ndarray:
    """The documents beyond the limit, as DOCUMENT records; none that is a duplicate."""
    table = open_documents(Path(task.ingest_folder), task.num_tokenizers)
    indices = [
        np.arange(limited.stretch.find_place(table, limited.place), limited.stretch.last) for limited in task.limited
    ]
    beyond = np.setdiff1d(np.concatenate([np.empty(0, np.int64), *indices]), duplicates["index"].astype(np.int64))
    documents = np.array(table[beyond])
    documents["row"] += np.uint64(task.first_row)
    return documents


def read_duplicates(task: DropsTask) -> np.ndarray:
    """The DUPLICATE records of one ingest task."""
    parts = [np.empty(0, DUPLICATE)]
    for path in task.duplicates_paths:
        duplicates = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(duplicates["task"], [task.number, task.number + 1])
        parts.append(np.array(duplicates[first:last]))
    return np.concatenate(parts)


def drops_table(drops: np.ndarray, reasons: pa.Array | str) -> pa.Table:
    """Rows that are dropped for themselves. reasons: one for each, or one for all."""
    nothing = pa.nulls(len(drops))
    reasons = pa.repeat(reasons, len(drops)) if isinstance(reasons, str) else reasons
    columns = [drops["raw_file"], drops["row"], reasons, drops["num_bytes"], *[nothing] * 4]
    return pa.table([pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def duplicates_table(duplicates: np.ndarray, task: DropsTask) -> pa.Table:
    """Documents that are copies of one that stays."""
    columns = [
        duplicates["raw_file"],
        duplicates["row"],
        pa.repeat("duplicate_exact", len(duplicates)),
        duplicates["num_bytes"],
        pa.array(task.source_names, pa.string()).take(pa.array(duplicates["partner_source"])),
        duplicates["partner_raw_file"],
        duplicates["partner_row"],
        np.ones(len(duplicates), np.float32),
    ]
    return pa.table([pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)
