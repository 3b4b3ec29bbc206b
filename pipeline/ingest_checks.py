"""What stops a build at its raw files: too many bad rows, a source without a document, a file that grew meanwhile; and
how that is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.document_batch import BAD_REASONS
from pipeline.documents import count_rows_before
from pipeline.drops import DropsTask, Duplicates, Ingest, run_drops
from pipeline.ingest import IngestTask, TaskFile
from pipeline.plan import PlannedSource
from pipeline.ranks import RankMap
from pipeline.token_file import DROP_REASONS, open_drops
from pipeline.workshop import Ingested

BAD_ROWS_SHOWN = 3


class BadRows:
    """Watches the bad rows of each source while its tasks finish, and stops the build where they are too many."""

    def __init__(self, sources: tuple[PlannedSource, ...], *, max_bad_fraction: float, out: Path):
        self.sources = {source.name: source for source in sources}
        self.max_bad_fraction, self.out = max_bad_fraction, out
        self.tasks: dict[str, list[IngestTask]] = {name: [] for name in self.sources}
        self.documents: dict[str, Counter[str]] = {name: Counter() for name in self.sources}
        self.size_bytes = dict.fromkeys(self.sources, 0)
        self.num_rows: dict[TaskFile, int] = {}

    def check(self, task: IngestTask, record: dict[str, Any]) -> None:
        """Raise ValueError where a source has more bad rows than its share allows, judged by the part that is read.

        Before all of it is read, only where the rest could not make up for it: were it all good, and as dense in rows.
        """
        source, documents = self.sources[task.source], self.documents[task.source]
        self.tasks[task.source].append(task)
        self.num_rows[task.files[0]] = record["num_rows"]
        documents.update(record["documents"])
        self.size_bytes[task.source] += task.size_bytes
        num_bad = sum(documents[reason] for reason in BAD_REASONS)
        share_read = self.size_bytes[task.source] / max(1, source.size_bytes)
        if num_bad > self.max_bad_fraction * documents["read"] / max(share_read, 1e-9):
            self.stop(source, num_bad)

    def stop(self, source: PlannedSource, num_bad: int) -> None:
        """List the bad rows read so far, and raise ValueError."""
        documents, tasks = self.documents[source.name], self.tasks[source.name]
        for task in tasks:
            run_drops(list_bad_rows(task, self.out, first_row=self.find_first_row(task)))
        listed = ", ".join(f"{documents[reason]:,} {reason}" for reason in BAD_REASONS if documents[reason])
        raise ValueError(
            f"source {source.name}: {num_bad:,} of {documents['read']:,} rows are bad ({listed}), more than "
            f"--max-bad-fraction {self.max_bad_fraction:g} allows. {self.show_bad_rows(source)} All are listed in "
            f"{self.out / source.name / 'drops'}. Mend or remove them, or allow more"
        )

    def find_first_row(self, task: IngestTask) -> int:
        """Where a task begins in its raw file: from the file, or from the other tasks if it was fetched and is gone."""
        file = task.files[0]
        if file.part.start == 0:
            return 0
        if Path(file.path).exists():
            return count_rows_before(Path(file.path), file.part)
        before = (one for one in self.num_rows if one.path == file.path and one.part.start < file.part.start)
        return sum(self.num_rows[one] for one in before)

    def show_bad_rows(self, source: PlannedSource) -> str:
        """The first few bad rows of a source, and what their reasons mean."""
        shown: dict[str, str] = {}
        for task in self.tasks[source.name]:
            for drop in open_drops(Path(task.folder)):
                reason = DROP_REASONS[drop["reason"]]
                if reason in BAD_REASONS and reason not in shown and len(shown) < BAD_ROWS_SHOWN:
                    path = source.folder / source.files[drop["raw_file"]].path
                    row = self.find_first_row(task) + int(drop["row"])
                    shown[reason] = f"{path} row {row}: {reason} ({describe_reason(reason, source)})"
        return f"First: {'; '.join(shown.values())}."


def list_bad_rows(task: IngestTask, out: Path, *, first_row: int) -> DropsTask:
    """The task that lists what ingest alone dropped, while other tasks may be unfinished."""
    return DropsTask(
        name=task.name,
        source=task.source,
        first_file=task.files[0].number,
        last_file=task.files[-1].number + 1,
        ingests=(Ingest(task.folder, first_row),),
        num_tokenizers=len(task.settings.encode),
        duplicates=Duplicates(RankMap(())),
        source_names=(),
        out=str(out),
        table_name=f"{task.source}/drops/drops-{task.name.rpartition('-')[2]}.parquet",
        fingerprint="",
        contamination=task.settings.contamination,
        rules=task.settings.rules,
    )


def describe_reason(reason: str, source: PlannedSource) -> str:
    """What a reason means, with the name of the field that was looked for."""
    return BAD_REASONS[reason].replace("text field", f"field {source.source.text_field!r}")


def check_sources(ingested: Ingested, sources: tuple[PlannedSource, ...], *, notice: Callable[[str], None]) -> None:
    """Raise ValueError for a source without documents, or with a file that changed while it was read; say so where some
    documents could not be told for excluded or not."""
    for source in sources:
        refuse_changed(source)
        documents = ingested.count(source.name)["documents"]
        if not documents["accepted"]:
            reasons = ", ".join(f"{documents[reason]:,} {reason}" for reason in DROP_REASONS if documents[reason])
            raise ValueError(
                f"source {source.name} has no document to keep: {documents['read']:,} rows in {len(source.files)} "
                f"files{f' ({reasons})' if reasons else ''}. Remove it from --mix, or look into {source.folder}"
            )
        num_unknown = sum(record["num_without_subset"] for record in ingested.of_source(source.name))
        if num_unknown:
            notice(
                f"{source.name}: {num_unknown:,} documents name no subset ({source.source.subset_field} is missing); "
                f"they are kept beside exclude={'+'.join(source.exclude)}"
            )


def refuse_changed(source: PlannedSource) -> None:
    """Raise ValueError where a raw file on this disk has another size than when the build began: what was read of it is
    not what dataset.json would say."""
    for file in source.files if source.fetching is None else ():
        path = source.folder / file.path
        size_bytes = path.stat().st_size
        if size_bytes != file.size_bytes:
            raise ValueError(
                f"{path} had {file.size_bytes:,} bytes when the build began, now {size_bytes:,}: something writes to "
                "it. When that is done, run the same command again; only this file's tasks are done again"
            )
