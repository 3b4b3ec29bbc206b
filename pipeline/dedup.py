"""Document tables, and which documents go -> the tables of those that stay. Works on a range of places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.copies import find_marked, find_ties
from pipeline.pair_kernels import NO_PARTNER
from pipeline.shard import SPLITS
from pipeline.storage import open_new, write_array
from pipeline.work import NUM_BUCKETS, Stretch, buckets_of, describe_buckets, kept_dtype, split_buckets

DOCUMENTS_PER_TASK = 4_000_000  # about 200 bytes of memory each
RECORDS_PER_WRITE = 1 << 16
METHODS = ("none", "exact", "near", "slimpajama")
OUTCOMES = ("kept", "duplicate_exact", "duplicate_near")
STAYS, IS_COPY, IS_NEAR = range(3)  # what becomes of a candidate: an index into OUTCOMES


@dataclass(frozen=True)
class Candidates:
    """Documents that may stay, an entry of each array for each.

    records: as KEPT records. ranks: uint32. cells: source * len(SPLITS) + split, uint16.
    """

    records: np.ndarray
    ranks: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class DedupTask:
    """The documents of some buckets of places, from all stretches, and where the result goes.

    copies: the COPY records of the same buckets. near_marks: a bit per rank that goes for one near to it. None: none.
    """

    name: str
    copies: str | None
    near_marks: str | None
    num_sources: int
    num_tokenizers: int
    stretches: tuple[Stretch, ...]
    first_bucket: int
    last_bucket: int
    folder: str
    fingerprint: str  # of all raw files

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return describe_buckets(self.first_bucket, self.last_bucket)

    @property
    def kept_path(self) -> Path:
        """The KEPT records, by source, split and place."""
        return Path(self.folder) / f"{self.name}.kept.bin"

    @property
    def counts_path(self) -> Path:
        """Kept documents, then their tokens by tokenizer: int64, shape (1 + tokenizers, sources, splits, buckets)."""
        return Path(self.folder) / f"{self.name}.counts.npy"

    def list_outputs(self, _: Any) -> list[Path]:
        """The kept documents and their counts."""
        return [self.kept_path, self.counts_path]


def plan_ranges(num_documents: int) -> list[tuple[str, int, int]]:
    """Name, first and last bucket of the ranges of places to work on, each small enough for memory."""
    num_tasks = min(NUM_BUCKETS, max(1, -(-num_documents // DOCUMENTS_PER_TASK)))
    return [(f"places-{number:05d}", *buckets) for number, buckets in enumerate(split_buckets(num_tasks))]


def run_dedup(task: DedupTask) -> dict[str, Any]:
    """Write the kept documents and their counts; returns documents, bytes and tokens per source by outcome.

    Beside them `checksums`: of the KEPT records of each source.
    """
    candidates = read_candidates(task)
    outcomes = find_outcomes(candidates.ranks, task)
    kept = np.flatnonzero(outcomes == STAYS)
    checksums = write_kept(candidates, kept, task)
    write_array(task.counts_path, count_by_bucket(candidates, kept, task))
    counts = {
        name: count_by_source(candidates, np.flatnonzero(outcomes == outcome), task)
        for outcome, name in enumerate(OUTCOMES)
    }
    return {**counts, "checksums": checksums}


def read_candidates(task: DedupTask) -> Candidates:
    """The documents of the task's buckets."""
    dtype = kept_dtype(task.num_tokenizers)
    records, ranks, cells = [np.empty(0, dtype)], [np.empty(0, np.uint32)], [np.empty(0, np.uint16)]
    for stretch in task.stretches:
        _, documents = stretch.read_range(task.first_bucket, task.last_bucket, task.num_tokenizers)
        ranks.append(stretch.rank(documents["number"]).astype(np.uint32))
        documents["number"] = stretch.task
        records.append(documents.view(dtype))
        cells.append(np.full(len(documents), stretch.source * len(SPLITS) + SPLITS.index(stretch.split), np.uint16))
    return Candidates(*map(np.concatenate, (records, ranks, cells)))


