"""What a person sees while a build runs: live lines on a terminal, plain lines elsewhere; and the log for machines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from pipeline.storage import naming, write_all

SECONDS_BETWEEN_LINES = 5.0


def format_bytes(num_bytes: float) -> str:
    """Decimal units, as disks are sold: 1_930_000_000 -> "1.93 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def format_seconds(seconds: float) -> str:
    """Seconds, minutes or hours: 5400 -> "90 min"."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


def make_console() -> Console:
    """Where a command speaks: as wide as the terminal, or 110 columns elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False, markup=False, soft_wrap=True)


class BuildLog:
    """OUT/build-log.jsonl: what differs from run to run (times, workers), one JSON object a line."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, event: str, **details: Any) -> None:
        """Append one event with the time of day, whole or not at all: a full disk takes the start of a line."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **details}
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with naming(self.path), open(self.path, "ab", buffering=0) as file:
            size_bytes = file.tell()
            try:
                write_all(file, data)
            except OSError:
                file.truncate(size_bytes)
                raise


def add_totals(parts: Iterable[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    """Source -> units and weight, summed over (source, units, weight) of tasks."""
    totals: dict[str, tuple[int, int]] = {}
    for source, units, weight in parts:
        units_before, weight_before = totals.get(source, (0, 0))
        totals[source] = units_before + units, weight_before + weight
    return totals


@dataclass
class Done:
    """What a finished task did; added up, what a source has done so far.

    weight: of the task, in whatever the stage's time goes with. num_bytes: of text or of shards.
    """

    units: int = 1
    weight: int = 1
    num_bytes: int = 0
    kept: int = 0
    dropped: int = 0
    bad: int = 0

    def add(self, other: Done) -> None:
        """Count another one in."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Pace:
    """How fast this run works on a source: from the start of its first task to the end of its last one so far.

    What earlier runs left is not in it, nor the time in which a stage was busy with other sources.
    """

    began: float = math.inf
    ended: float = -math.inf
    weight: int = 0
    num_bytes: int = 0

    def add(self, done: Done, seconds: float) -> None:
        """Count in a task that has just finished."""
        self.ended = time.monotonic()
        self.began = min(self.began, self.ended - seconds)
        self.weight += done.weight
        self.num_bytes += done.num_bytes

    @property
    def seconds(self) -> float:
        """The seconds from the first task's start to the last one's end."""
        return max(self.ended - self.began, 1e-3)

    def seconds_left(self, weight: int) -> float:
        """How long `weight` more will take, counted down since the last task ended; infinite before the first has."""
        if not self.weight:
            return math.inf
        return max(0.0, self.seconds * weight / self.weight - (time.monotonic() - self.ended))


class StageProgress:
    """The progress of one stage, a line for each of its sources.

    totals: source -> units (files, shards) and weight of all its tasks.
    """

    def __init__(
        self, console: Console, log: BuildLog, stage: str, *, unit: str, totals: Mapping[str, tuple[int, int]]
    ):
        self.console, self.log, self.stage, self.unit, self.totals = console, log, stage, unit, totals
        self.done = {source: Done(0, 0) for source in totals}
        self.paces = {source: Pace() for source in totals}
        self.started = self.last_line = time.monotonic()
        self.live = Progress(
            TextColumn(f"{stage:12}{{task.description}}"),
            TimeColumn(self),
            BarColumn(bar_width=20),
            # What is long is folded where a terminal is narrow, so that the columns before it are not cut.
            TextColumn("{task.fields[note]}", table_column=Column(overflow="fold")),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.lines = {
            source: self.live.add_task(source, total=max(1, weight), note=self.note(source))
            for source, (_, weight) in totals.items()
        }

    def __enter__(self) -> StageProgress:
        self.live.start()
        self.log.write(
            "stage started", stage=self.stage, totals={name: units for name, (units, _) in self.totals.items()}
        )
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.live.stop()
        if error_type is None:
            self.print_lines()
            done = {source: vars(done) for source, done in self.done.items()}
            self.log.write("stage finished", stage=self.stage, seconds=round(self.seconds, 3), done=done)

    @property
    def seconds(self) -> float:
        """The seconds since the stage began."""
        return time.monotonic() - self.started

    def advance(self, source: str, done: Done, *, task: str, seconds: float | None) -> None:
        """Count what a finished task of a source did. seconds: that it took; None: in an earlier run."""
        self.done[source].add(done)
        if seconds is None:
            self.log.write("task kept", stage=self.stage, task=task, **vars(done))
        else:
            self.paces[source].add(done, seconds)
            self.log.write("task finished", stage=self.stage, task=task, seconds=round(seconds, 3), **vars(done))
        self.live.update(self.lines[source], completed=self.done[source].weight, note=self.note(source))
        is_last = all(map(self.is_done, self.totals))
        if not (self.console.is_terminal or is_last) and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.print_lines()

    def is_done(self, source: str) -> bool:
        """Whether all tasks of a source are finished. Not by its units alone: a file counts with its first part."""
        done = self.done[source]
        return (done.units, done.weight) == self.totals[source]

    def note(self, source: str) -> str:
        """Units, size, rate and documents of a source so far."""
        done, (units, _) = self.done[source], self.totals[source]
        parts = [f"{done.units:>6,}/{units:,} {self.unit}"]
        if done.num_bytes:
            pace = self.paces[source]
            rate = f"{format_bytes(pace.num_bytes / pace.seconds)}/s" if pace.num_bytes else ""
            parts.append(f"{format_bytes(done.num_bytes):>8}  {rate:>10}")
        if done.kept or done.dropped:
            parts.append(f"{done.kept:,} kept  {done.dropped:,} dropped")
        if done.bad:
            parts.append(f"{done.bad:,} bad rows")
        return "  ".join(parts)

    def describe_time(self, source: str) -> str:
        """How long a source still takes at its pace so far, or, once it is done, took; until then how long it waits."""
        pace = self.paces[source]
        if self.is_done(source):
            return f"{pace.seconds if pace.weight else 0:6.1f} s"
        seconds_left = pace.seconds_left(self.totals[source][1] - self.done[source].weight)
        return f"{self.seconds:6.1f} s" if math.isinf(seconds_left) else f"{format_seconds(seconds_left)} left"

    def print_lines(self) -> None:
        """A plain line for each source, the same columns each time."""
        self.last_line = time.monotonic()
        for source in self.totals:
            self.console.print(f"{self.stage:12}{source:16}{self.note(source)}  {self.describe_time(source)}")


class TimeColumn(ProgressColumn):
    """The column of the live display that counts a source's time."""

    def __init__(self, progress: StageProgress):
        super().__init__()
        self.progress = progress

    def render(self, task: Task) -> Text:
        """The column's text; rich asks for it several times a second."""
        return Text(f"{self.progress.describe_time(task.description):>13}")
