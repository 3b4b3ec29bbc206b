"""Document tables -> which documents stay, and which go and why. Works on a range of places, over all sources together.

Equal texts have equal places, so a range holds all copies of each of its documents. Of several copies one stays: the
first by split (validation, test, train), then by source in the order of the mix, raw file and row. So the result does
not depend on how the work was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shard import SPLITS
from pipeline.storage import open_new, write_array
from pipeline.work import NUM_BUCKETS, Stretch, buckets_of, kept_dtype, split_buckets

DOCUMENTS_PER_TASK = 4_000_000  # about 200 bytes of memory each
RECORDS_PER_WRITE = 1 << 16
METHODS = ("none", "exact")
PRIORITY = {"validation": 0, "test": 1, "train": 2}

DUPLICATE = np.dtype(
    [
        ("task", "<u4"),
        ("index", "<u8"),
        ("raw_file", "<u4"),
        ("row", "<u8"),
        ("num_bytes", "<u8"),
        ("partner_source", "<u2"),
        ("partner_raw_file", "<u4"),
        ("partner_row", "<u8"),
    ]
)


def candidate_dtype(num_tokenizers: int) -> np.dtype:
    """A KEPT record and what decides whether it is kept."""
    more = [("index", "<u8"), ("source", "<u2"), ("split", "u1"), ("priority", "u1")]  # index: in its task's table
    return np.dtype([*kept_dtype(num_tokenizers).descr, *more])


@dataclass(frozen=True)
class DedupTask:
    """The documents of some buckets of places, from all stretches, and where the result goes."""

    name: str
    method: str
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
        return f"places {self.first_bucket:,} to {self.last_bucket:,} of {NUM_BUCKETS:,}"

    @property
    def duplicates_path(self) -> Path:
        """The DUPLICATE records, sorted by (task, index)."""
        return Path(self.folder) / f"{self.name}.duplicates.npy"

    @property
    def kept_path(self) -> Path:
        """The KEPT records, by source, split and place."""
        return Path(self.folder) / f"{self.name}.kept.bin"

    @property
    def counts_path(self) -> Path:
        """Kept documents, then their tokens by tokenizer: int64, shape (1 + tokenizers, sources, splits, buckets)."""
        return Path(self.folder) / f"{self.name}.counts.npy"

    def list_outputs(self, _: Any) -> list[Path]:
        """All three."""
        return [self.duplicates_path, self.kept_path, self.counts_path]


def plan_dedup(
    stretches: tuple[Stretch, ...],
    *,
    method: str,
    num_sources: int,
    num_tokenizers: int,
    folder: Path,
    fingerprint: str,
) -> list[DedupTask]:
    """The ranges of places to work on, each small enough for memory."""
    num_documents = sum(stretch.last - stretch.first for stretch in stretches)
    num_tasks = min(NUM_BUCKETS, max(1, -(-num_documents // DOCUMENTS_PER_TASK)))
    return [
        DedupTask(
            name=f"places-{number:05d}",
            method=method,
            num_sources=num_sources,
            num_tokenizers=num_tokenizers,
            stretches=stretches,
            first_bucket=first,
            last_bucket=last,
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for number, (first, last) in enumerate(split_buckets(num_tasks))
    ]


def run_dedup(task: DedupTask) -> dict[str, Any]:
    """Write the duplicates, the kept documents and their counts; returns documents, bytes and tokens per source."""
    candidates = read_candidates(task)
    is_dropped = np.zeros(len(candidates), bool)
    duplicates = np.empty(0, DUPLICATE)
    if task.method != "none":
        duplicates = find_exact_duplicates(candidates, is_dropped)
    write_array(task.duplicates_path, duplicates[np.lexsort((duplicates["index"], duplicates["task"]))])
    kept = np.flatnonzero(~is_dropped)
    write_kept(candidates, kept, task)
    write_array(task.counts_path, count_by_bucket(candidates, kept, task))
    return {
        "kept": count_by_source(candidates, kept, task),
        "duplicate_exact": count_by_source(candidates, np.flatnonzero(is_dropped), task),
    }


def read_candidates(task: DedupTask) -> np.ndarray:
    """The documents of the task's buckets."""
    dtype = candidate_dtype(task.num_tokenizers)
    parts = [np.empty(0, dtype)]
    for stretch in task.stretches:
        first, documents = stretch.read_range(task.first_bucket, task.last_bucket, task.num_tokenizers)
        part = np.empty(len(documents), dtype)
        for name in documents.dtype.names:
            part[name] = documents[name]
        part["index"] = np.arange(first, first + len(documents))
        part["task"], part["source"] = stretch.task, stretch.source
        part["split"], part["priority"] = SPLITS.index(stretch.split), PRIORITY[stretch.split]
        parts.append(part)
    return np.concatenate(parts)


def find_exact_duplicates(candidates: np.ndarray, is_dropped: np.ndarray) -> np.ndarray:
    """The DUPLICATE records; marks them in `is_dropped`. The partner is the copy that stays."""
    hashes = candidates["content_hash"]
    keys = ("row", "raw_file", "source", "priority")
    order = np.lexsort((*(candidates[key] for key in keys), hashes[:, 1], hashes[:, 0]))
    is_copy = np.zeros(len(order), bool)
    is_copy[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    first_of_group = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(order))))
    copies, partners = candidates[order[is_copy]], candidates[order[first_of_group[is_copy]]]
    duplicates = np.empty(len(copies), DUPLICATE)
    for name in ("task", "index", "raw_file", "row", "num_bytes"):
        duplicates[name] = copies[name]
    for name in ("source", "raw_file", "row"):
        duplicates[f"partner_{name}"] = partners[name]
    is_dropped[order[is_copy]] = True
    return duplicates


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
