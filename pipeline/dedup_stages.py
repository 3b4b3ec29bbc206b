"""The stages that decide which documents stay, over all sources and splits together.

held (per part of a dataset of --against) -> copies (per range of places) -> bands (per range of keys) -> estimate (per
range of ranks) -> judge -> sets (per ingest task; per shard of a dataset of --against) -> compare (per some pairs) ->
resolve -> dedup (per range of places). --dedup exact has the first two and the last alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.candidates import plan_bands, run_band
from pipeline.compare import (
    SetsTask,
    choose_tasks,
    list_ranks,
    list_set_files,
    plan_comparisons,
    run_compare,
    run_sets,
)
from pipeline.copies import CopiesTask, MarksTask, run_copies, run_marks
from pipeline.dedup import OUTCOMES, DedupTask, add_counts, plan_ranges, run_dedup
from pipeline.drops import Duplicates
from pipeline.estimate import EDGE, plan_estimates, run_estimate
from pipeline.held import plan_held, run_held
from pipeline.held_sets import make_held_sets
from pipeline.progress import Done
from pipeline.ranks import RankMap
from pipeline.resolve import ResolveTask, run_components, run_judge, run_resolve
from pipeline.sketch_file import RECIPES
from pipeline.token_file import open_records
from pipeline.work import KeptDocuments
from pipeline.workshop import ALL_SOURCES, Dedup, DedupSettings, Ingested, Workshop


@dataclass(frozen=True)
class Deduplicated:
    """The finished dedup: what stays and what goes.

    counts: outcome -> per source: documents, bytes, and tokens by each tokenizer. tokens: of the documents that stay,
    int64, shape (tokenizers, sources, splits, buckets).
    """

    duplicates: Duplicates
    counts: dict[str, list[dict[str, Any]]]
    kept: KeptDocuments
    tokens: np.ndarray


def dedup(ingested: Ingested, *, settings: DedupSettings, shop: Workshop) -> Deduplicated:
    """Decide which documents stay."""
    work = Dedup(ingested, settings, shop, RankMap.of(ingested.all_stretches))
    ranges = plan_ranges(work.ranks.num_documents)
    copies = [] if settings.method == "none" else find_copies(work, ranges)
    finders = {"near": find_near, "slimpajama": find_components}
    near = finders[settings.method](work, copies) if settings.method in finders else None
    tasks = [
        DedupTask(
            name=name,
            copies=str(copies[number].path) if copies else None,
            near_marks=str(near.marks_path) if near else None,
            num_sources=len(ingested.source_names),
            num_tokenizers=ingested.num_tokenizers,
            stretches=ingested.stretches,
            first_bucket=first,
            last_bucket=last,
            folder=str(work.folder),
            fingerprint=work.fingerprint,
        )
        for number, (name, first, last) in enumerate(ranges)
    ]
    records = run_ranges(tasks, shop)
    duplicates = Duplicates(work.ranks, tuple(str(task.path) for task in copies), str(near.path) if near else None)
    return join_results(tasks, records, duplicates)


def run_ranges(tasks: list[DedupTask], shop: Workshop) -> list[dict[str, Any]]:
    """The last stage, whose counts are of documents by outcome and source."""

    def describe(_: Any, record: dict[str, Any]) -> tuple[str, Done]:
        counts = {name: sum(count["documents"] for count in record[name]) for name in OUTCOMES}
        return ALL_SOURCES, Done(kept=counts["kept"], dropped=sum(counts.values()) - counts["kept"])

    totals = {ALL_SOURCES: (len(tasks), len(tasks))}
    records = shop.run("dedup", run_dedup, tasks, unit="ranges", describe=describe, totals=totals)
    return [records[task.name] for task in tasks]


def join_results(tasks: list[DedupTask], records: list[dict[str, Any]], duplicates: Duplicates) -> Deduplicated:
    """The results of all ranges as one."""
    counts = {
        outcome: [add_counts(parts) for parts in zip(*(record[outcome] for record in records), strict=True)]
        for outcome in OUTCOMES
    }
    by_bucket = np.concatenate([np.load(task.counts_path) for task in tasks], axis=3)
    edges = tuple(task.first_bucket for task in tasks)
    paths = tuple(str(task.kept_path) for task in tasks)
    kept = KeptDocuments(paths, edges, by_bucket[0], tasks[0].num_tokenizers)
    return Deduplicated(duplicates, counts, kept, by_bucket[1:])


def find_copies(work: Dedup, ranges: Sequence[tuple[str, int, int]]) -> list[CopiesTask]:
    """Find documents with equal texts; the tasks say where they are written."""
    held_paths = sort_held(work)
    tasks = [
        CopiesTask(
            name=name,
            stretches=work.ingested.stretches,
            held_paths=held_paths,
            held=work.ranks.held,
            num_tokenizers=work.ingested.num_tokenizers,
            first_bucket=first,
            last_bucket=last,
            folder=str(work.folder),
            fingerprint=work.fingerprint,
        )
        for name, first, last in ranges
    ]
    results = work.run("copies", run_copies, tasks, unit="ranges", kept="documents", dropped="copies")
    num_held = sum(result["held"] for result in results.values())
    if num_held:
        what = "have the text of one of validation or test here: both stay"
        work.shop.console.print(f"note: {num_held:,} documents of train in --against {what}")
    return tasks


def sort_held(work: Dedup) -> tuple[str, ...]:
    """The files of the documents of --against, by place."""
    tasks = plan_held(
        work.ingested.held_parts,
        work.ingested.held_stretches,
        seed=work.ingested.tasks[0].settings.seed,
        folder=work.folder,
        fingerprint=work.fingerprint,
    )
    if tasks:
        work.run("held", run_held, tasks, unit="parts", kept="documents", dropped="")
    return tuple(str(task.path) for task in tasks)


def find_near(work: Dedup, copies: Sequence[CopiesTask]) -> ResolveTask:
    """Find documents near to others; the task says where they are written."""
    paths = find_pairs(work, mark_copies(work, copies))
    estimates = plan_estimates(
        paths,
        work.ranks,
        threshold=work.settings.threshold,
        memory_bytes=work.settings.memory_bytes,
        folder=work.folder,
        fingerprint=work.fingerprint,
    )
    work.run("similar", run_estimate, estimates, unit="ranges", kept="edges", dropped="")
    judge = ResolveTask(
        name="open",
        paths=tuple(str(task.path) for task in estimates),
        compared=(),
        marks=None,
        num_documents=work.ranks.num_documents,
        num_short=0,
        held=work.ranks.held,
        threshold=work.settings.threshold,
        folder=str(work.folder),
        fingerprint=work.fingerprint,
    )
    work.run("judge", run_judge, [judge], unit="runs", kept="", dropped="")
    compared = compare(work, judge.path)
    resolve = replace(judge, name="near", compared=tuple(map(str, compared)))
    work.run("resolve", run_resolve, [resolve], unit="runs", kept="", dropped="dropped")
    return resolve


def find_components(work: Dedup, copies: Sequence[CopiesTask]) -> ResolveTask:
    """Find what any chain of equal band keys connects, as SlimPajama did; the task says where it is written."""
    resolve = ResolveTask(
        name="near",
        paths=tuple(map(str, find_pairs(work, None))),
        compared=(),
        marks=str(mark_copies(work, copies)),
        num_documents=work.ranks.num_documents,
        num_short=work.ingested.num_short,
        held=work.ranks.held,
        threshold=0.0,
        folder=str(work.folder),
        fingerprint=work.fingerprint,
    )
    work.run("resolve", run_components, [resolve], unit="runs", kept="", dropped="dropped")
    return resolve


def mark_copies(work: Dedup, copies: Sequence[CopiesTask]) -> Path:
    """One array of bits that says which documents are copies."""
    paths = tuple(str(task.path) for task in copies)
    task = MarksTask("copies", paths, work.ranks.num_documents, str(work.folder), work.fingerprint)
    work.run("marks", run_marks, [task], unit="runs", kept="", dropped="")
    return task.path


def find_pairs(work: Dedup, marks: Path | None) -> list[Path]:
    """The files of pairs that may be near. marks: bits of the documents that take no part."""
    tasks = plan_bands(
        work.ingested.runs,
        recipe=RECIPES[work.settings.method],
        ranks=work.ranks,
        marks=marks,
        memory_bytes=work.settings.memory_bytes,
        folder=work.folder,
        fingerprint=work.fingerprint,
    )
    work.run("bands", run_band, tasks, unit="parts", kept="pairs", dropped="")
    return [task.path for task in tasks]


def compare(work: Dedup, open_path: Path) -> list[Path]:
    """Compare the edges that estimates do not decide; returns the files that say how similar they are."""
    edges = open_records(open_path, EDGE)
    if not len(edges):
        return []
    wanted = list_ranks(edges)
    sets = [
        SetsTask(work.ingested.tasks[number], work.ranks, number, str(open_path), str(work.folder), work.fingerprint)
        for number in sorted(choose_tasks(wanted, work.ranks))
    ]
    work.run("sets", run_sets, sets, unit="tasks", kept="sets", dropped="")
    files = [list_set_files(task.folder, task.name) for task in (*sets, *make_held_sets(work, open_path, wanted))]
    tasks = plan_comparisons(open_path, files, num_edges=len(edges), folder=work.folder, fingerprint=work.fingerprint)
    work.run("compare", run_compare, tasks, unit="parts", kept="", dropped="")
    return [task.path for task in tasks]
