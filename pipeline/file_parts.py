"""Parts of a raw file, so that two workers can share a huge one. Knows no documents.

A part is a stretch of bytes (of plain JSON lines) or of row groups (of parquet). A line belongs to the part that it
starts in, so the parts of a file share no line and leave none out, wherever they are cut and however long lines are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SCAN_BYTES = 1 << 20


@dataclass(frozen=True)
class Part:
    """From `start` until before `end`, in bytes or row groups; an end of None is the file's own, wherever it is."""

    start: int
    end: int | None

    def __post_init__(self) -> None:
        assert self.start >= 0 and (self.end is None or self.start <= self.end), self


WHOLE = Part(0, None)


class LongLineError(Exception):
    """A line is longer than may be."""


def split_evenly(size_bytes: int, part_bytes: int) -> list[Part]:
    """A file's bytes as the fewest parts of `part_bytes` at most; all of one size, but for a byte. The last is open.

    >>> split_evenly(10, 4)
    [Part(start=0, end=3), Part(start=3, end=6), Part(start=6, end=None)]
    """
    num_parts = max(1, -(-size_bytes // part_bytes))
    return join_cuts([size_bytes * number // num_parts for number in range(1, num_parts)])


def split_weighted(sizes: list[int], part_bytes: int) -> list[Part]:
    """Row groups of these sizes as parts that end with the first group that makes `part_bytes`. The last is open."""
    cuts, filled_bytes = [], 0
    for group, size_bytes in enumerate(sizes[:-1], start=1):
        filled_bytes += size_bytes
        if filled_bytes >= part_bytes:
            cuts.append(group)
            filled_bytes = 0
    return join_cuts(cuts)


def join_cuts(cuts: list[int]) -> list[Part]:
    """The parts between ascending cuts, from 0 to the file's end."""
    return [Part(start, end) for start, end in zip([0, *cuts], [*cuts, None], strict=True)]


def find_line_start(file: BinaryIO, position: int, *, longest_line_bytes: int) -> int:
    """Where the first line that starts at `position` or later does; the file's end if none does.

    Raises LongLineError where the line that reaches over `position` has more than `longest_line_bytes` left.
    """
    if position == 0:
        return 0
    at = position - 1  # a line feed just before makes `position` itself a start
    file.seek(at)
    while chunk := file.read(SCAN_BYTES):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
        if at - position > longest_line_bytes:
            raise LongLineError
    return at


def count_line_feeds(path: Path, end: int) -> int:
    """How many line feeds a file has before byte `end`: the row that this byte is in."""
    num_feeds = 0
    with path.open("rb") as file:
        while end > 0 and (chunk := file.read(min(SCAN_BYTES, end))):
            num_feeds += chunk.count(b"\n")
            end -= len(chunk)
    return num_feeds
