"""What is not kept, document by document: OUT/<source>/drops/*.parquet, a file for some raw files in a row.

Columns: raw_file, row, reason, num_bytes, partner_source, partner_raw_file, partner_row, similarity, item. A document
that fails a rule about its quality signals has that rule as its reason (signal_rules.py), and counts as excluded. A
partner is the document that stays in place of a duplicate, an item the evaluation text that a contaminated document
has a span of words of, as FILE:ROW FIELD; other rows have none. The similarity is 1 for a copy, for a near duplicate
measured or estimated (estimate.py), and null where --dedup slimpajama compared nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contamination import read_names
from pipeline.copies import COPY
from pipeline.ranks import RankMap
from pipeline.resolve import NEAR
from pipeline.storage import checksum_file, open_new
from pipeline.token_file import DROP_REASONS, document_dtype, open_documents, open_drops, open_records
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
        ("item", pa.string()),
    ]
)


DUPLICATE = np.dtype([("number", "<u4"), ("is_near", "?"), ("partner", "<u4"), ("similarity", "<f4")])


@dataclass(frozen=True)
class Duplicates:
    """Which documents go for which others, by rank: files of COPY records, and one of NEAR records if there is any."""

    ranks: RankMap
    copies_paths: tuple[str, ...] = ()
    near_path: str | None = None

    def open_near(self) -> np.ndarray:
        """The NEAR records, mapped."""
        return np.empty(0, NEAR) if self.near_path is None else open_records(Path(self.near_path), NEAR)


@dataclass(frozen=True)
class Ingest:
    """An ingest task as this stage sees it. limits: its stretches that a limit cuts, each with the limit's place.

    runs: of each the documents and the band keys (sketch_file.py).
    """

    folder: str
    first_row: int  # where it begins in its raw file
    stretches: tuple[Stretch, ...] = ()
    limits: tuple[tuple[Stretch, int], ...] = ()
    runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class DropsTask:
    """The drops of some raw files, first_file to last_file: from the ingest tasks that read them."""

    name: str
    source: str
    first_file: int
    last_file: int
    ingests: tuple[Ingest, ...]
    num_tokenizers: int
    duplicates: Duplicates
    source_names: tuple[str, ...]
    out: str  # the dataset's folder
    table_name: str  # of the parquet file, relative to it
    fingerprint: str  # of all raw files
    contamination: str | None = None  # the folder where items have their names
    rules: tuple[str, ...] = ()  # about quality signals

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

    def is_own(self, records: np.ndarray) -> np.ndarray:
        """Which records are of its raw files: bool."""
        return (records["raw_file"] >= self.first_file) & (records["raw_file"] < self.last_file)


@dataclass(frozen=True)
class DropsFile:
    """One finished file of drops, as dataset.json lists it."""

    path: str
    documents: int
    xxh3_128: str


def run_drops(task: DropsTask) -> dict[str, Any]:
    """Write a task's drops.

    Returns its DropsFile as a dict or None where nothing was dropped, the documents and bytes beyond the limit, those
    that go for one of each source, and the documents that fail each rule.
    """
    tables, beyond_counts = [], {"documents": 0, "bytes": 0}
    for ingest in task.ingests:
        documents = read_documents(task, ingest)
        duplicates = read_duplicates(task, ingest)
        drops, beyond = read_drops(task, ingest), choose_beyond(task, ingest, documents, duplicates)
        tables += [
            drops_table(drops, *name_reasons(drops, task)),
            drops_table(beyond, "beyond_tokens", pa.nulls(len(beyond))),
        ]
        tables.append(duplicates_table(documents, duplicates, task))
        beyond_counts["documents"] += len(beyond)
        beyond_counts["bytes"] += int(beyond["num_bytes"].sum())
    table = pa.concat_tables(tables).sort_by([("raw_file", "ascending"), ("row", "ascending")])
    failed = {rule: count for rule in task.rules if (count := pc.sum(pc.equal(table["reason"], rule)).as_py())}
    result = {"file": None, "beyond": beyond_counts, "overlap": count_overlap(table), "failed": failed}
    if not len(table):
        return result
    path = Path(task.out) / task.table_name
    with open_new(path) as file:
        pq.write_table(table, file, compression="zstd")
    return {**result, "file": asdict(DropsFile(task.table_name, len(table), checksum_file(path)))}


def name_reasons(drops: np.ndarray, task: DropsTask) -> tuple[pa.Array, pa.Array]:
    """Why each row that ingest did not keep goes, and the item that a contaminated one is named by."""
    fails = (drops["reason"] == DROP_REASONS.index("excluded")) & (drops["item"] > 0)
    reasons = np.where(fails, len(DROP_REASONS) - 1 + drops["item"], drops["reason"])
    names = pa.array([*DROP_REASONS, *task.rules]).take(pa.array(reasons))
    if task.contamination is None:
        return names, pa.nulls(len(drops))
    return names, read_names(task.contamination).take(pa.array(np.where(fails, 0, drops["item"])))


def count_overlap(table: pa.Table) -> dict[str, dict[str, int]]:
    """Documents and bytes that go for a document of each source."""
    found = table.filter(pc.is_valid(table["partner_source"])).group_by("partner_source")
    counted = found.aggregate([("num_bytes", "count"), ("num_bytes", "sum")]).sort_by("partner_source").to_pylist()
    return {
        one["partner_source"]: {"documents": one["num_bytes_count"], "bytes": one["num_bytes_sum"]} for one in counted
    }


def read_drops(task: DropsTask, ingest: Ingest) -> np.ndarray:
    """The rows that ingest did not keep, as DROP records."""
    drops = np.array(open_drops(Path(ingest.folder)))
    drops = drops[task.is_own(drops)]
    drops["row"] += np.uint64(ingest.first_row)
    return drops


def read_documents(task: DropsTask, ingest: Ingest) -> np.ndarray:
    """The DOCUMENT records of an ingest task in the order of their numbers; rows count from the raw file's first."""
    table = open_documents(Path(ingest.folder), task.num_tokenizers)
    documents = np.empty(len(table), document_dtype(task.num_tokenizers))
    documents[table["number"]] = table
    documents["row"] += np.uint64(ingest.first_row)
    return documents


