"""All settings of a training run: defaults < recipe (TOML) < flags. Reads recipes; touches no data and no device."""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from inspect import formatannotation
from pathlib import Path
from textwrap import fill
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model.config import ModelConfig, named_size, nearest

RECIPES_FOLDER = Path(__file__).resolve().parent / "recipes"
VOCABULARY_MULTIPLE = 64  # The embedding's rows are padded to it, for full tiles: 50,257 becomes GPT-2's usual 50,304.
MAY_BE_ZERO = {"valid_every", "warmup_steps", "weight_decay", "seed", "keep_every", "profile"}
FRACTIONS = {"min_lr_fraction", "decay_fraction"}


@dataclass(frozen=True)
class TrainConfig:
    """Train a Llama-family model from packed shards. A recipe sets what it names; flags come last."""

    data: str = "data/packed"
    """The dataset: a folder that pipeline/build.py finished, or where one was published (hf://, s3://, https://)."""
    recipe: str | None = None  # A recipe's name, or a TOML file. Default: by the device and the dataset's tokenizer.
    out: Path | None = None  # The run's folder: config, metrics, checkpoints. Default: runs/<recipe>.
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto takes CUDA where there is a GPU.

    tokenizer: str = "any"  # The tokenizer that the data must have, by name or sha256, or any.
    vocabulary: int | None = None  # How many ids that tokenizer must have. Default: any number.
    document_rule: Literal["bos+eos", "eos", "any"] = "any"  # What must frame each document in the data, or any.
    mix: str | None = None  # Share of the tokens per source, as slimpajama:0.7,starcoder:0.3. Default: the dataset's.

    packing: Literal["concat", "best-fit"] = "concat"
    """concat cuts text into windows; best-fit cuts only documents longer than seq_len. Validation is of windows."""
    shuffle: Literal["global", "block"] = "global"
    """block: samples near each other are read near each other, for storage where random reads are dear."""
    max_epochs: str | None = None
    """How often a source may be read: 2, or web:1,code:4. A run that needs more is refused."""

    model: str = "demo"
    """A named size; model/config.py has the list. The vocabulary is the dataset's, padded to a multiple of 64; a
    seq_len above the size's longest window lengthens that."""
    hidden_size: int | None = None  # Instead of the named size's width.
    intermediate_size: int | None = None  # Instead of the named size's SwiGLU width.
    num_layers: int | None = None  # Instead of the named size's number of blocks.
    num_heads: int | None = None  # Instead of the named size's query heads.
    num_kv_heads: int | None = None  # Instead of the named size's key and value heads.
    norm_eps: float | None = None  # Instead of the named size's RMSNorm epsilon.
    rope_base: float | None = None  # Instead of the named size's rotary base.
    tie_embeddings: bool | None = None  # Instead of the named size's choice of one matrix for embedding and head.

    seq_len: int = 256  # Inputs per window.
    tokens_per_step: int = 4096  # Tokens of one optimizer update, over all ranks; accumulation follows from it.
    micro_batch_size: int = 8
    """Windows of one forward and backward on a rank. Changes memory and speed, not the result."""
    tokens: int = 409_600  # Tokens of the whole run, rounded up to whole steps; the schedule ends there.
    steps: int | None = None  # Optimizer updates of the whole run, instead of tokens.

    learning_rate: float = 1e-3  # The peak, reached at the end of the warmup.
    schedule: Literal["cosine", "wsd"] = "cosine"  # After the warmup half a cosine, or the peak and a decay at the end.
    decay_fraction: float = 0.2  # Of wsd: the share of the steps in which the rate falls, linearly.
    min_lr_fraction: float = 0.1  # The last step's learning rate as a fraction of the peak.
    warmup_steps: int = 0  # Steps of linear warmup; fewer than steps.
    weight_decay: float = 0.1  # AdamW's decay; of matrices only, never of norms.
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW's betas.
    adam_eps: float = 1e-8  # AdamW's epsilon.
    grad_clip: float = 1.0  # Gradients are scaled down to this norm.
    seed: int = 0  # Fixes the first weights and the order of the data.

    max_bad_steps: int = 10
    """An update whose loss or gradient is not finite is skipped; after so many in a row the run goes back to its last
    checkpoint and leaves out the data since."""
    mistakes: tuple[Literal["lr-floor", "decay-norms", "bos-fill"], ...] = ()
    """TinyLlama's known mistakes, to reproduce it: lr-floor (the peak is held for the first 503B tokens), decay-norms
    (norms decay too), bos-fill (now and then a window of nothing but BOS)."""

    document_mask: Literal["on", "off"] = "on"  # On: documents that share a window do not attend to each other.
    attention: Literal["auto", "flash", "varlen", "sdpa"] = "auto"
    """The attention backend: the flash-attn package, torch's own, the reference; auto takes the best present."""
    sharding: Literal["auto", "full", "hybrid", "replicate"] = "auto"
    """How ranks hold the model: each a part; each a part of its machine's copy; each all of it. auto: each all of it
    where weights and optimizer state take less than a tenth of a GPU's memory, else a part."""
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile each block; auto: on CUDA.
    activation_checkpointing: Literal["off", "selective", "full"] = "off"
    """Compute in the backward pass again, instead of keeping: all of a block, or all but matrix products, attention."""

    log_every: int = 10  # Steps between lines of metrics.
    valid_every: int = 1000  # Steps between validation losses; there is one at the end too. 0: never.
    valid_windows: int = 256  # Windows of each source's validation split that are read, at most.
    checkpoint_every: int = 1000  # Steps between checkpoints; there is one at the end too.
    keep_checkpoints: int = 2  # How many of the newest checkpoints are kept.
    keep_every: int = 0  # Checkpoints at multiples of so many steps are kept for good; 0: none.
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = ()  # Beside metrics.jsonl; needs the extra `log`.
    profile: int = 0  # Trace so many steps, from the 11th on, with torch's profiler into RUN/profile; 0: none.
    dry_run: bool = False  # Say what would be trained, on what, how long and in how much memory; train nothing.

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The model's shape for a tokenizer of `vocab_size` ids. Raises ValueError for an impossible one."""
        size = named_size(self.model)
        names = [field.name for field in fields(ModelConfig) if hasattr(self, field.name)]
        overrides = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        padded = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        longest = max(size.max_seq_len, self.seq_len)  # rotary positions are computed for any length
        return replace(size, vocab_size=padded, max_seq_len=longest, **overrides)

    @property
    def num_steps(self) -> int:
        """Optimizer updates of the whole run."""
        return -(-self.tokens // self.tokens_per_step) if self.steps is None else self.steps

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimizer update, over all ranks."""
        return self.tokens_per_step // self.seq_len

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of one rank in one step. Raises ValueError, with numbers that work, if it is not whole."""
        unit = self.seq_len * self.micro_batch_size * world_size
        if self.tokens_per_step % unit == 0:
            return self.tokens_per_step // unit
        below = self.tokens_per_step // unit * unit
        working = " or ".join(f"{number:,}" for number in (below, below + unit) if number)
        raise ValueError(
            f"tokens_per_step {self.tokens_per_step:,} is not a multiple of seq_len {self.seq_len} x micro_batch_size"
            f" {self.micro_batch_size} x {world_size} ranks = {unit:,}: use --tokens-per-step {working},"
            " or another --micro-batch-size"
        )

    def check(self) -> None:
        """Raises ValueError for the first setting that no run can have."""
        for name, value in asdict(self).items():
            if type(value) in (int, float):
                range_is = "from 0 to 1" if name in FRACTIONS else "at least 0" if name in MAY_BE_ZERO else "positive"
                is_in = {"from 0 to 1": value <= 1, "at least 0": value < math.inf, "positive": 0 < value < math.inf}
                if not (value >= 0 and is_in[range_is]):  # not a number fails too
                    raise ValueError(f"{name} must be {range_is}, not {value}")
        if self.packing == "best-fit" and (self.document_mask == "off" or "bos-fill" in self.mistakes):
            raise ValueError("packing best-fit needs --document-mask on, and no bos-fill: its samples hold padding")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and less than 1, not {self.betas}")
        if self.warmup_steps >= self.num_steps:
            warmup, steps = f"warmup_steps {self.warmup_steps:,}", f"steps {self.num_steps:,}"
            raise ValueError(f"{warmup} must be fewer than {steps}: use a smaller --warmup-steps or a larger --steps")

    def as_text(self) -> str:
        """All settings that have a value, as lines for a person."""
        words = "  ".join(f"{name}={value}" for name, value in self.as_json().items() if value not in (None, []))
        return fill(words, 118, initial_indent="config  ", subsequent_indent=" " * 8, break_on_hyphens=False)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON types."""
        return json.loads(json.dumps(asdict(self), default=str))


def recipe_names() -> list[str]:
    """The recipes that come with the code, sorted."""
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.toml"))


def load_recipe(recipe: str) -> TrainConfig:
    """The settings of a recipe, by name or TOML file. Raises ValueError for an unknown one or field, a wrong type."""
    path = Path(recipe) if recipe.endswith(".toml") else RECIPES_FOLDER / f"{recipe}.toml"
    if not path.is_file():
        raise ValueError(f"there is no recipe {recipe!r}: {nearest(recipe, recipe_names())}")
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also bytes that are not UTF-8
        raise ValueError(f"recipe {path} is not TOML: {error}") from error
    kinds = get_type_hints(TrainConfig)
    for name, value in settings.items():
        if name not in kinds:
            raise ValueError(f"recipe {path} has an unknown field {name!r}: {nearest(name, kinds)}")
        try:
            settings[name] = _convert(value, kinds[name])
        except (TypeError, ValueError):
            kind = formatannotation(kinds[name]).removesuffix(" | None")
            kind = kind.replace("typing.", "").replace("tuple", "list").replace("Literal", "one of ")
            raise ValueError(f"recipe {path}: {name} must be {kind}, not {value!r}") from None
    return TrainConfig(**{**settings, "recipe": recipe})


def read_flags(arguments: Sequence[str], *, defaults: TrainConfig, speaks: bool) -> TrainConfig:
    """The settings after flags. An unknown flag ends the program with tyro's message, on the rank that speaks."""
    import tyro  # here alone: a program that makes its settings itself does without

    return tyro.cli(TrainConfig, args=list(arguments), default=defaults, console_outputs=speaks)


def _convert(value: Any, kind: Any) -> Any:
    """A TOML value as a field's type; a whole number may stand for a fraction. Raises TypeError or ValueError."""
    members = get_args(kind)
    if get_origin(kind) is UnionType:
        return _convert(value, members[0])  # the other is None, which TOML does not have
    if get_origin(kind) is Literal and value in members:
        return value
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = members[:1] * len(value) if members[-1] is Ellipsis else members
        return tuple(_convert(part, each) for part, each in zip(value, kinds, strict=True))
    if type(value) in {float: (float, int), Path: (str,)}.get(kind, (kind,)):
        return kind(value)
    raise TypeError
