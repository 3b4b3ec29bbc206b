"""The stages of a build, one function each: plan the stage's tasks, run them, join their results.

ingest (per task of raw files) -> dedup (per range of places), once for all datasets; then for each dataset
drops (per ingest task) -> pack (per shard)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.dedup import plan_dedup, run_dedup
from pipeline.document_batch import BAD_REASONS
from pipeline.drops import DropsTask, Ingest, run_drops
from pipeline.ingest import IngestTask, run_ingest
from pipeline.jobs import Executor
from pipeline.limit import Selection
from pipeline.pack import PackTask, plan_shards, run_pack
from pipeline.plan import hash_texts
from pipeline.progress import BuildLog, Done, StageProgress, add_totals
from pipeline.shard import SPLITS, shard_name
from pipeline.work import KeptDocuments, Stretch

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
    tasks: list[IngestTask]
    records: list[dict[str, Any]]

    @property
    def num_tokenizers(self) -> int:
        """How many datasets are made."""
        return len(self.tasks[0].settings.encode)

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
        parts = zip(self.tasks, self.records, self.first_rows, strict=True)
        return tuple(
            Stretch(number, task.folder, self.source_names.index(task.source), first_row, **segment)
            for number, (task, record, first_row) in enumerate(parts)
            for segment in record["segments"]
        )


def ingest(
    tasks: list[IngestTask],
    source_names: list[str],
    *,
    check: Callable[[IngestTask, dict[str, Any]], None],
    shop: Workshop,
) -> Ingested:
    """Read, filter, hash and tokenise all raw files. check: called with each finished task; raises to stop."""

    def describe(task: IngestTask, record: dict[str, Any]) -> tuple[str, Done]:
        check(task, record)
        documents = record["documents"]
        return task.source, Done(
            units=task.num_files,
            weight=task.size_bytes,
            num_bytes=record["bytes"].get("read", 0),
            kept=documents.get("accepted", 0),
            dropped=documents.get("read", 0) - documents.get("accepted", 0),
            bad=sum(documents.get(reason, 0) for reason in BAD_REASONS),
        )

    totals = add_totals((task.source, task.num_files, task.size_bytes) for task in tasks)
    done = shop.run("ingest", run_ingest, tasks, unit="files", describe=describe, totals=totals)
    return Ingested(source_names, tasks, [done[task.name] for task in tasks])


@dataclass(frozen=True)
class Deduplicated:
    """The finished dedup: what stays and what goes.

    counts: outcome -> per source: documents, bytes, and tokens by each tokenizer. tokens: of the documents that stay,
    int64, shape (tokenizers, sources, splits, buckets).
    """

    duplicates_paths: tuple[str, ...]
    counts: dict[str, list[dict[str, Any]]]
    kept: KeptDocuments
    tokens: np.ndarray


def dedup(ingested: Ingested, *, method: str, shop: Workshop) -> Deduplicated:
    """Decide which documents stay."""
    tasks = plan_dedup(
        ingested.stretches,
        method=method,
        num_sources=len(ingested.source_names),
        num_tokenizers=ingested.num_tokenizers,
        folder=shop.work / "dedup",
        fingerprint=ingested.fingerprint,
    )

    def describe(_: Any, record: dict[str, Any]) -> tuple[str, Done]:
        kept, dropped = (sum(count["documents"] for count in record[name]) for name in ("kept", "duplicate_exact"))
        return ALL_SOURCES, Done(kept=kept, dropped=dropped)

    totals = {ALL_SOURCES: (len(tasks), len(tasks))}
    records = shop.run("dedup", run_dedup, tasks, unit="ranges", describe=describe, totals=totals)
    counts = {
        outcome: [add_counts(parts) for parts in zip(*(record[outcome] for record in records.values()), strict=True)]
        for outcome in ("kept", "duplicate_exact")
    }
    by_bucket = np.concatenate([np.load(task.counts_path) for task in tasks], axis=3)
    edges = tuple(task.first_bucket for task in tasks)
    paths = tuple(str(task.kept_path) for task in tasks)
    kept = KeptDocuments(paths, edges, by_bucket[0], ingested.num_tokenizers)
    return Deduplicated(tuple(str(task.duplicates_path) for task in tasks), counts, kept, by_bucket[1:])


def add_counts(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sum of several {documents, bytes, tokens}, where tokens is a list."""
    tokens = [sum(values) for values in zip(*(count["tokens"] for count in counts), strict=True)]
    return {**{what: sum(count[what] for count in counts) for what in ("documents", "bytes")}, "tokens": tokens}


