"""Validation loss per source, over all ranks; the same number at any number of ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.loss import IGNORED
from pipeline.dataset import PackedDataset, SourceWindows
from train.config import TrainConfig
from train.data import document_mask_of, read_micro_batch
from train.distributed import Placement, sum_over_ranks


@dataclass(frozen=True)
class ValidationSource:
    """The validation windows of one source."""

    dataset: PackedDataset
    """The split with this source alone, so that its positions are its windows."""
    num_windows: int
    """How many of them are read."""


def open_validation(config: TrainConfig, train: PackedDataset, *, placement: Placement) -> dict[str, ValidationSource]:
    """What the validation loss is computed on, by source; empty if it is off or the data has no validation split.

    A source with less than one window of it is left out, and that is said.
    """
    if config.valid_every == 0:
        return {}
    sources = {}
    for source in train.sources:
        num_tokens, num_windows = _count_validation(train, source)
        if num_windows:
            alone = PackedDataset(config.data, seq_len=config.seq_len, mix={source: 1.0}, split="validation")
            sources[source] = ValidationSource(alone, num_windows=min(config.valid_windows, num_windows))
        else:
            placement.say(
                f"valid   not on {source}: {num_tokens:,} validation tokens hold no window of {config.seq_len + 1:,}"
            )
    return sources


def _count_validation(train: PackedDataset, source: str) -> tuple[int, int]:
    """The tokens and the windows of a source's validation split."""
    split = train.content["sources"][source]["splits"].get("validation", {"shards": []})
    windows = SourceWindows(train.path, split["shards"], seq_len=train.seq_len, dtype=train.dtype)
    return windows.num_tokens, windows.num_windows


@torch.no_grad()
def prepare_validation(
    model: nn.Module, sources: Mapping[str, ValidationSource], *, config: TrainConfig, device: torch.device
) -> None:
    """Run one micro-batch, so that all is compiled before the first step: a signal in the middle of a compilation is
    heard after it, which may be too late for what was trained until then."""
    source = next(iter(sources.values()))
    _chunk_loss(model, source, np.arange(config.micro_batch_size), config=config, device=device)


@torch.no_grad()
def validation_losses(
    model: nn.Module,
    sources: Mapping[str, ValidationSource],
    *,
    config: TrainConfig,
    placement: Placement,
    before_each: Callable[[], None],
) -> dict[str, float]:
    """The mean loss per target of each source: sum and count are added over ranks before they are divided.

    `before_each` is called before every micro-batch, as often on all ranks; it may raise.
    """
    losses = {}
    for name, source in sources.items():
        loss = torch.zeros((), device=placement.device)
        for positions in _rank_chunks(source, config=config, placement=placement):
            before_each()
            loss += _chunk_loss(model, source, positions, config=config, device=placement.device)
        losses[name] = sum_over_ranks(loss).item() / (source.num_windows * config.seq_len)
    return losses


def _rank_chunks(source: ValidationSource, *, config: TrainConfig, placement: Placement) -> np.ndarray:
    """This rank's positions, (chunks, micro_batch_size). All ranks have as many chunks, or the sharded model would
    hang; so positions at or past num_windows fill up the last ones, and `_chunk_loss` leaves them out."""
    per_round = config.micro_batch_size * placement.world_size
    num_rounds = -(-source.num_windows // per_round)
    positions = np.arange(num_rounds * per_round, dtype=np.int64)
    return positions.reshape(num_rounds, placement.world_size, config.micro_batch_size)[:, placement.rank]


def _chunk_loss(
    model: nn.Module, source: ValidationSource, positions: np.ndarray, *, config: TrainConfig, device: torch.device
) -> Tensor:
    """The loss summed over the real targets of these positions."""
    readable = np.minimum(positions, source.num_windows - 1)
    batch = read_micro_batch(source.dataset, readable, has_mask=config.document_mask == "on")
    batch = batch.to(device)
    is_filler = torch.from_numpy(positions >= source.num_windows).to(device)
    targets = batch.targets.masked_fill(is_filler[:, None], IGNORED)
    documents = document_mask_of(batch, backend=model.attention_backend)
    return model(batch.inputs, targets=targets, documents=documents)
