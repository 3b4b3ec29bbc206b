"""Which pieces of a source's raw files stand for all of them. Opens raw files, and reads no document.

Places spread evenly over all bytes of the source, in the order of its files, so that every folder has its share of
them. At each place a piece of about PIECE_BYTES is read: whole small files in a row, a stretch of lines, row groups, or
of a packed file many short stretches, a few from each part of it. Where that is too much to unpack, or to fetch, it is
the file's head, the longer the more places fell on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.documents import find_kind, find_lines, measure_unpacking
from pipeline.endings import PACKED_ENDINGS
from pipeline.file_parts import WHOLE, Part
from pipeline.forecast_fetch import (
    bring_footer,
    bring_head,
    bring_lines,
    bring_row_groups,
    bring_whole,
    is_elsewhere,
    may_be_whole,
)
from pipeline.forecast_unpack import Gathered, Unpacked, UnpackingBudget, read_stretches, spread_stretches
from pipeline.ingest import TaskFile
from pipeline.ingest_plan import PACKED_RATIO, make_task_file
from pipeline.manifest import RawFile
from pipeline.parquet_rows import group_bytes, split_row_groups
from pipeline.plan import PlannedSource

SAMPLE_BYTES = 100_000_000  # of text, all sources together
PIECE_BYTES = 1 << 20
WHOLE_KINDS = (".txt", ".arrow", ".csv", ".tsv")
FEWEST_PLACES = 8  # in a source, however many sources there are
STRETCHES = 16  # of a packed file, in a piece


@dataclass(frozen=True)
class Piece:
    """Raw files to read, or a part of one, and what they are of the source. Sizes are in bytes as `estimate_text` has.

    num_places: how many places fell on it. aimed_bytes: how much of the source it was to cover. covered_bytes: what it
    covers, since lines are read whole. most_rows: of row groups, after which reading stops; None: it does not.
    is_head: of a packed file. gathered: of a packed file, so that it is not unpacked again for each piece.
    """

    files: tuple[TaskFile, ...]
    num_places: int
    aimed_bytes: float
    covered_bytes: float
    most_rows: int | None = None
    is_head: bool = False
    gathered: Gathered | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Where it begins in the source; that of the file where it is gathered from all over it."""
        return self.files[0].number, self.files[0].part.start


def estimate_text(file: RawFile) -> int:
    """About how many bytes of text a raw file holds, by its size and ending."""
    return file.size_bytes * (PACKED_RATIO if file.path.endswith(PACKED_ENDINGS) else 1)


