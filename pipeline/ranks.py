"""Ranks: every document of a build numbered in the order in which duplicates are resolved, and what stands at a rank.

The order is: split (validation, test, train), source (--dedup-priority), raw file, row. Of two documents with the same
or nearly the same text the one of the lower rank stays. Documents of datasets of --against (held.py) always stay: they
come first among validation and test, and first among train. A stretch of a task's documents has consecutive ranks, in
the order of their numbers; so a rank leads to a row of the task's sketch files (sketch_file.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.pair_kernels import NO_PARTNER
from pipeline.sketch_file import NUMBER_BITS, ROW, Recipe
from pipeline.storage import read_into
from pipeline.token_file import open_records
from pipeline.work import Stretch

PRIORITY = {"validation": 0, "test": 1, "train": 2}
LARGEST_RANK = NO_PARTNER - 1


@dataclass(frozen=True)
class SketchRun:
    """The band keys of one run of an ingest task.

    start: of its first key in bands.bin; num_signed: how many each band has. edges: the first number, within the run,
    of each of its stretches; bases: what to add to such a number for the rank.
    """

    folder: str
    start: int
    num_signed: int
    edges: tuple[int, ...]
    bases: tuple[int, ...]

    def find_keys(self, band: int, keys: Sequence[int], *, recipe: Recipe) -> list[int]:
        """Where the first record of each key or above stands, in bands.bin, of the records of a band."""
        start = self.start + band * self.num_signed
        records = open_records(self.path, recipe.record)[start : start + self.num_signed]
        values, shift = (records["key"], 0) if records.dtype.names else (records, NUMBER_BITS)
        edges = [key << shift for key in keys]
        inner = np.searchsorted(values, np.array([edge for edge in edges if edge >> 64 == 0], np.uint64)).tolist()
        return [start + place for place in (*inner, *[self.num_signed] * (len(edges) - len(inner)))]

    def read(self, first: int, records: np.ndarray) -> None:
        """Fill an array with records of bands.bin, from `first` on."""
        read_into(self.path, first * records.itemsize, records.view(np.uint8))

    @property
    def path(self) -> Path:
        """The file of the keys."""
        return Path(self.folder) / "bands.bin"

    def rank(self, numbers: np.ndarray) -> np.ndarray:
        """The ranks of numbers within the run: int64."""
        stretch = np.searchsorted(np.array(self.edges), numbers.astype(np.int64), side="right") - 1
        return numbers.astype(np.int64) + np.array(self.bases)[stretch]


def rank_stretches(segments: Sequence[dict], source_priority: Sequence[int]) -> list[int]:
    """The first rank of each segment {source, task, split, first, last, is_held}, in the order given.

    source_priority: of each source by its number. Raises ValueError where there are too many documents.
    """

    def key(index: int) -> tuple[int, ...]:
        one = segments[index]
        is_train, is_own = one["split"] == "train", not one["is_held"]
        return is_train, is_own, PRIORITY[one["split"]], source_priority[one["source"]], one["task"], one["first"]

    first_ranks, rank = [0] * len(segments), 0
    for index in sorted(range(len(segments)), key=key):
        first_ranks[index] = rank
        rank += segments[index]["last"] - segments[index]["first"]
    if rank > LARGEST_RANK:
        raise ValueError(f"{rank:,} documents are more than the {LARGEST_RANK:,} that one build can hold: build parts")
    return first_ranks


def list_runs(
    folder: str, runs: Sequence[dict[str, int]], stretches: Sequence[Stretch], *, num_keys: int, short_rank: int
) -> Iterator[SketchRun]:
    """The runs of one ingest task, from its record and its stretches in order.

    short_rank: the first rank for those of its documents that are too short to keep.
    """
    first_number = start = 0
    for run in runs:
        last_number = first_number + run["documents"]
        own = [stretch for stretch in stretches if first_number <= stretch.first < last_number]
        edges = tuple(stretch.first - first_number for stretch in own)
        bases = tuple(stretch.first_rank - edge for stretch, edge in zip(own, edges, strict=True))
        edges, bases = (*edges, run["documents"]), (*bases, short_rank - run["documents"])
        short_rank += run["short"]
        yield SketchRun(folder, start, run["signed"], edges, bases)
        first_number, start = last_number, start + run["signed"] * num_keys


@dataclass(frozen=True)
class RankMap:
    """All stretches in the order of their ranks."""

    stretches: tuple[Stretch, ...]

    @classmethod
    def of(cls, stretches: Sequence[Stretch]) -> RankMap:
        """The map of stretches in any order."""
        return cls(tuple(sorted(stretches, key=lambda stretch: stretch.first_rank)))

    @property
    def num_documents(self) -> int:
        """How many ranks there are."""
        return sum(stretch.last - stretch.first for stretch in self.stretches)

    @cached_property
    def held(self) -> tuple[tuple[int, int], ...]:
        """The first and last ranks of documents of datasets of --against: two ranges at most."""
        ranges: list[tuple[int, int]] = []
        for stretch in self.stretches:
            if not stretch.is_held:
                continue
            first, last = stretch.first_rank, stretch.first_rank + stretch.last - stretch.first
            if ranges and ranges[-1][1] == first:
                first, _ = ranges.pop()
            ranges.append((first, last))
        return tuple(ranges)

    @cached_property
    def first_ranks(self) -> np.ndarray:
        """Of each stretch: int64."""
        return np.array([stretch.first_rank for stretch in self.stretches], np.int64)

    def split(self, ranks: np.ndarray) -> Iterator[tuple[Stretch, slice, np.ndarray]]:
        """For sorted ranks: each stretch that has some, which of the ranks these are, and their numbers."""
        edges = np.array([*self.first_ranks, self.num_documents], ranks.dtype)  # of another type: all is converted
        edges = np.searchsorted(ranks, edges)
        for index in np.flatnonzero(edges[1:] > edges[:-1]):
            stretch, where = self.stretches[index], slice(int(edges[index]), int(edges[index + 1]))
            yield stretch, where, ranks[where].astype(np.int64) - stretch.first_rank + stretch.first

    def read(self, ranks: np.ndarray, file: str, dtype: np.dtype) -> np.ndarray:
        """The records of a sketch file at sorted ranks. One task's file at a time is mapped."""
        out = np.empty(len(ranks), dtype)
        for stretch, where, numbers in self.split(ranks):
            records = open_records(Path(stretch.folder) / file, dtype)
            np.take(records, numbers, axis=0, out=out[where], mode="clip")  # by itself it copies them twice
        return out

    def read_rows(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source number (uint16) and ROW record, whose row counts from its raw file's first, of ranks in any order."""
        ranks, back = np.unique(ranks, return_inverse=True)
        sources, rows = np.empty(len(ranks), np.uint16), self.read(ranks, "rows.bin", ROW)
        for stretch, where, _ in self.split(ranks):
            sources[where] = stretch.source
            rows["row"][where] += np.uint64(stretch.first_row)
        return sources[back], rows[back]


def find_held(ranks: np.ndarray, held: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which of the ranks are of documents that always stay, from the ranges of these: bool."""
    is_held = np.zeros(len(ranks), bool)
    for first, last in held:
        is_held |= (ranks >= first) & (ranks < last)
    return is_held
