"""The work files between ingest and pack, as later stages see them.

A place is a 64-bit keyed hash of a document's content. Ingest leaves stretches of documents sorted by place, so that a
range of places is one contiguous piece of each. Dedup joins them: for each range of places a table of the documents
that are kept, by source, split and place, so that a shard is a contiguous piece of one or two tables.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.token_file import document_dtype, open_documents, open_records

BUCKET_BITS = 16  # shards begin at bucket borders: 1/65,536 of a source each
NUM_BUCKETS = 1 << BUCKET_BITS
BUCKET_SHIFT = 64 - BUCKET_BITS


class FileTask:
    """A task that writes one file, `path`, and is known to a person by it unless it says otherwise."""

    path: Path

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return str(self.path)

    def list_outputs(self, _: Any) -> list[Path]:
        """The one file that it writes."""
        return [self.path]


@dataclass(frozen=True)
class Stretch:
    """Documents first to last of an ingest task's table: one source, one split, sorted by place."""

    task: int  # the task's number in the plan
    folder: str
    source: int  # the source's number in the mix
    first_row: int  # where the task begins in its raw file: rows of a part count from there
    split: str
    first: int
    last: int
    first_rank: int  # its documents have the ranks from here on, in the order of their numbers
    is_held: bool = False  # of a dataset of --against: `folder` is that of its kept signatures, and has no table

    def read_range(self, first_bucket: int, last_bucket: int, num_tokenizers: int) -> tuple[int, np.ndarray]:
        """The DOCUMENT records whose place is in the buckets, and the index of the first in the task's table."""
        table = open_documents(Path(self.folder), num_tokenizers)
        first, last = (self.find_place(table, bucket << BUCKET_SHIFT) for bucket in (first_bucket, last_bucket))
        documents = np.array(table[first:last])
        documents["row"] += np.uint64(self.first_row)
        return first, documents

    def rank(self, numbers: np.ndarray) -> np.ndarray:
        """The ranks of documents by their numbers in the task: int64."""
        return numbers.astype(np.int64) + (self.first_rank - self.first)

    def find_place(self, table: np.ndarray, place: int) -> int:
        """The index of the stretch's first document at `place` or behind, in its task's table."""
        return find_place(table, place, first=self.first, last=self.last)


def find_place(table: np.ndarray, place: int, *, first: int, last: int) -> int:
    """The index of the first of the records first to last, sorted by place, at `place` or behind."""
    places = table["place"]
    return bisect.bisect_left(range(last), place, lo=first, key=lambda index: int(places[index]))


def kept_dtype(num_tokenizers: int) -> np.dtype:
    """The KEPT record, a document that stays and where its ids are: a DOCUMENT record with `task` for `number`."""
    return np.dtype([*document_dtype(num_tokenizers).descr[:-1], ("task", "<u4")])


@dataclass(frozen=True)
class KeptSlice:
    """Some KEPT records of one table. fingerprint: of their content, wherever they stand in the table."""

    path: str
    first: int
    last: int
    fingerprint: str

    def read(self, num_tokenizers: int) -> np.ndarray:
        """The records."""
        return np.array(open_records(Path(self.path), kept_dtype(num_tokenizers))[self.first : self.last])


@dataclass(frozen=True)
class KeptDocuments:
    """All KEPT records: one table per range of buckets, in order.

    edges: the first bucket of each table. checksums: of each table, of the records of each source. counts: int64, shape
    (sources, splits, buckets), documents; a table holds its buckets' documents by source, split and place.
    """

    paths: tuple[str, ...]
    edges: tuple[int, ...]
    checksums: tuple[tuple[str, ...], ...]
    counts: np.ndarray
    num_tokenizers: int

    @cached_property
    def positions(self) -> np.ndarray:
        """Where each (source, split, bucket) begins in its table: int64, the shape of counts."""
        positions = np.empty_like(self.counts)
        for first, last in zip(self.edges, (*self.edges[1:], NUM_BUCKETS), strict=True):
            part = self.counts[:, :, first:last].reshape(-1)
            positions[:, :, first:last] = (np.cumsum(part) - part).reshape(positions[:, :, first:last].shape)
        return positions

    def find(
        self, source: int, split: int, first_bucket: int, last_bucket: int, *, counts: np.ndarray
    ) -> tuple[KeptSlice, ...]:
        """Where the documents of some buckets are, in order of place.

        counts: documents per bucket of this source and split, as in self.counts or, behind a limit, fewer.
        """
        positions = self.positions[source, split]
        ends = (*self.edges[1:], NUM_BUCKETS)
        slices = []
        for path, edge, end, checksums in zip(self.paths, self.edges, ends, self.checksums, strict=True):
            lowest, highest = max(first_bucket, edge), min(last_bucket, end)
            filled = np.flatnonzero(counts[lowest:highest])
            if len(filled):
                bucket = lowest + int(filled[-1])
                first, last = int(positions[lowest]), int(positions[bucket] + counts[bucket])
                of_source = int(self.positions[source, 0, edge])
                fingerprint = f"{checksums[source]} {first - of_source} {last - of_source}"
                slices.append(KeptSlice(path, first, last, fingerprint))
        return tuple(slices)


def buckets_of(places: np.ndarray) -> np.ndarray:
    """The bucket of each place: int64."""
    return (places >> np.uint64(BUCKET_SHIFT)).astype(np.int64)


def describe_buckets(first_bucket: int, last_bucket: int) -> str:
    """A range of buckets, for a person."""
    return f"places {first_bucket:,} to {last_bucket:,} of {NUM_BUCKETS:,}"


def split_buckets(num_parts: int) -> Iterator[tuple[int, int]]:
    """The buckets cut into `num_parts` ranges of equal width."""
    edges = [NUM_BUCKETS * part // num_parts for part in range(num_parts + 1)]
    yield from zip(edges[:-1], edges[1:], strict=True)
