"""What each lever of the trainer gives on one GPU: tokens per second, MFU, peak memory; each variant in a process of
its own, so that none is fuller than the first. The same on a CPU, at a small size, is how this file is tested."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import model.loss
from benchmarks.losses import compare_losses, use_loss
from benchmarks.train_run import base_config, open_run, print_table, run_steps, wait_for, write_figures
from model.transformer import Transformer
from train.config import TrainConfig, load_recipe
from train.distributed import device_name, peak_flops, stop_ranks
from train.metrics import METRICS, Record, read_metrics

GIB = 1 << 30
PATIENCE_SECONDS = 150
SECONDS_PER_STEP = 6
"""So long a process may take: to start and compile, and for each update (11,000 tokens/s of tinyllama-1.1b)."""
SECONDS_TO_END = 10
LEVERS: dict[str, dict[str, Any]] = {
    "within 40 GB, selective": {"activation_checkpointing": "selective", "limit_gb": 40},
    "within 24 GB, full": {"activation_checkpointing": "full", "micro_batch_size": 0.25, "limit_gb": 24},
    "twice the micro-batch": {"micro_batch_size": 2},
    "attention sdpa": {"attention": "sdpa"},
    "no compile": {"compile": "off"},
    "loss not compiled": {"loss": "ours"},
    "all logits at once": {"loss": "plain"},
    "no document mask": {"document_mask": "off"},
    "half the micro-batch": {"micro_batch_size": 0.5},
    "selective recomputation": {"activation_checkpointing": "selective"},
    "full recomputation": {"activation_checkpointing": "full"},
    "loss by 1,024 rows": {"rows_per_chunk": 1024},
    "torch's linear_cross_entropy": {"loss": "torch"},
    "four times the micro-batch": {"micro_batch_size": 4},
    "attention flash": {"attention": "flash"},
    "attention varlen": {"attention": "varlen"},
}
"""What each variant changes, those that are wanted most first; a micro-batch is a multiple of the recipe's, a limit is
put on torch's allocator."""


@dataclass(frozen=True)
class LeverSettings:
    """What is measured, and for how long."""

    recipe: str
    """A recipe's name, or a TOML file."""
    data: str
    """The dataset."""
    device: str
    """cpu or cuda."""
    accumulation: int
    """Micro-batches of the recipe's size in one update."""
    steps: int
    """Updates of the recipe that are timed."""
    lever_steps: int
    """Updates of each variant; 0: no variants."""
    only: Sequence[str]
    """The variants that are measured, the recipe among them if it is named; empty: all."""
    warmup: int
    """Updates before the time is taken."""
    minutes: float
    """No variant begins after so long."""
    json: Path | None
    """Where the figures go, after each variant."""


def measure_levers(settings: LeverSettings) -> dict[str, Any]:
    """Ways to the loss, the recipe, and variants, as many as there is time for; printed and written as they come."""
    started = time.monotonic()
    name = device_name(torch.device(settings.device))
    figures: dict[str, Any] = {
        "date": date.today().isoformat(), "recipe": settings.recipe, "device": name,
        "torch": torch.__version__, "variants": {},
    }  # fmt: skip
    if not settings.only:
        figures["losses"] = measure_apart(compare_losses, settings.recipe, settings.device, seconds=PATIENCE_SECONDS)
        write_figures(settings.json, figures)
    variants = {"recipe": {}} | (LEVERS if settings.lever_steps else {})
    variants = {variant: variants[variant] for variant in settings.only or variants}
    for variant, changes in variants.items():
        num_steps = settings.steps if variant == "recipe" else settings.lever_steps
        if time.monotonic() - started > 60 * settings.minutes:
            row: dict[str, Any] = {"error": f"not measured: --minutes {settings.minutes:g} were over"}
        else:
            seconds = PATIENCE_SECONDS + SECONDS_PER_STEP * (settings.warmup + num_steps)
            row = measure_apart(measure_variant, settings, changes, num_steps, seconds=seconds)
        figures["variants"][variant] = row
        print(f"{time.monotonic() - started:5.0f} s  {variant}: {row}", flush=True)
        write_figures(settings.json, figures)
    print_levers(figures)
    return figures


