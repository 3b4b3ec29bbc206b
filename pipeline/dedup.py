"""Document tables, and which documents go -> the tables of those that stay. Works on a range of places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.copies import find_marked
from pipeline.pair_kernels import NO_PARTNER
from pipeline.shard import SPLITS
from pipeline.storage import open_new, write_array
from pipeline.work import NUM_BUCKETS, Stretch, buckets_of, describe_buckets, kept_dtype, split_buckets

DOCUMENTS_PER_TASK = 4_000_000  # about 200 bytes of memory each
RECORDS_PER_WRITE = 1 << 16
METHODS = ("none", "exact", "near", "slimpajama")
OUTCOMES = ("kept", "duplicate_exact", "duplicate_near")
STAYS, IS_COPY, IS_NEAR = range(3)  # what becomes of a candidate: an index into OUTCOMES


def candidate_dtype(num_tokenizers: int) -> np.dtype:
    """A KEPT record and what decides whether it is kept."""
    more = [("rank", "<u4"), ("source", "<u2"), ("split", "u1")]
    return np.dtype([*kept_dtype(num_tokenizers).descr, *more])


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
        """Both."""
        return [self.kept_path, self.counts_path]


def plan_ranges(num_documents: int) -> list[tuple[str, int, int]]:
    """Name, first and last bucket of the ranges of places to work on, each small enough for memory."""
    num_tasks = min(NUM_BUCKETS, max(1, -(-num_documents // DOCUMENTS_PER_TASK)))
    return [(f"places-{number:05d}", *buckets) for number, buckets in enumerate(split_buckets(num_tasks))]


def run_dedup(task: DedupTask) -> dict[str, Any]:
    """Write the kept documents and their counts; returns documents, bytes and tokens per source by outcome."""
    candidates = read_candidates(task)
    outcomes = find_outcomes(candidates["rank"], task)
    kept = np.flatnonzero(outcomes == STAYS)
    write_kept(candidates, kept, task)
    write_array(task.counts_path, count_by_bucket(candidates, kept, task))
    return {
        name: count_by_source(candidates, np.flatnonzero(outcomes == outcome), task)
        for outcome, name in enumerate(OUTCOMES)
    }


def read_candidates(task: DedupTask) -> np.ndarray:
    """The documents of the task's buckets."""
    dtype = candidate_dtype(task.num_tokenizers)
    parts = [np.empty(0, dtype)]
    for stretch in task.stretches:
        _, documents = stretch.read_range(task.first_bucket, task.last_bucket, task.num_tokenizers)
        part = np.empty(len(documents), dtype)
        for name in set(documents.dtype.names) & set(dtype.names):
            part[name] = documents[name]
        part["rank"] = stretch.rank(documents["number"])
        part["task"], part["source"], part["split"] = stretch.task, stretch.source, SPLITS.index(stretch.split)
        parts.append(part)
    return np.concatenate(parts)


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


def write_kept(candidates: np.ndarray, kept: np.ndarray, task: DedupTask) -> None:
    """Write the documents that stay, by source, split and the order of a shard."""
    first, second = candidates["content_hash"][kept, 0], candidates["content_hash"][kept, 1]
    keys = [candidates[name][kept] for name in ("row", "raw_file")]
    after = [candidates[name][kept] for name in ("place", "split", "source")]
    kept = kept[np.lexsort((*keys, second, first, *after))]
    dtype = kept_dtype(task.num_tokenizers)
    with open_new(task.kept_path) as file:
        for start in range(0, len(kept), RECORDS_PER_WRITE):
            chosen = candidates[kept[start : start + RECORDS_PER_WRITE]]
            records = np.empty(len(chosen), dtype)
            for name in dtype.names:
                records[name] = chosen[name]
            file.write(records.tobytes())


def count_by_bucket(candidates: np.ndarray, kept: np.ndarray, task: DedupTask) -> np.ndarray:
    """Kept documents, then their tokens by each tokenizer, by source, split and bucket."""
    shape = (task.num_sources, len(SPLITS), task.last_bucket - task.first_bucket)
    buckets = buckets_of(candidates["place"][kept]) - task.first_bucket
    cells = np.ravel_multi_index((candidates["source"][kept], candidates["split"][kept], buckets), shape)
    counts = np.zeros((1 + task.num_tokenizers, *shape), np.int64)
    counts[0] = np.bincount(cells, minlength=counts[0].size).reshape(shape)
    for number in range(task.num_tokenizers):
        tokens = candidates["num_tokens"][:, number][kept].astype(np.int64)
        np.add.at(counts[1 + number].reshape(-1), cells, tokens)
    return counts


def count_by_source(candidates: np.ndarray, chosen: np.ndarray, task: DedupTask) -> list[dict[str, Any]]:
    """Documents, bytes of text and tokens by each tokenizer, of each source."""
    counts = []
    for source in range(task.num_sources):
        own = chosen[candidates["source"][chosen] == source]
        tokens = candidates["num_tokens"][own].sum(axis=0, dtype=np.int64).tolist()
        counts.append({"documents": len(own), "bytes": int(candidates["num_bytes"][own].sum()), "tokens": tokens})
    return counts


def add_counts(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several {documents, bytes, tokens}, where tokens is a list."""
    tokens = [sum(values) for values in zip(*(count["tokens"] for count in counts), strict=True)]
    return {**{what: sum(count[what] for count in counts) for what in ("documents", "bytes")}, "tokens": tokens}
