"""Edges -> which documents go, in one fixed order. Twice: first with what estimates decide, then with all compared.

A document goes if a document that stays, of a lower rank, is near enough to it; never through a third.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.copies import find_marked
from pipeline.edge_kernels import find_listed, judge, resolve
from pipeline.estimate import EDGE, MARGIN
from pipeline.freed_memory import keep_freed_memory
from pipeline.pair_kernels import flatten, mark_ranks, unite
from pipeline.ranks import find_held
from pipeline.storage import open_new, write_array
from pipeline.work import FileTask

NEAR = np.dtype([("rank", "<u4"), ("partner", "<u4"), ("similarity", "<f4")])
PAIRS_AT_ONCE = 1 << 22
EDGES_AT_ONCE = 1 << 20  # about so many: small enough to be used again (freed_memory.py)
FAINT = 0.985  # what is less alike may be so by boilerplate that only its like have; an estimate errs by 0.03


@dataclass(frozen=True)
class ResolveTask(FileTask):
    """All edges of a build, in the order of later ranks, or all pairs.

    compared: files of the edges that were compared. apart: of those that are not near but for boilerplate. marks: bits
    of the copies, which are not listed again. num_short: how many ranks behind the documents' are of those too short to
    keep. held: the ranges of the ranks of those that stay whatever is near to them.
    """

    name: str
    paths: tuple[str, ...]
    compared: tuple[str, ...]
    apart: tuple[str, ...]
    marks: str | None
    num_documents: int
    num_short: int
    held: tuple[tuple[int, int], ...]
    threshold: float
    folder: str
    fingerprint: str

    @property
    def path(self) -> Path:
        """What it finds: EDGE records to compare, or NEAR records, sorted by rank."""
        return Path(self.folder) / f"{self.name}.bin"

    @property
    def marks_path(self) -> Path:
        """A bit per rank that goes."""
        return Path(self.folder) / f"{self.name}.marks.npy"

    @property
    def doubted_path(self) -> Path:
        """A bit per rank that is near to one before it, whether that one stays or not."""
        return Path(self.folder) / f"{self.name}.doubted.npy"

    @property
    def faint_path(self) -> Path:
        """A bit per rank that is near to one before it, and to none by FAINT or more."""
        return Path(self.folder) / f"{self.name}.faint.npy"

    def list_outputs(self, result: dict[str, int]) -> list[Path]:
        """The files."""
        marks = [self.marks_path] if "dropped" in result else []
        return [self.path, *marks, *([self.doubted_path, self.faint_path] if "doubted" in result else [])]


def run_judge(task: ResolveTask) -> dict[str, int]:
    """Write the edges that must be compared because estimates do not decide; returns how many they are."""
    keep_freed_memory()
    states = np.zeros(task.num_documents, np.uint8)
    num_open = 0
    with open_new(task.path) as file:
        for edges in read_edges(task.paths):
            is_open = np.zeros(len(edges), bool)
            is_certain = edges["similarity"] >= task.threshold + MARGIN
            judge(edges["later"], edges["earlier"], is_certain, states, is_open)
            file.write(edges[is_open].tobytes())
            num_open += int(is_open.sum())
    return {"open": num_open}


def run_resolve(task: ResolveTask) -> dict[str, int]:
    """Write which documents go, each with its partner, and which might; returns how many."""
    keep_freed_memory()
    states = np.zeros(task.num_documents, np.uint8)
    doubted, sure = np.zeros((2, task.num_documents // 8 + 1), np.uint8)

    def resolve_files() -> Iterator[np.ndarray]:
        for edges in read_near_edges(task):
            edges = leave_out_apart(edges, read_between(task.apart, edges))
            mark_ranks(edges["later"], doubted)
            mark_ranks(edges["later"][edges["similarity"] >= FAINT], sure)
            is_partner = np.zeros(len(edges), bool)
            resolve(edges["later"], edges["earlier"], edges["similarity"], states, is_partner)
            yield edges[is_partner].view(NEAR)

    counts = write_dropped(task, resolve_files())
    write_array(task.doubted_path, doubted)
    write_array(task.faint_path, doubted & ~sure)
    return {**counts, "doubted": int(np.bitwise_count(doubted).sum())}


def read_near_edges(task: ResolveTask) -> Iterator[np.ndarray]:
    """The EDGE records of all pairs that are near, part by part."""
    for edges in read_edges(task.paths):
        yield choose_near(edges, read_between(task.compared, edges), task.threshold)


def read_edges(paths: Sequence[str]) -> Iterator[np.ndarray]:
    """The EDGE records of files in the order of their ranks, in parts. All of a later rank are in one part."""
    for path in paths:
        records, first = np.load(path, mmap_mode="r"), 0
        while first < len(records):
            last_rank = int(records["later"][min(first + EDGES_AT_ONCE, len(records)) - 1])
            last = find_later(records, last_rank + 1, first=first)
            yield np.array(records[first:last])
            first = last


def read_between(paths: Sequence[str], edges: np.ndarray) -> np.ndarray:
    """The EDGE records of several sorted files whose later ranks are between those of some edges, sorted too."""
    parts = [np.empty(0, EDGE)]
    for path in paths if len(edges) else ():
        records = np.load(path, mmap_mode="r")
        start, stop = (find_later(records, rank) for rank in (int(edges["later"][0]), int(edges["later"][-1]) + 1))
        parts.append(np.array(records[start:stop]))
    return np.concatenate(parts)


def find_later(records: np.ndarray, rank: int, *, first: int = 0) -> int:
    """The place of the first of sorted EDGE records, from `first` on, whose later rank is `rank` or above.

    A mapped file is not read for it.
    """
    return bisect.bisect_left(range(len(records)), rank, lo=first, key=lambda place: int(records[place]["later"]))


def leave_out_apart(edges: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """The edges that are not among those of others, both in the order of ranks."""
    return edges[find_edges(edges, apart) < 0] if len(apart) else edges


def choose_near(edges: np.ndarray, compared: np.ndarray, threshold: float) -> np.ndarray:
    """The edges that are near, with the similarity of the comparison where there was one."""
    at = find_edges(edges, compared)
    is_compared = at >= 0
    edges["similarity"][is_compared] = compared["similarity"][at[is_compared]]
    least = np.where(is_compared, np.float32(threshold), np.float32(threshold + MARGIN))
    return edges[edges["similarity"] >= least]


def find_edges(edges: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Where each of sorted edges stands among sorted others, or -1: int32."""
    places = np.empty(len(edges), np.int32)
    find_listed(edges, others, places)
    return places


