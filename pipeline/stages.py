"""The stages of a build, one function each: plan the stage's tasks, run them, join their results.

ingest (per task of raw files) -> dedup (per range of places) -> drops (per ingest task) -> pack (per shard)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pipeline.dedup import DedupTask, plan_dedup, run_dedup
from pipeline.document_batch import BAD_REASONS
from pipeline.drops import DropsTask, run_drops
from pipeline.ingest import IngestTask, run_ingest
from pipeline.jobs import Executor
from pipeline.pack import PackStretch, plan_pack, plan_shards, run_pack
from pipeline.plan import PlannedSource, hash_texts
from pipeline.progress import StageProgress
from pipeline.shard import SPLITS
from pipeline.token_file import DROP_REASONS
from pipeline.work import Stretch

BAD_ROWS_SHOWN = 3


@dataclass(frozen=True)
class Workshop:
    """Where a build works, and with how many hands."""

    out: Path
    work: Path
    workers: Executor
    console: Console

    def records(self, stage: str) -> Path:
        """Where the records of a stage's finished tasks are."""
        return self.work / "records" / stage


@dataclass(frozen=True)
class Ingested:
    """The finished ingest: its tasks in order, and each one's IngestRecord as a dict."""

    tasks: list[IngestTask]
    records: list[dict[str, Any]]

    @property
    def fingerprint(self) -> str:
        """A digest of all raw files: what the later stages read follows from it."""
        return hash_texts(task.fingerprint for task in self.tasks)

    def count(self, source: str) -> dict[str, Counter[str]]:
        """Documents and bytes of a source by outcome."""
        counts = {"documents": Counter(), "bytes": Counter()}
        for task, record in zip(self.tasks, self.records, strict=True):
            if task.source == source:
                for what, counter in counts.items():
                    counter.update(record[what])
        return counts

    def num_tokens(self, source: str) -> int:
        """The tokens of all documents of a source, duplicates too."""
        return sum(
            record["tokens"] for task, record in zip(self.tasks, self.records, strict=True) if task.source == source
        )

    def stretches(self, source_names: list[str]) -> tuple[Stretch, ...]:
        """All sorted stretches of documents."""
        return tuple(
            Stretch(number, task.folder, source_names.index(task.source), **segment)
            for number, (task, record) in enumerate(zip(self.tasks, self.records, strict=True))
            for segment in record["segments"]
        )


def ingest(
    tasks: list[IngestTask], sources: tuple[PlannedSource, ...], *, max_bad_fraction: float, shop: Workshop
) -> Ingested:
    """Read, filter, hash and tokenise all raw files.

    Raises ValueError for a source with too many bad rows, as soon as that is plain, or with no document at all.
    """
    done: dict[str, dict[str, Any]] = {}
    num_files = sum(task.num_files for task in tasks)
    with StageProgress(shop.console, "ingest", unit="files", total=num_files) as progress:
        for task, record in shop.workers.run(run_ingest, tasks, records=shop.records("ingest")):
            done[task.name] = record
            num_bad = sum(record["documents"].get(reason, 0) for reason in BAD_REASONS)
            progress.advance(task.num_files, num_bytes=record["bytes"].get("read", 0), num_bad=num_bad)
            source = next(source for source in sources if source.name == task.source)
            check_bad_rows(source, tasks, done, max_bad_fraction=max_bad_fraction, shop=shop)
    ingested = Ingested(tasks, [done[task.name] for task in tasks])
    for source in sources:
        check_source(ingested, source, shop)
    return ingested


