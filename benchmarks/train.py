"""How fast training is, and what each lever gives.

    python benchmarks/train.py --data data/packed --json benchmarks/results/train-h200.json
    python benchmarks/train.py --recipe litellama-460m --json benchmarks/results/train-lite.json
    python benchmarks/train.py --device cpu --data data/demo

On a GPU (train_levers.py): tokens per second, MFU and peak memory of the recipe over --steps updates after --warmup,
then of variants over --lever-steps, in about ten minutes (--minutes). MFU = tokens/s * flops per token / dense bfloat16
peak, with flops per token = 6 * matmul weights + 12 * layers * width * seq_len, not halved for causality (PaLM's
convention). Needs torch and numpy alone. Without --data documents are made up, as long as the web's. Each row is
printed, and written to --json, when it is measured; one that fails, dies or hangs is a row that says so.

On a CPU, at the demo size, in turns on one thread: our trainer with all that it does, the same model with nothing
around it, and plain PyTorch in nanoGPT's style (plain_llama.py). Figures are CPU time, which other programs on the
machine move less than the clock.

On both: the ways to the loss (losses.py), in time and peak memory.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/train.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks.losses import compare_losses
from benchmarks.plain_llama import PlainShape, PlainTrainer
from benchmarks.train_levers import LEVERS, LeverSettings, measure_levers
from benchmarks.train_run import base_config, make_dataset, open_run, print_table, run_steps, write_figures
from model.config import named_size
from train.config import load_recipe
from train.data import RankReader
from train.distributed import resolve_device, stop_ranks
from train.optim import clip_gradients, update_weights
from train.run import Run

MANY_STEPS = 1_000_000


def read_flags() -> argparse.Namespace:
    """The flags; by argparse, which needs no package."""
    parser = argparse.ArgumentParser(description="Measure training.")
    parser.add_argument("--data", help="a finished dataset, its vocabulary the model's at most; default: made up")
    parser.add_argument("--recipe", default="tinyllama-1.1b", help="on a CPU always the demo")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=200, help="updates that are timed; on a CPU in all rounds")
    parser.add_argument("--warmup", type=int, default=5, help="updates before the time is taken")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of the recipe's size in an update")
    parser.add_argument("--lever-steps", type=int, default=10, help="updates of each variant; 0: no variants")
    parser.add_argument("--minutes", type=float, default=8, help="no variant begins after so long")
    names = ("recipe", *LEVERS)
    parser.add_argument("--only", nargs="+", default=(), choices=names, metavar="VARIANT", help=", ".join(names))
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def main() -> None:
    """The command."""
    flags = read_flags()
    device = resolve_device(flags.device)
    recipe = flags.recipe if device == "cuda" else "demo"
    with tempfile.TemporaryDirectory() as folder:
        num_micro_batches = (flags.steps + 100) * flags.accumulation
        data = flags.data or make_up_data(recipe, Path(folder) / "data", num_micro_batches=num_micro_batches)
        if device == "cuda":
            measure_gpu(flags, data)
        else:
            losses = compare_losses(recipe, device)
            write_figures(flags.json, measure_cpu(flags, data) | {"losses": losses})


def make_up_data(recipe: str, folder: Path, *, num_micro_batches: int) -> str:
    """Enough for the steps without a second epoch, for the recipe's vocabulary. Returns its folder."""
    config = load_recipe(recipe)
    num_tokens = num_micro_batches * config.micro_batch_size * config.seq_len
    print(f"data: none given, {num_tokens:,} tokens are made up", flush=True)
    return make_dataset(folder, vocab_size=named_size(config.model).vocab_size, num_tokens=num_tokens)


def measure_gpu(flags: argparse.Namespace, data: str) -> None:
    """The ways to the loss, the recipe and its levers, each in a process of its own."""
    settings = LeverSettings(
        recipe=flags.recipe, data=data, device="cuda", accumulation=flags.accumulation, steps=flags.steps,
        lever_steps=flags.lever_steps, only=flags.only, warmup=flags.warmup, minutes=flags.minutes, json=flags.json,
    )  # fmt: skip
    measure_levers(settings)


def measure_cpu(flags: argparse.Namespace, data: str, *, num_rounds: int = 5) -> dict[str, Any]:
    """CPU milliseconds of a step of each contender, in turns; the median of the rounds, and the ratios."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        config = base_config("demo", data=data, out=Path(folder), device="cpu")
        tokens_per_step = config.micro_batch_size * config.seq_len
        run = open_run(replace(config, log_every=1, steps=MANY_STEPS, tokens_per_step=tokens_per_step))
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
    rows = [["contender", "CPU ms per step"], *([name, f"{1e3 * seconds:.1f}"] for name, seconds in figures.items())]
    print_table(f"demo size, {tokens_per_step:,} tokens a step", rows)
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
    none_skipped = torch.tensor(False)

    def step() -> None:
        loss = run.model(on_device.inputs, targets=on_device.targets, cu_seqlens=on_device.cu_seqlens)
        (loss / run.config.tokens_per_step).backward()
        clip_gradients(run.model, run.config.grad_clip)
        update_weights(run.optimizer, learning_rate=run.config.learning_rate, is_skipped=none_skipped)

    return step


def open_plain(run: Run) -> PlainTrainer:
    """The peer with the same shape on the same dataset's first shard."""
    shape, dataset = run.model.config, run.dataset
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
