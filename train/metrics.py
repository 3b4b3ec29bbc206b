"""RUN_DIR/metrics.jsonl, one line per logged step, and the same for people, TensorBoard and wandb; torch's profiler."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.storage import write_file
from train.config import TrainConfig

METRICS = "metrics.jsonl"
Record = dict[str, Any]
Watcher = Callable[[Record], None]  # Takes the record of a logged step.
STEPS_BEFORE_PROFILE = 10  # The first steps compile and warm up.
NEEDED = ("step", "loss", "tokens", "tokens_per_second")  # The numbers that every record has and that are read back.
RECORDS_AVERAGED = 5


class Meter:
    """Speed since the last reading: seconds per step, and how many of them went by waiting for data."""

    def __init__(self) -> None:
        self._started, self._num_steps, self._data_seconds = time.perf_counter(), 0, 0.0

    def watch(self, batches: Iterator) -> Iterator:
        """The same batches; the time until each comes counts as waiting."""
        waiting_since = time.perf_counter()
        for batch in batches:
            self._data_seconds += time.perf_counter() - waiting_since
            self._num_steps += 1
            yield batch
            waiting_since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is no training: validation, checkpoints."""
        paused_since = time.perf_counter()
        yield
        self._started += time.perf_counter() - paused_since

    def read(self, *, tokens_per_step: int) -> Record:
        """tokens_per_second, step_seconds and data_seconds (per step) since the last reading."""
        now = time.perf_counter()
        seconds, num_steps, data_seconds = now - self._started, self._num_steps, self._data_seconds
        self._started, self._num_steps, self._data_seconds = now, 0, 0.0
        return {
            "tokens_per_second": num_steps * tokens_per_step / seconds,
            "step_seconds": seconds / num_steps,
            "data_seconds": data_seconds / num_steps,
        }


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file, without a line cut short by a kill. Raises ValueError for any other bad line."""
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else (), start=1):
        try:
            records.append(json.loads(line))
            is_record = all(isinstance(records[-1][name], int | float) for name in NEEDED)
        except (ValueError, TypeError, KeyError):  # also bytes that are not UTF-8
            is_record = False
        if not is_record:
            raise ValueError(f"line {number:,} of {path} is not a record of metrics: delete that line")
    return records


def cut_metrics(path: Path, *, last_step: int) -> None:
    """Drop the lines of steps after last_step, which a resumed run computes again, and any half-written line."""
    kept = [record for record in read_metrics(path) if record["step"] <= last_step]
    write_file(path, [(json.dumps(record) + "\n").encode() for record in kept])


def append_metrics(path: Path, record: Record) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def format_record(record: Record, *, num_steps: int) -> str:
    """A record as one line of aligned columns."""
    width = len(f"{num_steps:,}")
    columns = [
        f"step {record['step']:>{width},}/{num_steps:,}",
        f"loss {record['loss']:7.4f}",
        f"lr {record['lr']:.2e}",
        f"grad {record['grad_norm']:7.3f}",
        f"{record['tokens_per_second']:>9,.0f} tokens/s",
        *([f"MFU {record['mfu']:5.1%}"] if "mfu" in record else []),
        *([f"{record['memory_bytes'] / 2**30:5.1f} GiB"] if "memory_bytes" in record else []),
        f"{record['tokens']:>13,} tokens",
        f"wait {record['data_seconds']:6.3f} s",
        f"left {timedelta(seconds=round((num_steps - record['step']) * record['step_seconds']))}",
    ]
    return "  ".join(columns + [format_validation(record["valid_loss"])] if "valid_loss" in record else columns)


def summarise(records: Sequence[Record]) -> list[str]:
    """What came of a run, as lines for a person: where the loss began and ended, how much was read, how fast."""
    first, last, num_averaged = records[0], records[-1], len(records[-RECORDS_AVERAGED:])
    validated = [record["valid_loss"] for record in records if "valid_loss" in record]
    return [
        f"loss    {first['loss']:.4f} at step {first['step']:,}  ->  {last_loss(records):.4f} at step {last['step']:,}"
        f" (mean of the last {num_averaged})",
        *(format_validation(losses) for losses in validated[-1:]),
        f"trained {last['tokens']:,} tokens at {fmean(each['tokens_per_second'] for each in records):,.0f} tokens/s",
    ]


def last_loss(records: Sequence[Record]) -> float:
    """The mean loss of the last few records: one batch alone says little."""
    return fmean(record["loss"] for record in records[-RECORDS_AVERAGED:])


def format_validation(losses: dict[str, float]) -> str:
    """Validation losses as one column."""
    return "valid   " + "  ".join(f"{source} {loss:.4f}" for source, loss in losses.items())


def open_watchers(config: TrainConfig, *, first_step: int, rank: int, stack: ExitStack) -> list[Watcher]:
    """What else is told of each record, on rank 0. Raises ValueError where the extra `log` is not installed."""
    if rank:
        return []
    try:
        openers = {"tensorboard": _open_tensorboard, "wandb": _open_wandb}
        return [openers[name](config, first_step=first_step, stack=stack) for name in config.log_to]
    except ImportError as error:
        raise ValueError(f"--log-to {' '.join(config.log_to)}: {error}; pip install 'tokenmill[log]'") from error


def open_profiler(config: TrainConfig, *, rank: int, stack: ExitStack) -> Callable[[], None]:
    """What to call after each step; with --profile it ends in a trace for Chrome and Perfetto in RUN/profile."""
    if not config.profile:
        return lambda: None

    from torch import profiler  # here alone: plotting does without

    schedule = profiler.schedule(wait=STEPS_BEFORE_PROFILE - 1, warmup=1, active=config.profile, repeat=1)
    write = profiler.tensorboard_trace_handler(str(config.out / "profile"), f"rank-{rank}", use_gzip=True)
    return stack.enter_context(profiler.profile(schedule=schedule, on_trace_ready=write)).step


def flatten(record: Record, prefix: str = "") -> dict[str, float]:
    """A record's numbers by name, those of inner tables as outer/inner, such as valid_loss/prose."""
    numbers: dict[str, float] = {}
    for name, value in record.items():
        numbers |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return numbers


def _open_tensorboard(config: TrainConfig, *, first_step: int, stack: ExitStack) -> Watcher:
    from torch.utils.tensorboard import SummaryWriter

    # What was logged after the checkpoint that a run goes on from is hidden: those steps come again.
    writer = SummaryWriter(str(config.out / "tensorboard"), purge_step=first_step)
    stack.callback(writer.close)

    def watch(record: Record) -> None:
        for name, number in flatten(record).items():
            writer.add_scalar(name, number, global_step=record["step"])

    return watch


def _open_wandb(config: TrainConfig, *, first_step: int, stack: ExitStack) -> Watcher:
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
