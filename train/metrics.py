"""RUN_DIR/metrics.jsonl, one line per logged step, and the same line for people."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

Record = dict[str, Any]
NEEDED = ("step", "loss", "tokens", "tokens_per_second")  # The numbers that every record has and that are read back.
RECORDS_AVERAGED = 5


class Meter:
    """Speed since the last reading: seconds per step, and how many of them went by waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._num_steps = 0
        self._data_seconds = 0.0

    def watch(self, batches: Iterator) -> Iterator:
        """The same batches; the time until each comes counts as waiting."""
        while True:
            waiting_since = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._data_seconds += time.perf_counter() - waiting_since
            self._num_steps += 1
            yield batch

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
    """The records of a metrics file in order; none if it does not exist. A line cut short by a kill is left out.

    Raises ValueError for any other line that is no record.
    """
    if not path.exists():
        return []
    whole_lines = path.read_bytes().split(b"\n")[:-1]
    records = [_parse_record(line) for line in whole_lines]
    if None in records:
        number = records.index(None) + 1
        raise ValueError(f"line {number:,} of {path} is not a record of metrics: delete that line")
    return records


def _parse_record(line: bytes) -> Record | None:
    """The record of a line, or None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:  # also bytes that are not UTF-8
        return None
    is_record = isinstance(record, dict) and all(isinstance(record.get(name), int | float) for name in NEEDED)
    return record if is_record else None


def cut_metrics(path: Path, *, last_step: int) -> None:
    """Drop the lines of steps after last_step, which a resumed run computes again, and any half-written line."""
    kept = [record for record in read_metrics(path) if record["step"] <= last_step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    temporary.replace(path)


def append_metrics(path: Path, record: Record) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def format_record(record: Record, *, num_steps: int) -> str:
    """A record as one line of aligned columns."""
    width = len(f"{num_steps:,}")
    seconds_left = (num_steps - record["step"]) * record["step_seconds"]
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
        f"left {timedelta(seconds=round(seconds_left))}",
    ]
    return "  ".join(columns + [format_validation(record["valid_loss"])] if "valid_loss" in record else columns)


def summarise(records: Sequence[Record]) -> list[str]:
    """What came of a run, as lines for a person: where the loss began and ended, how much was read, how fast."""
    first, last, num_averaged = records[0], records[-1], len(records[-RECORDS_AVERAGED:])
    speed = fmean(record["tokens_per_second"] for record in records)
    validated = [record["valid_loss"] for record in records if "valid_loss" in record]
    return [
        f"loss    {first['loss']:.4f} at step {first['step']:,}  ->  {last_loss(records):.4f} at step {last['step']:,}"
        f" (mean of the last {num_averaged})",
        *(format_validation(losses) for losses in validated[-1:]),
        f"trained {last['tokens']:,} tokens at {speed:,.0f} tokens/s",
    ]


def last_loss(records: Sequence[Record]) -> float:
    """The mean loss of the last few records: one batch alone says little."""
    return fmean(record["loss"] for record in records[-RECORDS_AVERAGED:])


def format_validation(losses: dict[str, float]) -> str:
    """Validation losses as one column."""
    return "valid   " + "  ".join(f"{source} {loss:.4f}" for source, loss in losses.items())
