"""Band keys -> pairs of documents that may be near. Works on a range of keys of a band, over all sources together.

The keys of each run stand sorted, so a range of them is one contiguous piece of every run. How keys are cut into ranges
changes nothing of the result: it follows from the memory there is.
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
    leave_out_held,
    link_equal,
    list_pairs,
    pack_keys,
)
from pipeline.ranks import RankMap, SketchRun, find_held
from pipeline.sketch_file import KEYED, NUMBER_BITS, Recipe
from pipeline.storage import write_array

FEW_KEYS = 1 << 17  # of a band: with no more, one task takes all bands
BYTES_PER_KEY = 64  # of memory: the key with its rank, and its share of pairs


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
    num_keys, bands = sum(run.num_signed for run in runs), range(recipe.num_bands)
    groups = [tuple(bands)] if num_keys <= FEW_KEYS else [(band,) for band in bands]
    return [task for group in groups for task in plan_parts(runs, group, memory_bytes=memory_bytes, **of_all)]


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
    parts, num_keys = [], 0
    for band in task.bands:
        pairs, of_band = find(task, band)
        parts.append(pairs)
        num_keys += of_band
    pairs = parts[0] if len(parts) == 1 else np.concatenate(parts)
    pairs.sort()
    if len(parts) > 1:
        pairs = pairs[: keep_first_of_equal(pairs)]
    write_array(task.path, pairs)
    return {"keys": num_keys, "pairs": len(pairs)}


def read_runs(task: BandTask, band: int) -> Iterator[tuple[SketchRun, np.ndarray]]:
    """The task's records of a band, run by run."""
    width = task.recipe.key_bits - task.part_bits
    shift = 0 if task.recipe.record == KEYED else NUMBER_BITS
    edges = [part << width << shift for part in (task.part, task.part + 1)]
    for run in task.runs:
        yield run, run.read_band(band, *edges, record=task.recipe.record)


def read_packed(task: BandTask, band: int) -> np.ndarray:
    """The task's keys of a band with their documents' ranks, packed and sorted: uint64."""
    first_key = np.uint64(task.part << (task.recipe.key_bits - task.part_bits))
    marks = np.empty(0, np.uint8) if task.marks is None else np.load(task.marks)
    parts = [np.empty(0, np.uint64)]
    for run, records in read_runs(task, band):
        edges, bases = np.array(run.edges, np.int64), np.array(run.bases, np.int64)
        count = pack_keys(records, NUMBER_BITS, first_key, edges, bases, task.rank_bits, marks, records)
        parts.append(records[:count])
    packed = np.concatenate(parts)
    packed.sort()
    return packed


def pair_documents(task: BandTask, band: int) -> tuple[np.ndarray, int]:
    """Pairs of documents with one key that are worth an estimate; and how many keys there were."""
    packed = read_packed(task, band)
    num_keys = len(packed)
    if task.held:
        packed = packed[: leave_out_held(packed, task.rank_bits, np.array(task.held, np.int64))]
    pairs = np.empty(MOST_PAIRS * len(packed), np.uint64)  # room that is not written to costs nothing
    pairs = pairs[: list_pairs(packed, task.rank_bits, pairs)]
    return pairs[~find_held(pairs >> np.uint64(PAIR_BITS), task.held)] if task.held else pairs, num_keys


def link_documents(task: BandTask, band: int) -> tuple[np.ndarray, int]:
    """As many pairs as it takes to connect all documents with one key; and how many keys there were."""
    keys, ranks = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for run, records in read_runs(task, band):
        keys.append(records["key"])
        ranks.append(run.rank(records["number"]))
    joined = np.concatenate(keys)
    pairs = np.empty(len(joined), np.uint64)
    count = link_equal(joined, np.concatenate(ranks), np.argsort(joined), pairs)
    return pairs[:count], len(joined)
