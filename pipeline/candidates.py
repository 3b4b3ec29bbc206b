"""Band keys -> pairs of documents that may be near. Works on a range of keys of a band, over all sources together.

The keys of each run stand sorted, so a range of them is one contiguous piece of every run. How keys are cut into
ranges, and how many bands a task has, changes nothing of the result: it follows from the memory there is. Two documents
that are near have most keys in common: the more bands a task has, the fewer pairs are written more than once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.pair_kernels import (
    MOST_PAIRS,
    PAIR_BITS,
    keep_first_of_equal,
    keep_repeated,
    leave_out_held,
    link_equal,
    list_pairs,
    pack_keys,
    take_up_to,
)
from pipeline.ranks import RankMap, SketchRun, find_held
from pipeline.sketch_file import KEYED, NUMBER_BITS, Recipe
from pipeline.storage import write_array

FEW_KEYS = 1 << 17  # of a band: with no more, one task takes all bands
BANDS_PER_TASK = 7  # at most, fewer with more workers: a pair that several bands of a task have is written once
# Of memory, where a task has several bands: half of it is for what each document was paired with. Of the rest, as of
# all where it has one, a quarter each is for keys with their ranks, twice where all are equal, and for pairs.
BYTES_PER_KEY, BYTES_PER_LONE_KEY = 8 * MOST_PAIRS, 64
KEY_BYTES = 16
MEMORY_SHARE = 4
PIECE_BITS = 16  # about so many keys are sorted at once: they stay in the processor's cache


@dataclass(frozen=True)
class BandTask:
    """Part `part` of 2**part_bits of the keys of some bands, of which 2**-slice_bits are worked on at once.

    room: for so many pairs. marks: bits of the documents that take no part; None: all do. held: the ranges of the ranks
    of those that stay whatever is near to them.
    """

    name: str
    runs: tuple[SketchRun, ...]
    bands: tuple[int, ...]
    part: int
    part_bits: int
    slice_bits: int
    rank_bits: int
    room: int
    recipe: Recipe
    marks: str | None
    held: tuple[tuple[int, int], ...]
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return f"bands {self.bands[0]} to {self.bands[-1]}, part {self.part + 1:,} of {1 << self.part_bits:,}"

    @property
    def packed_bits(self) -> int:
        """What is left of a key in a slice, above the rank."""
        return self.recipe.key_bits - self.part_bits - self.slice_bits

    def list_paths(self, num_files: int) -> list[Path]:
        """So many files of pairs, each sorted and without repetition: uint64."""
        return [Path(self.folder) / f"{self.name}.pairs-{number}.npy" for number in range(num_files)]

    def list_outputs(self, result: dict[str, int]) -> list[Path]:
        """The pairs."""
        return self.list_paths(result["files"])


def plan_bands(
    runs: Sequence[SketchRun],
    *,
    recipe: Recipe,
    ranks: RankMap,
    marks: Path | None,
    memory_bytes: int,
    num_workers: int,
    folder: Path,
    fingerprint: str,
) -> list[BandTask]:
    """The tasks of all bands, each of which fits into `memory_bytes`; as many as workers, if there are bands enough."""
    of_all = {"recipe": recipe, "ranks": ranks, "marks": marks, "folder": folder, "fingerprint": fingerprint}
    num_keys = sum(run.num_signed for run in runs)
    groups = split_bands(recipe, num_keys, memory_bytes=memory_bytes, num_workers=num_workers)
    return [task for group in groups for task in plan_parts(runs, group, memory_bytes=memory_bytes, **of_all)]


def split_bands(recipe: Recipe, num_keys: int, *, memory_bytes: int, num_workers: int) -> list[tuple[int, ...]]:
    """The bands in groups of about the same size, one for each task. A band that is cut into parts is alone.

    num_keys: of a band.
    """
    num_groups = 1
    if num_keys > FEW_KEYS:
        is_whole = recipe.record != KEYED and num_keys * BYTES_PER_KEY <= memory_bytes
        fewest = max(num_workers, -(-recipe.num_bands // BANDS_PER_TASK))
        num_groups = min(recipe.num_bands, fewest) if is_whole else recipe.num_bands
    edges = [recipe.num_bands * group // num_groups for group in range(num_groups + 1)]
    return [tuple(range(first, last)) for first, last in zip(edges[:-1], edges[1:], strict=True)]


def plan_parts(
    runs: Sequence[SketchRun],
    bands: tuple[int, ...],
    *,
    recipe: Recipe,
    ranks: RankMap,
    marks: Path | None,
    memory_bytes: int,
    folder: Path,
    fingerprint: str,
) -> list[BandTask]:
    """The tasks of some bands, or traces, by ranges of keys."""
    rank_bits = max(1, ranks.num_documents.bit_length())
    num_keys = sum(run.num_signed for run in runs)
    part_bits = 0 if len(bands) > 1 else (num_keys * BYTES_PER_LONE_KEY // memory_bytes).bit_length()
    least_bits = recipe.key_bits - part_bits + rank_bits - 64  # a key and a rank are packed into 64 bits
    small_bits = (num_keys * KEY_BYTES * MEMORY_SHARE // memory_bytes >> part_bits).bit_length()
    return [
        BandTask(
            name=f"bands-{bands[0]:02d}-{bands[-1]:02d}-part-{part:05d}-of-{1 << part_bits}",
            runs=tuple(runs),
            bands=bands,
            part=part,
            part_bits=part_bits,
            slice_bits=0 if recipe.record == KEYED else max(0, least_bits, small_bits),
            rank_bits=rank_bits,
            room=min(memory_bytes // MEMORY_SHARE // 8, MOST_PAIRS * num_keys * len(bands)),
            recipe=recipe,
            marks=None if marks is None else str(marks),
            held=ranks.held,
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for part in range(1 << part_bits)
    ]


def run_band(task: BandTask) -> dict[str, int]:
    """Write the pairs; returns how many keys there were, how many pairs, and how many files these are in."""
    counts = Counter()
    find = link_documents if task.recipe.record == KEYED else pair_documents
    for pairs, num_keys in find(task):
        counts.update(keys=num_keys, pairs=len(pairs), files=1)
        write_array(task.list_paths(counts["files"])[-1], pairs)
    return counts


def find_borders(task: BandTask, band: int) -> np.ndarray:
    """Where the task's slices of a band begin in the records of each run, and the last ends: int64, a row per run."""
    bits = task.part_bits + task.slice_bits
    first = task.part << task.slice_bits
    keys = [number << (task.recipe.key_bits - bits) for number in range(first, first + (1 << task.slice_bits) + 1)]
    borders = [run.find_keys(band, keys, recipe=task.recipe) for run in task.runs]
    return np.array(borders, np.int64).reshape(len(task.runs), len(keys))


