"""What --dry-run reads of raw files that lie elsewhere: fetched piece by piece into a folder that goes in the end.

A file there has holes where nothing was fetched. So before something is read of it, one of these functions brings it;
raw files on this disk are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.documents import LONGEST_LINE_BYTES, MEASURED_BYTES, find_lines, measure_unpacking, read_documents
from pipeline.fetch import check_unchanged
from pipeline.file_parts import Part
from pipeline.listing import RemoteFile
from pipeline.manifest import RawFile
from pipeline.parquet_rows import read_footer
from pipeline.plan import PlannedSource
from pipeline.progress import format_bytes
from pipeline.quality_signals import judge
from pipeline.remote import RemoteSource
from pipeline.unpacked_sizes import find_first_page
from pipeline.web import PassingError

LARGEST_WHOLE_BYTES = 100_000_000
LINE_BYTES = 64 << 10  # beyond a piece of lines, for the end of the last one; more where it is longer


class RemoteSample(RemoteSource):
    """Parts of the files of an origin, below `folder`. num_bytes: fetched so far."""

    def __init__(self, remote: RemoteSource, folder: Path):
        super().__init__(remote.name, remote.listing, remote.fetcher, folder=folder, work=folder / ".work", keep=False)
        self.num_bytes = 0
        self.whole: set[str] = set()
        self.with_footer: set[str] = set()

    def fetch(self, path: str) -> int:
        """Fetch a whole file unless it is there, checked by its size alone. Raises ValueError for one too large."""
        if path in self.whole:
            return 0
        size_bytes = self.files[path].size_bytes
        if size_bytes > LARGEST_WHOLE_BYTES:
            raise ValueError(
                f"--dry-run would have to fetch all of {path} ({format_bytes(size_bytes)}), which is read from its "
                "start to its end. Fetch some raw files into --raw, and try with these"
            )
        self.bring_range(path, 0, size_bytes)  # nothing is synced to the disk: there may be thousands
        self.whole.add(path)
        return size_bytes

    def bring_range(self, path: str, start: int, stop: int) -> Path:
        """Fetch the bytes `start` to `stop` of a file to their place in it; returns where it is."""
        file, target = self.files[path], self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        stop = min(stop, file.size_bytes)
        if start < stop:
            self.fetcher.patience.persist(lambda: self.copy_range(file, start, stop), what=path)
        return target

    def copy_range(self, file: RemoteFile, start: int, stop: int) -> None:
        """One attempt to fetch a range."""
        stream, at = self.fetcher.place.open(file, start), start
        with closing(stream.chunks), open(self.folder / file.path, "r+b") as out:
            check_unchanged(file, stream.etag, stream.size_bytes)
            if stream.start != start:
                raise ValueError(f"{file.path}: its server gives no parts of files, so that there can be no dry run")
            out.seek(start)
            for chunk in stream.chunks:
                num_bytes = out.write(chunk[: stop - at])
                self.num_bytes += num_bytes
                at += num_bytes
                if at == stop:
                    return
        raise PassingError(f"the stream ends after {at:,} of {file.size_bytes:,} bytes")


def is_elsewhere(source: PlannedSource) -> bool:
    """Whether a source's raw files are fetched for the sample."""
    return isinstance(source.fetching, RemoteSample)


def may_be_whole(source: PlannedSource, number: int) -> bool:
    """Whether all of a raw file may be read: it is here, or not too large to be fetched."""
    return not is_elsewhere(source) or source.files[number].size_bytes <= LARGEST_WHOLE_BYTES


def bring_whole(source: PlannedSource, numbers: Iterable[int]) -> None:
    """Some raw files, whole."""
    for number in numbers:
        source.bring(source.files[number].path)
        if source.files[number].signals:
            source.bring(source.files[number].signals)


def bring_lines(source: PlannedSource, number: int, part: Part) -> None:
    """The lines of a plain file that start in a part of it."""
    if not is_elsewhere(source):
        return
    file = source.files[number]
    at = max(part.start, part.end - 1)
    start, edge = max(0, part.start - 1), at
    step = LINE_BYTES
    while at < min(file.size_bytes, edge + LONGEST_LINE_BYTES):
        path = source.fetching.bring_range(file.path, start, at + step)
        with open(path, "rb") as there:
            there.seek(at)
            if b"\n" in there.read(step):
                return
        start = at = at + step
        step *= 2


def bring_head(source: PlannedSource, number: int, wanted_bytes: int) -> None:
    """The lines of a packed file that start in its first `wanted_bytes`, unpacked."""

    def read(path: Path) -> None:
        find_lines(path, Part(0, wanted_bytes))
        measure_unpacking(path)

    fewest_bytes = MEASURED_BYTES + max(MEASURED_BYTES, wanted_bytes) // 4
    file = source.files[number]
    bring_enough(source, file.path, read, fewest_bytes=fewest_bytes)
    if file.signals:
        bring_signals(source, file, Part(0, wanted_bytes))


def bring_signals(source: PlannedSource, file: RawFile, head: Part) -> None:
    """The quality signals of the documents in the head of a packed file, which is there."""

    def read(signals: Path) -> None:
        path = source.folder / file.path
        batches = read_documents(path, text_field=source.source.text_field, part=head)
        for _ in judge(batches, path, signals, source.rules, is_whole=False):
            pass

    bring_enough(source, file.signals, read, fewest_bytes=MEASURED_BYTES)


def bring_enough(source: PlannedSource, path: str, read: Callable[[Path], object], *, fewest_bytes: int) -> None:
    """So much of a file's head that `read` can read it, or all of the file."""
    if not is_elsewhere(source):
        return
    size_bytes, done, stop = source.fetching.files[path].size_bytes, 0, fewest_bytes
    while done < size_bytes:
        there = source.fetching.bring_range(path, done, stop)
        done = min(stop, size_bytes)
        try:
            read(there)
            return
        except ValueError:  # it ends too early; what is wrong with a whole file is said where it is read in earnest
            stop = 2 * done


def bring_footer(source: PlannedSource, number: int) -> None:
    """What a parquet file says of itself, at its end."""
    if not is_elsewhere(source):
        return
    file = source.files[number]
    if file.path in source.fetching.with_footer:
        return
    source.fetching.with_footer.add(file.path)

    def read_end(num_bytes: int) -> bytes:
        path = source.fetching.bring_range(file.path, file.size_bytes - num_bytes, file.size_bytes)
        with open(path, "rb") as there:
            there.seek(file.size_bytes - num_bytes)
            return there.read()

    read_footer(read_end, file.size_bytes)


def bring_row_groups(source: PlannedSource, number: int, part: Part) -> None:
    """The texts and subsets of some row groups of a parquet file whose footer is there."""
    if not is_elsewhere(source):
        return
    file = source.files[number]
    metadata = pq.read_metadata(source.folder / file.path)
    wanted = {source.source.text_field, (source.source.subset_field or "").split(".")[0]}
    for group in range(metadata.num_row_groups)[part.start : part.end]:
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            if column.path_in_schema.split(".")[0] in wanted:
                start = find_first_page(column)
                source.fetching.bring_range(file.path, start, start + column.total_compressed_size)
