"""Documents with the same text: which of them goes, and for which other. Works on a range of places.

Equal texts have equal places, so a range holds all copies of each of its documents. Of several the one of the lowest
rank stays, and those of datasets of --against (held.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.pair_kernels import mark_ranks
from pipeline.ranks import find_held
from pipeline.storage import write_array
from pipeline.token_file import open_records
from pipeline.work import BUCKET_SHIFT, FileTask, Stretch, describe_buckets, find_place

COPY = np.dtype([("rank", "<u4"), ("partner", "<u4")])
HELD = np.dtype([("place", "<u8"), ("content_hash", "<u8", 2), ("rank", "<u4")])


@dataclass(frozen=True)
class CopiesTask(FileTask):
    """The documents of some buckets of places, from all stretches, and where the result goes.

    held_paths: files of HELD records of the documents that stay, each sorted by place; held: the ranges of their ranks.
    """

    name: str
    stretches: tuple[Stretch, ...]
    held_paths: tuple[str, ...]
    held: tuple[tuple[int, int], ...]
    num_tokenizers: int
    first_bucket: int
    last_bucket: int
    folder: str
    fingerprint: str  # of all raw files

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return describe_buckets(self.first_bucket, self.last_bucket)

    @property
    def path(self) -> Path:
        """The COPY records, sorted by rank."""
        return Path(self.folder) / f"{self.name}.copies.npy"


def run_copies(task: CopiesTask) -> dict[str, Any]:
    """Write the copies; returns how many there are, and of how many documents.

    Beside them `held`: train documents of --against with the text of one of validation or test here.
    """
    ranks, hashes = [np.empty(0, np.int64)], [np.empty((0, 2), np.uint64)]
    for stretch in task.stretches:
        _, documents = stretch.read_range(task.first_bucket, task.last_bucket, task.num_tokenizers)
        ranks.append(stretch.rank(documents["number"]))
        hashes.append(documents["content_hash"])
    num_documents = sum(map(len, ranks))
    for path in task.held_paths:
        documents = read_held(Path(path), task.first_bucket, task.last_bucket)
        ranks.append(documents["rank"].astype(np.int64))
        hashes.append(documents["content_hash"])
    copies = find_copies(np.concatenate(ranks), np.concatenate(hashes))
    is_held, goes_for_held = find_held(copies["rank"], task.held), find_held(copies["partner"], task.held)
    copies = copies[~is_held]
    write_array(task.path, copies)
    return {"documents": num_documents, "copies": len(copies), "held": int((is_held & ~goes_for_held).sum())}


def read_held(path: Path, first_bucket: int, last_bucket: int) -> np.ndarray:
    """The HELD records whose place is in the buckets."""
    records = open_records(path, HELD)
    buckets = (first_bucket, last_bucket)
    first, last = (find_place(records, bucket << BUCKET_SHIFT, first=0, last=len(records)) for bucket in buckets)
    return np.array(records[first:last])


def find_copies(ranks: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """The COPY records of documents with equal hashes (uint64, shape (documents, 2)), sorted by rank."""
    chosen = find_repeated(hashes[:, 0])
    ranks, hashes = ranks[chosen], hashes[chosen]
    order = np.lexsort((ranks, hashes[:, 1], hashes[:, 0]))
    is_copy = np.zeros(len(order), bool)
    is_copy[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    first_of_group = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(order))))
    copies = np.empty(int(is_copy.sum()), COPY)
    copies["rank"], copies["partner"] = ranks[order[is_copy]], ranks[order[first_of_group[is_copy]]]
    return copies[np.argsort(copies["rank"])]


def find_repeated(values: np.ndarray) -> np.ndarray:
    """The places of values that an array holds more than once: only these need be compared in full."""
    order = np.argsort(values)
    return order[find_ties(values[order])]


def find_ties(values: np.ndarray) -> np.ndarray:
    """Which of sorted values equal the one before or after them: bool."""
    is_tie = np.zeros(len(values), bool)
    is_tie[1:] = values[1:] == values[:-1]
    is_tie[:-1] |= is_tie[1:]
    return is_tie


@dataclass(frozen=True)
class MarksTask(FileTask):
    """All copies of a build as one array of bits."""

    name: str
    paths: tuple[str, ...]
    num_documents: int
    folder: str
    fingerprint: str

    @property
    def path(self) -> Path:
        """A bit per rank, lowest bit first: uint8."""
        return Path(self.folder) / f"{self.name}.npy"


def run_marks(task: MarksTask) -> None:
    """Write the bits."""
    bits = np.zeros(task.num_documents // 8 + 1, np.uint8)
    for path in task.paths:
        mark_ranks(np.load(path)["rank"], bits)
    write_array(task.path, bits)


def find_marked(bits: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Whether each rank's bit is set: bool."""
    return (bits[ranks >> 3] >> (ranks & 7).astype(np.uint8)) & 1 == 1