def check_bad_rows(
    source: PlannedSource,
    tasks: list[IngestTask],
    done: dict[str, dict[str, Any]],
    *,
    max_bad_fraction: float,
    shop: Workshop,
) -> None:
    """Raise ValueError where a source has more bad rows than its share allows, judged by the part that is read.

    Before all of it is read, only where the rest could not make up for it: were it all good, and as dense in rows.
    """
    finished = [task for task in tasks if task.source == source.name and task.name in done]
    ingested = Ingested(finished, [done[task.name] for task in finished])
    documents = ingested.count(source.name)["documents"]
    share_read = sum(task.size_bytes for task in finished) / max(1, source.size_bytes)
    num_bad = sum(documents[reason] for reason in BAD_REASONS)
    if num_bad <= max_bad_fraction * documents["read"] / max(share_read, 1e-9):
        return
    for number, task in enumerate(finished):
        run_drops(plan_drops(task, number, duplicates_paths=(), source_names=(), shop=shop, fingerprint=""))
    listed = ", ".join(f"{documents[reason]:,} {reason}" for reason in BAD_REASONS if documents[reason])
    raise ValueError(
        f"source {source.name}: {num_bad:,} of {documents['read']:,} rows are bad ({listed}), more than "
        f"--max-bad-fraction {max_bad_fraction:g} allows. {show_bad_rows(ingested, source)} All are listed in "
        f"{shop.out / source.name / 'drops'}. Mend or remove them, or allow more"
    )


def show_bad_rows(ingested: Ingested, source: PlannedSource) -> str:
    """The first few bad rows of a source, and what their reasons mean."""
    shown: dict[str, str] = {}
    for task in ingested.tasks:
        for drop in np.load(Path(task.folder) / "drops.npy", mmap_mode="r"):
            reason = DROP_REASONS[drop["reason"]]
            if reason in BAD_REASONS and reason not in shown and len(shown) < BAD_ROWS_SHOWN:
                path = source.folder / source.files[drop["raw_file"]].path
                shown[reason] = f"{path} row {drop['row']}: {reason} ({describe_reason(reason, source)})"
    return f"First: {'; '.join(shown.values())}."


def describe_reason(reason: str, source: PlannedSource) -> str:
    """What a reason means, with the name of the field that was looked for."""
    return BAD_REASONS[reason].replace("text field", f"field {source.source.text_field!r}")


def check_source(ingested: Ingested, source: PlannedSource, shop: Workshop) -> None:
    """Raise ValueError for a source without documents; say so where some could not be told for excluded or not."""
    documents = ingested.count(source.name)["documents"]
    if not documents["accepted"]:
        reasons = ", ".join(f"{documents[reason]:,} {reason}" for reason in DROP_REASONS if documents[reason])
        raise ValueError(
            f"source {source.name} has no document to keep: {documents['read']:,} rows in {len(source.files)} files"
            f"{f' ({reasons})' if reasons else ''}. Remove it from --mix, or look into {source.folder}"
        )
    num_unknown = sum(
        record["num_without_subset"]
        for task, record in zip(ingested.tasks, ingested.records, strict=True)
        if task.source == source.name
    )
    if num_unknown:
        shop.console.print(
            f"note: {source.name}: {num_unknown:,} documents name no subset ({source.source.subset_field} is missing); "
            f"they are kept beside exclude={'+'.join(source.exclude)}"
        )


@dataclass(frozen=True)
class Deduplicated:
    """The finished dedup: what stays and what goes by source, and the tokens that stay by place."""

    tasks: list[DedupTask]
    counts: dict[str, list[dict[str, int]]]  # outcome -> per source: documents, bytes, tokens
    histogram: np.ndarray  # int64, (sources, splits, buckets)


def dedup(ingested: Ingested, source_names: list[str], *, method: str, shop: Workshop) -> Deduplicated:
    """Decide which documents stay."""
    folder = shop.work / "dedup"
    stretches = ingested.stretches(source_names)
    tasks = plan_dedup(
        stretches, method=method, num_sources=len(source_names), folder=folder, fingerprint=ingested.fingerprint
    )
    records: dict[str, dict[str, Any]] = {}
    with StageProgress(shop.console, "dedup", unit="ranges", total=len(tasks)) as progress:
        for task, record in shop.workers.run(run_dedup, tasks, records=shop.records("dedup")):
            records[task.name] = record
            progress.advance(1)
    counts = {
        outcome: [sum_counts(parts) for parts in zip(*(record[outcome] for record in records.values()), strict=True)]
        for outcome in ("kept", "duplicate_exact")
    }
    return Deduplicated(tasks, counts, np.concatenate([np.load(task.histogram_path) for task in tasks], axis=2))


