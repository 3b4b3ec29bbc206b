"""A checkpoint as a folder that transformers loads: weights, config, tokenizer.

    python train/export.py runs/tinyllama --out exported

The weights are float32 as trained, or --dtype bfloat16.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

if __package__ in (None, ""):  # started as `python train/export.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import tyro
from safetensors.torch import save_file

from model.huggingface import to_huggingface, to_huggingface_config
from train.generate import find_tokenizer, load_model
from train.manifest import find_checkpoint, read_manifest


@dataclass(frozen=True)
class ExportFlags:
    """Write a checkpoint for transformers."""

    run: Annotated[Path, tyro.conf.Positional]  # A run's folder (its newest checkpoint), or one checkpoint.
    out: Path  # The new folder.
    dtype: Literal["float32", "bfloat16"] = "float32"  # Of the weights.


def main(arguments: Sequence[str] | None = None) -> int:
    """Write weights, tokenizer, transformers' settings, and training.json, which says what the checkpoint has seen; the
    folder appears when it is whole. Returns the exit code."""
    flags = tyro.cli(ExportFlags, args=arguments)
    try:
        if flags.out.exists():
            raise ValueError(f"{flags.out} exists: name a new folder with --out")
        checkpoint = find_checkpoint(flags.run, reads_weights=True)
        manifest = read_manifest(checkpoint)
        tokenizer = find_tokenizer(checkpoint, manifest)
        weights = to_huggingface(load_model(checkpoint, manifest).state_dict())
        weights = {name: weight.to(getattr(torch, flags.dtype)).contiguous() for name, weight in weights.items()}
        first_id, eos_id = manifest.first_id, manifest.dataset["eos_id"]
        settings = to_huggingface_config(manifest.model_config, bos_id=first_id, eos_id=eos_id)
        contents = {
            "config.json": settings | {"torch_dtype": flags.dtype},
            "generation_config.json": {"bos_token_id": first_id, "eos_token_id": eos_id},
            "training.json": asdict(manifest),
        }
        temporary = flags.out.with_name(flags.out.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        for name, content in contents.items():
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        shutil.copyfile(tokenizer, temporary / tokenizer.name)
        temporary.rename(flags.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    num_weights = sum(weight.numel() for weight in weights.values())
    print(f"saved   {flags.out}  {num_weights:,} weights of {checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
