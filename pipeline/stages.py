"""The stages of a build, one function each: plan the stage's tasks, run them, join their results.

ingest (per task of raw files) -> dedup (dedup_stages.py), once for all datasets; then for each dataset
drops (per some raw files) -> signatures (the same, with --keep-signatures) -> pack (per shard)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dedup_stages import Deduplicated
from pipeline.document_batch import BAD_REASONS
from pipeline.drops import DropsTask, Duplicates, Ingest, run_drops
from pipeline.ingest import IngestTask, begin_ingest
from pipeline.limit import Selection
from pipeline.pack import PackTask, plan_shards, run_pack
from pipeline.plan import BuildSettings, hash_texts
from pipeline.progress import Done, add_totals
from pipeline.shard import SPLITS, shard_name
from pipeline.signatures import SignaturesTask, run_signatures
from pipeline.sketch_file import SKETCH_VERSION
from pipeline.work import KeptDocuments, Stretch
from pipeline.workshop import Ingested, Workshop
from pipeline.write_text import TextTask, run_text


def ingest(
    tasks: list[IngestTask],
    source_names: list[str],
    *,
    priority: list[str],
    check: Callable[[IngestTask, dict[str, Any]], None],
    shop: Workshop,
) -> Ingested:
    """Read, filter, hash and tokenise all raw files.

    priority: the sources, first those whose documents stay. check: called with each finished task; raises to stop.
    """

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
    done = shop.run("ingest", begin_ingest, tasks, unit="files", describe=describe, totals=totals)
    return Ingested(source_names, priority, tasks, [done[task.name] for task in tasks])


def plan_drops(
    ingested: Ingested,
    deduplicated: Deduplicated,
    selection: Selection,
    *,
    groups: Mapping[str, list[tuple[int, int]]],
) -> list[DropsTask]:
    """The lists of what is not kept. groups: by source, the first and last number of the raw files that share one."""
    ingests = describe_ingests(ingested, selection)
    return [
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
            duplicates=deduplicated.duplicates,
            source_names=tuple(ingested.all_names),
            out=str(selection.out),
            table_name=f"{source}/drops/drops-{number:05d}.parquet",
            fingerprint=ingested.fingerprint,
            contamination=ingested.contamination,
            rules=ingested.find_rules(source),
        )
        for source in ingested.source_names
        for number, (first, last) in enumerate(groups[source])
    ]


def write_drops(
    ingested: Ingested, tasks: list[DropsTask], *, folder: str, shop: Workshop
) -> dict[str, list[dict[str, Any]]]:
    """List every document that is not kept; returns the results of each source's tasks. folder: of the records."""

    def describe(task: DropsTask, result: dict[str, Any]) -> tuple[str, Done]:
        num_dropped = result["file"]["documents"] if result["file"] else 0
        return task.source, Done(units=task.num_files, weight=task.num_files, dropped=num_dropped)

    totals = add_totals((task.source, task.num_files, task.num_files) for task in tasks)
    done = shop.run("drops", run_drops, tasks, unit="files", describe=describe, totals=totals, folder=folder)
    return {source: [done[task.name] for task in tasks if task.source == source] for source in ingested.source_names}


def keep_signatures(
    settings: BuildSettings, drops: list[DropsTask], *, folder: str, shop: Workshop
) -> dict[str, dict[str, Any]]:
    """Keep the signatures of the documents that stay, if that is asked for; returns what dataset.json says of them.

    drops: the tasks of drops, each of which has a task here. folder: of the records.
    """
    if not settings.keep_signatures:
        return {}
    tasks = [SignaturesTask(task, settings.dedup) for task in drops]

    def describe(task: SignaturesTask, result: dict[str, Any]) -> tuple[str, Done]:
        num_files = task.drops.num_files
        return task.drops.source, Done(units=num_files, weight=num_files, kept=result["documents"])

    totals = add_totals((task.source, task.num_files, task.num_files) for task in drops)
    done = shop.run("keep", run_signatures, tasks, unit="files", describe=describe, totals=totals, folder=folder)
    parts = [part for task in tasks for part in done[task.name]["parts"]]
    how = {"method": settings.dedup, "threshold": settings.dedup_threshold, "version": SKETCH_VERSION}
    return {"signatures": {**how, "parts": parts}}


def describe_ingests(ingested: Ingested, selection: Selection) -> list[Ingest]:
    """Each ingest task as the drops stage sees it."""
    limits: dict[int, list[tuple[Stretch, int]]] = {}
    for stretch in ingested.stretches:
        limit = selection.limits[stretch.source]
        if limit and SPLITS.index(stretch.split) in limit.splits:
            limits.setdefault(stretch.task, []).append((stretch, limit.place))
    runs = [tuple((run["documents"], run["signed"]) for run in record["runs"]) for record in ingested.records]
    parts = zip(ingested.tasks, ingested.first_rows, runs, strict=True)
    return [
        Ingest(
            folder=task.folder,
            first_row=first_row,
            stretches=tuple(ingested.stretches_by_task.get(number, ())),
            limits=tuple(limits.get(number, ())),
            runs=of_task,
        )
        for number, (task, first_row, of_task) in enumerate(parts)
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
    folders = tuple(task.folder for task in ingested.tasks)
    raw_files = [task.fingerprint for task in ingested.tasks if task.source == source]
    slices = [kept.find(*cell, first, last, counts=documents) for first, last in borders]
    return [
        PackTask(
            name=f"{source}-{split}-{number:05d}",
            source=source,
            shard=shard_name(source, split, number),
            documents=pieces,
            folders=folders,
            tokenizer=selection.tokenizer,
            num_tokenizers=ingested.num_tokenizers,
            dtype=encode.dtype,
            out=str(selection.out),
            fingerprint=hash_texts([*raw_files, *(piece.fingerprint for piece in pieces)]),
        )
        for number, pieces in enumerate(slices)
    ]


def write_texts(ingested: Ingested, duplicates: Duplicates, *, out: Path, shop: Workshop) -> None:
    """Write the texts that stay in SlimPajama's layout."""
    tasks = [
        TextTask(
            ingest=task,
            number=number,
            stretches=tuple(ingested.stretches_by_task.get(number, ())),
            duplicates=duplicates,
            out=str(out),
            fingerprint=ingested.fingerprint,
        )
        for number, task in enumerate(ingested.tasks)
    ]

    def describe(task: TextTask, counts: dict[str, int]) -> tuple[str, Done]:
        return task.ingest.source, Done(kept=sum(counts.values()))

    totals = add_totals((task.ingest.source, 1, 1) for task in tasks)
    shop.run("texts", run_text, tasks, unit="tasks", describe=describe, totals=totals)
