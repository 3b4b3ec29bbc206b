"""Band keys -> pairs of documents that may be near. Works on a range of keys of a band, over all sources together.

The keys of each run stand sorted, so a range of them is one contiguous piece of every run. How keys are cut into ranges
changes nothing of the result: it follows from the memory there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.minhash import KEY_BITS
from pipeline.pair_kernels import count_pairs, keep_first_of_equal, leave_out, list_pairs, pack_keys
from pipeline.ranks import SketchRun
from pipeline.sketch_file import NUMBER_BITS
from pipeline.storage import write_array

FEW_KEYS = 1 << 17  # of a band: with no more, one task takes all bands
BYTES_PER_KEY = 64  # of memory: the key with its rank, and its share of pairs


@dataclass(frozen=True)
class BandTask:
    """Part `part` of 2**part_bits of the keys of some bands.

    marks: bits of the documents that take no part; None: all do.
    """

    name: str
    runs: tuple[SketchRun, ...]
    bands: tuple[int, ...]
    part: int
    part_bits: int
    rank_bits: int
    is_star: bool
    marks: str | None
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
    num_bands: int,
    num_ranks: int,
    is_star: bool,
    marks: Path | None,
    memory_bytes: int,
    folder: Path,
    fingerprint: str,
) -> list[BandTask]:
    """The tasks of all bands, each of which fits into `memory_bytes`."""
    rank_bits = max(1, num_ranks.bit_length())
    num_keys = sum(run.num_signed for run in runs)
    part_bits = max(0, KEY_BITS + rank_bits - 64, (num_keys * BYTES_PER_KEY // memory_bytes).bit_length())
    groups = [tuple(range(num_bands))] if num_keys <= FEW_KEYS else [(band,) for band in range(num_bands)]
    return [
        BandTask(
            name=f"bands-{bands[0]:02d}-{bands[-1]:02d}-part-{part:05d}-of-{1 << part_bits}",
            runs=tuple(runs),
            bands=bands,
            part=part,
            part_bits=part_bits,
            rank_bits=rank_bits,
            is_star=is_star,
            marks=None if marks is None else str(marks),
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for bands in groups
        for part in range(1 << part_bits)
    ]


def run_band(task: BandTask) -> dict[str, int]:
    """Write the pairs; returns how many keys there were and how many pairs."""
    parts, num_keys = [], 0
    for band in task.bands:
        packed = read_packed(task, band)
        num_keys += len(packed)
        packed.sort()
        pairs = np.empty(count_pairs(packed, task.rank_bits, task.is_star), np.uint64)
        list_pairs(packed, task.rank_bits, task.is_star, pairs)
        parts.append(pairs)
    pairs = parts[0] if len(parts) == 1 else np.concatenate(parts)
    pairs.sort()
    pairs = pairs[: keep_first_of_equal(pairs)]
    write_array(task.path, pairs)
    return {"keys": num_keys, "pairs": len(pairs)}


def read_packed(task: BandTask, band: int) -> np.ndarray:
    """The task's keys of a band with ranks, packed into uint64, in no order."""
    width = KEY_BITS - task.part_bits
    first_key, last_key = task.part << width, (task.part + 1) << width
    parts = [np.empty(0, np.uint64)]
    for run in task.runs:
        records = run.read_band(band, first_key << NUMBER_BITS, last_key << NUMBER_BITS)
        edges, bases = np.array(run.edges, np.int64), np.array(run.bases, np.int64)
        pack_keys(records, NUMBER_BITS, np.uint64(first_key), edges, bases, task.rank_bits, records)
        parts.append(records)
    packed = np.concatenate(parts)
    if task.marks is None:
        return packed
    return packed[: leave_out(packed, task.rank_bits, np.load(task.marks, mmap_mode="r"))]
