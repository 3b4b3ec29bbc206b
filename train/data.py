"""From a dataset to micro-batches: which positions a rank reads at a step, and how they reach the device. A step reads
the next n positions, and each rank takes its slice: the same batches on any number of machines."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.loss import IGNORED
from pipeline.dataset import Located, PackedDataset
from train.config import TrainConfig
from train.distributed import AlikeError, Placement

BOS_FILL_EVERY = 14_000
"""Of TinyLlama's windows one in about so many was nothing but BOS: 64 processes left their last chunk of 1,024 windows
half empty on average, which is 32,768 of 950B / 2,049 windows. There they stood together, here they are spread."""

LEAST_ROOM = 16  # Documents that cu_seqlens always has room for.


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward and backward on one rank."""

    tokens: Tensor  # (rows, seq_len + 1): in the host's memory as stored (uint16 or uint32), on the device int64.
    cu_seqlens: Tensor | None  # int32: 0 and each document's end in all inputs, padded to one length; None: no mask.
    has_target: Tensor | None = None  # bool, (rows, seq_len): inputs whose next token is to be predicted; None: all.

    @property
    def inputs(self) -> Tensor:
        """(rows, seq_len)"""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """(rows, seq_len): for each input the token that follows it, or IGNORED; of a batch on the device."""
        targets = self.tokens[:, 1:]
        return targets if self.has_target is None else targets.masked_fill(~self.has_target, IGNORED)

    @property
    def num_targets(self) -> int:
        """How many tokens are to be predicted; of a batch in the host's memory, so that nothing waits."""
        return self.inputs.numel() if self.has_target is None else int(self.has_target.sum())

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on the device. Ids travel in two bytes each and are widened there."""
        moved = self.each(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, tokens=moved.tokens.long())

    def each(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        """A copy of it with each of its tensors changed."""
        parts = (self.tokens, self.cu_seqlens, self.has_target)
        return MicroBatch(*(None if part is None else change(part) for part in parts))


def open_dataset(path: str, settings: Mapping[str, Any]) -> PackedDataset:
    """The dataset as a run of these settings (TrainConfig.as_json) reads it. Raises ValueError for a wrong mix."""
    names = ("mix", "seq_len", "seed", "packing", "shuffle", "max_epochs")
    return PackedDataset(path, **{name: settings[name] for name in names})


def refuse_end(dataset: PackedDataset, config: TrainConfig, *, position: int = 0, step: int = 0) -> None:
    """Raises AlikeError where max_epochs ends the data before the last step of a run that has come so far."""
    left = (dataset.order.end - position) // config.samples_per_step
    if step + left < config.num_steps:
        raise AlikeError(
            f"max_epochs {config.max_epochs} ends the data after {step + left:,} steps, the run has"
            f" {config.num_steps:,}: use --steps {step + left}, or a larger --max-epochs"
        )


def shares_of(dataset: PackedDataset) -> dict[str, float]:
    """The share of the samples of each source above 0, to the nine decimals that the order of the data tells apart."""
    weights = dict(zip(dataset.sources, dataset.weights, strict=True))
    total = math.fsum(weights.values())
    return {source: round(weight / total, 9) for source, weight in weights.items() if weight}


def describe_sources(dataset: PackedDataset, *, num_samples: int) -> list[str]:
    """For each source a line: its share, its windows, how often num_samples read them, and what is never read."""
    lines = []
    for source, share in shares_of(dataset).items():
        windows = dataset.windows[source]
        epochs = share * num_samples / windows.num_windows
        repeats = ", so text is repeated" if epochs > 1 else ""
        kind, rest = "windows", f"{windows.num_unread_tokens:,} tokens in tails not read"
        if dataset.packing == "best-fit":
            kind, rest = "samples", f"{1 - windows.index.real_fraction:.4%} of them padding"
        read = f"{windows.num_windows:,} {kind}  {epochs:.2f} epochs{repeats}"
        lines.append(f"source  {source}  share {share:g}  {read}  {rest}")
    return lines


def count_tokens(samples: Located, dataset: PackedDataset) -> dict[str, int]:
    """The tokens of located samples, per source."""
    counts = np.bincount(samples.sources, minlength=len(dataset.sources)) * dataset.seq_len
    return dict(zip(dataset.sources, counts.tolist(), strict=True))


def extend_hash(previous: str, samples: Located) -> str:
    """The running hash after these samples: sha256 of the one before, all sources, epochs and windows (as <i8)."""
    columns = b"".join(column.astype("<i8").tobytes() for column in samples)
    return hashlib.sha256(previous.encode() + columns).hexdigest()


def pad_document_ends(ends: list[np.ndarray], *, seq_len: int) -> np.ndarray:
    """cu_seqlens of several rows end to end: int32, 0 first, the last end repeated up to a power of two of documents:
    few lengths, so that the GPU's memory is used again, and short, as FlashAttention starts blocks for each entry."""
    joined = np.concatenate([[0], *(row * seq_len + row_ends for row, row_ends in enumerate(ends))]).astype(np.int32)
    room = max(LEAST_ROOM, 1 << (len(joined) - 2).bit_length())
    return np.pad(joined, (0, room + 1 - len(joined)), mode="edge")


