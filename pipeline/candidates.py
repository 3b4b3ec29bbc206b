"""Band keys -> pairs of documents that may be near. Works on a range of keys of a band, over all sources together.

The keys of each run stand sorted, so a range of them is one contiguous piece of every run. How keys are cut into
ranges, and how many bands a task has, changes nothing of the result: it follows from the memory there is. Two documents
that are near have most keys in common: the more bands a task has, the fewer pairs are written more than once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
BANDS_PER_TASK = 7  # at most: a pair that several bands of a task have is written once
# Of memory: the key with its rank, twice where all are equal; what its document was paired with; and MOST_PAIRS pairs.
BYTES_PER_KEY = 64
PIECE_BITS = 16  # about so many keys are sorted at once: they stay in the processor's cache


@dataclass(frozen=True)
class BandTask:
    """Part `part` of 2**part_bits of the keys of some bands.

    marks: bits of the documents that take no part; None: all do. held: the ranges of the ranks of those that stay
    whatever is near to them.
    """

    name: str
    runs: tuple[SketchRun, ...]
    bands: tuple[int, ...]
    part: int
    part_bits: int
    rank_bits: int
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
    def path(self) -> Path:
        """The pairs, sorted, each once: uint64."""
        return Path(self.folder) / f"{self.name}.pairs.npy"

    def list_outputs(self, _: Any) -> list[Path]:
        """The pairs."""
        return [self.path]


def plan_bands(
    runs: Sequence[SketchRun],
    *,
    recipe: Recipe,
    ranks: RankMap,
    marks: Path | None,
    memory_bytes: int,
    folder: Path,
    fingerprint: str,
) -> list[BandTask]:
    """The tasks of all bands, each of which fits into `memory_bytes`."""
    of_all = {"recipe": recipe, "ranks": ranks, "marks": marks, "folder": folder, "fingerprint": fingerprint}
    num_keys = sum(run.num_signed for run in runs)
    groups = split_bands(recipe, num_keys, memory_bytes=memory_bytes)
    return [task for group in groups for task in plan_parts(runs, group, memory_bytes=memory_bytes, **of_all)]


def split_bands(recipe: Recipe, num_keys: int, *, memory_bytes: int) -> list[tuple[int, ...]]:
    """The bands in groups of about the same size, one for each task. A band that is cut into parts is alone.

    num_keys: of a band.
    """
    most = recipe.num_bands
    if num_keys > FEW_KEYS:
        is_whole = recipe.record != KEYED and num_keys * BYTES_PER_KEY <= memory_bytes
        most = BANDS_PER_TASK if is_whole else 1
    num_groups = -(-recipe.num_bands // most)
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
    least_bits = 0 if recipe.record == KEYED else recipe.key_bits + rank_bits - 64
    part_bits = max(0, least_bits, (num_keys * BYTES_PER_KEY // memory_bytes).bit_length())
    return [
        BandTask(
            name=f"bands-{bands[0]:02d}-{bands[-1]:02d}-part-{part:05d}-of-{1 << part_bits}",
            runs=tuple(runs),
            bands=bands,
            part=part,
            part_bits=part_bits,
            rank_bits=rank_bits,
            recipe=recipe,
            marks=None if marks is None else str(marks),
            held=ranks.held,
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for part in range(1 << part_bits)
    ]


def run_band(task: BandTask) -> dict[str, int]:
    """Write the pairs; returns how many keys there were and how many pairs."""
    find = link_documents if task.recipe.record == KEYED else pair_documents
    pairs, num_keys = find(task)
    pairs.sort()
    pairs = pairs[: keep_first_of_equal(pairs)]
    write_array(task.path, pairs)
    return {"keys": num_keys, "pairs": len(pairs)}


def read_runs(task: BandTask, band: int) -> list[tuple[SketchRun, np.ndarray]]:
    """The task's records of a band, run by run, mapped."""
    width = task.recipe.key_bits - task.part_bits
    shift = 0 if task.recipe.record == KEYED else NUMBER_BITS
    edges = [part << width << shift for part in (task.part, task.part + 1)]
    return [(run, run.read_band(band, *edges, record=task.recipe.record)) for run in task.runs]


def count_keys(task: BandTask, band: int) -> int:
    """How many records the task has of a band."""
    return sum(len(records) for _, records in read_runs(task, band))


