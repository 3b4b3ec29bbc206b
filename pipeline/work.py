"""The work files between ingest and pack, as later stages see them: stretches of documents sorted by place.

A place is a 64-bit keyed hash of a document's content. A range of places is one contiguous piece of each stretch.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BUCKET_BITS = 16  # shards begin at bucket borders: 1/65,536 of a source each
NUM_BUCKETS = 1 << BUCKET_BITS
BUCKET_SHIFT = 64 - BUCKET_BITS


@dataclass(frozen=True)
class Stretch:
    """Documents first to last of an ingest task's table: one source, one split, sorted by place."""

    task: int  # the task's number in the plan
    folder: str
    source: int  # the source's number in the mix
    split: str
    first: int
    last: int

    def read_range(self, first_bucket: int, last_bucket: int) -> tuple[int, np.ndarray]:
        """The DOCUMENT records whose place is in the buckets, and the index of the first in the task's table."""
        table = np.load(Path(self.folder) / "documents.npy", mmap_mode="r")
        edges = (first_bucket << BUCKET_SHIFT, last_bucket << BUCKET_SHIFT)
        first, last = (
            bisect.bisect_left(range(self.first, self.last), edge, key=lambda index: int(table[index]["place"]))
            for edge in edges
        )
        return self.first + first, np.array(table[self.first + first : self.first + last])


def buckets_of(places: np.ndarray) -> np.ndarray:
    """The bucket of each place: int64."""
    return (places >> np.uint64(BUCKET_SHIFT)).astype(np.int64)


def split_buckets(num_parts: int) -> Iterator[tuple[int, int]]:
    """The buckets cut into `num_parts` ranges of equal width."""
    edges = [NUM_BUCKETS * part // num_parts for part in range(num_parts + 1)]
    yield from zip(edges[:-1], edges[1:], strict=True)