def find_outcomes(ranks: np.ndarray, task: DedupTask) -> np.ndarray:
    """What becomes of the documents of these ranks: uint8. A copy of one that goes as near goes for the same reason."""
    outcomes = np.full(len(ranks), STAYS, np.uint8)
    marks = None if task.near_marks is None else np.load(task.near_marks, mmap_mode="r")
    if task.copies is not None:
        copies = np.load(task.copies)
        at = np.searchsorted(copies["rank"], ranks)
        is_copy = np.append(copies["rank"], NO_PARTNER)[at] == ranks
        outcomes[is_copy] = IS_COPY
        if marks is not None:
            outcomes[np.flatnonzero(is_copy)[find_marked(marks, copies["partner"][at[is_copy]])]] = IS_NEAR
    if marks is not None:
        outcomes[find_marked(marks, ranks)] = IS_NEAR
    return outcomes


def write_kept(candidates: Candidates, kept: np.ndarray, task: DedupTask) -> list[str]:
    """Write the documents that stay, by source, split and the order of a shard; returns the checksum of each source."""
    order = sort_kept(candidates, kept)
    edges = np.searchsorted(candidates.cells[order] // len(SPLITS), range(task.num_sources + 1)).tolist()
    checksums = []
    with open_new(task.kept_path) as file:
        for first, last in itertools.pairwise(edges):
            digest = xxhash.xxh3_128()
            for start in range(first, last, RECORDS_PER_WRITE):
                records = candidates.records[order[start : min(start + RECORDS_PER_WRITE, last)]].tobytes()
                digest.update(records)
                file.write(records)
            checksums.append(digest.hexdigest())
    return checksums


def sort_kept(candidates: Candidates, kept: np.ndarray) -> np.ndarray:
    """The order of those that stay: source and split, then place; equal places by content hash, raw file and row."""
    kept = kept[np.argsort(candidates.records["place"][kept], kind="stable")]  # a few runs that are sorted: merged
    kept = kept[np.argsort(candidates.cells[kept], kind="stable")]
    is_tie = find_ties(candidates.records["place"][kept])
    ties = kept[is_tie]
    first, second = candidates.records["content_hash"][ties].T
    after = (candidates.records[name][ties] for name in ("row", "raw_file"))
    places, cells = candidates.records["place"][ties], candidates.cells[ties]
    kept[is_tie] = ties[np.lexsort((*after, second, first, places, cells))]
    return kept


def count_by_bucket(candidates: Candidates, kept: np.ndarray, task: DedupTask) -> np.ndarray:
    """Kept documents, then their tokens by each tokenizer, by source, split and bucket."""
    shape = (task.num_sources, len(SPLITS), task.last_bucket - task.first_bucket)
    buckets = buckets_of(candidates.records["place"][kept]) - task.first_bucket
    cells = candidates.cells[kept].astype(np.int64) * shape[2] + buckets
    counts = np.zeros((1 + task.num_tokenizers, *shape), np.int64)
    counts[0] = np.bincount(cells, minlength=counts[0].size).reshape(shape)
    for number in range(task.num_tokenizers):
        tokens = candidates.records["num_tokens"][:, number][kept].astype(np.int64)
        np.add.at(counts[1 + number].reshape(-1), cells, tokens)
    return counts


def count_by_source(candidates: Candidates, chosen: np.ndarray, task: DedupTask) -> list[dict[str, Any]]:
    """Documents, bytes of text and tokens by each tokenizer, of each source."""
    counts, sources = [], candidates.cells[chosen] // len(SPLITS)
    for source in range(task.num_sources):
        own = chosen[sources == source]
        tokens = candidates.records["num_tokens"][own].sum(axis=0, dtype=np.int64).tolist()
        num_bytes = int(candidates.records["num_bytes"][own].sum())
        counts.append({"documents": len(own), "bytes": num_bytes, "tokens": tokens})
    return counts


def add_counts(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several {documents, bytes, tokens}, where tokens is a list."""
    tokens = [sum(values) for values in zip(*(count["tokens"] for count in counts), strict=True)]
    return {**{what: sum(count[what] for count in counts) for what in ("documents", "bytes")}, "tokens": tokens}
