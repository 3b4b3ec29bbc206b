"""Ways to a loss from hidden states: ours, on a GPU compiled as the trainer has it, torch's own (2.13 and later), all
logits at once. Time and memory of each.

A step is forward and backward, in turns in one process; the peak is what it adds to what it was given.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import model.transformer
from benchmarks.train_run import print_table, wait_for
from model.config import named_size
from model.loss import IGNORED, Scorer, linear_cross_entropy, score_rows_at_once
from train.config import load_recipe

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
MIB = 1 << 20


def fused_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """torch.nn.functional.linear_cross_entropy in chunks; AttributeError before torch 2.13."""
    options = torch.nn.LinearCrossEntropyOptions()
    loss = F.linear_cross_entropy(hidden, weight, targets, reduction="sum", ignore_index=IGNORED, options=options)
    return loss.float()


def plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """All logits at once."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum", ignore_index=IGNORED)


def compiled_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Ours, as a compiled model has it."""
    return linear_cross_entropy(hidden, weight, targets, compiled_score())


@cache
def compiled_score() -> Scorer:
    """Made once."""
    return torch.compile(score_rows_at_once, dynamic=False, fullgraph=True)


LOSSES: dict[str, Loss] = {
    "ours": linear_cross_entropy, "ours, compiled": compiled_loss, "torch": fused_loss, "plain": plain_loss,
}  # fmt: skip


def use_loss(kind: str) -> None:
    """Put one of LOSSES into the model."""
    model.transformer.linear_cross_entropy = lambda hidden, weight, targets, score: LOSSES[kind](
        hidden, weight, targets
    )


def compare_losses(recipe: str, device: str) -> dict[str, dict[str, float]]:
    """The table of the ways to the loss, at the size of a micro-batch of the recipe; on a CPU with one thread."""
    torch.set_num_threads(1)
    config, shape = load_recipe(recipe), named_size(load_recipe(recipe).model)
    num_tokens = config.micro_batch_size * config.seq_len
    figures = measure_losses(
        torch.device(device), num_tokens=num_tokens, width=shape.hidden_size, vocab_size=shape.vocab_size
    )
    title = f"forward and backward of {num_tokens:,} tokens, width {shape.hidden_size:,}, {shape.vocab_size:,} ids"
    print_losses(figures, title=title)
    return figures


def measure_losses(
    device: torch.device, *, num_tokens: int, width: int, vocab_size: int, num_rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Milliseconds (the least of the rounds) and peak MiB of a forward and backward of each loss that there is."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(num_tokens, width, generator=generator, device=device).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(vocab_size, width, generator=generator, device=device)).to(dtype).requires_grad_()
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator, device=device)

    def step(loss: Loss) -> None:
        torch.autograd.grad(loss(hidden, weight, targets), (hidden, weight))

    absent = {"torch": not hasattr(F, "linear_cross_entropy"), "ours, compiled": device.type == "cpu"}
    present = {name: loss for name, loss in LOSSES.items() if not absent.get(name)}
    seconds: dict[str, list[float]] = {name: [] for name in present}
    peaks = {name: measure_peak(lambda loss=loss: step(loss), device) for name, loss in present.items()}
    for _ in range(num_rounds):
        for name, loss in present.items():
            seconds[name].append(measure_time(lambda loss=loss: step(loss), device))
    return {name: {"ms": 1e3 * min(seconds[name]), "peak_mib": peaks[name] / MIB} for name in present}


def measure_time(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of a step: by the clock on a GPU, CPU time elsewhere, which other programs move less."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    wait_for(device)
    started = clock()
    step()
    wait_for(device)
    return clock() - started


def measure_peak(step: Callable[[], None], device: torch.device) -> int:
    """Bytes that a step adds to what there was before, at most; on a CPU the process's resident memory, by Linux."""
    step()  # what is made once, and is no part of a step
    if device.type == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken again, and not be seen
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _read_status("VmRSS")
    step()
    return _read_status("VmHWM") - before


def print_losses(figures: dict[str, dict[str, float]], *, title: str) -> None:
    """The table."""
    rows = [["loss", "ms", "of ours", "peak MiB more"]]
    for name, row in figures.items():
        share = row["ms"] / figures["ours"]["ms"]
        rows.append([name, f"{row['ms']:.1f}", f"{share:.2f}", f"{row['peak_mib']:.0f}"])
    print_table(title, rows)


def _read_status(name: str) -> int:
    """A number of bytes from /proc/self/status."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])
