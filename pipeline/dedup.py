"""Document tables -> which documents to drop, and why. Works on a range of places at a time, over all sources together.

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
from pipeline.storage import write_array
from pipeline.work import NUM_BUCKETS, Stretch, buckets_of, split_buckets

DOCUMENTS_PER_TASK = 2_000_000  # about 200 bytes of memory each
METHODS = ("none", "exact")
PRIORITY = {"validation": 0, "test": 1, "train": 2}

CANDIDATE = np.dtype(
    [
        ("content_hash", "<u8", 2),
        ("row", "<u8"),
        ("num_bytes", "<u8"),
        ("index", "<u8"),  # in its task's table
        ("bucket", "<u4"),
        ("num_tokens", "<u4"),
        ("raw_file", "<u4"),
        ("task", "<u4"),
        ("source", "<u2"),
        ("split", "u1"),
        ("priority", "u1"),
    ]
)
DUPLICATE = np.dtype(
    [
        ("task", "<u4"),
        ("index", "<u8"),
        ("raw_file", "<u4"),
        ("row", "<u8"),
        ("partner_source", "<u2"),
        ("partner_raw_file", "<u4"),
        ("partner_row", "<u8"),
    ]
)


@dataclass(frozen=True)
class DedupTask:
    """The documents of some buckets of places, from all stretches, and where the result goes."""

    name: str
    method: str
    num_sources: int
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
    def histogram_path(self) -> Path:
        """Tokens kept: int64, shape (sources, splits, buckets)."""
        return Path(self.folder) / f"{self.name}.histogram.npy"

    def list_outputs(self, _: Any) -> list[Path]:
        """Both files."""
        return [self.duplicates_path, self.histogram_path]


def plan_dedup(
    stretches: tuple[Stretch, ...], *, method: str, num_sources: int, folder: Path, fingerprint: str
) -> list[DedupTask]:
    """The ranges of places to work on, each small enough for memory."""
    num_documents = sum(stretch.last - stretch.first for stretch in stretches)
    num_tasks = min(NUM_BUCKETS, max(1, -(-num_documents // DOCUMENTS_PER_TASK)))
    return [
        DedupTask(f"places-{number:05d}", method, num_sources, stretches, first, last, str(folder), fingerprint)
        for number, (first, last) in enumerate(split_buckets(num_tasks))
    ]


def run_dedup(task: DedupTask) -> dict[str, Any]:
    """Write the duplicates and the histogram of a task; returns counts per source, of documents, bytes and tokens."""
    candidates = read_candidates(task)
    if task.method == "none":
        duplicates, is_dropped = np.empty(0, DUPLICATE), np.zeros(len(candidates), bool)
    else:
        duplicates, is_dropped = find_exact_duplicates(candidates)
    kept = candidates[~is_dropped]
    write_array(task.duplicates_path, duplicates[np.lexsort((duplicates["index"], duplicates["task"]))])
    write_array(task.histogram_path, count_tokens(kept, task))
    return {
        "kept": count_by_source(kept, task.num_sources),
        "duplicate_exact": count_by_source(candidates[is_dropped], task.num_sources),
    }


def read_candidates(task: DedupTask) -> np.ndarray:
    """The documents of the task's buckets, as CANDIDATE records."""
    parts = [np.empty(0, CANDIDATE)]
    for stretch in task.stretches:
        first, documents = stretch.read_range(task.first_bucket, task.last_bucket)
        part = np.empty(len(documents), CANDIDATE)
        for name in ("content_hash", "row", "num_bytes", "num_tokens", "raw_file"):
            part[name] = documents[name]
        part["index"] = np.arange(first, first + len(documents))
        part["bucket"] = buckets_of(documents["place"])
        part["task"], part["source"] = stretch.task, stretch.source
        part["split"], part["priority"] = SPLITS.index(stretch.split), PRIORITY[stretch.split]
        parts.append(part)
    return np.concatenate(parts)


def find_exact_duplicates(candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The DUPLICATE records, and for each candidate whether it is one. The partner is the copy that stays."""
    hashes = candidates["content_hash"]
    keys = ("row", "raw_file", "source", "priority")
    order = np.lexsort((*(candidates[key] for key in keys), hashes[:, 1], hashes[:, 0]))
    ordered = candidates[order]
    is_copy = np.zeros(len(ordered), bool)
    is_copy[1:] = (ordered["content_hash"][1:] == ordered["content_hash"][:-1]).all(axis=1)
    first_of_group = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(ordered))))
    partners = ordered[first_of_group[is_copy]]
    duplicates = np.empty(int(is_copy.sum()), DUPLICATE)
    for name in ("task", "index", "raw_file", "row"):
        duplicates[name] = ordered[name][is_copy]
    for name in ("source", "raw_file", "row"):
        duplicates[f"partner_{name}"] = partners[name]
    is_dropped = np.zeros(len(candidates), bool)
    is_dropped[order[is_copy]] = True
    return duplicates, is_dropped


def count_tokens(kept: np.ndarray, task: DedupTask) -> np.ndarray:
    """The tokens of kept documents by source, split and bucket."""
    shape = (task.num_sources, len(SPLITS), task.last_bucket - task.first_bucket)
    histogram = np.zeros(shape, np.int64)
    bucket = kept["bucket"].astype(np.int64) - task.first_bucket
    np.add.at(histogram, (kept["source"], kept["split"], bucket), kept["num_tokens"].astype(np.int64))
    return histogram


def count_by_source(documents: np.ndarray, num_sources: int) -> list[dict[str, int]]:
    """Documents, bytes of text and tokens of each source."""
    chosen = [documents[documents["source"] == source] for source in range(num_sources)]
    return [
        {"documents": len(part), "bytes": int(part["num_bytes"].sum()), "tokens": int(part["num_tokens"].sum())}
        for part in chosen
    ]
