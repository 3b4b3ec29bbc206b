"""From a dataset to micro-batches: which positions a rank reads at a step, and how they reach the device.

The samples of step s are the positions [s * n, (s + 1) * n), whatever the number of ranks; each rank takes its slice.
So the same run sees the same batches on any number of machines.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.attention import DocumentMask, build_document_mask
from pipeline.dataset import PackedDataset

WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)(e-?\d\d?)?", re.ASCII)
"""A decimal of 0 or more, as a mix writes it."""


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward and backward on one rank."""

    tokens: Tensor
    """(rows, seq_len + 1): in the host's memory as stored (uint16 or uint32), on the device int64."""
    cu_seqlens: Tensor | None
    """int32: 0 and every document's end in the rows * seq_len inputs, padded to a constant length; None: no mask."""

    @property
    def inputs(self) -> Tensor:
        """(rows, seq_len)"""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """(rows, seq_len): for each input the token that follows it."""
        return self.tokens[:, 1:]

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on the device. Ids travel in two bytes each and are widened there."""
        ends = None if self.cu_seqlens is None else self.cu_seqlens.to(device, non_blocking=True)
        return MicroBatch(tokens=self.tokens.to(device, non_blocking=True).long(), cu_seqlens=ends)


def parse_mix(text: str | None) -> dict[str, float] | None:
    """Weights per source from "slimpajama:0.7,starcoder:0.3"; None stays None. Raises ValueError."""
    if text is None:
        return None
    mix: dict[str, float] = {}
    for part in text.split(","):
        source, _, weight = (word.strip() for word in part.rpartition(":"))
        if not source or not WEIGHT.fullmatch(weight):
            raise ValueError(
                f"mix {text!r}: {part!r} is not source:weight with a weight of 0 or more; a mix with a name of its own"
                " is known to pipeline/build.py alone, and a dataset's own mix needs no --mix"
            )
        if source in mix:
            raise ValueError(f"mix {text!r}: the source {source!r} is there twice; name each once")
        mix[source] = float(weight)
    if not any(mix.values()):
        raise ValueError(f"mix {text!r}: every weight is 0; at least one source must be drawn")
    return mix


def arrange_mix(mix: Mapping[str, float] | None, *, known: Collection[str]) -> dict[str, float] | None:
    """The same mix with its sources in the dataset's order, unknown ones last.

    Equal weights are drawn in the order of the sources, so however a mix is written the samples are the same.
    """
    if mix is None:
        return None
    ordered = [source for source in known if source in mix] + [source for source in mix if source not in known]
    return {source: mix[source] for source in ordered}


def shares_of(dataset: PackedDataset) -> dict[str, float]:
    """The share of the samples of each source above 0, to the nine decimals that the order of the data tells apart."""
    total = math.fsum(dataset.weights)
    return {
        source: round(weight / total, 9)
        for source, weight in zip(dataset.sources, dataset.weights, strict=True)
        if weight
    }


def rank_positions(step: int, *, samples_per_step: int, rank: int, world_size: int) -> np.ndarray:
    """The positions that one rank reads at one step: int64, consecutive.

    >>> rank_positions(2, samples_per_step=8, rank=1, world_size=4)
    array([18, 19])
    """
    samples_per_rank = samples_per_step // world_size
    first = step * samples_per_step + rank * samples_per_rank
    return np.arange(first, first + samples_per_rank, dtype=np.int64)


def pad_document_ends(ends: list[np.ndarray], *, seq_len: int) -> np.ndarray:
    """cu_seqlens of several rows laid end to end: int32, 0 first, the last end repeated up to a constant length.

    The length is room for a document per 64 tokens, doubled where a micro-batch has more: no document is ever merged
    with the next, and compiled code sees the same shape all but always. A repeated end is an empty document.
    """
    joined = np.concatenate([row * seq_len + row_ends for row, row_ends in enumerate(ends)])
    room = len(ends) * max(8, seq_len // 64)
    while room < len(joined):
        room *= 2
    padded = np.full(room + 1, len(ends) * seq_len, dtype=np.int32)
    padded[0] = 0
    padded[1 : len(joined) + 1] = joined
    return padded


def read_micro_batch(dataset: PackedDataset, positions: np.ndarray, *, has_mask: bool, is_pinned: bool) -> MicroBatch:
    """The samples at these positions, in the host's memory."""
    cu_seqlens = None
    if has_mask:
        samples, ends = dataset.samples_with_ends(positions)
        cu_seqlens = torch.from_numpy(pad_document_ends(ends, seq_len=dataset.seq_len))
    else:
        samples = dataset.samples(positions)
    tokens = torch.from_numpy(samples)
    if is_pinned:
        tokens = tokens.pin_memory()
        cu_seqlens = None if cu_seqlens is None else cu_seqlens.pin_memory()
    return MicroBatch(tokens=tokens, cu_seqlens=cu_seqlens)


def document_mask_of(batch: MicroBatch, *, backend: str) -> DocumentMask | None:
    """The attention mask of a micro-batch that is on the device; None where documents see each other."""
    if batch.cu_seqlens is None:
        return None
    num_rows, seq_len = batch.inputs.shape
    return build_document_mask(batch.cu_seqlens, num_rows=num_rows, seq_len=seq_len, backend=backend)


@dataclass(frozen=True)
class RankReader:
    """What one rank reads: its micro-batches of every step, one step ahead of their use."""

    dataset: PackedDataset
    samples_per_step: int
    micro_batch_size: int
    rank: int
    world_size: int
    has_mask: bool
    is_pinned: bool

    def read_step(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step."""
        positions = rank_positions(
            step, samples_per_step=self.samples_per_step, rank=self.rank, world_size=self.world_size
        )
        return [
            read_micro_batch(self.dataset, chunk, has_mask=self.has_mask, is_pinned=self.is_pinned)
            for chunk in np.split(positions, len(positions) // self.micro_batch_size)
        ]

    def read_steps(self, steps: range) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step in turn; a thread reads the next step while this one is computed."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as executor:
            pending = None
            for step in steps:
                batch = pending.result() if pending else self.read_step(step)
                pending = executor.submit(self.read_step, step + 1) if step + 1 < steps.stop else None
                yield batch

    def count_tokens(self, step: int) -> dict[str, int]:
        """The tokens of each source in one step, over all ranks."""
        first = step * self.samples_per_step
        sources = self.dataset.source_indices(np.arange(first, first + self.samples_per_step, dtype=np.int64))
        counts = np.bincount(sources, minlength=len(self.dataset.sources)) * self.dataset.seq_len
        return dict(zip(self.dataset.sources, counts.tolist(), strict=True))
