"""Checkpoints: RUN_DIR/checkpoints/step-<n>/ with the ranks' shards and a manifest; complete or absent.

A checkpoint is written into a folder with a temporary name; the manifest comes last, then the folder is renamed. So a
folder named step-<n> is complete, and a kill at any moment leaves the previous one to resume from. Shards are read
back at any number of ranks. The manifest records the size and sha256 of every file and of itself, and they are
checked before anything is loaded.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from model.config import ModelConfig
from model.transformer import Transformer
from train.distributed import AlikeError

MANIFEST = "checkpoint.json"
FORMAT_VERSION = 2
FIXED_FIELDS = ("seq_len", "tokens_per_step", "seed", "document_mask")
"""Settings that a run keeps to its end: with others it would skip or repeat data, or see it differently."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds beside weights and optimizer state."""

    step: int
    """Updates done."""
    position: int
    """Samples consumed over all ranks; with the settings it is the whole state of the reader."""
    tokens: int
    """Tokens consumed over all ranks."""
    tokens_per_source: dict[str, int]
    """The same, per source."""
    mix: dict[str, float]
    """Each source's share of the samples."""
    dataset: dict[str, Any]
    """The dataset's fingerprint, tokenizer and document rule."""
    model: dict[str, Any]
    """The ModelConfig."""
    config: dict[str, Any]
    """The TrainConfig."""
    files: dict[str, dict[str, Any]]
    """size_bytes and sha256 of each file beside the manifest."""
    format_version: int = FORMAT_VERSION

    @property
    def model_config(self) -> ModelConfig:
        """The model's shape."""
        return ModelConfig(**self.model)


def find_checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by step as a number: step-1000000 comes after step-999999."""
    folder = run_folder / "checkpoints"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises ValueError if it is damaged, or was written by another version."""
    try:
        content = json.loads((checkpoint / MANIFEST).read_bytes())
    except ValueError:
        raise ValueError(_describe_damage(checkpoint, MANIFEST, "is not JSON")) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise ValueError(_describe_damage(checkpoint, MANIFEST, "has no format_version"))
    if version != FORMAT_VERSION:
        raise ValueError(f"{checkpoint} has format {version}, this code reads {FORMAT_VERSION}: use another --out")
    if content.pop("sha256", None) != _hash_content(content):
        raise ValueError(_describe_damage(checkpoint, MANIFEST, "does not have the sha256 that it names"))
    return Manifest(**content)


def find_damage(checkpoint: Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """The first file of a checkpoint, or of one part of its files, that is not as it was written; None if all are."""
    recorded = read_manifest(checkpoint).files
    for name in sorted(recorded)[part::num_parts]:
        if not (checkpoint / name).is_file():
            return _describe_damage(checkpoint, name, "is missing")
        if describe_file(checkpoint / name) != recorded[name]:
            size = recorded[name]["size_bytes"]
            return _describe_damage(checkpoint, name, f"is not the {size:,} bytes that were written")
    return None


def describe_file(path: Path) -> dict[str, Any]:
    """A file's size_bytes and sha256."""
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def save_checkpoint(
    run_folder: Path, *, manifest: Manifest, model: Transformer, optimizer: torch.optim.Optimizer, keep: int
) -> Path:
    """Write a checkpoint from all ranks and drop all but the newest `keep`. Returns its folder."""
    final = run_folder / "checkpoints" / f"step-{manifest.step:08d}"
    temporary = final.with_name(final.name + ".tmp")
    is_first_rank = dist.get_rank() == 0
    if is_first_rank:
        final.parent.mkdir(parents=True, exist_ok=True)
        for unfinished in final.parent.glob("step-*.tmp"):
            shutil.rmtree(unfinished)
        temporary.mkdir()
    dist.barrier()
    dcp.save(_collect_state(model, optimizer), checkpoint_id=temporary)
    files = _describe_files(temporary)
    if is_first_rank:
        _publish(temporary, final, replace(manifest, files=files))
        for old in find_checkpoints(run_folder)[:-keep]:
            _remove(old)
    dist.barrier()
    return final


def load_checkpoint(checkpoint: Path, *, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and optimizer state in place, on all ranks together.

    Each rank checks a part of the files. Raises AlikeError where one of them finds damage.
    """
    for damage in _gather(find_damage(checkpoint, part=dist.get_rank(), num_parts=dist.get_world_size())):
        if damage:
            raise AlikeError(damage)
    state = _collect_state(model, optimizer)
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


def refuse_other_run(manifest: Manifest, *, current: Manifest, run_folder: Path) -> None:
    """Raises ValueError if a checkpoint cannot be continued by the run that `current` describes."""
    advice = "use another --out, or the settings that it was started with"
    for name, value in current.model.items():
        if manifest.model[name] != value:
            raise ValueError(f"{run_folder} holds a model with {name} {manifest.model[name]}, not {value}: {advice}")
    found, wanted = manifest.dataset["fingerprint"], current.dataset["fingerprint"]
    if found != wanted:
        raise ValueError(f"{run_folder} was trained on the dataset {found[:16]}, and this is {wanted[:16]}: {advice}")
    if manifest.mix != current.mix:
        raise ValueError(f"{run_folder} was trained with the mix {manifest.mix}, not {current.mix}: {advice}")
    for name in FIXED_FIELDS:
        if manifest.config[name] != current.config[name]:
            raise ValueError(
                f"{run_folder} was trained with {name} {manifest.config[name]}, not {current.config[name]}: {advice}"
            )


def list_changes(manifest: Manifest, *, current: Manifest) -> list[str]:
    """The settings that a resumed run changes, as "name was -> is"; not the mix's text, whose meaning is compared."""
    return [
        f"{name} {manifest.config[name]} -> {value}"
        for name, value in current.config.items()
        if manifest.config[name] != value and name != "mix"
    ]


def _collect_state(model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the shards hold, keyed by weight names: AdamW's moments come back at any number of ranks."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """size_bytes and sha256 of all files in a folder, on every rank; each rank reads its part of them."""
    mine = sorted(folder.iterdir())[dist.get_rank() :: dist.get_world_size()]
    parts = _gather({path.name: describe_file(path) for path in mine})
    return {name: record for part in parts for name, record in part.items()}


def _gather(value: Any) -> list[Any]:
    """The values of all ranks, on each."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _hash_content(content: dict[str, Any]) -> str:
    """sha256 of a manifest's content without its own."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe_damage(checkpoint: Path, name: str, reason: str) -> str:
    """What to do about a file that is not what was written."""
    return f"checkpoint {checkpoint} is damaged, {name} {reason}: delete that folder, and the one before it is used"


def _publish(temporary: Path, final: Path, manifest: Manifest) -> None:
    """Make a written checkpoint the newest: its manifest, all bytes to disk, then the rename."""
    content = asdict(manifest)
    content["sha256"] = _hash_content(content)
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


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; renamed first, so that a kill leaves nothing that looks complete."""
    doomed = checkpoint.with_name(checkpoint.name + ".tmp")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)
