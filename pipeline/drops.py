"""What is not kept, document by document: OUT/<source>/drops/*.parquet, a file for some raw files in a row.

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
class Ingest:
    """An ingest task as this stage sees it. limits: its stretches that a limit cuts, each with the limit's place."""

    number: int  # in the plan
    folder: str
    first_row: int  # where it begins in its raw file
    limits: tuple[tuple[Stretch, int], ...] = ()


@dataclass(frozen=True)
class DropsTask:
    """The drops of some raw files, first_file to last_file: from the ingest tasks that read them."""

    name: str
    source: str
    first_file: int
    last_file: int
    ingests: tuple[Ingest, ...]
    num_tokenizers: int
    duplicates_paths: tuple[str, ...]
    source_names: tuple[str, ...]
    out: str  # the dataset's folder
    table_name: str  # of the parquet file, relative to it
    fingerprint: str  # of all raw files

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return self.table_name

    @property
    def num_files(self) -> int:
        """How many raw files it covers."""
        return self.last_file - self.first_file

    def list_outputs(self, result: dict[str, Any]) -> list[Path]:
        """The table, if there is one."""
        return [Path(self.out) / self.table_name] if result["file"] else []

    def choose(self, records: np.ndarray) -> np.ndarray:
        """Those of the records that are of its raw files."""
        return records[(records["raw_file"] >= self.first_file) & (records["raw_file"] < self.last_file)]


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
    tables, beyond_counts = [], {"documents": 0, "bytes": 0}
    for ingest in task.ingests:
        duplicates = read_duplicates(task, ingest)
        drops, beyond = read_drops(task, ingest), read_beyond(task, ingest, duplicates)
        reasons = pa.array(DROP_REASONS).take(pa.array(drops["reason"]))
        tables += [drops_table(drops, reasons), drops_table(beyond, "beyond_tokens")]
        tables.append(duplicates_table(task.choose(duplicates), task))
        beyond_counts["documents"] += len(beyond)
        beyond_counts["bytes"] += int(beyond["num_bytes"].sum())
    table = pa.concat_tables(tables).sort_by([("raw_file", "ascending"), ("row", "ascending")])
    if not len(table):
        return {"file": None, "beyond": beyond_counts}
    path = Path(task.out) / task.table_name
    with open_new(path) as file:
        pq.write_table(table, file, compression="zstd")
    return {"file": asdict(DropsFile(task.table_name, len(table), checksum_file(path))), "beyond": beyond_counts}


def read_drops(task: DropsTask, ingest: Ingest) -> np.ndarray:
    """The rows that ingest did not keep, as DROP records."""
    drops = task.choose(np.array(open_drops(Path(ingest.folder))))
    drops["row"] += np.uint64(ingest.first_row)
    return drops


def read_beyond(task: DropsTask, ingest: Ingest, duplicates: np.ndarray) -> np.ndarray:
    """The documents beyond the limit, as DOCUMENT records; none that is one of the ingest task's duplicates."""
    table = open_documents(Path(ingest.folder), task.num_tokenizers)
    indices = [np.arange(stretch.find_place(table, place), stretch.last) for stretch, place in ingest.limits]
    beyond = np.setdiff1d(np.concatenate([np.empty(0, np.int64), *indices]), duplicates["index"].astype(np.int64))
    documents = task.choose(np.array(table[beyond]))
    documents["row"] += np.uint64(ingest.first_row)
    return documents


def read_duplicates(task: DropsTask, ingest: Ingest) -> np.ndarray:
    """The DUPLICATE records of an ingest task."""
    parts = [np.empty(0, DUPLICATE)]
    for path in task.duplicates_paths:
        duplicates = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(duplicates["task"], [ingest.number, ingest.number + 1])
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
