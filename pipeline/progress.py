"""What a person sees while a build runs: a live line on a terminal, plain lines elsewhere; and the log for machines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 2.0


def format_bytes(num_bytes: float) -> str:
    """Decimal units, as disks are sold: 1_930_000_000 -> "1.93 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def make_console() -> Console:
    """Where a command speaks: as wide as the terminal, or 110 columns elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False, markup=False, soft_wrap=True)


class BuildLog:
    """OUT/build-log.jsonl: what differs from run to run (times, workers), one JSON object a line."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, event: str, **details: Any) -> None:
        """Append one event with the time of day."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **details}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class StageProgress:
    """The progress of one stage, counted in units such as files; bytes give the rate."""

    def __init__(self, console: Console, stage: str, *, unit: str, total: int):
        self.console, self.stage, self.unit, self.total = console, stage, unit, total
        self.done = self.num_bytes = self.num_bad = 0
        self.started = self.last_line = time.monotonic()
        self.live = Progress(
            TextColumn(f"{stage:8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.live.add_task(stage, total=total, note="")

    def __enter__(self) -> StageProgress:
        self.live.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.live.stop()
        if error_type is None:
            self.print_line()

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.started

    def advance(self, units: int, *, num_bytes: int = 0, num_bad: int = 0) -> None:
        """Count what a finished task did."""
        self.done += units
        self.num_bytes += num_bytes
        self.num_bad += num_bad
        self.live.update(self.task, completed=self.done, note=self.note())
        if (
            not self.console.is_terminal
            and self.done < self.total
            and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES
        ):
            self.print_line()

    def note(self) -> str:
        """Size, rate and bad rows so far."""
        parts = []
        if self.num_bytes:
            rate = format_bytes(self.num_bytes / max(self.seconds, 1e-3))
            parts.append(f"{format_bytes(self.num_bytes):>8}  {rate:>8}/s")
        if self.num_bad:
            parts.append(f"{self.num_bad:,} bad rows")
        return "  ".join(parts)

    def print_line(self) -> None:
        """One plain line, the same columns each time."""
        self.last_line = time.monotonic()
        self.console.print(
            f"{self.stage:8} {self.done:>6,}/{self.total:,} {self.unit:8} {self.note()}  {self.seconds:6.1f} s",
        )
