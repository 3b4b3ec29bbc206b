"""Pairs that may be near -> pairs with their similarity, estimated from signatures. Works on a range of later ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.edge_kernels import count_equal, list_edges, number_distinct, number_ranks, pack_earlier
from pipeline.freed_memory import keep_freed_memory
from pipeline.minhash import NUM_PERMUTATIONS
from pipeline.pair_kernels import PAIR_BITS, keep_first_of_equal
from pipeline.ranks import RankMap
from pipeline.storage import write_array
from pipeline.work import FileTask

EDGE = np.dtype([("later", "<u4"), ("earlier", "<u4"), ("similarity", "<f4")])
# An estimate from 112 values of 8 bits has a standard error of 0.04 near 0.8. What is estimated three of them above the
# threshold is near, what is so far below is not; between them the sets of shingles themselves are compared.
MARGIN = 0.12
NUM_RANK_BUCKETS = 1 << 12
BYTES_PER_PAIR = 2 * NUM_PERMUTATIONS + 64  # of memory, where no document is in two pairs
# About so many: with a quarter of it pages of signatures are mapped twice as often, 6.6 instead of 5.9 s of 20 million
# documents.
PAIRS_AT_ONCE = 1 << 23
# The Jaccard similarity of two documents by how many values of their signatures are equal: float32. Of values that
# differ one in 256 has the same 8 bits; that is taken out.
COUNTS = np.arange(NUM_PERMUTATIONS + 1, dtype=np.float32)
SIMILARITIES = np.maximum(0, (COUNTS * np.float32(256 / NUM_PERMUTATIONS) - 1) / 255)
SIGNATURE = np.dtype(("u1", (NUM_PERMUTATIONS,)))


@dataclass(frozen=True)
class EstimateTask(FileTask):
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
    """Write the edges; returns how many."""
    keep_freed_memory()
    least = task.threshold - MARGIN
    edges = np.concatenate(
        list(estimate_pairs(task.paths, task.first_rank, task.last_rank, ranks=task.ranks, least=least))
    )
    write_array(task.path, edges)
    return {"edges": len(edges)}


def read_pairs(paths: Sequence[str], first_rank: int, last_rank: int) -> Iterator[np.ndarray]:
    """The pairs of all files whose later rank is in [first_rank, last_rank), in parts: uint64, sorted, each once.

    All pairs of a later rank are in one part.
    """
    edges = np.array([first_rank, last_rank], np.uint64) << np.uint64(PAIR_BITS)
    of_files = [
        pairs[slice(*np.searchsorted(pairs, edges))] for pairs in (np.load(path, mmap_mode="r") for path in paths)
    ]
    borders = split_pairs(of_files)
    for part in range(len(borders[0]) - 1):
        own = [pairs[edges[part] : edges[part + 1]] for pairs, edges in zip(of_files, borders, strict=True)]
        joined = np.concatenate(own)
        joined.sort()
        yield joined[: keep_first_of_equal(joined)]


def split_pairs(of_files: Sequence[np.ndarray]) -> list[list[int]]:
    """Where each part begins in each file, and the last ends: about PAIRS_AT_ONCE pairs, all of a later rank in one."""
    num_parts, most = 1 + sum(map(len, of_files)) // PAIRS_AT_ONCE, max(of_files, key=len)
    inner = most[len(most) * np.arange(1, num_parts) // num_parts] >> np.uint64(PAIR_BITS) << np.uint64(PAIR_BITS)
    return [[0, *np.searchsorted(pairs, inner).tolist(), len(pairs)] for pairs in of_files]


def estimate_pairs(
    paths: Sequence[str], first_rank: int, last_rank: int, *, ranks: RankMap, least: float
) -> Iterator[np.ndarray]:
    """The EDGE records of the pairs of read_pairs whose similarity is `least` or more, part by part."""
    for pairs in read_pairs(paths, first_rank, last_rank):
        edges = np.empty(len(pairs), EDGE)  # what is not written to costs nothing
        equal = count_alike(pairs, ranks)
        yield edges[: list_edges(pairs, equal, SIMILARITIES, np.float32(least), edges)].copy()


def count_alike(pairs: np.ndarray, ranks: RankMap) -> np.ndarray:
    """How many values of the signatures of each pair's documents are equal: uint8."""
    packed, (later, earlier) = np.empty(len(pairs), np.uint64), np.empty((2, len(pairs)), np.uint32)
    pack_earlier(pairs, packed)
    packed.sort()
    wanted = np.empty(2 * len(pairs), np.uint32)
    wanted = wanted[: number_ranks(pairs, packed, wanted, later, earlier)]
    equal = np.empty(len(pairs), np.uint8)
    count_equal(ranks.read(wanted, "signatures.bin", SIGNATURE), later, earlier, equal)
    return equal


def find_distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """np.unique(values, return_inverse=True) of uint32, in an eighth of its time: numbers sort faster than indexes."""
    packed = values.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(values), dtype=np.uint64)
    packed.sort()
    distinct, where = np.empty((2, len(values)), np.uint32)
    return distinct[: number_distinct(packed, distinct, where)], where
