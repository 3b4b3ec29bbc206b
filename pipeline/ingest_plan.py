"""The raw files of a build cut into ingest tasks: small files together, huge files in parts.

The cut depends on sizes alone, never on the number of workers. It is kept with the work files, so that a raw file that
changes between two runs changes its own task and no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.documents import split_file
from pipeline.endings import PACKED_ENDINGS
from pipeline.file_parts import WHOLE, Part
from pipeline.folders import FETCH_FAILURE, TASKS_FILE
from pipeline.ingest import EncodeSettings, IngestSettings, IngestTask, TaskFile
from pipeline.manifest import RawFile
from pipeline.markers import STARCODER
from pipeline.parquet_rows import read_footer, split_by_footer
from pipeline.plan import BuildSettings, DatasetPlan, PlannedSource, hash_texts
from pipeline.shard import token_dtype
from pipeline.storage import read_json, write_json

SMALLEST_TASK_BYTES, LARGEST_TASK_BYTES = 4 << 20, 224 << 20
TASKS_WANTED = 64
BYTES_TO_OPEN = 32 << 10
PACKED_RATIO = 3  # packed text holds about as many ids per byte as three bytes of plain text

Group = list[list[Any]]  # of one task: raw file number, start and end of the part


def plan_ingest(
    sources: tuple[PlannedSource, ...],
    settings: BuildSettings,
    datasets: Sequence[DatasetPlan],
    *,
    engine: str,
    work: Path,
    contamination: str | None,
) -> list[IngestTask]:
    """The ingest tasks, each with a folder of its own in the work folder. contamination: the folder of the spans."""
    encode = tuple(describe_encoding(dataset, engine=engine) for dataset in datasets)
    groups = load_groups(sources, work / TASKS_FILE)
    return [
        make_task(source, number, group, size_bytes, choose_settings(source, settings, encode, contamination), work)
        for source in sources
        for number, (group, size_bytes) in enumerate(size_groups(source, groups[source.name]))
    ]


def describe_encoding(dataset: DatasetPlan, *, engine: str) -> EncodeSettings:
    """How a dataset's ids are made."""
    tokenizer = dataset.tokenizer
    dtype = token_dtype(tokenizer.vocab_size).str
    return EncodeSettings(str(tokenizer.path), tokenizer.sha256, engine, dataset.document_rule, dtype)


def choose_settings(
    source: PlannedSource, settings: BuildSettings, encode: tuple[EncodeSettings, ...], contamination: str | None
) -> IngestSettings:
    """What decides a source's documents."""
    return IngestSettings(
        text_field=source.source.text_field,
        subset_field=source.source.subset_field,
        exclude=source.exclude,
        min_chars=settings.min_chars,
        valid_fraction=0.0 if source.has_own_validation else settings.valid_fraction,
        seed=settings.seed,
        dedup=settings.dedup,
        encode=encode,
        strip_markers=settings.strip_markers and source.name == STARCODER,
        contamination=contamination,
        rules=source.rules,
    )


def make_task(
    source: PlannedSource, number: int, group: Group, size_bytes: int, settings: IngestSettings, work: Path
) -> IngestTask:
    """The task that reads a group of raw files or parts."""
    name = f"{source.name}-{number:05d}"
    failure = str(work / FETCH_FAILURE) if source.fetching else None
    files = tuple(replace(make_task_file(source, *entry), failure=failure) for entry in group)
    return IngestTask(
        name=name,
        source=source.name,
        files=files,
        size_bytes=size_bytes,
        settings=settings,
        folder=str(work / "ingest" / name),
        fingerprint=fingerprint_task(source, files, settings),
    )


def fingerprint_task(source: PlannedSource, files: tuple[TaskFile, ...], settings: IngestSettings) -> str:
    """A digest of what a task reads: raw files, tokenizers, evaluation texts. A sample's follows from all raw files."""
    raw_files = [f"{file.number} {file.part} {source.fingerprints[file.number]}" for file in files]
    contamination = [] if settings.contamination is None else [Path(settings.contamination).name]
    return hash_texts([*raw_files, *(encode.sha256 for encode in settings.encode), *contamination])


def make_task_file(source: PlannedSource, number: int, start: int, end: int | None) -> TaskFile:
    """One raw file, or a part of it, as a task reads it."""
    file = source.files[number]
    signals = None if file.signals is None else str(source.folder / file.signals)
    return TaskFile(number, str(source.folder / file.path), file.split, file.subset, Part(start, end), signals=signals)


