"""Where metrics go beside metrics.jsonl, and torch's profiler: each opened where it is asked for."""

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from train.config import TrainConfig

Watcher = Callable[[Mapping[str, Any]], None]  # Takes the record of a logged step.

STEPS_BEFORE_PROFILE = 10  # The first steps compile and warm up.


def open_watchers(config: TrainConfig, *, first_step: int, rank: int, stack: ExitStack) -> list[Watcher]:
    """What else is told of each record, on rank 0. Raises ValueError where the extra `log` is not installed."""
    if rank:
        return []
    try:
        openers = {"tensorboard": partial(_open_tensorboard, first_step=first_step), "wandb": _open_wandb}
        return [openers[name](config, stack) for name in config.log_to]
    except ImportError as error:
        raise ValueError(f"--log-to {' '.join(config.log_to)}: {error}; pip install 'tokenmill[log]'") from error


def open_profiler(config: TrainConfig, *, rank: int, stack: ExitStack) -> Callable[[], None]:
    """What to call after each step; with --profile it ends in a trace for Chrome and Perfetto in RUN/profile."""
    if not config.profile:
        return lambda: None

    def write(profiler: torch.profiler.profile) -> None:
        folder = config.out / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(folder / f"rank-{rank}.json.gz"))

    schedule = torch.profiler.schedule(wait=STEPS_BEFORE_PROFILE - 1, warmup=1, active=config.profile, repeat=1)
    return stack.enter_context(torch.profiler.profile(schedule=schedule, on_trace_ready=write)).step


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A record's numbers by name, those of inner tables as outer/inner.

    >>> flatten({"step": 1, "valid_loss": {"prose": 2.5}})
    {'step': 1, 'valid_loss/prose': 2.5}
    """
    numbers: dict[str, float] = {}
    for name, value in record.items():
        numbers |= flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return numbers


def _open_tensorboard(config: TrainConfig, stack: ExitStack, *, first_step: int) -> Watcher:
    from torch.utils.tensorboard import SummaryWriter

    # What was logged after the checkpoint that a run goes on from is hidden: those steps come again.
    writer = SummaryWriter(str(config.out / "tensorboard"), purge_step=first_step)
    stack.callback(writer.close)

    def watch(record: Mapping[str, Any]) -> None:
        for name, number in flatten(record).items():
            writer.add_scalar(name, number, global_step=record["step"])

    return watch


def _open_wandb(config: TrainConfig, stack: ExitStack) -> Watcher:
    import wandb

    path = config.out / "wandb-id"  # the same one after a restart: the curves go on where they stopped
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    identity = {"id": path.read_text(encoding="utf-8"), "name": config.out.name, "dir": str(config.out)}
    try:
        run = wandb.init(project="tokenmill", resume="allow", config=config.as_json(), **identity)
    except wandb.errors.Error as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ValueError(f"--log-to wandb: {first_line}; or set WANDB_MODE=offline") from error
    stack.callback(run.finish)
    run.define_metric("*", step_metric="step")  # wandb's own count of steps refuses those that a restart does again
    return lambda record: run.log(flatten(record))
