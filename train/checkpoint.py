"""Checkpoints: RUN_DIR/checkpoints/step-<n>/ with the ranks' shards and a manifest; complete or absent.

A checkpoint is written into a folder with a temporary name; the manifest comes last, then the folder is renamed. So a
folder named step-<n> is complete, and a kill at any moment leaves the previous one to resume from. Shards are read
back at any number of ranks. The manifest records the size and sha256 of every file and of itself, and they are
checked before anything is loaded; a damaged checkpoint is set aside and the one before it is used. Training draws no
random numbers after the first weights, so no generator's state is kept: seed and position fix all data.
"""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from model.transformer import Transformer
from train.config import TrainConfig
from train.distributed import AlikeError
from train.manifest import MANIFEST, Manifest, describe_file, find_checkpoints, find_damage, hash_content, step_of


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
        self._group = dist.new_group(backend="gloo")
        # Into pinned memory that is kept: the GPU's copy engine writes 1.1B weights and moments, 13 GB, at PCIe speed.
        # Not by DefaultStager, which is around this one: in torch 2.11 and 2.12 it can be used once.
        self._is_cuda = next(model.parameters()).device.type == "cuda"
        self._stager = StateDictStager(pin_memory=self._is_cuda)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, manifest: Manifest) -> None:
        """Begin to write a checkpoint; the state is copied when this returns. Waits for the one before."""
        self.wait()
        state = self._stager.stage(collect_state(self.model, self.optimizer), non_blocking=self._is_cuda)
        if self._is_cuda:
            torch.cuda.synchronize()
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


def write_checkpoint(
    run_folder: Path, *, manifest: Manifest, state: dict[str, Any], keep: int, keep_every: int, group: dist.ProcessGroup
) -> Path:
    """Write a checkpoint from all ranks over a gloo group that nothing else uses meanwhile. Returns its folder.

    Drops all but the newest `keep` and the multiples of keep_every. Raises AlikeError where a rank could not write.
    """
    final = run_folder / "checkpoints" / f"step-{manifest.step:08d}"
    temporary = final.with_name(final.name + ".tmp")
    is_first_rank = dist.get_rank(group) == 0
    with _agreement(final, group):
        if is_first_rank:
            _make_empty(temporary)
    with _agreement(final, group):
        dcp.save(state, checkpoint_id=temporary, process_group=group)
    files = _describe_files(temporary, group)
    with _agreement(final, group):
        if is_first_rank:
            _publish(temporary, final, replace(manifest, files=files))
            _drop_old(run_folder, keep=keep, keep_every=keep_every)
    return final


def choose_checkpoint(run_folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, on all ranks together, and what is wrong with newer ones.

    Each rank checks a part of the files; damaged folders are renamed, so that nothing else takes them. Raises
    AlikeError where there are checkpoints and none is whole; they stay, so that the next try does not start anew.
    """
    complaints: list[str] = []
    names = gather([path.name for path in find_checkpoints(run_folder)])[0]
    for name in reversed(names):
        checkpoint = run_folder / "checkpoints" / name
        damages = gather(find_damage(checkpoint, part=dist.get_rank(), num_parts=dist.get_world_size()))
        damage = next(filter(None, damages), None)
        if damage is None:
            if dist.get_rank() == 0:
                _set_aside([checkpoint.with_name(newer) for newer in names[names.index(name) + 1 :]])
            return checkpoint, complaints
        complaints.append(damage)
    if complaints:
        raise AlikeError(f"no checkpoint of {run_folder} is whole: {complaints[0]}; with another --out it starts again")
    return None, []


def load_checkpoint(checkpoint: Path, *, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place, on all ranks together."""
    state = collect_state(model, optimizer)
    dcp.load(state, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def load_weights(checkpoint: Path, model: Transformer) -> None:
    """Put a checkpoint's weights into an unsharded model, in one process without a group. Raises ValueError."""
    if damage := find_damage(checkpoint):
        raise ValueError(damage)
    state = {"model": model.state_dict()}
    with warnings.catch_warnings():
        # It says that it takes this for a single process: so it is.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    model.load_state_dict(state["model"])


def collect_state(model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the shards hold, keyed by weight names: AdamW's moments come back at any number of ranks."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def _describe_files(folder: Path, group: dist.ProcessGroup) -> dict[str, dict[str, Any]]:
    """size_bytes and sha256 of all files in a folder, on every rank; each rank reads its part of them."""
    mine = sorted(folder.iterdir())[dist.get_rank(group) :: dist.get_world_size(group)]
    parts = gather({path.name: describe_file(path) for path in mine}, group)
    return {name: record for part in parts for name, record in part.items()}


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


def _make_empty(temporary: Path) -> None:
    """The folder to write into; what a killed run left of others goes."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in temporary.parent.glob("step-*.tmp"):
        shutil.rmtree(unfinished)
    temporary.mkdir()


def _publish(temporary: Path, final: Path, manifest: Manifest) -> None:
    """Make a written checkpoint the newest: its manifest, all bytes to disk, then the rename."""
    content = asdict(manifest)
    content["sha256"] = hash_content(content)
    (temporary / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for path in [*temporary.iterdir(), temporary]:
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop_old(run_folder: Path, *, keep: int, keep_every: int) -> None:
    """Delete all but the newest `keep` checkpoints and those at multiples of keep_every."""
    for old in find_checkpoints(run_folder)[:-keep]:
        if not keep_every or step_of(old) % keep_every:
            _remove(old)


def _set_aside(damaged: list[Path]) -> None:
    """Rename folders, so that they are no checkpoints any more."""
    for checkpoint in damaged:
        target = checkpoint.with_name(checkpoint.name + ".damaged")
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; renamed first, so that a kill leaves nothing that looks complete."""
    doomed = checkpoint.with_name(checkpoint.name + ".tmp")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
