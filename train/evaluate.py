"""Validation loss per source, over all ranks; the same number at any number of ranks."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from model.loss import IGNORED
from pipeline.dataset import PackedDataset
from train.data import read_micro_batch
from train.distributed import sum_over_ranks
from train.run import Run, not_finite


def open_validation(run: Run) -> dict[str, PackedDataset]:
    """The validation split of each source alone, so that its positions are its windows; empty where it is off.

    A source with less than one window of it is left out, and that is said.
    """
    config, opened = run.config, {}
    for source in run.dataset.sources if config.valid_every else ():
        tokens = [shard["tokens"] for shard in run.dataset.shards(source, "validation")]
        if max(tokens, default=0) > config.seq_len:
            opened[source] = PackedDataset(config.data, seq_len=config.seq_len, mix={source: 1.0}, split="validation")
        else:
            run.placement.say(
                f"valid   not on {source}: {sum(tokens):,} validation tokens hold no window of {config.seq_len + 1:,}"
            )
    return opened


@torch.no_grad()
def validation_losses(
    run: Run, validation: Mapping[str, PackedDataset], *, max_windows: int, before_each: Callable[[], None]
) -> dict[str, float]:
    """The mean loss per target of each source: sum and count are added over ranks before they are divided.

    `before_each` is called before every micro-batch, as often on all ranks; it may raise. Raises AlikeError if a loss
    is not finite.
    """
    losses, place, rows = {}, run.placement, run.config.micro_batch_size
    for source, dataset in validation.items():
        num_windows = min(max_windows, dataset.num_windows(source))
        # All ranks have as many chunks, or the sharded model would hang: the last ones are filled up.
        num_rounds = -(-num_windows // (rows * place.world_size))
        positions = np.arange(num_rounds * place.world_size * rows).reshape(num_rounds, place.world_size, rows)
        loss = torch.zeros((), device=place.device)
        for chunk in positions[:, place.rank]:
            before_each()
            loss += _chunk_loss(run, dataset, chunk, num_windows=num_windows)
        losses[source] = sum_over_ranks(loss).item() / (num_windows * run.config.seq_len)
        if not math.isfinite(losses[source]):
            raise not_finite(run, f"the validation loss of {source} is {losses[source]} at step {run.step:,}")
    return losses


def _chunk_loss(run: Run, dataset: PackedDataset, positions: np.ndarray, *, num_windows: int) -> Tensor:
    """The loss summed over the targets of these positions; those at or past num_windows have none."""
    readable = np.minimum(positions, num_windows - 1)
    batch = read_micro_batch(dataset, readable, has_mask=run.config.document_mask == "on").to(run.placement.device)
    is_filler = torch.from_numpy(positions >= num_windows).to(run.placement.device)
    targets = batch.targets.masked_fill(is_filler[:, None], IGNORED)
    return run.model(batch.inputs, targets=targets, cu_seqlens=batch.cu_seqlens)
