"""Checkpoints beside the training: a copy of the state is taken at once, and written while training goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from model.transformer import Transformer
from train.checkpoint import collect_state, write_checkpoint
from train.config import TrainConfig
from train.manifest import Manifest


class Saver:
    """Writes one checkpoint at a time, from a thread of its own over a gloo group of its own.

    Two threads that use one group mix up their messages, and NCCL would need memory of a full GPU.
    """

    def __init__(
        self, config: TrainConfig, *, model: Transformer, optimizer: torch.optim.Optimizer, last_step: int
    ) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.last_step = last_step
        """The step of the last checkpoint that was begun, or where the run started."""
        is_cuda = next(model.parameters()).device.type == "cuda"
        self._group = dist.new_group(backend="gloo")
        # Into pinned memory that is kept: the GPU's copy engine writes 1.1B weights and moments, 13 GB, at PCIe speed.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=is_cuda,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=is_cuda,
            )
        )
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, manifest: Manifest) -> None:
        """Begin to write a checkpoint; the state is copied when this returns. Waits for the one before."""
        self.wait()
        state = self._stager.stage(collect_state(self.model, self.optimizer))
        self.last_step = manifest.step
        self._pending = self._executor.submit(
            write_checkpoint,
            self.config.out,
            manifest=manifest,
            state=state,
            keep=self.config.keep_checkpoints,
            keep_every=self.config.keep_every,
            group=self._group,
        )

    def wait(self) -> None:
        """Return when the last checkpoint is complete. Raises AlikeError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Wait, and let the thread go."""
        self._executor.shutdown(wait=True)
        self._stager.close()