def share_budget(sources: tuple[PlannedSource, ...]) -> dict[str, int]:
    """How many bytes of text to read of each source: an equal share, or all of it where it has less."""
    sizes = {source.name: sum(map(estimate_text, source.files)) for source in sources}
    left, budgets = SAMPLE_BYTES, {}
    for done, name in enumerate(sorted(sizes, key=sizes.__getitem__)):
        budgets[name] = min(sizes[name], left // (len(sizes) - done))
        left -= budgets[name]
    return budgets


def cut_all(source: PlannedSource) -> Iterator[Iterator[Piece]]:
    """All raw files, in pieces."""
    for group in group_files(source):
        yield iter([cut_whole(source, group, 1)])


def cut_sample(source: PlannedSource, budget_bytes: int) -> Iterator[Iterator[Piece]]:
    """The pieces of a sample, about `budget_bytes` in all: however many are read, they are spread over the source. Of
    those that come together, all are to be read.

    Raises ValueError where a raw file cannot be read, OSError where the system refuses.
    """
    groups = list(group_files(source))
    starts: dict[tuple[int, int], int] = {}
    for index, offset in spread_places(source, groups, max(FEWEST_PLACES, budget_bytes // PIECE_BYTES)):
        start = index, find_start(source, groups[index], offset)
        starts[start] = starts.get(start, 0) + 1
    budget = UnpackingBudget(budget_bytes)
    for (index, start), num_places in starts.items():
        yield cut_pieces(source, groups[index], start, num_places, budget=budget)


def group_files(source: PlannedSource) -> Iterator[range]:
    """The numbers of the raw files: small ones in a row together, as many as make a piece."""
    first = num_bytes = 0
    for number, file in enumerate(source.files):
        if number > first and num_bytes + estimate_text(file) > PIECE_BYTES:
            yield range(first, number)
            first, num_bytes = number, 0
        num_bytes += estimate_text(file)
    yield range(first, len(source.files))


def measure_group(source: PlannedSource, group: range) -> int:
    """The estimated text of some raw files, in bytes."""
    return sum(estimate_text(source.files[number]) for number in group)


def spread_places(source: PlannedSource, groups: list[range], num_places: int) -> Iterator[tuple[int, int]]:
    """Group and offset in its estimated text of each place; the first few are as far apart as can be."""
    sizes = np.array([measure_group(source, group) for group in groups], np.int64)
    ends = np.cumsum(sizes)
    num_bits = max(1, (num_places - 1).bit_length())
    for number in range(1 << num_bits):
        place = int(f"{number:0{num_bits}b}"[::-1], 2)  # its bits backwards: 0, 4, 2, 6, 1, 5, 3, 7
        if place < num_places:
            at = int(ends[-1]) * (2 * place + 1) // (2 * num_places)
            index = int(np.searchsorted(ends, at, side="right"))
            yield index, at - int(ends[index] - sizes[index])


def is_read_whole(source: PlannedSource, group: range) -> bool:
    """Whether a piece is all of a group: small files, or one that has no parts."""
    kind, _ = find_kind(Path(source.files[group[0]].path))
    return measure_group(source, group) <= PIECE_BYTES or kind in WHOLE_KINDS


def find_start(source: PlannedSource, group: range, offset: int) -> int:
    """Where the piece begins that is read for a place in a group: a byte of plain lines, a row group, or 0."""
    file = source.files[group[0]]
    path = source.folder / file.path
    kind, compression = find_kind(path)
    if is_read_whole(source, group) or compression:
        return 0
    if kind != ".parquet":
        return min(offset, file.size_bytes - PIECE_BYTES)
    bring_footer(source, group[0])
    parts, ends, _ = list_row_groups(path)
    return parts[int(np.searchsorted(ends, offset / estimate_text(file) * ends[-1], side="right"))].start


def cut_pieces(
    source: PlannedSource, group: range, start: int, num_places: int, *, budget: UnpackingBudget
) -> Iterator[Piece]:
    """The pieces of a group that begin at `start`."""
    kind, compression = find_kind(Path(source.files[group[0]].path))
    if is_read_whole(source, group):
        yield cut_whole(source, group, num_places)
    elif kind == ".parquet":
        yield cut_row_groups(source, group[0], start, num_places)
    elif compression:
        yield from cut_packed(source, group[0], num_places, budget=budget)
    else:
        yield cut_lines(source, group[0], start, num_places)


def cut_lines(source: PlannedSource, number: int, start: int, num_places: int) -> Piece:
    """The lines of a plain raw file from `start` on."""
    part = Part(start, start + PIECE_BYTES)
    bring_lines(source, number, part)
    first, last = find_lines(source.folder / source.files[number].path, part)
    files = (make_task_file(source, number, part.start, part.end),)
    return Piece(files, num_places, PIECE_BYTES, last - first)


def cut_whole(source: PlannedSource, group: range, num_places: int) -> Piece:
    """Whole raw files."""
    bring_whole(source, group)
    files = tuple(make_task_file(source, number, WHOLE.start, WHOLE.end) for number in group)
    num_bytes = measure_group(source, group)
    return Piece(files, num_places, num_bytes, num_bytes)


def cut_first_line(source: PlannedSource) -> Piece:
    """The first line of the largest raw file: for a source of lines so long that none begins in any piece."""
    number = max(range(len(source.files)), key=lambda number: source.files[number].size_bytes)
    bring_lines(source, number, Part(0, 1))
    _, num_bytes = find_lines(source.folder / source.files[number].path, Part(0, 1))
    return Piece((make_task_file(source, number, 0, 1),), 1, PIECE_BYTES, num_bytes)


def cut_packed(source: PlannedSource, number: int, num_places: int, *, budget: UnpackingBudget) -> Iterator[Piece]:
    """Lines of a packed raw file, a piece for each place in it; all of it where that is about half.

    By what it unpacks to, not by the estimate: were all files read that seem half read, few would be within the budget.
    """
    file, wanted_bytes = source.files[number], num_places * PIECE_BYTES
    path = source.folder / file.path
    bring_head(source, number, wanted_bytes)
    whole_bytes, unpacked = file.size_bytes * measure_unpacking(path), None
    # Signals are found by the rows' numbers, from the first on.
    if 2 * wanted_bytes < whole_bytes and not is_elsewhere(source) and file.signals is None:
        unpacked = budget.measure(path, min(whole_bytes, estimate_text(file)))  # a head may be like no other part
        whole_bytes = whole_bytes if unpacked is None else unpacked.num_bytes
    # Half of it read, the rest is worth its while: where rows are sorted, a head is like no other part.
    if 2 * wanted_bytes >= whole_bytes and may_be_whole(source, number):
        yield cut_whole(source, range(number, number + 1), num_places)
    elif unpacked is None:
        yield cut_head(source, number, num_places, whole_bytes)
    else:
        yield from cut_spread(source, number, num_places, unpacked)


def cut_head(source: PlannedSource, number: int, num_places: int, whole_bytes: float) -> Piece:
    """The first lines of a packed raw file that unpacks to about `whole_bytes`."""
    file, wanted_bytes = source.files[number], num_places * PIECE_BYTES
    _, unpacked_bytes = find_lines(source.folder / file.path, Part(0, wanted_bytes))
    whole_bytes = unpacked_bytes if unpacked_bytes < wanted_bytes else max(whole_bytes, unpacked_bytes)
    files = (make_task_file(source, number, 0, wanted_bytes),)
    estimated = estimate_text(file) / whole_bytes
    aimed_bytes = min(wanted_bytes, whole_bytes) * estimated
    return Piece(files, num_places, aimed_bytes, unpacked_bytes * estimated, is_head=True)


def cut_spread(source: PlannedSource, number: int, num_places: int, unpacked: Unpacked) -> Iterator[Piece]:
    """Lines from all over a packed raw file, in its order; STRETCHES of them to a piece."""
    file, wanted_bytes = source.files[number], num_places * PIECE_BYTES
    how = {"num_stretches": num_places * STRETCHES, "number": number}
    stretches = spread_stretches(unpacked.num_bytes, wanted_bytes, **how)
    found = read_stretches(source.folder / file.path, stretches, longest_bytes=PIECE_BYTES // STRETCHES)
    files = (make_task_file(source, number, WHOLE.start, WHOLE.end),)
    estimated, share = estimate_text(file) / unpacked.num_bytes, wanted_bytes / unpacked.num_bytes
    for place in range(num_places):
        is_last = place == num_places - 1  # has one more where a stretch is in two parts
        short, long = map(bytearray().join, zip(*islice(found, None if is_last else STRETCHES), strict=True))
        gathered = Gathered(short, long, share, unpacked.seconds / unpacked.num_bytes)
        yield Piece(files, 1, PIECE_BYTES * estimated, gathered.covered_bytes * estimated, gathered=gathered)


def cut_row_groups(source: PlannedSource, number: int, start: int, num_places: int) -> Piece:
    """Row groups of a parquet file: of large ones the first rows, a piece for each place in them."""
    file = source.files[number]
    parts, ends, num_rows = list_row_groups(source.folder / file.path)
    index = [part.start for part in parts].index(start)
    covered_bytes = (ends[index] - (ends[index - 1] if index else 0)) / ends[-1] * estimate_text(file)
    # Rows, not bytes, end the reading: what ends at a number of bytes ends in a long row more often than rows are long.
    most_rows = math.ceil(num_rows[index] * min(1.0, num_places * PIECE_BYTES / covered_bytes))
    covered_bytes *= most_rows / num_rows[index]
    bring_row_groups(source, number, parts[index])
    files = (make_task_file(source, number, start, parts[index].end),)
    return Piece(files, num_places, covered_bytes, covered_bytes, most_rows)


def list_row_groups(path: Path) -> tuple[list[Part], np.ndarray, list[int]]:
    """A parquet file's row groups in parts of about a piece: where each ends in bytes, and its number of rows."""
    parts = split_row_groups(path, PIECE_BYTES // PACKED_RATIO)
    metadata = pq.read_metadata(path)
    numbers = range(metadata.num_row_groups)
    sizes = [group_bytes(metadata, group) for group in numbers]
    rows = [sum(metadata.row_group(group).num_rows for group in numbers[part.start : part.end]) for part in parts]
    ends = np.cumsum([sum(sizes[part.start : part.end]) for part in parts])
    return parts, ends, rows
