"""Before any training: which recipe, and whether data, settings and machine agree; what the run would be (--dry-run).

Each refusal is one line. Memory and time are by formula, not measured.
"""

import os
from collections.abc import Iterator
from datetime import timedelta

import torch

from model.config import ModelConfig
from model.loss import ROWS_PER_CHUNK
from pipeline.dataset import Catalogue, PackedDataset
from train.config import TrainConfig, load_recipe, recipe_names
from train.data import describe_sources
from train.distributed import BYTES_PER_WEIGHT, from_torchrun, num_parts
from train.hardware import DENSE_BF16_FLOPS, device_name, peak_flops
from train.optim import learning_rate_at

CPU_RECIPE = "demo"
LARGEST_CPU_PARAMETERS = 50_000_000
CPU_FLOPS_PER_CORE = 50e9  # A rough figure for float32 matrix work, to say how long a large model would take.
EXPECTED_UTILIZATION = 0.45  # Of the dense peak: what trainers of about 1B parameters publish lies from 0.39 to 0.56.
USUAL_GPUS = ("H200", "A100", "RTX 4090")
PLOT_ROWS, PLOT_COLUMNS = 8, 60
GIB = 1 << 30


def choose_recipe(data: str, *, device_type: str) -> tuple[str, str]:
    """The recipe for a run that names none, and a sentence that says why.

    On CUDA the one whose tokenizer and document rule are the dataset's; on a CPU the demo. Raises FileNotFoundError
    where there is no dataset.
    """
    content = Catalogue(data).content
    tokenizer = content["tokenizer"]["name"]
    fitting = [name for name in recipe_names() if name != CPU_RECIPE and _fits(load_recipe(name), content)]
    if not fitting:
        rule = content["document_rule"]
        return CPU_RECIPE, f"recipe {CPU_RECIPE}, as on a GPU: no other is for tokenizer {tokenizer} and {rule}"
    if device_type == "cuda":
        return fitting[0], f"recipe {fitting[0]}: it is for tokenizer {tokenizer}, which {data} has"
    return CPU_RECIPE, f"recipe {CPU_RECIPE}: there is no GPU; on one this data would take {fitting[0]}"


def refuse_data(config: TrainConfig, dataset: PackedDataset) -> None:
    """Raises ValueError if the dataset's tokenizer or document rule is not the recipe's."""
    name, sha256 = dataset.tokenizer["name"], dataset.tokenizer["sha256"]
    if config.tokenizer not in ("any", name, sha256):
        raise ValueError(
            f"{config.data} has tokenizer {name} ({sha256[:12]}), recipe {config.recipe} wants {config.tokenizer}:"
            f" build the data with --tokenizer {config.tokenizer}, or train with --recipe {CPU_RECIPE}"
            f" or --tokenizer {name}"
        )
    if config.document_rule not in ("any", dataset.document_rule):
        raise ValueError(
            f"{config.data} has document rule {dataset.document_rule}, recipe {config.recipe} wants"
            f" {config.document_rule}: build the data with --document-rule {config.document_rule},"
            f" or train with --document-rule {dataset.document_rule}"
        )


def refuse_cpu(config: TrainConfig, model_config: ModelConfig, *, device_type: str) -> None:
    """Raises ValueError if a large model would train on a CPU that nobody asked for."""
    num_parameters = model_config.num_parameters()
    if device_type != "cpu" or config.device == "cpu" or num_parameters <= LARGEST_CPU_PARAMETERS:
        return
    raise ValueError(
        f"recipe {config.recipe} has {num_parameters / 1e6:,.0f}M parameters and needs a GPU, and torch sees none:"
        f" here it would take about {_time_on_cpu(config, model_config)}. --device cpu goes on all the same,"
        f" --recipe {CPU_RECIPE} is for CPUs"
    )


def print_forecast(
    config: TrainConfig, model_config: ModelConfig, dataset: PackedDataset, *, device: torch.device
) -> None:
    """Say all of it. What does not fit together has been refused before."""
    ranks = from_torchrun("WORLD_SIZE", 1)
    print(f"recipe  {config.recipe}  model {model_config.num_parameters():,} parameters")
    print(f"steps   {config.num_steps:,} of {config.tokens_per_step:,} tokens, {config.tokens:,} wanted in all")
    print(f"        {ranks} ranks: {config.accumulation(ranks)} micro-batches of {config.micro_batch_size} each")
    for line in describe_sources(dataset, num_samples=config.num_steps * config.samples_per_step):
        print(f"source  {line}")
    print("\n".join(plot_schedule(config)))
    parts = num_parts(config.sharding, world_size=ranks)
    for name, num_bytes in estimate_memory(config, model_config, num_parts=parts).items():
        print(f"memory  {num_bytes / GIB:7.2f} GiB  {name}")
    for line in estimate_times(config, model_config, device=device, ranks=ranks):
        print(f"time    {line}")
    print("dry run: nothing was trained")