def sum_counts(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of several {documents, bytes, tokens}."""
    counts = list(counts)
    return {what: sum(count[what] for count in counts) for what in ("documents", "bytes", "tokens")}


def write_drops(
    ingested: Ingested, deduplicated: Deduplicated, source_names: list[str], shop: Workshop
) -> dict[str, list[dict[str, Any]]]:
    """Write every document that is not kept; returns the files of each source."""
    paths = tuple(str(part.duplicates_path) for part in deduplicated.tasks)
    tasks = [
        plan_drops(
            task,
            number,
            duplicates_paths=paths,
            source_names=tuple(source_names),
            shop=shop,
            fingerprint=ingested.fingerprint,
        )
        for number, task in enumerate(ingested.tasks)
    ]
    files: dict[str, dict[str, Any] | None] = {}
    with StageProgress(shop.console, "drops", unit="tasks", total=len(tasks)) as progress:
        for task, record in shop.workers.run(run_drops, tasks, records=shop.records("drops")):
            files[task.name] = record
            progress.advance(1)
    return {
        source: [files[task.name] for task in ingested.tasks if task.source == source and files[task.name]]
        for source in source_names
    }


def plan_drops(
    task: IngestTask,
    number: int,
    *,
    duplicates_paths: tuple[str, ...],
    source_names: tuple[str, ...],
    shop: Workshop,
    fingerprint: str,
) -> DropsTask:
    """The task that lists what an ingest task, the plan's `number`, did not keep."""
    return DropsTask(
        name=task.name,
        number=number,
        ingest_folder=task.folder,
        duplicates_paths=duplicates_paths,
        source_names=source_names,
        dropped_path=str(dropped_path(task, shop)),
        out=str(shop.out),
        table_name=f"{task.source}/drops/drops-{task.name.rpartition('-')[2]}.parquet",
        fingerprint=fingerprint,
    )


def dropped_path(task: IngestTask, shop: Workshop) -> Path:
    """Where the indices of an ingest task's dropped documents are."""
    return shop.work / "dropped" / f"{task.name}.npy"


def pack(
    ingested: Ingested,
    deduplicated: Deduplicated,
    source_names: list[str],
    *,
    shard_tokens: int,
    dtype: str,
    shop: Workshop,
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Write all shards; returns source -> split -> Shard records as dicts, in order."""
    stretches = ingested.stretches(source_names)
    plans = {}
    for number, source in enumerate(source_names):
        for index, split in enumerate(SPLITS):
            borders = plan_shards(deduplicated.histogram[number, index], shard_tokens=shard_tokens)
            chosen = tuple(
                PackStretch(stretch, str(dropped_path(ingested.tasks[stretch.task], shop)))
                for stretch in stretches
                if (stretch.source, stretch.split) == (number, split)
            )
            plans[source, split] = plan_pack(
                source, split, borders, stretches=chosen, dtype=dtype, out=shop.out, fingerprint=ingested.fingerprint
            )
    tasks = [task for plan in plans.values() for task in plan]
    shards: dict[str, dict[str, Any]] = {}
    with StageProgress(shop.console, "pack", unit="shards", total=len(tasks)) as progress:
        for task, record in shop.workers.run(run_pack, tasks, records=shop.records("pack")):
            shards[task.name] = record
            progress.advance(1, num_bytes=record["bytes"])
    packed: dict[str, dict[str, list[dict[str, Any]]]] = {source: {} for source in source_names}
    for (source, split), plan in plans.items():
        if plan:
            packed[source][split] = [shards[task.name] for task in plan]
    return packed
