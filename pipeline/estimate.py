"""Pairs that may be near -> pairs with their similarity, estimated from signatures. Works on a range of later ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.minhash import NUM_PERMUTATIONS
from pipeline.pair_kernels import PAIR_BITS, count_equal, keep_first_of_equal
from pipeline.ranks import RankMap
from pipeline.storage import write_array

EDGE = np.dtype([("later", "<u4"), ("earlier", "<u4"), ("similarity", "<f4")])
# An estimate from 112 values of 8 bits has a standard error of 0.04 near 0.8. What is estimated three of them above the
# threshold is near, what is so far below is not; between them the sets of shingles themselves are compared.
MARGIN = 0.12
NUM_RANK_BUCKETS = 1 << 12
BYTES_PER_PAIR = 2 * NUM_PERMUTATIONS + 64  # of memory, where no document is in two pairs
SIGNATURE = np.dtype(("u1", (NUM_PERMUTATIONS,)))


@dataclass(frozen=True)
class EstimateTask:
    """The pairs whose later rank is in [first_rank, last_rank), from all files of pairs."""

    name: str
    ranks: RankMap
    paths: tuple[str, ...]
    first_rank: int
    last_rank: int
    threshold: float
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return f"ranks {self.first_rank:,} to {self.last_rank:,}"

    @property
    def path(self) -> Path:
        """The EDGE records of the pairs that may be near, by later, then earlier rank."""
        return Path(self.folder) / f"{self.name}.edges.npy"

    def list_outputs(self, _: Any) -> list[Path]:
        """The edges."""
        return [self.path]


def plan_estimates(
    paths: Sequence[Path],
    ranks: RankMap,
    *,
    threshold: float,
    memory_bytes: int,
    folder: Path,
    fingerprint: str,
) -> list[EstimateTask]:
    """Tasks of about as many pairs as fit into `memory_bytes`, in the order of their ranks; at least one."""
    return [
        EstimateTask(
            name=f"ranks-{first}-{last}",
            ranks=ranks,
            paths=tuple(map(str, paths)),
            first_rank=first,
            last_rank=last,
            threshold=threshold,
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for first, last in split_ranks(paths, ranks.num_documents, memory_bytes=memory_bytes)
    ]


def split_ranks(paths: Sequence[Path], num_documents: int, *, memory_bytes: int) -> list[tuple[int, int]]:
    """The ranges of later ranks with as many pairs of all files as fit into `memory_bytes`, more or less."""
    edges = np.arange(NUM_RANK_BUCKETS + 1) * num_documents // NUM_RANK_BUCKETS
    counts = np.zeros(NUM_RANK_BUCKETS, np.int64)
    for path in paths:
        pairs = np.load(path, mmap_mode="r")
        counts += np.diff(np.searchsorted(pairs, edges.astype(np.uint64) << np.uint64(PAIR_BITS)))
    wanted = max(1, memory_bytes // BYTES_PER_PAIR)
    numbers = np.cumsum(counts) // wanted  # of the task that each bucket falls to
    starts = [0, *(np.flatnonzero(numbers[1:] > numbers[:-1]) + 1).tolist(), NUM_RANK_BUCKETS]
    return [(int(edges[first]), int(edges[last])) for first, last in zip(starts[:-1], starts[1:], strict=True)]


def run_estimate(task: EstimateTask) -> dict[str, int]:
    """Write the edges; returns how many pairs there were, and how many edges are left."""
    pairs = read_pairs(task.paths, task.first_rank, task.last_rank)
    edges = estimate_pairs(pairs, task.ranks)
    near = edges[edges["similarity"] >= task.threshold - MARGIN]
    write_array(task.path, near)
    return {"pairs": len(pairs), "edges": len(near)}


def read_pairs(paths: Sequence[str], first_rank: int, last_rank: int) -> np.ndarray:
    """The pairs of all files whose later rank is in [first_rank, last_rank): uint64, sorted, each once."""
    edges, parts = np.array([first_rank, last_rank], np.uint64) << np.uint64(PAIR_BITS), [np.empty(0, np.uint64)]
    for path in paths:
        pairs = np.load(path, mmap_mode="r")
        first, last = np.searchsorted(pairs, edges)
        parts.append(pairs[first:last])
    joined = np.concatenate(parts)
    joined.sort()
    return joined[: keep_first_of_equal(joined)]


def estimate_pairs(pairs: np.ndarray, ranks: RankMap) -> np.ndarray:
    """The EDGE records of pairs, in their order."""
    edges = np.empty(len(pairs), EDGE)
    edges["later"], edges["earlier"] = pairs >> np.uint64(PAIR_BITS), pairs & np.uint64(0xFFFFFFFF)
    edges["similarity"] = estimate(edges, ranks)
    return edges


def estimate(edges: np.ndarray, ranks: RankMap) -> np.ndarray:
    """The Jaccard similarity of each edge's documents as their signatures tell it: float32.

    Of values that differ one in 256 has the same 8 bits; that is taken out.
    """
    wanted, where = find_distinct(np.concatenate([edges["later"], edges["earlier"]]))
    signatures = ranks.read(wanted, "signatures.bin", SIGNATURE)
    equal = np.empty(len(edges), np.uint8)
    count_equal(signatures, where[: len(edges)], where[len(edges) :], equal)
    return np.maximum(0, (equal * np.float32(256 / NUM_PERMUTATIONS) - 1) / 255).astype(np.float32)


def find_distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """np.unique(values, return_inverse=True) of uint32, in an eighth of its time: numbers sort faster than indexes."""
    packed = values.astype(np.uint64) << np.uint64(32) | np.arange(len(values), dtype=np.uint64)
    packed.sort()
    values = (packed >> np.uint64(32)).astype(np.uint32)
    is_first = np.ones(len(values), bool)
    is_first[1:] = values[1:] != values[:-1]
    where = np.empty(len(values), np.uint32)
    where[packed & np.uint64(0xFFFFFFFF)] = np.cumsum(is_first, dtype=np.uint32) - np.uint32(1)
    return values[is_first], where
