"""How fast training is, and what each lever gives.

    python benchmarks/train.py --data data/packed --json benchmarks/results/train-h200.json
    python benchmarks/train.py --recipe litellama-460m --data data/gpt2 --json benchmarks/results/train-lite.json
    python benchmarks/train.py --device cpu --data data/demo

On a GPU: tokens per second, MFU and peak memory of the recipe over --steps updates after --warmup, then of variants
over --lever-steps, each in a process of its own. MFU = tokens/s * flops per token / dense bfloat16 peak, with flops
per token = 6 * matmul weights + 12 * layers * width * seq_len, not halved for causality (PaLM's convention).

On a CPU, at the demo size, in turns on one thread: our trainer with all that it does, the same model with nothing
around it, and plain PyTorch in nanoGPT's style (plain_llama.py). Figures are CPU time, which other programs on the
machine move less than the clock.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/train.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
import torch.nn.functional as F
import tyro
from rich.table import Table
from torch import Tensor

import model.transformer
from benchmarks.plain_llama import PlainShape, PlainTrainer
from model.config import named_size
from model.loss import IGNORED
from pipeline.dataset import PackedDataset
from pipeline.progress import make_console
from train.config import TrainConfig, load_recipe
from train.data import RankReader, document_mask_of
from train.distributed import resolve_device, start_ranks, stop_ranks
from train.hardware import device_name, flops_utilization, peak_flops
from train.loop import count_step, log, measure, train_step
from train.metrics import Meter
from train.optim import clip_gradients, update_weights
from train.run import Run, start_run
from train.signals import StopRequest

GIB = 1 << 30
MANY_STEPS = 1_000_000
ACCUMULATION = 8
"""Micro-batches of one update, as TinyLlama had."""
LEVERS: dict[str, dict[str, Any]] = {
    "attention sdpa": {"attention": "sdpa"},
    "attention varlen": {"attention": "varlen"},
    "attention flash": {"attention": "flash"},
    "no document mask": {"document_mask": "off"},
    "no compile": {"compile": "off"},
    "torch's linear_cross_entropy": {"loss": "torch"},
    "all logits at once": {"loss": "plain"},
    "half the micro-batch": {"micro_batch_size": 0.5},
    "twice the micro-batch": {"micro_batch_size": 2},
    "four times the micro-batch": {"micro_batch_size": 4},
    "selective recomputation": {"activation_checkpointing": "selective"},
    "full recomputation": {"activation_checkpointing": "full"},
    "within 40 GB": {"activation_checkpointing": "selective", "limit_gb": 40},
    "within 24 GB": {"activation_checkpointing": "full", "micro_batch_size": 0.25, "limit_gb": 24},
}
"""What each variant changes; a micro-batch is a multiple of the recipe's, a limit is put on torch's allocator."""


@dataclass(frozen=True)
class TrainBenchmarkFlags:
    """Measure training."""

    data: Path
    """A finished dataset whose vocabulary is no larger than the model's."""
    recipe: str = "tinyllama-1.1b"
    """The recipe; on a CPU always the demo."""
    device: str = "auto"
    """auto, cpu or cuda."""
    steps: int = 200
    """Updates that are timed: of the recipe on a GPU, in all rounds together on a CPU."""
    warmup: int = 10
    """Updates before the time is taken."""
    lever_steps: int = 20
    """Updates of each variant; 0: no variants."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    flags = tyro.cli(TrainBenchmarkFlags)
    is_cuda = resolve_device(flags.device) == "cuda"
    figures = measure_gpu(flags) if is_cuda else measure_cpu(flags)
    if flags.json:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def base_config(flags: TrainBenchmarkFlags, out: Path, *, device_type: str) -> TrainConfig:
    """The recipe for a number of steps on this data, with nothing saved or validated on the way."""
    recipe = load_recipe(flags.recipe if device_type == "cuda" else "demo")
    config = replace(recipe, data=flags.data, out=out, device=device_type, valid_every=0, log_every=10)
    return replace(config, tokenizer="any", document_rule="any", warmup_steps=0, checkpoint_every=1 << 40)


def open_run(config: TrainConfig) -> Run:
    """A run from its first step. Its model has the named size's vocabulary, whatever the data's."""
    dataset = PackedDataset(config.data, seq_len=config.seq_len, seed=config.seed)
    shape = named_size(config.model)
    if dataset.vocab_size > shape.vocab_size:
        shape = config.model_config(dataset.vocab_size)
    return start_run(config, shape, dataset, placement=start_ranks(config.device))


def run_steps(run: Run, *, num_steps: int) -> Iterator[None]:
    """What train/loop.py does in each step, one step for each value."""
    stop, meter = StopRequest(world_size=run.placement.world_size), Meter()
    reader = RankReader(run.dataset, run.config, run.placement)
    for batch in meter.watch(reader.read_steps(run.manifest.position, num_steps=num_steps)):
        loss, grad_norm = train_step(run, batch, learning_rate=run.config.learning_rate / 10, stop=stop)
        count_step(run)
        if run.step % run.config.log_every == 0:
            log(run, measure(run, meter, loss=loss, grad_norm=grad_norm, learning_rate=0.0), [])
        yield


def measure_gpu(flags: TrainBenchmarkFlags) -> dict[str, Any]:
    """The recipe and its variants, each in a process of its own, so that none is fuller than the first."""
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {}
    variants = {"recipe": {}} | (LEVERS if flags.lever_steps else {})
    for name, changes in variants.items():
        num_steps = flags.steps if name == "recipe" else flags.lever_steps
        with context.Pool(1) as pool:
            figures[name] = pool.apply(measure_variant, (flags, changes, num_steps))
        print(f"{name}: {figures[name]}", flush=True)
    print_gpu(flags, figures)
    return {"recipe": flags.recipe, "device": torch.cuda.get_device_name(), "torch": torch.__version__, **figures}


def measure_variant(flags: TrainBenchmarkFlags, changes: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Tokens per second, MFU and peak memory; or what stood in the way."""
    changes = dict(changes)
    use_loss(changes.pop("loss", "ours"))
    if limit_gb := changes.pop("limit_gb", None):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * 1e9 / total))
    with tempfile.TemporaryDirectory() as folder:
        config = base_config(flags, Path(folder), device_type="cuda")
        rows = max(1, int(config.micro_batch_size * changes.pop("micro_batch_size", 1)))
        tokens_per_step = ACCUMULATION * config.micro_batch_size * config.seq_len
        config = replace(config, micro_batch_size=rows, tokens_per_step=tokens_per_step, **changes)
        try:
            return time_gpu(replace(config, steps=MANY_STEPS), warmup=flags.warmup, num_steps=num_steps)
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:  # out of memory is a RuntimeError
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        finally:
            stop_ranks(in_order=False)