def measure_apart(measure: Callable[..., dict[str, Any]], *arguments: Any, seconds: float) -> dict[str, Any]:
    """What `measure` gives in a process of its own; or how it failed, died, or did not end within so many seconds."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=send_figures, args=(sender, measure, arguments))
    process.start()
    sender.close()  # here, so that the end of the process ends the pipe
    try:
        figures = receiver.recv() if receiver.poll(seconds) else {"error": f"no end within {seconds:,.0f} s"}
    except EOFError:
        process.join()
        figures = {"error": f"the process ended with {process.exitcode}"}
    process.join(SECONDS_TO_END)
    process.kill()
    process.join()
    return figures


def send_figures(sender: Connection, measure: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> None:
    """The work of that process: whatever goes wrong in it is a finding."""
    try:
        sender.send(measure(*arguments))
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})


def measure_variant(settings: LeverSettings, changes: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Tokens per second, MFU and peak memory."""
    changes = dict(changes)
    if "loss" in changes:
        use_loss(changes.pop("loss"))
    model.loss.ROWS_PER_CHUNK[settings.device] = changes.pop(
        "rows_per_chunk", model.loss.ROWS_PER_CHUNK[settings.device]
    )
    limit_memory(changes.pop("limit_gb", None), device=settings.device)
    draw_weights_on(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        config = base_config(settings.recipe, data=settings.data, out=Path(folder), device=settings.device)
        rows = max(1, int(config.micro_batch_size * changes.pop("micro_batch_size", 1)))
        tokens_per_step = settings.accumulation * config.micro_batch_size * config.seq_len
        steps = settings.warmup + num_steps
        config = replace(config, micro_batch_size=rows, tokens_per_step=tokens_per_step, steps=steps, **changes)
        try:
            return time_steps(config, warmup=settings.warmup, num_steps=num_steps)
        finally:
            stop_ranks(in_order=False)


def limit_memory(limit_gb: float | None, *, device: str) -> None:
    """Let torch's allocator take so much of the GPU at most; there is none on a CPU."""
    if limit_gb and device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * 1e9 / total))


def draw_weights_on(device: str) -> None:
    """Let the device draw a model's first weights: the trainer's own, the same everywhere, take 7 s of a CPU for 1.1B,
    in each of the processes."""

    def draw(self: Transformer, seed: int, *, write: Callable[[Tensor, Tensor], None]) -> None:
        for parameter in self.parameters():
            is_norm = parameter.ndim == 1
            full = torch.ones if is_norm else torch.randn
            write(parameter, full(parameter.shape, device=device) * (1.0 if is_norm else 0.02))

    Transformer.init_weights = torch.no_grad()(draw)


def time_steps(config: TrainConfig, *, warmup: int, num_steps: int) -> dict[str, Any]:
    """The figures of one configuration, by the clock."""
    run = open_run(config)
    device = run.placement.device
    started = time.perf_counter()
    for step, _ in enumerate(run_steps(run, num_steps=warmup + num_steps), start=1):
        if step == warmup:
            wait_for(device)
            started = time.perf_counter()
    wait_for(device)
    speed = num_steps * config.tokens_per_step / (time.perf_counter() - started)
    flops, peak = run.model.config.flops_per_token(config.seq_len), peak_flops(device_name(device))
    return {
        "tokens_per_second": speed,
        "mfu": speed * flops / peak if peak else None,
        "flops_per_token": flops,
        "peak_gib": torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else 0,
        "data_wait": share_waited(read_metrics(config.out / METRICS)[1:]),  # not the first, which compiles
        "attention": run.model.attention_backend,
        "micro_batch_size": config.micro_batch_size,
        "tokens_per_step": config.tokens_per_step,
        "steps": num_steps,
    }


def share_waited(records: Sequence[Record]) -> float | None:
    """The share of the steps' time in which data was waited for; None without a record."""
    seconds = sum(record["step_seconds"] for record in records)
    return sum(record["data_seconds"] for record in records) / seconds if records else None


def print_levers(figures: dict[str, Any]) -> None:
    """The table, and the formula."""
    variants = figures["variants"]
    whole = variants.get("recipe", {}).get("tokens_per_second")
    rows = [["variant", "micro-batch", "attention", "tokens/s", "of the recipe", "MFU", "peak GiB"]]
    for variant, row in variants.items():
        if "error" in row:
            rows.append([variant, row["error"][:50], "", "", "", "", ""])
            continue
        speed, mfu = row["tokens_per_second"], row["mfu"]
        share = f"{speed / whole:.2f}" if whole else ""
        utilization = "unknown" if mfu is None else f"{mfu:.1%}"
        memory = f"{row['peak_gib']:.1f}" if row["peak_gib"] else ""
        batch = str(row["micro_batch_size"])
        rows.append([variant, batch, row["attention"], f"{speed:,.0f}", share, utilization, memory])
    seq_len = load_recipe(figures["recipe"]).seq_len
    print_table(f"{figures['recipe']}, {seq_len:,} tokens a window, on one {figures['device']}", rows)
    if whole:
        flops, peak = variants["recipe"]["flops_per_token"], peak_flops(figures["device"])
        print(f"MFU = tokens/s * {flops:,} / {'an unknown peak' if peak is None else f'{peak:.4g}'}")
