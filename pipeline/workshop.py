"""What the stages of a build share: where they work, and what ingest left for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.ingest import IngestTask
from pipeline.jobs import Executor
from pipeline.plan import hash_texts
from pipeline.progress import BuildLog, Done, StageProgress
from pipeline.ranks import SketchRun, list_runs, rank_stretches
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
            for task, result in self.workers.run(function, tasks, records=self.work / "records" / stage / folder):
                results[task.name] = result
                source, done = describe(task, result)
                progress.advance(source, done, task=task.name)
        return results


@dataclass(frozen=True)
class Ingested:
    """The finished ingest: its tasks in order, and each one's IngestRecord as a dict."""

    source_names: list[str]  # in the order of the mix
    priority: list[str]  # the same, the source first whose documents stay where two are near
    tasks: list[IngestTask]
    records: list[dict[str, Any]]

    @property
    def num_tokenizers(self) -> int:
        """How many datasets are made."""
        return len(self.tasks[0].settings.encode)

    @property
    def contamination(self) -> str | None:
        """The folder of evaluation texts' spans; None where there are none."""
        return self.tasks[0].settings.contamination

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all raw files: what the later stages read follows from it."""
        return hash_texts(task.fingerprint for task in self.tasks)

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
    def stretches(self) -> tuple[Stretch, ...]:
        """All sorted stretches of documents."""
        order = [self.source_names.index(name) for name in self.priority]
        segments = [
            {"task": number, "source": self.source_names.index(task.source), **segment}
            for number, (task, record) in enumerate(zip(self.tasks, self.records, strict=True))
            for segment in record["segments"]
        ]
        first_ranks = rank_stretches(segments, [order.index(source) for source in range(len(order))])
        return tuple(
            Stretch(
                folder=self.tasks[segment["task"]].folder,
                first_row=self.first_rows[segment["task"]],
                first_rank=first_rank,
                **segment,
            )
            for segment, first_rank in zip(segments, first_ranks, strict=True)
        )

    @cached_property
    def runs(self) -> tuple[SketchRun, ...]:
        """The band keys of all runs of all tasks."""
        bands = RECIPES[self.tasks[0].settings.dedup].num_bands
        of_task: dict[int, list[Stretch]] = {}
        for stretch in self.stretches:
            of_task.setdefault(stretch.task, []).append(stretch)
        runs, short_rank = [], sum(stretch.last - stretch.first for stretch in self.stretches)
        for number, (task, record) in enumerate(zip(self.tasks, self.records, strict=True)):
            own = of_task.get(number, [])
            runs += list_runs(task.folder, record["runs"], own, num_bands=bands, short_rank=short_rank)
            short_rank += sum(run["short"] for run in record["runs"])
        return tuple(runs)

    @property
    def num_short(self) -> int:
        """How many documents too short to keep have band keys. Their ranks come behind all documents'."""
        return sum(run["short"] for record in self.records for run in record["runs"])