def time_gpu(config: TrainConfig, *, warmup: int, num_steps: int) -> dict[str, Any]:
    """The figures of one configuration, by the clock."""
    run = open_run(config)
    for step, _ in enumerate(run_steps(run, num_steps=warmup + num_steps), start=1):
        if step == warmup:
            torch.cuda.synchronize()
            started = time.perf_counter()
    torch.cuda.synchronize()
    speed = num_steps * config.tokens_per_step / (time.perf_counter() - started)
    flops = run.model_config.flops_per_token(config.seq_len)
    name = device_name(run.placement.device)
    return {
        "tokens_per_second": speed,
        "mfu": flops_utilization(speed, flops_per_token=flops, num_devices=1, name=name),
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "attention": run.model.attention_backend,
        "micro_batch_size": config.micro_batch_size,
        "steps": num_steps,
    }


def use_loss(kind: str) -> None:
    """Put another cross-entropy into the model: torch's fused one (2.13 and later), or all logits at once."""

    def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        options = F.LinearCrossEntropyOptions() if hasattr(F, "LinearCrossEntropyOptions") else None
        return F.linear_cross_entropy(
            hidden, weight, targets, reduction="sum", ignore_index=IGNORED, options=options
        ).float()

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum", ignore_index=IGNORED)

    if kind != "ours":
        model.transformer.linear_cross_entropy = {"torch": fused, "plain": plain}[kind]


def print_gpu(flags: TrainBenchmarkFlags, figures: dict[str, Any]) -> None:
    """The table, and the formula."""
    name, shape = torch.cuda.get_device_name(), named_size(load_recipe(flags.recipe).model)
    seq_len = load_recipe(flags.recipe).seq_len
    table = Table("variant", "tokens/s", "of the recipe", "MFU", "peak GiB", title=f"{flags.recipe} on one {name}")
    whole = figures["recipe"].get("tokens_per_second")
    for variant, row in figures.items():
        if "error" in row:
            table.add_row(variant, row["error"][:60], "", "", "")
            continue
        speed, mfu = row["tokens_per_second"], row["mfu"]
        share = f"{speed / whole:.2f}" if whole else ""
        utilization = "unknown GPU" if mfu is None else f"{mfu:.1%}"
        table.add_row(variant, f"{speed:,.0f}", share, utilization, f"{row['peak_gib']:.1f}")
    make_console().print(table)
    print(f"MFU = tokens/s * {shape.flops_per_token(seq_len):,} / {peak_flops(name)}")