def size_groups(source: PlannedSource, groups: list[Group]) -> Iterator[tuple[Group, int]]:
    """The groups, each with about how many bytes of raw files it has; together they have all.

    The parts of a file count alike: row groups are cut to be of one size, and so are bytes.
    """
    num_parts = Counter(number for group in groups for number, _, _ in group)
    for group in groups:
        size_bytes = 0
        for number, start, _ in group:
            share, rest = divmod(source.files[number].size_bytes, num_parts[number])
            size_bytes += share + (rest if start == 0 else 0)
        yield group, size_bytes


def load_groups(sources: tuple[PlannedSource, ...], path: Path) -> dict[str, list[Group]]:
    """The groups of each source: those of an earlier run where it found the same paths, else new ones, now kept."""
    paths = {source.name: hash_texts(file.path for file in source.files) for source in sources}
    if path.is_file():
        kept = read_json(path)
        if kept["paths"] == paths:
            return kept["groups"]
    task_bytes = choose_task_bytes(sources)
    groups = {source.name: list(group_files(source, task_bytes)) for source in sources}
    write_json(path, {"paths": paths, "groups": groups})
    return groups


def group_for_drops(sources: tuple[PlannedSource, ...]) -> dict[str, list[tuple[int, int]]]:
    """The raw files of each source, from number to number, that share a list of drops: by their sizes of now alone.

    Not the ingest tasks, which an earlier run may have planned when a file had another size.
    """
    task_bytes = choose_task_bytes(sources)
    groups = {}
    for source in sources:
        edges, weight = [0], 0
        for number, file in enumerate(source.files, start=1):
            weight += weigh(file.path, file.size_bytes)
            if weight >= task_bytes or number == len(source.files):
                edges.append(number)
                weight = 0
        groups[source.name] = list(zip(edges[:-1], edges[1:], strict=True))
    return groups


def choose_task_bytes(sources: tuple[PlannedSource, ...]) -> int:
    """How much a task weighs: small builds, too, have work for many hands."""
    total = sum(weigh(file.path, file.size_bytes) for source in sources for file in source.files)
    return min(max(total // TASKS_WANTED, SMALLEST_TASK_BYTES), LARGEST_TASK_BYTES)


def weigh(path: str, size_bytes: int) -> int:
    """What a raw file costs, in bytes of packed text: opening one costs as much as reading some."""
    return size_bytes // (1 if path.endswith(PACKED_ENDINGS) else PACKED_RATIO) + BYTES_TO_OPEN


def group_files(source: PlannedSource, task_bytes: int) -> Iterator[Group]:
    """The source's raw files in order, in groups of about `task_bytes`; a part of a file is a group of its own."""
    group: Group = []
    weight = 0
    for number, file in enumerate(source.files):
        ratio = 1 if file.path.endswith(PACKED_ENDINGS) else PACKED_RATIO
        parts = split_raw_file(source, file, task_bytes * ratio)
        if len(parts) > 1:
            yield from ([group] if group else [])
            yield from ([[number, part.start, part.end]] for part in parts)
            group, weight = [], 0
            continue
        group.append([number, WHOLE.start, WHOLE.end])
        weight += weigh(file.path, file.size_bytes)
        if weight >= task_bytes:
            yield group
            group, weight = [], 0
    if group:
        yield group


def split_raw_file(source: PlannedSource, file: RawFile, part_bytes: int) -> list[Part]:
    """The parts that a raw file is to be read in. Of parquet elsewhere the footer alone is fetched for it.

    Where a source has as many files as a build needs tasks that is not worth a request each: they stay whole.
    """
    if source.fetching is None or not file.path.endswith(".parquet"):
        return split_file(source.folder / file.path, file.size_bytes, part_bytes)
    if file.size_bytes <= part_bytes or len(source.files) >= TASKS_WANTED:
        return [WHOLE]
    try:
        metadata = read_footer(lambda num_bytes: source.fetching.read_end(file.path, num_bytes) or b"", file.size_bytes)
    except pa.ArrowInvalid:  # whoever reads the whole file says what is wrong with it
        return [WHOLE]
    return split_by_footer(metadata, part_bytes)
