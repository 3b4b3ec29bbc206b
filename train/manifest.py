"""A checkpoint's manifest: what was trained so far, by which settings on which data, and the files beside it. Names and
reads checkpoints; knows no tensors and no ranks."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from pipeline.storage import sha256_file
from train.distributed import AlikeError

MANIFEST = "checkpoint.json"
FORMAT_VERSION = 3
FIXED_FIELDS = ("seq_len", "tokens_per_step", "seed", "document_mask", "packing", "shuffle")
"""Settings that a run keeps to its end: with others it would skip or repeat data, or see it differently."""


class DamageError(ValueError):
    """A checkpoint's file is not what was written."""


@dataclass(frozen=True)
class Manifest:
    """What a run is at a step, beside weights and optimizer state; a checkpoint of it holds this as JSON."""

    mix: dict[str, float]  # Each source's share of the samples.
    dataset: dict[str, Any]  # The dataset's fingerprint, tokenizer and document rule.
    model: dict[str, Any]  # The ModelConfig.
    config: dict[str, Any]  # The TrainConfig.
    tokens_per_source: dict[str, int]  # Tokens trained on, per source.
    tokens: int = 0  # The same, over all sources.
    step: int = 0  # Updates done.
    position: int = 0  # The next sample; with the settings it is the whole state of the reader.
    skipped: list[list[int]] = field(default_factory=list)  # Positions left out, [first, end): numbers were not finite.
    samples_hash: str = ""  # Running sha256 of the trained samples' sources and windows; train/ledger.py recomputes it.
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # size_bytes and sha256 of each other file.
    format_version: int = FORMAT_VERSION

    @property
    def model_config(self) -> ModelConfig:
        """The model's shape."""
        return ModelConfig(**self.model)

    @property
    def first_id(self) -> int:
        """What stands before a document in training: BOS (bos+eos), or the end of the one before (eos)."""
        return self.dataset["bos_id" if self.dataset["document_rule"] == "bos+eos" else "eos_id"]


def find_checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by step as a number: step-1000000 comes after step-999999."""
    found = [path.parent for path in run_folder.glob(f"checkpoints/step-*/{MANIFEST}")]
    return sorted((path for path in found if re.fullmatch(r"step-\d+", path.name)), key=step_of)


def find_checkpoint(path: Path, *, reads_weights: bool) -> Path:
    """The checkpoint that a path means: itself, or a run's newest. If its weights are to be read, the newest that is
    whole: newer ones are named on stderr. Raises FileNotFoundError for none, DamageError where none is whole."""
    candidates = [path.resolve()] if (path / MANIFEST).is_file() else find_checkpoints(path)
    if not candidates:
        raise FileNotFoundError(f"{path} has no checkpoint: train one with torchrun train/main.py --out {path}")
    if not reads_weights:
        return candidates[-1]
    checkpoint, damages = find_whole(candidates, find=find_damage)
    if checkpoint is None:
        raise DamageError(next(iter(damages.values())))
    for damage in damages.values():
        print(f"damaged {damage}: the one before it is used", file=sys.stderr)
    return checkpoint


def find_whole(
    checkpoints: Sequence[Path], *, find: Callable[[Path], str | None]
) -> tuple[Path | None, dict[Path, str]]:
    """The last checkpoint in which `find` finds no damage, and the damage of those after it."""
    damages: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints):
        damage = find(checkpoint)
        if damage is None:
            return checkpoint, damages
        damages[checkpoint] = damage
    return None, damages


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(checkpoint.name.removeprefix("step-"))


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write it beside the files of a checkpoint, with a sha256 of its own."""
    content = asdict(manifest)
    content["sha256"] = _hash(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint. Raises DamageError, and AlikeError if it was written by another version."""
    try:
        content = json.loads((checkpoint / MANIFEST).read_bytes())
        version, sha256 = content["format_version"], content.pop("sha256", None)
    except (ValueError, TypeError, KeyError):
        raise DamageError(f"checkpoint {checkpoint} is damaged, {MANIFEST} is not a manifest") from None
    if version != FORMAT_VERSION:
        raise AlikeError(f"{checkpoint} has format {version}, this code reads {FORMAT_VERSION}: use another --out")
    if sha256 != _hash(content):
        raise DamageError(f"checkpoint {checkpoint} is damaged, {MANIFEST} does not have the sha256 that it names")
    return Manifest(**content)


def find_damage(checkpoint: Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """The first file of a checkpoint, or of one part of its files, that is not as it was written; None if all are."""
    try:
        recorded = read_manifest(checkpoint).files
    except DamageError as error:
        return str(error)
    for name in sorted(recorded)[part::num_parts]:
        if not (checkpoint / name).is_file():
            return f"checkpoint {checkpoint} is damaged, {name} is missing"
        if describe_file(checkpoint / name) != recorded[name]:
            finding = f"is not the {recorded[name]['size_bytes']:,} bytes of the manifest"
            return f"checkpoint {checkpoint} is damaged, {name} {finding}"
    return None


def describe_file(path: Path) -> dict[str, Any]:
    """A file's size_bytes and sha256."""
    return {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def refuse_other_run(manifest: Manifest, *, current: Manifest, run_folder: Path) -> None:
    """Raises AlikeError if a checkpoint cannot be continued by the run that `current` describes."""
    pairs = [(f"a model with {name}", manifest.model[name], value) for name, value in current.model.items()]
    pairs += [("the dataset", *(run.dataset["fingerprint"] for run in (manifest, current)))]
    pairs += [("the mix", manifest.mix, current.mix)]
    pairs += [(name, manifest.config.get(name), current.config[name]) for name in FIXED_FIELDS]
    for what, found, wanted in pairs:
        if found != wanted:
            raise AlikeError(
                f"{run_folder} was trained with {what} {found}, not {wanted}: use another --out, or the settings that"
                " it was started with"
            )


def list_changes(manifest: Manifest, *, current: Manifest) -> list[str]:
    """The settings that a resumed run changes, as "name was -> is"; not the mix's text, whose meaning is compared."""
    return [
        f"{name} {manifest.config.get(name)} -> {value}"
        for name, value in current.config.items()
        if manifest.config.get(name) != value and name not in ("mix", "out")
    ]


def _hash(content: dict[str, Any]) -> str:
    """sha256 of a manifest's content without its own."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
