"""The stages that decide which documents stay, over all sources and splits together.

held (per part of a dataset of --against) -> copies (per range of places) -> those of near_stages.py -> dedup (per range
of places). --dedup exact has the first two and the last alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.copies import CopiesTask, run_copies
from pipeline.dedup import OUTCOMES, DedupTask, add_counts, plan_ranges, run_dedup
from pipeline.drops import Duplicates
from pipeline.held import plan_held, run_held
from pipeline.near_stages import find_components, find_near
from pipeline.progress import Done
from pipeline.ranks import RankMap
from pipeline.storage import read_json, write_json
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
    work = take_up_cut(Dedup(ingested, settings, shop, RankMap.of(ingested.all_stretches)))
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


def take_up_cut(work: Dedup) -> Dedup:
    """The work as an earlier run of this build cut it into tasks, where these fit into memory now.

    So what was finished is not done again with other --workers or --memory.
    """
    path, settings = work.folder / "cut.json", work.settings
    before = {"memory_bytes": np.inf}
    if path.is_file():
        with contextlib.suppress(ValueError):  # a damaged one is no loss
            before = read_json(path)
    if before["memory_bytes"] <= settings.memory_bytes:
        return replace(work, settings=replace(settings, **before))
    write_json(path, {"memory_bytes": settings.memory_bytes, "num_workers": settings.num_workers})
    return work


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
    checksums = tuple(tuple(record["checksums"]) for record in records)
    kept = KeptDocuments(paths, edges, checksums, by_bucket[0], tasks[0].num_tokenizers)
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
