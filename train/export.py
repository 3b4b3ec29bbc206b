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
    """The command. Returns the exit code."""
    flags = tyro.cli(ExportFlags, args=arguments)
    try:
        num_weights = export(flags.run, flags.out, dtype=getattr(torch, flags.dtype))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"saved   {flags.out}  {num_weights:,} weights")
    return 0


def export(run: Path, out: Path, *, dtype: torch.dtype) -> int:
    """Write weights, tokenizer, transformers' settings and training.json, which says what the checkpoint has seen. The
    folder appears when it is whole. Returns the number of weights. Raises ValueError and OSError."""
    if out.exists():
        raise ValueError(f"{out} exists: name a new folder with --out")
    checkpoint = find_checkpoint(run)
    manifest = read_manifest(checkpoint)
    tokenizer = find_tokenizer(checkpoint, manifest)
    model = load_model(checkpoint, manifest)
    weights = to_huggingface(model.state_dict())
    weights = {name: weight.to("cpu", dtype).contiguous() for name, weight in weights.items()}
    temporary = out.with_name(out.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    first_id, eos_id = manifest.first_id, manifest.dataset["eos_id"]
    settings = to_huggingface_config(manifest.model_config, bos_id=first_id, eos_id=eos_id)
    for name, content in {
        "config.json": settings | {"torch_dtype": str(dtype).removeprefix("torch.")},
        "generation_config.json": {"bos_token_id": first_id, "eos_token_id": eos_id},
        "training.json": asdict(manifest),
    }.items():
        (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer, temporary / tokenizer.name)
    temporary.rename(out)
    return sum(weight.numel() for weight in weights.values())


if __name__ == "__main__":
    sys.exit(main())