def measure_cpu(flags: TrainBenchmarkFlags, *, num_rounds: int = 5) -> dict[str, Any]:
    """CPU milliseconds of a step of each contender, in turns; the median of the rounds, and the ratios."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = replace(base_config(flags, Path(folder), device_type="cpu"), log_every=1, steps=MANY_STEPS)
        config = replace(config, tokens_per_step=config.micro_batch_size * config.seq_len)
        run = open_run(config)
        stack.callback(stop_ranks, in_order=True)
        trainer, unmasked = run_steps(run, num_steps=MANY_STEPS), run_steps(without_mask(run), num_steps=MANY_STEPS)
        plain = open_plain(run)
        contenders: dict[str, Callable[[], Any]] = {
            "trainer": lambda: next(trainer),
            "model alone": model_alone(run),
            "trainer, no document mask": lambda: next(unmasked),
            "plain PyTorch": plain.step,
        }
        times: dict[str, list[float]] = {name: [] for name in contenders}
        with redirect_stdout(StringIO()):  # the trainer's lines are a part of its work, not of this table
            for step in contenders.values():
                time_cpu(step, num_steps=flags.warmup)
            for _ in range(num_rounds):
                for name, step in contenders.items():
                    times[name].append(time_cpu(step, num_steps=max(1, flags.steps // num_rounds)))
    figures = {name: median(values) for name, values in times.items()}
    overhead = 1 - median(a / b for a, b in zip(times["model alone"], times["trainer"], strict=True))
    ratio = median(a / b for a, b in zip(times["plain PyTorch"], times["trainer, no document mask"], strict=True))
    table = Table("contender", "CPU ms per step", title=f"demo size, {config.tokens_per_step:,} tokens a step")
    for name, seconds in figures.items():
        table.add_row(name, f"{1e3 * seconds:.1f}")
    make_console().print(table)
    print(f"overhead outside the model: {overhead:.1%} of the step; plain PyTorch takes {ratio:.2f} times our step")
    return {"cpu_seconds_per_step": figures, "overhead": overhead, "plain_over_ours": ratio}


def time_cpu(step: Callable[[], Any], *, num_steps: int) -> float:
    """CPU seconds of one step, all threads of this process together."""
    started = time.process_time()
    for _ in range(num_steps):
        step()
    return (time.process_time() - started) / num_steps


def without_mask(run: Run) -> Run:
    """The same run with documents that see each other, as the peer has it."""
    return replace(run, config=replace(run.config, document_mask="off"))


def model_alone(run: Run) -> Callable[[], None]:
    """One step of the model on a batch that is at hand: forward, backward, clip, update."""
    (micro_batch,) = RankReader(run.dataset, run.config, run.placement).read_step(0)
    on_device = micro_batch.to(run.placement.device)
    documents = document_mask_of(on_device, backend=run.model.attention_backend)
    none_skipped = torch.tensor(False)

    def step() -> None:
        loss = run.model(on_device.inputs, targets=on_device.targets, documents=documents) / run.config.tokens_per_step
        loss.backward()
        clip_gradients(run.model, run.config.grad_clip)
        update_weights(run.optimizer, is_skipped=none_skipped)

    return step


def open_plain(run: Run) -> PlainTrainer:
    """The peer with the same shape on the same dataset's first shard."""
    shape, dataset = run.model_config, run.dataset
    windows = next(iter(dataset.windows.values()))
    return PlainTrainer(
        PlainShape(
            shape.vocab_size, shape.hidden_size, shape.intermediate_size, shape.num_layers, shape.num_heads,
            shape.num_kv_heads, shape.norm_eps, shape.rope_base,
        ),
        shard=dataset.path / windows.shards[0]["path"],
        dtype=dataset.dtype,
        length=dataset.seq_len,
        num_rows=run.config.micro_batch_size,
    )  # fmt: skip


if __name__ == "__main__":
    main()
