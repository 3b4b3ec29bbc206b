"""Let a trained model write: one process, on a GPU if there is one.

    python train/generate.py runs/demo --prompt "Once upon a time"

The tokenizer is the copy that the run keeps, so the dataset need not be there.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as `python train/generate.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import tyro
from torch import Tensor

from model.attention import KeyValueCache
from model.transformer import Transformer
from pipeline.tokenizer import load_tokenizer
from train.checkpoint import load_weights
from train.manifest import Manifest, find_checkpoint, read_manifest

PROMPTS = ("The ", "def ", "In the beginning")


@dataclass(frozen=True)
class GenerateConfig:
    """What to write, and how."""

    model: tyro.conf.Positional[Path]  # A run's folder (its newest checkpoint), or one checkpoint.
    prompt: str | None = None  # The text to go on from. Default: a few short ones.
    max_tokens: int = 64  # New tokens at most.
    temperature: float = 0.8  # 0 takes the likeliest token every time.
    top_k: int = 50  # Only this many of the likeliest tokens are drawn from; 0: all.
    seed: int = 0  # Fixes what is drawn.

    def check(self) -> None:
        """Raises ValueError for the first setting that cannot be."""
        for name in ("max_tokens", "temperature", "top_k", "seed"):
            if not 0 <= getattr(self, name) < 2**64:  # not a number fails too
                raise ValueError(f"--{name.replace('_', '-')} must be from 0 to 2**64 - 1, not {getattr(self, name)}")


def main() -> int:
    """Print the continuations. Returns the exit code; what the user can mend is one line on stderr."""
    config = tyro.cli(GenerateConfig, description="Let a trained model write.")
    try:
        config.check()
        checkpoint = find_checkpoint(config.model, reads_weights=True)
        manifest = read_manifest(checkpoint)
        tokenizer = load_tokenizer(str(find_tokenizer(checkpoint, manifest)), engine="reference")
        model = load_model(checkpoint, manifest)
        if torch.cuda.is_available():
            model = model.to("cuda", torch.bfloat16)
        print(f"model   {checkpoint}  step {manifest.step:,}, {manifest.tokens:,} tokens")
        for prompt in PROMPTS if config.prompt is None else (config.prompt,):
            prompt_ids = tokenizer.encode(prompt)
            new_ids = generate(model, [manifest.first_id, *prompt_ids], manifest=manifest, config=config)
            # Decoded together: a tokenizer may drop the space at the start of what it decodes.
            print(f"\n{tokenizer.decode(prompt_ids + new_ids)}")
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def find_tokenizer(checkpoint: Path, manifest: Manifest) -> Path:
    """The run's copy of its tokenizer. Raises FileNotFoundError."""
    path = checkpoint.parent.parent / "tokenizer" / manifest.dataset["tokenizer_file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: copy it from {manifest.config['data']}/tokenizer")
    return path


def load_model(checkpoint: Path, manifest: Manifest) -> Transformer:
    """The checkpoint's model, in one piece: float32 on the CPU."""
    with torch.device("meta"):
        model = Transformer(manifest.model_config, attention_backend="sdpa")
    model.to_empty(device="cpu")
    load_weights(checkpoint, model)
    return model


@torch.inference_mode()
def generate(model: Transformer, ids: list[int], *, manifest: Manifest, config: GenerateConfig) -> list[int]:
    """The ids that follow: to the end of text, max_tokens, or the window of training, if the prompt fits in that."""
    longest = manifest.config["seq_len"]
    room = longest - len(ids)
    if room < 1:
        raise ValueError(f"the prompt has {len(ids):,} tokens, training had {longest:,} at a time: shorten it")
    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(config.seed)
    cache: KeyValueCache = {}
    new_ids: list[int] = []
    tokens = torch.tensor([ids], device=device)
    for _ in range(min(room, config.max_tokens)):
        # Ids at and past the tokenizer's vocabulary are padding and have no text.
        logits = model(tokens, cache=cache)[0, -1, : manifest.dataset["vocab_size"]].float()
        chosen = choose_token(logits, temperature=config.temperature, top_k=config.top_k, generator=generator)
        if chosen == manifest.dataset["eos_id"]:
            break
        new_ids.append(chosen)
        tokens = torch.tensor([[chosen]], device=device)
    return new_ids


def choose_token(logits: Tensor, *, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One id drawn from logits (vocabulary,): the likeliest at temperature 0."""
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        smallest = logits.topk(top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    probabilities = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


if __name__ == "__main__":
    sys.exit(main())
