"""Train a model from packed shards.

    torchrun --nproc-per-node 8 train/main.py --data data/packed --recipe tinyllama-1.1b --out runs/tiny

Every field of TrainConfig is a flag. The same command again goes on from the newest checkpoint of --out. What does not
fit together is refused before any training; --dry-run says what the run would be, memory and time by formula.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # started as `python train/main.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from model.attention import choose_backend
from model.config import ModelConfig
from model.loss import ROWS_PER_CHUNK
from pipeline.dataset import Catalogue, PackedDataset
from train import distributed
from train.config import TrainConfig, load_recipe, read_flags, recipe_names
from train.data import describe_sources, open_dataset, refuse_end
from train.loop import train
from train.optim import learning_rate_at
from train.run import claimed, start_run

HELP = {"-h", "--help"}
ADVICE = {  # By words of an error of torch.
    "MemoryError|allocate memory": "out of memory: use a smaller --micro-batch-size or --activation-checkpointing full",
    "(closed|reset) by peer|Broken pipe": "another rank has ended, see torchrun's report; the same command goes on",
}
CPU_RECIPE = "demo"
LARGEST_CPU_PARAMETERS = 50_000_000
CPU_FLOPS_PER_CORE = 50e9  # A rough figure for float32 matrix work, to say how long a large model would take.
EXPECTED_MFU = 0.45  # Of the dense peak: trainers of about 1B parameters publish 0.39 to 0.56; ours 0.45 and 0.52.
USUAL_GPUS = ("H200", "A100", "RTX 4090")
PLOT_ROWS, PLOT_COLUMNS = 8, 60
SECONDS_PER_DAY = 24 * 3600


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the flags say. Returns the exit code; what the user can mend is one line on stderr."""
    is_finished = False
    try:
        config, device_type = read_config(sys.argv[1:] if arguments is None else arguments)
        config.check()
        config.accumulation(distributed.from_torchrun("WORLD_SIZE", 1))
        dataset = open_dataset(config.data, config.as_json())
        if misfit := find_misfit(config, dataset):
            raise ValueError(misfit)
        refuse_end(dataset, config)
        shape = config.model_config(dataset.vocab_size)
        choose_backend(config.attention, device_type=device_type)  # refused here, where all ranks are refused alike
        if config.dry_run:
            print_forecast(config, shape, dataset, device_type=device_type)
            return 0
        refuse_cpu(config, shape, device_type=device_type)
        with distributed.StopRequest() as stop:
            placement = distributed.start_ranks(device_type)
            with claimed(config.out, placement=placement):
                train(start_run(config, shape, dataset, placement=placement), stop=stop)
        is_finished = True
    except (ValueError, OSError) as error:
        distributed.print_error(error)
        return 1
    except (RuntimeError, MemoryError) as error:
        advice = [each for words, each in ADVICE.items() if re.search(words, repr(error))]
        if not advice:
            raise
        distributed.print_error(f"{advice[0]} ({error})")
        return 1
    finally:
        distributed.stop_ranks(in_order=is_finished)
    return 0