def plot_schedule(config: TrainConfig) -> list[str]:
    """The learning rate over the steps, as lines of text."""
    last = config.num_steps
    steps = [1 + round(column * (last - 1) / (PLOT_COLUMNS - 1)) for column in range(PLOT_COLUMNS)]
    rates = [learning_rate_at(step, config) for step in steps]
    lines = []
    for row in range(PLOT_ROWS, 0, -1):
        marks = "".join("#" if rate > config.learning_rate * (row - 0.5) / PLOT_ROWS else " " for rate in rates)
        lines.append(f"lr {config.learning_rate * row / PLOT_ROWS:8.2e} |{marks}")
    named = sorted({1, max(1, config.warmup_steps), last})
    lines.append("lr " + ", ".join(f"{learning_rate_at(step, config):.2e} at step {step:,}" for step in named))
    return lines


def estimate_memory(config: TrainConfig, model_config: ModelConfig, *, num_parts: int) -> dict[str, float]:
    """Bytes on each GPU by what takes them, for bfloat16 compute and weights in num_parts.

    Per token and block the backward pass keeps, in two bytes each: both norms' inputs and outputs, query, attention's
    output (6 widths), key and value, and three times the SwiGLU's width. Selective recomputation keeps the matrix
    products alone: 4 widths, key and value, two SwiGLU widths; full one width.
    """
    shape, tokens = model_config, config.micro_batch_size * config.seq_len
    kv = 2 * shape.num_kv_heads * shape.head_dim
    per_block = {
        "off": 6 * shape.hidden_size + kv + 3 * shape.intermediate_size,
        "selective": 5 * shape.hidden_size + kv + 2 * shape.intermediate_size,
        "full": shape.hidden_size,
    }[config.activation_checkpointing]
    parts = {
        "weights, gradients, AdamW's moments": BYTES_PER_WEIGHT * shape.num_parameters() / num_parts,
        "weights in bfloat16": 2.0 * shape.num_parameters(),
        "activations": 2.0 * tokens * shape.num_layers * per_block,
        "the loss: one chunk of logits, gradients of head and inputs": 8.0 * ROWS_PER_CHUNK["cuda"] * shape.vocab_size
        + 6.0 * shape.vocab_size * shape.hidden_size
        + 4.0 * tokens * shape.hidden_size,
    }
    return parts | {"in all, estimated": sum(parts.values())}


def estimate_times(
    config: TrainConfig, model_config: ModelConfig, *, device: torch.device, ranks: int
) -> Iterator[str]:
    """Tokens/s and days on this device, or where it is unknown, on usual GPUs."""
    flops = model_config.flops_per_token(config.seq_len)
    tokens = config.num_steps * config.tokens_per_step
    peak = peak_flops(device_name(device))
    peaks = {device_name(device): peak} if peak else {name: DENSE_BF16_FLOPS[name] for name in USUAL_GPUS}
    for name, each in peaks.items():
        speed = EXPECTED_UTILIZATION * each * ranks / flops
        days = tokens / speed / timedelta(days=1).total_seconds()
        yield (
            f"{ranks} x {name}: {speed:,.0f} tokens/s, {days:,.1f} days at {EXPECTED_UTILIZATION:.0%} of the dense peak"
        )


def _fits(config: TrainConfig, content: dict) -> bool:
    """Whether a recipe wants the tokenizer and the document rule that a dataset.json names."""
    tokenizer = content["tokenizer"]
    is_tokenizer = config.tokenizer in (tokenizer["name"], tokenizer["sha256"])
    return is_tokenizer and config.document_rule in ("any", content["document_rule"])


def _time_on_cpu(config: TrainConfig, model_config: ModelConfig) -> str:
    """How long the run would take on this machine's cores, in years or days."""
    flops = config.num_steps * config.tokens_per_step * model_config.flops_per_token(config.seq_len)
    days = flops / (CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / timedelta(days=1).total_seconds()
    return f"{days / 365:,.0f} years" if days > 730 else f"{max(days, 1):,.0f} days"
