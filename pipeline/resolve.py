"""Edges -> which documents go, in one fixed order. Twice: first with what estimates decide, then with all compared.

A document goes if a document that stays, of a lower rank, is near enough to it; never through a third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.copies import find_marked, mark_ranks, read_all
from pipeline.estimate import EDGE, MARGIN
from pipeline.pair_kernels import PAIR_BITS, flatten, judge, resolve, unite
from pipeline.storage import write_array

NEAR = np.dtype([("rank", "<u4"), ("partner", "<u4"), ("similarity", "<f4")])
PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class ResolveTask:
    """All edges of a build, in the order of later ranks, or all pairs.

    compared: files of the edges that were compared. marks: bits of the copies, which are not listed again.
    num_short: how many ranks behind the documents' are of those too short to keep.
    """

    name: str
    paths: tuple[str, ...]
    compared: tuple[str, ...]
    marks: str | None
    num_documents: int
    num_short: int
    threshold: float
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return str(self.path)

    @property
    def path(self) -> Path:
        """What it finds: EDGE records to compare, or NEAR records, sorted by rank."""
        return Path(self.folder) / f"{self.name}.npy"

    @property
    def marks_path(self) -> Path:
        """A bit per rank that goes."""
        return Path(self.folder) / f"{self.name}.marks.npy"

    def list_outputs(self, result: dict[str, int]) -> list[Path]:
        """The files."""
        return [self.path, self.marks_path] if "dropped" in result else [self.path]


def run_judge(task: ResolveTask) -> dict[str, int]:
    """Write the edges that must be compared because estimates do not decide; returns how many they are."""
    states = np.zeros(task.num_documents, np.uint8)
    open_edges = [np.empty(0, EDGE)]
    for path in task.paths:
        edges = np.load(path)
        is_open = np.zeros(len(edges), bool)
        is_certain = edges["similarity"] >= task.threshold + MARGIN
        judge(edges["later"], edges["earlier"], is_certain, states, is_open)
        open_edges.append(edges[is_open])
    write_array(task.path, np.concatenate(open_edges))
    return {"open": sum(map(len, open_edges))}


def run_resolve(task: ResolveTask) -> dict[str, int]:
    """Write which documents go, each with its partner; returns how many."""
    states = np.zeros(task.num_documents, np.uint8)
    compared = np.concatenate([np.empty(0, EDGE), *map(np.load, task.compared)])
    dropped = [np.empty(0, NEAR)]
    for path in task.paths:
        edges = choose_near(np.load(path), compared, task.threshold)
        is_partner = np.zeros(len(edges), bool)
        resolve(edges["later"], edges["earlier"], edges["similarity"], states, is_partner)
        dropped.append(edges[is_partner].view(NEAR))
    return write_dropped(task, np.concatenate(dropped))


def choose_near(edges: np.ndarray, compared: np.ndarray, threshold: float) -> np.ndarray:
    """The edges that are near, with the similarity of the comparison where there was one."""
    keys, compared_keys = key_of(edges), key_of(compared)
    at = np.minimum(np.searchsorted(compared_keys, keys), max(0, len(compared_keys) - 1))
    is_compared = compared_keys[at] == keys if len(compared_keys) else np.zeros(len(keys), bool)
    edges["similarity"][is_compared] = compared["similarity"][at[is_compared]]
    least = np.where(is_compared, threshold, threshold + MARGIN).astype(np.float32)
    return edges[edges["similarity"] >= least]


def key_of(edges: np.ndarray) -> np.ndarray:
    """A number for each edge, in the order of files of edges: uint64."""
    return (edges["later"].astype(np.uint64) << np.uint64(PAIR_BITS)) | edges["earlier"]


def run_components(task: ResolveTask) -> dict[str, int]:
    """Write which documents go where of all that any chain of pairs connects one stays: the first that is not short."""
    parents = np.arange(task.num_documents + task.num_short, dtype=np.uint32)
    for pairs in read_pairs(task.paths):
        unite(pairs, parents)
    flatten(parents)
    dropped = np.flatnonzero(parents[: task.num_documents] != np.arange(task.num_documents, dtype=np.uint32))
    if task.marks is not None:
        dropped = dropped[~find_marked(np.load(task.marks, mmap_mode="r"), dropped)]
    near = np.empty(len(dropped), NEAR)
    near["rank"], near["partner"], near["similarity"] = dropped, parents[dropped], np.nan
    return write_dropped(task, near)


def read_pairs(paths: Sequence[str]) -> Iterator[np.ndarray]:
    """The pairs of several files, PAIRS_AT_ONCE at most in memory."""
    for path in paths:
        pairs = np.load(path, mmap_mode="r")
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            yield np.array(pairs[first : first + PAIRS_AT_ONCE])


def write_dropped(task: ResolveTask, near: np.ndarray) -> dict[str, int]:
    """Write the NEAR records and a bit for each."""
    write_array(task.path, near)
    write_array(task.marks_path, mark_ranks(read_all([str(task.path)]), task.num_documents))
    return {"dropped": len(near)}