def read_config(arguments: Sequence[str]) -> tuple[TrainConfig, str]:
    """The settings (defaults < recipe < flags) and the device's type. The flags are read twice: first to learn the
    recipe, or the data and the device that decide it. --help shows its values, or the demo's where none is named."""
    speaks = distributed.from_torchrun("RANK", 0) == 0
    flags = read_flags([word for word in arguments if word not in HELP], defaults=TrainConfig(), speaks=speaks)
    recipe = flags.recipe or (None if HELP.isdisjoint(arguments) else CPU_RECIPE)
    if recipe is None:
        recipe, reason = choose_recipe(flags.data, device_type=distributed.resolve_device(flags.device))
        if speaks:
            print(reason, flush=True)
    defaults = load_recipe(recipe)
    config = read_flags(arguments, defaults=defaults, speaks=speaks)
    if config.tokens_per_step > 0 and 0 < config.num_steps <= config.warmup_steps == defaults.warmup_steps:
        config = replace(config, warmup_steps=config.num_steps // 10)  # of a run that was made short
        if speaks:
            print(f"warmup  {config.warmup_steps} steps, not {defaults.warmup_steps}: the run has {config.num_steps:,}")
    out = config.out or Path("runs") / Path(recipe).name.removesuffix(".toml")
    return replace(config, out=out), distributed.resolve_device(config.device)


def choose_recipe(data: str, *, device_type: str) -> tuple[str, str]:
    """The recipe for a run that names none, and a sentence that says why: on CUDA the one whose tokenizer and document
    rule are the dataset's, on a CPU the demo. Raises FileNotFoundError where there is no dataset."""
    catalogue = Catalogue(data)
    tokenizer, rule = catalogue.tokenizer["name"], catalogue.document_rule
    fitting = [name for name in recipe_names() if name != CPU_RECIPE and not find_misfit(load_recipe(name), catalogue)]
    if not fitting:
        return CPU_RECIPE, f"recipe {CPU_RECIPE}, as on a GPU: no other is for tokenizer {tokenizer} and {rule}"
    if device_type == "cuda":
        return fitting[0], f"recipe {fitting[0]}: it is for tokenizer {tokenizer}, which {data} has"
    return CPU_RECIPE, f"recipe {CPU_RECIPE}: there is no GPU; on one this data would take {fitting[0]}"


def find_misfit(config: TrainConfig, dataset: Catalogue) -> str | None:
    """What of a dataset's tokenizer and document rule is not the recipe's, and what to do; None if all is."""
    tokenizer, sha256 = dataset.tokenizer["name"], dataset.tokenizer["sha256"]
    parts = (
        ("tokenizer", config.tokenizer, (tokenizer, sha256, "any")),
        ("vocabulary", config.vocabulary, (dataset.vocab_size, None)),
        ("document-rule", config.document_rule, (dataset.document_rule, "any")),
    )
    misfits = [(flag, wanted, fitting[0]) for flag, wanted, fitting in parts if wanted not in fitting]
    if not misfits:
        return None
    found = ", ".join(f"{flag.replace('-', ' ')} {here}" for flag, _, here in misfits)
    build = " ".join(f"--{flag} {wish}" for flag, wish, _ in misfits if flag != "vocabulary") or "that tokenizer"
    flags = " ".join(f"--{flag} {here}" for flag, _, here in misfits)
    return (
        f"{config.data} (tokenizer {tokenizer}, {sha256[:12]}) has {found},"
        f" recipe {config.recipe} wants {', '.join(str(wish) for _, wish, _ in misfits)}:"
        f" build the data with {build}, or train with --recipe {CPU_RECIPE} or {flags}"
    )


def refuse_cpu(config: TrainConfig, model_config: ModelConfig, *, device_type: str) -> None:
    """Raises ValueError if a large model would train on a CPU that nobody asked for."""
    num_parameters = model_config.num_parameters()
    if device_type != "cpu" or config.device == "cpu" or num_parameters <= LARGEST_CPU_PARAMETERS:
        return
    flops = config.num_steps * config.tokens_per_step * model_config.flops_per_token(config.seq_len)
    days = flops / (CPU_FLOPS_PER_CORE * (os.cpu_count() or 1)) / SECONDS_PER_DAY
    time = f"{days / 365:,.0f} years" if days > 730 else f"{max(days, 1):,.0f} days"
    raise ValueError(
        f"recipe {config.recipe} has {num_parameters / 1e6:,.0f}M parameters and needs a GPU, and torch sees none:"
        f" here it would take about {time}. --device cpu goes on all the same, --recipe {CPU_RECIPE} is for CPUs"
    )


def print_forecast(config: TrainConfig, model_config: ModelConfig, dataset: PackedDataset, *, device_type: str) -> None:
    """Say what the run would be, on rank 0. What does not fit together has been refused before."""
    if distributed.from_torchrun("RANK", 0):
        return
    ranks = distributed.from_torchrun("WORLD_SIZE", 1)
    print(f"{config.as_text()}\nrecipe  {config.recipe}  model {model_config.num_parameters():,} parameters")
    total = config.num_steps * config.tokens_per_step
    print(f"steps   {config.num_steps:,} of {config.tokens_per_step:,} tokens, {total:,} in all")
    print(f"        {ranks} ranks: {config.accumulation(ranks)} micro-batches of {config.micro_batch_size} each")
    sources = describe_sources(dataset, num_samples=config.num_steps * config.samples_per_step)
    print(*sources, *plot_schedule(config), sep="\n")
    device = torch.device(device_type)
    for name, num_bytes in estimate_memory(config, model_config, device=device, ranks=ranks).items():
        if num_bytes:
            print(f"memory  {num_bytes / 2**30:7.2f} GiB  {name}")
    for line in estimate_times(config, model_config, device_name=distributed.device_name(device), ranks=ranks):
        print(f"time    {line}")
    print("dry run: nothing was trained")


def plot_schedule(config: TrainConfig) -> list[str]:
    """The learning rate over the steps, as lines of text."""
    last = config.num_steps
    rates = [learning_rate_at(1 + column * (last - 1) // (PLOT_COLUMNS - 1), config) for column in range(PLOT_COLUMNS)]
    lines = []
    for row in range(PLOT_ROWS, 0, -1):
        marks = "".join("#" if rate > config.learning_rate * (row - 0.5) / PLOT_ROWS else " " for rate in rates)
        lines.append(f"lr {config.learning_rate * row / PLOT_ROWS:8.2e} |{marks}")
    named = sorted({1, max(1, config.warmup_steps), last})
    lines.append("lr " + ", ".join(f"{learning_rate_at(step, config):.2e} at step {step:,}" for step in named))
    return lines


def estimate_memory(config: TrainConfig, shape: ModelConfig, *, device: torch.device, ranks: int) -> dict[str, float]:
    """Bytes on each GPU by what takes them, for bfloat16 compute. Per token and block the backward pass keeps, in two
    bytes each: both norms' inputs and outputs, query, attention's output (6 widths), key and value, and three times the
    SwiGLU's width. Selective recomputation keeps the matrix products alone: 4 widths, key and value, two SwiGLU widths;
    full one width. Gradients of the parts that other ranks hold stay between micro-batches where exchange_gradients
    lets them; without a GPU here to tell, they are counted."""
    parts = distributed.num_parts(config, shape, device=device, world_size=ranks)
    keeps_gradients = device.type == "cpu" or distributed.takes_little(distributed.BYTES_GATHERED, shape, device=device)
    share_of_others = 1 - 1 / parts if keeps_gradients and config.accumulation(ranks) > 1 else 0.0
    tokens, kv = config.micro_batch_size * config.seq_len, 2 * shape.num_kv_heads * shape.head_dim
    per_block = {
        "off": 6 * shape.hidden_size + kv + 3 * shape.intermediate_size,
        "selective": 5 * shape.hidden_size + kv + 2 * shape.intermediate_size,
        "full": shape.hidden_size,
    }[config.activation_checkpointing]
    head = shape.vocab_size * shape.hidden_size
    of_logit = 4.0 if distributed.is_compiled(config, torch.device("cuda")) else 12.0
    of_loss = of_logit * ROWS_PER_CHUNK["cuda"] * shape.vocab_size + 6.0 * head + 4.0 * tokens * shape.hidden_size
    takers = {
        "weights, gradients, AdamW's moments": distributed.BYTES_PER_WEIGHT * shape.num_parameters() / parts,
        "gradients of the other ranks' weights, between micro-batches": 4.0 * share_of_others * shape.num_parameters(),
        "weights in bfloat16": 2.0 * shape.num_parameters(),
        "activations": 2.0 * tokens * shape.num_layers * per_block,
        "the loss: one chunk of logits, gradients of head and inputs": of_loss,
    }
    return takers | {"in all, estimated": sum(takers.values())}


def estimate_times(config: TrainConfig, shape: ModelConfig, *, device_name: str, ranks: int) -> Iterator[str]:
    """Tokens/s and days on this device, or where it is unknown, on usual GPUs."""
    for name in (device_name,) if distributed.peak_flops(device_name) else USUAL_GPUS:
        speed = EXPECTED_MFU * distributed.peak_flops(name) * ranks / shape.flops_per_token(config.seq_len)
        days = config.num_steps * config.tokens_per_step / speed / SECONDS_PER_DAY
        yield f"{ranks} x {name}: {speed:,.0f} tokens/s, {days:,.1f} days at {EXPECTED_MFU:.0%} of the dense peak"


if __name__ == "__main__":
    distributed.end_process(main)