def choose_beyond(task: DropsTask, ingest: Ingest, documents: np.ndarray, duplicates: np.ndarray) -> np.ndarray:
    """The documents beyond the limit; none that is a duplicate."""
    is_beyond = find_beyond(ingest, documents)
    is_beyond[duplicates["number"]] = False
    return documents[is_beyond & task.is_own(documents)]


def find_beyond(ingest: Ingest, documents: np.ndarray) -> np.ndarray:
    """Which documents of an ingest task, in the order of their numbers, lie beyond the limit: bool."""
    is_beyond = np.zeros(len(documents), bool)
    for stretch, place in ingest.limits:
        is_beyond[stretch.first : stretch.last] = documents["place"][stretch.first : stretch.last] >= np.uint64(place)
    return is_beyond


def read_duplicates(task: DropsTask, ingest: Ingest) -> np.ndarray:
    """The DUPLICATE records of an ingest task. A copy of a document that goes itself has that one's partner."""
    parts = [np.empty(0, DUPLICATE)]
    files = task.duplicates
    near = files.open_near()
    for stretch in ingest.stretches:
        for path in files.copies_paths:
            copies = find_ranks(np.load(path, mmap_mode="r"), stretch)
            parts.append(as_duplicates(copies, stretch))
        own = find_ranks(near, stretch)
        parts.append(as_duplicates(own, stretch))
    duplicates = np.concatenate(parts)
    at = np.minimum(np.searchsorted(near["rank"], duplicates["partner"]), max(0, len(near) - 1))
    if len(near):
        goes_too = near["rank"][at] == duplicates["partner"]
        for name in ("partner", "similarity"):
            duplicates[name][goes_too] = near[name][at[goes_too]]
        duplicates["is_near"] |= goes_too
    return duplicates


def open_lists(duplicates: Duplicates) -> Iterator[np.ndarray]:
    """The records of all documents that go, file by file, mapped."""
    for path in duplicates.copies_paths:
        yield np.load(path, mmap_mode="r")
    yield duplicates.open_near()


def find_ranks(records: np.ndarray, stretch: Stretch) -> np.ndarray:
    """The records, sorted by rank, whose rank is of the stretch."""
    edges = [stretch.first_rank, stretch.first_rank + stretch.last - stretch.first]
    first, last = np.searchsorted(records["rank"], np.array(edges, np.uint32))  # of another type: all is converted
    return np.array(records[first:last])


def as_duplicates(records: np.ndarray, stretch: Stretch) -> np.ndarray:
    """COPY or NEAR records of a stretch as DUPLICATE records."""
    duplicates = np.empty(len(records), DUPLICATE)
    duplicates["number"] = records["rank"] - np.uint32(stretch.first_rank) + np.uint32(stretch.first)
    duplicates["partner"], duplicates["is_near"] = records["partner"], records.dtype == NEAR
    duplicates["similarity"] = 1 if records.dtype == COPY else records["similarity"]
    return duplicates


def drops_table(drops: np.ndarray, reasons: pa.Array | str, items: pa.Array) -> pa.Table:
    """Rows that are dropped for themselves. reasons: one for each, or one for all. items: of evaluation files."""
    nothing = pa.nulls(len(drops))
    reasons = pa.repeat(reasons, len(drops)) if isinstance(reasons, str) else reasons
    columns = [drops["raw_file"], drops["row"], reasons, drops["num_bytes"], *[nothing] * 4, items]
    return pa.table([pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)


def duplicates_table(documents: np.ndarray, duplicates: np.ndarray, task: DropsTask) -> pa.Table:
    """The duplicates among some documents, those of the task's raw files. A similarity that is not known is null."""
    numbers = duplicates["number"]
    is_own = task.is_own(documents)[numbers]
    duplicates, documents = duplicates[is_own], documents[numbers[is_own]]
    sources, rows = task.duplicates.ranks.read_rows(duplicates["partner"])
    similarities = duplicates["similarity"]
    columns = [
        documents["raw_file"],
        documents["row"],
        np.where(duplicates["is_near"], "duplicate_near", "duplicate_exact").astype(object),
        documents["num_bytes"],
        pa.array(task.source_names, pa.string()).take(pa.array(sources)),
        rows["raw_file"],
        rows["row"],
        pa.array(similarities, mask=np.isnan(similarities)),
        pa.nulls(len(duplicates)),
    ]
    return pa.table([pa.array(column).cast(field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA)
