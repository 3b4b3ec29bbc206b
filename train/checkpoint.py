"""Checkpoints: RUN_DIR/checkpoints/step-<n>/ with the ranks' shards and a manifest; complete or absent.

It is written into a folder with a temporary name, the manifest last, then the folder is renamed: a kill at any moment
leaves the previous one to resume from. Shards are read back at any number of ranks, after size and sha256 of every file
are checked; a damaged checkpoint is set aside and the one before it is used. Training draws no random numbers after
the first weights, so no generator's state is kept: seed and position fix all data.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from model.transformer import Transformer
from pipeline.storage import sync_folder
from train.config import TrainConfig
from train.distributed import AlikeError
from train.manifest import Manifest, describe_file, find_checkpoints, find_damage, find_whole, step_of, write_manifest

State = dict[str, Any]


class Saver:
    """Writes one checkpoint at a time, from a thread of its own over a gloo group of its own: two threads that use one
    group mix up their messages, and NCCL would need memory of a full GPU."""

    def __init__(self, config: TrainConfig, *, model: Transformer, optimizer: Optimizer, last_step: int) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.last_step = last_step  # The step of the last checkpoint that was begun, or where the run started.
        self._group = dist.new_group(backend="gloo")
        # Into pinned memory that is kept: the GPU's copy engine writes 1.1B weights and moments, 13 GB, at PCIe speed.
        # Not by DefaultStager, which is around this one: in torch 2.11 and 2.12 it can be used once.
        self._is_cuda = next(model.parameters()).is_cuda
        self._stager = StateDictStager(pin_memory=self._is_cuda)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, manifest: Manifest) -> None:
        """Begin to write a checkpoint; the state is copied when this returns. Waits for the one before."""
        self.wait()
        state = self._stager.stage(collect_state(self.model, self.optimizer), non_blocking=self._is_cuda)
        if self._is_cuda:
            torch.cuda.synchronize()
        self.last_step = manifest.step
        self._pending = self._executor.submit(write_checkpoint, self.config, manifest, state=state, group=self._group)

    def wait(self) -> None:
        """Return when the last checkpoint is complete. Raises AlikeError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def close(self) -> None:
        """Wait, and let the thread go."""
        self._executor.shutdown(wait=True)
        self._stager.close()


def write_checkpoint(config: TrainConfig, manifest: Manifest, *, state: State, group: dist.ProcessGroup) -> None:
    """Write a checkpoint from all ranks over a group that nothing else uses, drop old ones. Raises AlikeError."""
    final = config.out / "checkpoints" / f"step-{manifest.step:08d}"
    temporary = final.with_name(final.name + ".tmp")
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    with _agreement(final, group):
        if rank == 0:
            for unfinished in final.parent.glob("step-*.tmp"):  # of a killed run
                shutil.rmtree(unfinished)
            temporary.mkdir(parents=True)
    with _agreement(final, group):
        dcp.save(state, checkpoint_id=temporary, process_group=group)
        mine = {path.name: describe_file(path) for path in sorted(temporary.iterdir())[rank::num_ranks]}
    files = {name: record for part in gather(mine, group) for name, record in part.items()}
    with _agreement(final, group):
        if rank == 0:
            write_manifest(replace(manifest, files=files), temporary)
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file)
            sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync_folder(final.parent)
            for old in find_checkpoints(config.out)[: -config.keep_checkpoints]:
                if not config.keep_every or step_of(old) % config.keep_every:
                    # Renamed first, so that a kill leaves nothing that looks complete.
                    shutil.rmtree(old.rename(old.with_name(old.name + ".tmp")))


def choose_checkpoint(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, on all ranks together, and what is wrong with newer ones. Each rank checks a
    part of the files; damaged folders are renamed, so that nothing else takes them. Raises AlikeError where there are
    checkpoints and none is whole; they stay, so that the next try does not start anew."""

    def find(checkpoint: Path) -> str | None:
        findings = gather(find_damage(checkpoint, part=dist.get_rank(), num_parts=dist.get_world_size()))
        return next(filter(None, findings), None)

    names = gather([path.name for path in find_checkpoints(run_folder)])[0]
    checkpoint, damages = find_whole([run_folder / "checkpoints" / name for name in names], find=find)
    if damages and checkpoint is None:
        finding = next(iter(damages.values()))
        raise AlikeError(f"no checkpoint of {run_folder} is whole: {finding}; with another --out it starts again")
    for path in damages if dist.get_rank() == 0 else ():
        target = path.with_name(path.name + ".damaged")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)
    return checkpoint, list(damages.values())


def load_checkpoint(checkpoint: Path, *, model: Transformer, optimizer: Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place, on all ranks together."""
    state = collect_state(model, optimizer)
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def load_weights(checkpoint: Path, model: Transformer) -> None:
    """Put a whole checkpoint's weights into an unsharded model, in one process without a group."""
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        # It says that it takes this for a single process: so it is.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    model.load_state_dict(state["model"])


def collect_state(model: Transformer, optimizer: Optimizer) -> State:
    """What the shards hold, keyed by weight names: AdamW's moments come back at any number of ranks."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def gather(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The values of all ranks, on each; over gloo, since they are objects of the hosts."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values


@contextmanager
def _agreement(final: Path, group: dist.ProcessGroup) -> Iterator[None]:
    """All ranks leave the block together; if it failed on one, all raise the same AlikeError."""
    failure = None
    try:
        yield
    except (OSError, CheckpointException) as error:
        failures = getattr(error, "failures", {dist.get_rank(group): (error, None)})
        failure = "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in failures.items())
    failure = next(filter(None, gather(failure, group)), None)
    if failure:
        free_bytes = shutil.disk_usage(final.parent).free if final.parent.is_dir() else 0
        raise AlikeError(
            f"{final} could not be written ({failure}; {free_bytes / 1e9:,.1f} GB are free there): the checkpoints"
            " before it are whole; mend that, and the same command goes on from the newest"
        )