def run_components(task: ResolveTask) -> dict[str, int]:
    """Write which documents go where of all that any chain of pairs connects one stays: the first that is not short."""
    parents = np.arange(task.num_documents + task.num_short, dtype=np.uint32)
    for pairs in read_pairs(task.paths):
        unite(pairs, parents)
    flatten(parents)
    marks = None if task.marks is None else np.load(task.marks, mmap_mode="r")
    parents, ranges = parents[: task.num_documents], range(0, task.num_documents, PAIRS_AT_ONCE)
    return write_dropped(task, (list_connected(parents, first, marks, task.held) for first in ranges))


def list_connected(
    parents: np.ndarray, first: int, marks: np.ndarray | None, held: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The NEAR records among PAIRS_AT_ONCE documents from `first` on: those that are not their component's lowest."""
    own = parents[first : first + PAIRS_AT_ONCE]
    ranks = first + np.flatnonzero(own != np.arange(first, first + len(own), dtype=np.uint32))
    if marks is not None:
        ranks = ranks[~find_marked(marks, ranks)]
    ranks = ranks[~find_held(ranks, held)]
    near = np.empty(len(ranks), NEAR)
    near["rank"], near["partner"], near["similarity"] = ranks, parents[ranks], np.nan
    return near


def read_pairs(paths: Sequence[str]) -> Iterator[np.ndarray]:
    """The pairs of several files, PAIRS_AT_ONCE at most in memory."""
    for path in paths:
        pairs = np.load(path, mmap_mode="r")
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            yield np.array(pairs[first : first + PAIRS_AT_ONCE])


def write_dropped(task: ResolveTask, parts: Iterator[np.ndarray]) -> dict[str, int]:
    """Write NEAR records, which come in order, and a bit for each."""
    bits, count = np.zeros(task.num_documents // 8 + 1, np.uint8), 0
    with open_new(task.path) as file:
        for near in parts:
            mark_ranks(near["rank"], bits)
            file.write(near.tobytes())
            count += len(near)
    write_array(task.marks_path, bits)
    return {"dropped": count}