def read_packed(task: BandTask) -> Iterator[np.ndarray]:
    """The task's keys with their documents' ranks, packed and sorted, in pieces: uint64.

    Band by band, and all equal keys of a band in one piece. A piece is only good until the next one is asked for.
    """
    marks = np.empty(0, np.uint8) if task.marks is None else np.load(task.marks)
    # Room that is not written to costs nothing: a piece is as large as all only where all keys are equal.
    packed, piece = np.empty((2, max(count_keys(task, band) for band in task.bands)), np.uint64)
    for band in task.bands:
        places, ends = pack_runs(task, band, marks, packed)
        for last in list_lasts(task, int((ends - places).sum())):
            own = piece[: take_up_to(packed, places, ends, np.uint64(last), piece)]
            own.sort()
            yield own


def pack_runs(task: BandTask, band: int, marks: np.ndarray, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write the task's packed keys of a band, each run sorted; returns where each run begins and ends: uint64."""
    first_key = np.uint64(task.part << (task.recipe.key_bits - task.part_bits))
    borders = [0]
    for run, records in read_runs(task, band):
        edges, bases = np.array(run.edges, np.int64), np.array(run.bases, np.int64)
        room = packed[borders[-1] :]
        borders.append(
            borders[-1] + pack_keys(records, NUMBER_BITS, first_key, edges, bases, task.rank_bits, marks, room)
        )
    return np.array(borders[:-1], np.uint64), np.array(borders[1:], np.uint64)


def list_lasts(task: BandTask, num_keys: int) -> list[int]:
    """The greatest packed key that each piece may have. Keys are hashes: pieces are about of one size."""
    bits = task.recipe.key_bits - task.part_bits
    piece_bits = min(bits, (num_keys >> PIECE_BITS).bit_length())
    return [((piece + 1) << (bits - piece_bits + task.rank_bits)) - 1 for piece in range(1 << piece_bits)]


def pair_documents(task: BandTask) -> tuple[np.ndarray, int]:
    """Pairs of documents with one key that are worth an estimate; and how many keys there were."""
    num_keys = count = 0
    recent = np.zeros(MOST_PAIRS << task.rank_bits if len(task.bands) > 1 else 0, np.uint32)
    pairs = np.empty(MOST_PAIRS * max(count_keys(task, band) for band in task.bands), np.uint64)
    held = np.array(task.held, np.int64).reshape(-1, 2)
    for packed in read_packed(task):
        num_keys += len(packed)
        own = packed[: keep_repeated(packed, task.rank_bits)]
        own = own[: leave_out_held(own, task.rank_bits, held)] if len(held) else own
        if count + MOST_PAIRS * len(own) > len(pairs):
            pairs, count = make_room(pairs[:count], MOST_PAIRS * len(own), room=len(pairs))
        count += list_pairs(own, task.rank_bits, recent, pairs[count:])
    pairs = pairs[:count]
    return pairs[~find_held(pairs >> np.uint64(PAIR_BITS), task.held)] if task.held else pairs, num_keys


def make_room(pairs: np.ndarray, num_more: int, *, room: int) -> tuple[np.ndarray, int]:
    """An array with room for more pairs, that begins with the distinct ones of `pairs`; and how many these are.

    It has `room`, or twice as much where that would soon be full again: bands of documents that are near have few pairs
    of their own.
    """
    pairs.sort()
    count = keep_first_of_equal(pairs)
    larger = np.empty(max(room if 2 * count <= room else 2 * room, count + num_more), np.uint64)
    larger[:count] = pairs[:count]
    return larger, count


def link_documents(task: BandTask) -> tuple[np.ndarray, int]:
    """As many pairs as it takes to connect all documents with one key; and how many keys there were."""
    parts, num_keys = [], 0
    for band in task.bands:
        pairs, of_band = link_band(task, band)
        parts.append(pairs)
        num_keys += of_band
    return parts[0] if len(parts) == 1 else np.concatenate(parts), num_keys


def link_band(task: BandTask, band: int) -> tuple[np.ndarray, int]:
    """The same of one band."""
    keys, ranks = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for run, records in read_runs(task, band):
        keys.append(records["key"])
        ranks.append(run.rank(records["number"]))
    joined = np.concatenate(keys)
    pairs = np.empty(len(joined), np.uint64)
    count = link_equal(joined, np.concatenate(ranks), np.argsort(joined), pairs)
    return pairs[:count], len(joined)