def write_drops(
    ingested: Ingested,
    deduplicated: Deduplicated,
    selection: Selection,
    *,
    groups: Mapping[str, list[tuple[int, int]]],
    shop: Workshop,
) -> dict[str, list[dict[str, Any]]]:
    """List every document that is not kept; returns the results of each source's tasks.

    groups: by source, the first and last number of the raw files that share a list.
    """
    ingests = describe_ingests(ingested, selection)
    tasks = [
        DropsTask(
            name=f"{source}-{number:05d}",
            source=source,
            first_file=first,
            last_file=last,
            ingests=tuple(
                ingest
                for task, ingest in zip(ingested.tasks, ingests, strict=True)
                if task.source == source and any(first <= file.number < last for file in task.files)
            ),
            num_tokenizers=ingested.num_tokenizers,
            duplicates_paths=deduplicated.duplicates_paths,
            source_names=tuple(ingested.source_names),
            out=str(selection.out),
            table_name=f"{source}/drops/drops-{number:05d}.parquet",
            fingerprint=ingested.fingerprint,
        )
        for source in ingested.source_names
        for number, (first, last) in enumerate(groups[source])
    ]

    def describe(task: DropsTask, result: dict[str, Any]) -> tuple[str, Done]:
        num_dropped = result["file"]["documents"] if result["file"] else 0
        return task.source, Done(units=task.num_files, weight=task.num_files, dropped=num_dropped)

    totals = add_totals((task.source, task.num_files, task.num_files) for task in tasks)
    done = shop.run("drops", run_drops, tasks, unit="files", describe=describe, totals=totals, folder=selection.folder)
    return {source: [done[task.name] for task in tasks if task.source == source] for source in ingested.source_names}


def describe_ingests(ingested: Ingested, selection: Selection) -> list[Ingest]:
    """Each ingest task as the drops stage sees it."""
    limits: dict[int, list[tuple[Stretch, int]]] = {}
    for stretch in ingested.stretches:
        limit = selection.limits[stretch.source]
        if limit and SPLITS.index(stretch.split) in limit.splits:
            limits.setdefault(stretch.task, []).append((stretch, limit.place))
    parts = zip(ingested.tasks, ingested.first_rows, strict=True)
    return [
        Ingest(number, task.folder, first_row, tuple(limits.get(number, ())))
        for number, (task, first_row) in enumerate(parts)
    ]


def pack(
    ingested: Ingested, kept: KeptDocuments, selection: Selection, *, shard_tokens: int, shop: Workshop
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Write all shards; returns source -> split -> Shard records as dicts, in order."""
    plans = {
        (name, split): plan_pack(ingested, kept, selection, (source, index), shard_tokens=shard_tokens)
        for source, name in enumerate(ingested.source_names)
        for index, split in enumerate(SPLITS)
    }
    tasks = [task for plan in plans.values() for task in plan]

    def describe(task: PackTask, result: dict[str, Any]) -> tuple[str, Done]:
        shard = result["shard"]
        return task.source, Done(weight=task.num_documents, num_bytes=shard["bytes"], kept=shard["documents"])

    totals = add_totals((task.source, 1, task.num_documents) for task in tasks)
    done = shop.run("pack", run_pack, tasks, unit="shards", describe=describe, totals=totals, folder=selection.folder)
    packed: dict[str, dict[str, list[dict[str, Any]]]] = {source: {} for source in ingested.source_names}
    for (source, split), plan in plans.items():
        if plan:
            packed[source][split] = [done[task.name]["shard"] for task in plan]
    return packed


def plan_pack(
    ingested: Ingested, kept: KeptDocuments, selection: Selection, cell: tuple[int, int], *, shard_tokens: int
) -> list[PackTask]:
    """The shards of one source and split, numbered in the order of their places."""
    source, split = ingested.source_names[cell[0]], SPLITS[cell[1]]
    documents = selection.documents[cell]
    borders = plan_shards(selection.tokens[cell], documents, shard_tokens=shard_tokens)
    encode = ingested.tasks[0].settings.encode[selection.tokenizer]
    return [
        PackTask(
            name=f"{source}-{split}-{number:05d}",
            source=source,
            shard=shard_name(source, split, number),
            documents=kept.find(*cell, first, last, counts=documents),
            folders=tuple(task.folder for task in ingested.tasks),
            tokenizer=selection.tokenizer,
            num_tokenizers=ingested.num_tokenizers,
            dtype=encode.dtype,
            out=str(selection.out),
            fingerprint=ingested.fingerprint,
        )
        for number, (first, last) in enumerate(borders)
    ]
