"""A checkpoint's manifest: what was trained so far, by which settings on which data, and the files beside it.

Names and reads checkpoints; knows no tensors and no ranks.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from train.distributed import AlikeError

MANIFEST = "checkpoint.json"
FORMAT_VERSION = 3
FIXED_FIELDS = ("seq_len", "tokens_per_step", "seed", "document_mask", "packing", "shuffle")
"""Settings that a run keeps to its end: with others it would skip or repeat data, or see it differently."""
MOVING_FIELDS = ("step", "position", "skipped", "samples_hash", "tokens", "tokens_per_source")
"""What changes from step to step; with the weights and the optimizer's state, all that a run is."""
LATER_FIELDS = {"packing": "concat", "shuffle": "global", "max_epochs": None}
"""Settings that older checkpoints of this format lack, and what they had."""


class DamageError(ValueError):
    """A checkpoint's file is not what was written."""


@dataclass(frozen=True)
class Manifest:
    """What a run is at a step, beside weights and optimizer state; a checkpoint of it holds this as JSON."""

    step: int
    """Updates done."""
    position: int
    """The next sample; with the settings it is the whole state of the reader."""
    skipped: list[list[int]]
    """Positions that were left out, as [first, end), after numbers that were not finite."""
    samples_hash: str
    """Running sha256 of the trained samples' sources and windows; train/ledger.py recomputes it."""
    tokens: int
    """Tokens trained on over all ranks."""
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


def carry_on(saved: Manifest, *, current: Manifest) -> Manifest:
    """The run that `current` describes, as far as a checkpoint of it had come."""
    return replace(current, **{name: getattr(saved, name) for name in MOVING_FIELDS})


def find_checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by step as a number: step-1000000 comes after step-999999."""
    folder = run_folder / "checkpoints"
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or a run's newest. Raises FileNotFoundError."""
    if (path / MANIFEST).is_file():
        return path.resolve()
    checkpoints = find_checkpoints(path)
    if not checkpoints:
        raise FileNotFoundError(f"{path} has no checkpoint: train one with torchrun train/main.py --out {path}")
    return checkpoints[-1]


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.removeprefix("step-"))


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises DamageError, and AlikeError if it was written by another version."""
    try:
        content = json.loads((checkpoint / MANIFEST).read_bytes())
    except ValueError:
        raise DamageError(_describe_damage(checkpoint, MANIFEST, "is not JSON")) from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise DamageError(_describe_damage(checkpoint, MANIFEST, "has no format_version"))
    if version != FORMAT_VERSION:
        raise AlikeError(f"{checkpoint} has format {version}, this code reads {FORMAT_VERSION}: use another --out")
    if content.pop("sha256", None) != hash_content(content):
        raise DamageError(_describe_damage(checkpoint, MANIFEST, "does not have the sha256 that it names"))
    return Manifest(**content | {"config": LATER_FIELDS | content["config"]})


def find_damage(checkpoint: Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """The first file of a checkpoint, or of one part of its files, that is not as it was written; None if all are."""
    try:
        recorded = read_manifest(checkpoint).files
    except DamageError as error:
        return str(error)
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


def refuse_other_run(manifest: Manifest, *, current: Manifest, run_folder: Path) -> None:
    """Raises AlikeError if a checkpoint cannot be continued by the run that `current` describes."""
    advice = "use another --out, or the settings that it was started with"
    for name, value in current.model.items():
        if manifest.model[name] != value:
            raise AlikeError(f"{run_folder} holds a model with {name} {manifest.model[name]}, not {value}: {advice}")
    found, wanted = manifest.dataset["fingerprint"], current.dataset["fingerprint"]
    if found != wanted:
        raise AlikeError(f"{run_folder} was trained on the dataset {found[:16]}, and this is {wanted[:16]}: {advice}")
    if manifest.mix != current.mix:
        raise AlikeError(f"{run_folder} was trained with the mix {manifest.mix}, not {current.mix}: {advice}")
    for name in FIXED_FIELDS:
        if manifest.config[name] != current.config[name]:
            raise AlikeError(
                f"{run_folder} was trained with {name} {manifest.config[name]}, not {current.config[name]}: {advice}"
            )


def list_changes(manifest: Manifest, *, current: Manifest) -> list[str]:
    """The settings that a resumed run changes, as "name was -> is"; not the mix's text, whose meaning is compared."""
    return [
        f"{name} {manifest.config.get(name)} -> {value}"
        for name, value in current.config.items()
        if manifest.config.get(name) != value and name not in ("mix", "out")
    ]


def hash_content(content: dict[str, Any]) -> str:
    """sha256 of a manifest's content without its own."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe_damage(checkpoint: Path, name: str, reason: str) -> str:
    """What to do about a file that is not what was written."""
    return f"checkpoint {checkpoint} is damaged, {name} {reason}"