def read_micro_batch(
    dataset: PackedDataset, positions: np.ndarray, *, has_mask: bool, has_bos_fill: bool = False
) -> MicroBatch:
    """The samples at these positions, in the host's memory; with has_bos_fill some are nothing but BOS."""
    cu_seqlens = has_target = None
    if has_mask:
        samples, ends = dataset.samples_with_ends(positions)
        cu_seqlens = torch.from_numpy(pad_document_ends(ends, seq_len=dataset.seq_len))
    else:
        samples = dataset.samples(positions)
    if (largest := int(samples.max())) >= dataset.vocab_size:  # on a GPU it would end in a failed assertion
        raise ValueError(
            f"{dataset.name} holds the id {largest:,} at the positions {positions[0]:,} to {positions[-1]:,}, and its"
            f" tokenizer has {dataset.vocab_size:,}: run pipeline/verify.py on it"
        )
    if has_bos_fill:
        samples[positions % BOS_FILL_EVERY == BOS_FILL_EVERY - 1] = dataset.bos_id
    if dataset.packing == "best-fit":
        has_target = torch.from_numpy(dataset.target_masks(positions))
    return MicroBatch(torch.from_numpy(samples), cu_seqlens, has_target)


@dataclass(frozen=True)
class RankReader:
    """What one rank reads: its micro-batches of every step, one step ahead of their use."""

    dataset: PackedDataset
    config: TrainConfig
    placement: Placement

    def read_step(self, position: int) -> list[MicroBatch]:
        """This rank's micro-batches of the step that begins at a position; after waiting for the disk it asks ahead."""
        config, place = self.config, self.placement
        options = {"has_mask": config.document_mask == "on", "has_bos_fill": "bos-fill" in config.mistakes}
        num_samples = config.samples_per_step // place.world_size
        positions = np.arange(num_samples) + position + place.rank * num_samples
        chunks = positions.reshape(-1, config.micro_batch_size)
        batches = [read_micro_batch(self.dataset, chunk, **options) for chunk in chunks]
        if self.dataset.has_waited:
            self.dataset.read_ahead(positions + config.samples_per_step)
        return [batch.each(Tensor.pin_memory) for batch in batches] if place.device.type == "cuda" else batches

    def read_steps(self, position: int, *, num_steps: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step from a position on; a thread reads the next while one is computed."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as executor:
            pending = executor.submit(self.read_step, position)
            for step in range(1, num_steps + 1):
                batch = pending.result()
                if step < num_steps:
                    pending = executor.submit(self.read_step, position + step * self.config.samples_per_step)
                yield batch
