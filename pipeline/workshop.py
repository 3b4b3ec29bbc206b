"""What the stages of a build share: where they work, what ingest left for them, and what those of dedup go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.held import HeldDataset, HeldPart
from pipeline.ingest import IngestTask
from pipeline.jobs import Executor
from pipeline.plan import hash_texts
from pipeline.progress import BuildLog, Done, StageProgress
from pipeline.ranks import RankMap, SketchRun, list_runs, rank_stretches
from pipeline.sketch_file import RECIPES
from pipeline.work import Stretch

ALL_SOURCES = "all sources"


@dataclass(frozen=True)
class Workshop:
    """Where a build works, and with how many hands."""

    work: Path
    workers: Executor
    console: Console
    log: BuildLog

    def run(
        self,
        stage: str,
        function: Callable[[Any], Any],
        tasks: Sequence[Any],
        *,
        unit: str,
        describe: Callable[[Any, Any], tuple[str, Done]],
        totals: Mapping[str, tuple[int, int]],
        folder: str = "",
    ) -> dict[str, Any]:
        """Run a stage's tasks and show it; returns task name -> result.

        describe: of a task and its result, the source and what was done. folder: of the records, within the stage's.
        """
        results = {}
        with StageProgress(self.console, self.log, stage, unit=unit, totals=totals) as progress:
            for task, outcome in self.workers.run(function, tasks, records=self.work / "records" / stage / folder):
                results[task.name] = outcome.result
                source, done = describe(task, outcome.result)
                progress.advance(source, done, task=task.name, seconds=outcome.seconds)
        return results


@dataclass(frozen=True)
class Ingested:
    """The finished ingest: its tasks in order, and each one's IngestRecord as a dict."""

    source_names: list[str]  # in the order of the mix
    priority: list[str]  # the same, the source first whose documents stay where two are near
    tasks: list[IngestTask]
    records: list[dict[str, Any]]
    held: tuple[HeldDataset, ...] = ()  # of --against

    @property
    def num_tokenizers(self) -> int:
        """How many datasets are made."""
        return len(self.tasks[0].settings.encode)

    @property
    def contamination(self) -> str | None:
        """The folder of evaluation texts' spans; None where there are none."""
        return self.tasks[0].settings.contamination

    def find_rules(self, source: str) -> tuple[str, ...]:
        """The rules about the quality signals of a source's documents."""
        return next(task.settings.rules for task in self.tasks if task.source == source)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all raw files and held datasets: what the later stages read follows from it."""
        return hash_texts([*(task.fingerprint for task in self.tasks), *(one.content_hash for one in self.held)])

    @property
    def all_names(self) -> list[str]:
        """The sources by their numbers: the build's own, then those of the datasets held."""
        return [*self.source_names, *(name for one in self.held for name in one.source_names)]

    @cached_property
    def held_parts(self) -> tuple[HeldPart, ...]:
        """The kept signatures of all datasets held."""
        return tuple(part for one in self.held for part in one.parts)

    @cached_property
    def first_rows(self) -> list[int]:
        """Where each task begins in its raw file: a part begins behind the rows of the parts before it."""
        first_rows, row = [], 0
        for task, record in zip(self.tasks, self.records, strict=True):
            row = row if task.files[0].part.start else 0
            first_rows.append(row)
            row += record["num_rows"]
        return first_rows

    def of_source(self, source: str) -> list[dict[str, Any]]:
        """The records of a source's tasks."""
        return [record for task, record in zip(self.tasks, self.records, strict=True) if task.source == source]

    def count(self, source: str) -> dict[str, Counter[str]]:
        """Documents and bytes of a source by outcome."""
        counts = {"documents": Counter(), "bytes": Counter()}
        for record in self.of_source(source):
            for what, counter in counts.items():
                counter.update(record[what])
        return counts

    def num_tokens(self, source: str, tokenizer: int) -> int:
        """The tokens of all documents of a source, duplicates too."""
        return sum(record["tokens"][tokenizer] for record in self.of_source(source))

    @cached_property
    def all_stretches(self) -> tuple[Stretch, ...]:
        """The stretches of the build, and those of the datasets held behind them; all with their ranks."""
        names, parts = self.all_names, [*self.tasks, *self.held_parts]
        priorities = [*map(self.priority.index, self.source_names), *range(len(self.source_names), len(names))]
        of_parts = [
            *([{**segment, "is_held": False} for segment in record["segments"]] for record in self.records),
            *(part.list_segments() for part in self.held_parts),
        ]
        segments = [
            {"task": number, "source": names.index(part.source), **segment}
            for number, (part, of_part) in enumerate(zip(parts, of_parts, strict=True))
            for segment in of_part
        ]
        first_rows = [*self.first_rows, *[0] * len(self.held_parts)]
        return tuple(
            Stretch(
                folder=parts[segment["task"]].folder,
                first_row=first_rows[segment["task"]],
                first_rank=first_rank,
                **segment,
            )
            for segment, first_rank in zip(segments, rank_stretches(segments, priorities), strict=True)
        )

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """All sorted stretches of the build's documents."""
        return tuple(stretch for stretch in self.all_stretches if not stretch.is_held)

    @cached_property
    def stretches_by_task(self) -> dict[int, list[Stretch]]:
        """The stretches of each task by its number in the plan; those of parts of datasets held have numbers behind.

        A task without a document to keep has none.
        """
        by_task: dict[int, list[Stretch]] = {}
        for stretch in self.all_stretches:
            by_task.setdefault(stretch.task, []).append(stretch)
        return by_task

    @cached_property
    def held_stretches(self) -> tuple[Stretch, ...]:
        """The stretches of documents of the datasets held."""
        return tuple(stretch for stretch in self.all_stretches if stretch.is_held)

    @cached_property
    def runs(self) -> tuple[SketchRun, ...]:
        """The band keys of all runs of all tasks, and of the datasets held."""
        num_keys = RECIPES[self.tasks[0].settings.dedup].num_keys
        parts = [(task.folder, record["runs"]) for task, record in zip(self.tasks, self.records, strict=True)]
        parts += [(part.folder, [part.as_run()]) for part in self.held_parts]
        runs, short_rank = [], sum(stretch.last - stretch.first for stretch in self.all_stretches)
        for number, (folder, of_part) in enumerate(parts):
            own = self.stretches_by_task.get(number, [])
            runs += list_runs(folder, of_part, own, num_keys=num_keys, short_rank=short_rank)
            short_rank += sum(run["short"] for run in of_part)
        return tuple(run for run in runs if run.num_signed)

    @property
    def num_short(self) -> int:
        """How many documents too short to keep have band keys. Their ranks come behind all documents'."""
        return sum(run["short"] for record in self.records for run in record["runs"])


