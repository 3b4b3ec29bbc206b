"""Token files - dropped documents, shuffled -> shards.

A shard is a range of places of one source and split. It gathers that range from every stretch, which is one contiguous
piece each, leaves out the dropped, and orders by place: a global shuffle that reads sequentially and holds one shard.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.kernels import scatter_documents
from pipeline.shard import list_shard_files, shard_name, write_shard
from pipeline.token_file import DOCUMENT, sort_documents, starts_of
from pipeline.work import NUM_BUCKETS, Stretch


@dataclass(frozen=True)
class PackStretch:
    """A stretch, and the file with the indices of its task's dropped documents."""

    stretch: Stretch
    dropped_path: str


@dataclass(frozen=True)
class PackTask:
    """One shard: its buckets of places, and the stretches of its source and split."""

    name: str
    shard: str
    first_bucket: int
    last_bucket: int
    stretches: tuple[PackStretch, ...]
    dtype: str
    out: str
    fingerprint: str  # of all raw files

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return self.shard

    def list_outputs(self, _: Any) -> list[Path]:
        """The shard's files."""
        return list_shard_files(Path(self.out) / self.shard)


def plan_shards(histogram: np.ndarray, *, shard_tokens: int) -> list[tuple[int, int]]:
    """Bucket ranges of shards that hold about `shard_tokens` each, from the tokens per bucket; none is empty."""
    ends = np.cumsum(histogram)
    total = int(ends[-1])
    num_shards = -(-total // shard_tokens)
    goals = [total * number // num_shards for number in range(1, num_shards)]
    borders = [0, *(np.searchsorted(ends, goals) + 1).tolist(), NUM_BUCKETS]
    ranges = zip(borders[:-1], borders[1:], strict=True)
    return [(first, last) for first, last in ranges if first < last and histogram[first:last].any()]


def plan_pack(
    source: str,
    split: str,
    borders: list[tuple[int, int]],
    *,
    stretches: tuple[PackStretch, ...],
    dtype: str,
    out: Path,
    fingerprint: str,
) -> list[PackTask]:
    """The shards of one source and split, numbered in the order of their places."""
    names = [f"{source}-{split}-{number:05d}" for number in range(len(borders))]
    return [
        PackTask(name, shard_name(source, split, number), first, last, stretches, dtype, str(out), fingerprint)
        for number, (name, (first, last)) in enumerate(zip(names, borders, strict=True))
    ]


def run_pack(task: PackTask) -> dict[str, Any]:
    """Write one shard; returns its Shard record as a dict."""
    pieces = [read_kept(part, task) for part in task.stretches]
    documents = np.concatenate([np.empty(0, DOCUMENT), *pieces])
    order = sort_documents(documents, np.zeros(len(documents), np.uint8))
    targets = np.empty(len(documents), np.int64)
    targets[order] = starts_of(documents["num_tokens"][order])
    ids = np.empty(int(documents["num_tokens"].sum(dtype=np.int64)), np.dtype(task.dtype))
    first = 0
    for part, piece in zip(task.stretches, pieces, strict=True):
        copy_tokens(part.stretch, piece, targets[first : first + len(piece)], ids)
        first += len(piece)
    documents = documents[order]
    columns = {name: documents[name] for name in ("raw_file", "row", "content_hash")}
    lengths = documents["num_tokens"].astype(np.int64)
    return asdict(write_shard(Path(task.out), task.shard, ids=ids, lengths=lengths, documents=columns))


def read_kept(part: PackStretch, task: PackTask) -> np.ndarray:
    """The DOCUMENT records of one stretch that belong into the shard."""
    first, documents = part.stretch.read_range(task.first_bucket, task.last_bucket)
    dropped = np.load(part.dropped_path, mmap_mode="r")
    start, end = np.searchsorted(dropped, [first, first + len(documents)])
    return np.delete(documents, (dropped[start:end] - first).astype(np.int64))


def copy_tokens(stretch: Stretch, documents: np.ndarray, targets: np.ndarray, ids: np.ndarray) -> None:
    """Copy the documents' tokens from their token file to their places in the shard, reading forward."""
    if not len(documents):
        return
    tokens = np.memmap(Path(stretch.folder) / "tokens.bin", dtype=ids.dtype, mode="r")
    scatter_documents(tokens, documents["token_start"].astype(np.int64), documents["num_tokens"], targets, ids)
