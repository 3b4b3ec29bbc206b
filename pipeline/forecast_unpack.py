"""Packed raw files unpacked from end to end, so that what --dry-run reads of one is spread over all of it.

Unpacking is cheap beside tokenising, and so is not bounded by the sample but by a budget of its own. A file is gone
through twice: to measure it, and to take out some of its lines, which alone are kept. Knows no source and no sample.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.documents import find_kind, long_line, read_blocks, read_chunks
from pipeline.file_parts import SCAN_BYTES, LongLineError, Part

# How many bytes may be unpacked for each byte of the sample: about three seconds of a core for 100 MB, by each.
UNPACKED_SHARES = {"zstd": 30, "gzip": 10, "xz": 3, "bz2": 1}
TIMES = 2  # that a file is unpacked
GOLDEN_RATIO = (5**0.5 - 1) / 2
STEP_BYTES = 16 << 10


@dataclass(frozen=True)
class Unpacked:
    """What all of a packed file is, unpacked, and how many seconds of a core that takes."""

    num_bytes: int
    seconds: float


@dataclass(frozen=True)
class Gathered:
    """Lines of a packed file. short: those that start in some stretches. long: all in a part of the file, of whose
    texts `share` is to be read, what the stretches are of the file. unpacking_seconds: of a core, for a byte.
    """

    short: bytearray
    long: bytearray
    share: float
    unpacking_seconds: float

    @property
    def covered_bytes(self) -> float:
        """How much of the file is read."""
        return len(self.short) + self.share * len(self.long)


class UnpackingBudget:
    """How much more may be unpacked of a source of whose text so many bytes are to be read."""

    def __init__(self, sample_bytes: int):
        self.left_bytes = float(sample_bytes)  # of the sample

    def measure(self, path: Path, expected_bytes: float) -> Unpacked | None:
        """Unpack all of a file, if that is within the budget, where reading it is to be too.

        expected_bytes: about what it unpacks to. Raises ValueError with the file's name where it is damaged.
        """
        _, compression = find_kind(path)
        rate = UNPACKED_SHARES[compression] / TIMES
        if expected_bytes > self.left_bytes * rate:
            return None
        started, num_bytes = time.process_time(), 0
        for chunk in read_chunks(path, compression=compression, most_bytes=SCAN_BYTES):
            num_bytes += len(chunk)
            if num_bytes > self.left_bytes * rate:
                self.left_bytes = 0
                return None
        self.left_bytes -= num_bytes / rate
        return Unpacked(num_bytes, time.process_time() - started)


def spread_stretches(num_bytes: int, wanted_bytes: int, *, num_stretches: int, number: int) -> list[Part]:
    """Stretches of a text that are equally far apart and `wanted_bytes` in all; one may be in two parts, at both ends.

    number: of the file in its source. It says where the first begins, other in each file: were it the same in all, the
    first line of a file would be in all samples or in none.
    """
    distance, size = num_bytes / num_stretches, wanted_bytes // num_stretches
    phase = number * GOLDEN_RATIO % 1
    starts = [round((index + phase) * distance) for index in range(-1, num_stretches)]
    edges = [(max(0, start), min(start + size, num_bytes)) for start in starts]
    return [Part(start, end) for start, end in edges if start < end]


def read_stretches(path: Path, stretches: list[Part], *, longest_bytes: int) -> Iterator[tuple[bytearray, bytearray]]:
    """The lines that start in each of ascending stretches of a packed file's text, whole; beside them the longer ones
    than `longest_bytes` (a stretch, or more), all that were come by on the way. Without a stretch those after the last.

    Long lines are few, and much of the text: by where they start, a sample had too many of them or too few.
    Raises ValueError where a line is too long to be read.
    """
    _, compression = find_kind(path)
    at, left, short, long = 0, list(reversed(stretches)), bytearray(), bytearray()
    try:
        for block in read_blocks(path, compression=compression, start=0, end=None):
            end, long_lines = at + len(block), find_long_lines(block, longest_bytes)
            for last, first in long_lines.items():
                long += block[first:last]
            while left and left[-1].start < end:
                first, last = (find_start(block, edge - at, long_lines) for edge in (left[-1].start, left[-1].end))
                short += block[first : long_lines.get(last, last)]  # a long one would be its last
                if left[-1].end > end:  # it goes on in the next block
                    break
                left.pop()
                yield short, long
                short, long = bytearray(), bytearray()
            at = end
            del block  # its memory grows for a long line
    except LongLineError:
        raise long_line(path, count_rows(path, at)) from None
    yield short, long


def find_long_lines(block: memoryview, longest_bytes: int) -> dict[int, int]:
    """Of lines longer than so many bytes, in a block of whole lines, where each ends, and where it starts."""
    found, at = {}, 0
    while len(block) - at > longest_bytes:
        end = bytes(block[at : at + longest_bytes]).rfind(b"\n") + 1  # of the last of some lines that are short
        if end == 0:
            end = find_start(block, at + longest_bytes + 1, {}) - at
            found[at + end] = at
        at += end
    return found


def find_start(block: memoryview, position: int, long_lines: dict[int, int]) -> int:
    """Where the first line of a block of whole lines that starts at `position` or later does; its end if none does.

    long_lines: as find_long_lines gives them, so that none is looked through for each stretch within it.
    """
    if position <= 0:
        return 0
    ends = list(long_lines)
    nearest = bisect.bisect_left(ends, position)
    if nearest < len(ends) and long_lines[ends[nearest]] < position:
        return ends[nearest]
    for at in range(position - 1, len(block), STEP_BYTES):  # a line feed just before makes `position` itself a start
        found = bytes(block[at : at + STEP_BYTES]).find(b"\n")
        if found >= 0:
            return at + found + 1
    return len(block)


def count_rows(path: Path, end: int) -> int:
    """How many line feeds the text of a packed file has before byte `end`."""
    num_feeds = at = 0
    for chunk in read_chunks(path, compression=find_kind(path)[1], most_bytes=SCAN_BYTES):
        num_feeds += chunk.count(b"\n", 0, max(0, end - at))
        at += len(chunk)
        if at >= end:
            break
    return num_feeds