@dataclass(frozen=True)
class DedupSettings:
    """What decides it: the method and the least similarity of two documents that are near.

    memory_bytes: of a task. num_workers: for so many there are tasks, where that takes more work. Neither changes what
    is found.
    """

    method: str
    threshold: float
    memory_bytes: int
    num_workers: int


@dataclass(frozen=True)
class Dedup:
    """A dedup at work."""

    ingested: Ingested
    settings: DedupSettings
    shop: Workshop
    ranks: RankMap
    is_second: bool = False  # a second look at some documents, whose stages and files have names of their own

    @property
    def folder(self) -> Path:
        """Where the work files go."""
        return self.shop.work / "dedup" / ("again" if self.is_second else "")

    @property
    def fingerprint(self) -> str:
        """A digest of all raw files and held datasets."""
        return self.ingested.fingerprint

    def run(
        self, stage: str, function: Callable[[Any], Any], tasks: Sequence[Any], *, unit: str, kept: str, dropped: str
    ) -> dict[str, Any]:
        """Run tasks over all sources; kept, dropped: what of a result is shown as such, or ""."""

        def describe(_: Any, result: dict[str, int] | None) -> tuple[str, Done]:
            result = result or {}
            return ALL_SOURCES, Done(kept=result.get(kept, 0), dropped=result.get(dropped, 0))

        totals = {ALL_SOURCES: (len(tasks), len(tasks))}
        name = f"{stage} 2" if self.is_second else stage
        return self.shop.run(name, function, tasks, unit=unit, describe=describe, totals=totals)