def read_packed(task: BandTask) -> Iterator[np.ndarray]:
    """The task's keys with their documents' ranks, packed and sorted, in pieces: uint64.

    Band by band, and all equal keys of a band in one piece. A piece is only good until the next one is asked for.
    """
    marks = np.empty(0, np.uint8) if task.marks is None else np.load(task.marks)
    packed, piece = np.empty((2, 0), np.uint64)
    for band in task.bands:
        borders = find_borders(task, band)
        largest = int(np.diff(borders).sum(axis=0).max())
        if largest > len(packed):
            # Room that is not written to costs nothing: a piece is as large as all only where all keys are equal.
            packed, piece = np.empty((2, largest), np.uint64)
        for number in range(1 << task.slice_bits):
            places, ends = pack_slice(task, band, number, borders, marks, packed)
            for last in list_lasts(task, int((ends - places).sum())):
                own = piece[: take_up_to(packed, places, ends, np.uint64(last), piece)]
                own.sort()
                yield own


def pack_slice(
    task: BandTask, band: int, number: int, borders: np.ndarray, marks: np.ndarray, packed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Write the packed keys of a slice of a band, each run sorted; returns where each run begins and ends: uint64."""
    first_key = np.uint64(((task.part << task.slice_bits) + number) << task.packed_bits)
    edges = [0]
    for run, (first, last) in zip(task.runs, borders[:, number : number + 2].tolist(), strict=True):
        records = packed[edges[-1] : edges[-1] + last - first]
        run.read(first, records)
        starts, bases = np.array(run.edges, np.int64), np.array(run.bases, np.int64)
        count = pack_keys(records, NUMBER_BITS, first_key, starts, bases, task.rank_bits, marks, records)
        edges.append(edges[-1] + count)
    return np.array(edges[:-1], np.uint64), np.array(edges[1:], np.uint64)


def list_lasts(task: BandTask, num_keys: int) -> list[int]:
    """The greatest packed key that each piece may have. Keys are hashes: pieces are about of one size."""
    piece_bits = min(task.packed_bits, (num_keys >> PIECE_BITS).bit_length())
    return [((piece + 1) << (task.packed_bits - piece_bits + task.rank_bits)) - 1 for piece in range(1 << piece_bits)]


def pair_documents(task: BandTask) -> Iterator[tuple[np.ndarray, int]]:
    """Pairs of documents with one key that are worth an estimate, as many at once as there is room for, and once each.

    Sorted; and how many keys there were since the last.
    """
    num_keys = count = 0
    recent = np.zeros(MOST_PAIRS << task.rank_bits if len(task.bands) > 1 else 0, np.uint32)
    pairs = np.empty(task.room, np.uint64)
    held = np.array(task.held, np.int64).reshape(-1, 2)
    for packed in read_packed(task):
        own = packed[: keep_repeated(packed, task.rank_bits)]
        own = own[: leave_out_held(own, task.rank_bits, held)] if len(held) else own
        if count + MOST_PAIRS * len(own) > len(pairs):
            count = sort_pairs(pairs[:count])
            if count + MOST_PAIRS * len(own) > len(pairs) // 2:  # soon it would be full again
                yield leave_out(pairs[:count], task.held), num_keys
                num_keys = count = 0
        if MOST_PAIRS * len(own) > len(pairs):
            pairs = np.empty(MOST_PAIRS * len(own), np.uint64)
        num_keys += len(packed)
        count += list_pairs(own, task.rank_bits, recent, pairs[count:])
    yield leave_out(pairs[: sort_pairs(pairs[:count])], task.held), num_keys


def sort_pairs(pairs: np.ndarray) -> int:
    """Sort pairs, and move the distinct ones to the front; returns how many."""
    pairs.sort()
    return keep_first_of_equal(pairs)


def leave_out(pairs: np.ndarray, held: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The pairs whose later document may go."""
    return pairs[~find_held(pairs >> np.uint64(PAIR_BITS), held)] if held else pairs


def link_documents(task: BandTask) -> Iterator[tuple[np.ndarray, int]]:
    """As many pairs as it takes to connect all documents with one key, sorted; and how many keys there were."""
    parts = [link_band(task, band) for band in task.bands]
    pairs = parts[0][0] if len(parts) == 1 else np.concatenate([pairs for pairs, _ in parts])
    yield pairs[: sort_pairs(pairs)], sum(num_keys for _, num_keys in parts)


def link_band(task: BandTask, band: int) -> tuple[np.ndarray, int]:
    """The same of one band."""
    borders = find_borders(task, band)
    joined, place = np.empty(int(np.diff(borders).sum()), KEYED), 0
    ranks = np.empty(len(joined), np.int64)
    for run, (first, last) in zip(task.runs, borders.tolist(), strict=True):
        own = slice(place, place + last - first)
        run.read(first, joined[own])
        ranks[own] = run.rank(joined["number"][own])
        place = own.stop
    keys = np.ascontiguousarray(joined["key"])
    pairs = np.empty(len(keys), np.uint64)
    return pairs[: link_equal(keys, ranks, np.argsort(keys), pairs)], len(keys)
