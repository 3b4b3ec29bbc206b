"""One raw file -> Arrow batches of its documents; every row that is not a document is named. Knows no tokenizer.

A row is a line of a JSON lines file (counted from 0, blank lines too), a row of a table, or 0 for a text file, which is
one document. Texts come out as they stand in the file: valid UTF-8, nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.arrow_rows import read_arrow
from pipeline.csv_rows import DELIMITERS, read_csv
from pipeline.document_batch import DocumentBatch, make_strings, split_good_from_bad
from pipeline.endings import COMPRESSIONS, KNOWN_KINDS
from pipeline.file_parts import SCAN_BYTES, WHOLE, LongLineError, Part, count_line_feeds, find_line_start, split_evenly
from pipeline.json_lines import LineFields, parse_lines
from pipeline.parquet_rows import read_parquet, rows_before_group, split_row_groups
from pipeline.unpacking import unpack

BLOCK_BYTES = 4 << 20  # with its texts it stays in a processor's near cache: 3 to 5 % less time than 8 MiB
LONGEST_LINE_BYTES = 256 << 20  # a line and its text stand in memory together
MEASURED_BYTES = 1 << 20  # of a packed file; they are fetched 64 KiB at a time
STEP_BYTES = 16 << 10

LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")


def read_documents(
    path: Path, *, text_field: str, subset_field: str | None = None, part: Part = WHOLE
) -> Iterator[DocumentBatch]:
    """The documents of one raw file or of a part of it, batch by batch, in bounded memory.

    subset_field: where a row names its subset, such as "meta.redpajama_set_name"; None leaves it unread.
    part: as split_file gives it, or the head of a packed JSON lines file: Part(0, so many bytes of it unpacked). Rows
    count from 0 at the part's first row; the `num_rows` of its batches add up to the rows it has, so whoever knows the
    parts before can tell a row's number in the file.
    Raises ValueError with the file's name and row where the file cannot be read to its end (cut short, not what its
    ending says, no text column); OSError where the system refuses.
    """
    fields = LineFields(text_field, subset_field)
    kind, compression = find_kind(path)
    is_head = kind in LINE_SUFFIXES and compression is not None and part.start == 0
    assert part == WHOLE or is_divisible(path) or is_head, f"{path} has no such part"
    if kind in LINE_SUFFIXES:
        return read_json_lines(path, compression=compression, fields=fields, part=part)
    if kind == ".txt":
        return read_text_file(path, compression=compression)
    if kind == ".parquet":
        return read_parquet(path, fields=fields, part=part)
    if kind == ".arrow":
        return read_arrow(path, fields=fields)
    if kind in DELIMITERS:
        return read_csv(path, lambda: opened(path, compression, start=0), delimiter=DELIMITERS[kind], fields=fields)
    raise ValueError(f"{path}: no reader for this ending ({KNOWN_KINDS})")


def read_row(path: Path, row: int, *, text_field: str) -> str | None:
    """The text in one row of a raw file, which is read up to it; None where the row holds no document.

    Raises as read_documents does.
    """
    for batch in read_documents(path, text_field=text_field):
        at = int(np.searchsorted(batch.rows, row))
        if at < len(batch.rows) and batch.rows[at] == row:
            return batch.texts[at].as_py()
    return None


def find_kind(path: Path) -> tuple[str, str | None]:
    """The ending that says what is in a file, and its compression."""
    compression = COMPRESSIONS.get(path.suffix)
    return (Path(path.stem).suffix if compression else path.suffix), compression


def is_divisible(path: Path) -> bool:
    """Whether a file may be read in parts: a compressed one is read from its start, a text file is one document."""
    kind, compression = find_kind(path)
    return kind == ".parquet" or (kind in LINE_SUFFIXES and compression is None)


def split_file(path: Path, size_bytes: int, part_bytes: int) -> list[Part]:
    """The parts of about `part_bytes` that a raw file of this size is to be read in, in its order; the last is open.

    They follow from the size alone, and for parquet from its footer, which is opened only if the file is larger than
    a part. Raises ValueError where that footer cannot be read.
    """
    if size_bytes <= part_bytes or not is_divisible(path):
        return [WHOLE]
    return split_row_groups(path, part_bytes) if path.suffix == ".parquet" else split_evenly(size_bytes, part_bytes)


def count_rows_before(path: Path, part: Part) -> int:
    """How many rows a raw file has before a part of it, from the file itself."""
    if path.suffix == ".parquet":
        return rows_before_group(path, part.start)
    return count_line_feeds(path, find_lines(path, part)[0])


def read_json_lines(
    path: Path, *, compression: str | None, fields: LineFields, part: Part = WHOLE
) -> Iterator[DocumentBatch]:
    """The documents of a JSON lines file, or of the lines that start in a part of it."""
    start, end = find_lines(path, part)
    row = 0
    try:
        for block in read_blocks(path, compression=compression, start=start, end=end):
            batch = parse_lines(block, first_row=row, fields=fields)
            row += batch.num_rows
            del block
            yield batch
            del batch  # a huge text goes before the next line comes
    except LongLineError:
        raise long_line(path, count_line_feeds(path, start) + row) from None


def find_lines(path: Path, part: Part) -> tuple[int, int | None]:
    """The bytes of the lines that start in a part: from which on, and until which (None: the file's end).

    Bytes of a packed file are counted as they are unpacked.
    """
    if part == WHOLE:
        return 0, None
    _, compression = find_kind(path)
    if compression is not None:
        return 0, find_head_end(path, compression, part.end)
    edges: list[int | None] = []
    with path.open("rb") as file:
        for edge in (part.start, part.end):
            try:
                edges.append(edge and find_line_start(file, edge, longest_line_bytes=LONGEST_LINE_BYTES))
            except LongLineError:
                raise long_line(path, count_line_feeds(path, edge)) from None
    return edges[0], edges[1]


def find_head_end(path: Path, compression: str, position: int) -> int:
    """Where the first line that starts at `position` of a packed file's text or later does; the text's end if none."""
    at = 0
    for chunk in read_chunks(path, compression=compression, most_bytes=SCAN_BYTES):
        found = chunk.find(b"\n", max(0, position - 1 - at))  # a line feed just before makes `position` itself a start
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return at


def long_line(path: Path, row: int) -> ValueError:
    """The error for a line beyond LONGEST_LINE_BYTES."""
    return ValueError(
        f"{path}: row {row} is longer than {LONGEST_LINE_BYTES >> 20} MiB, but a document per line is expected. "
        "Split the file, or remove it to build without it"
    )


def read_blocks(path: Path, *, compression: str | None, start: int, end: int | None) -> Iterator[memoryview]:
    """The bytes start to end of a file, decompressed, in blocks that end with a line; a longer line makes its block
    longer. A block is good until the next is asked for: its memory is used again. Raises LongLineError."""
    room, num_bytes = bytearray(BLOCK_BYTES), 0
    with opened(path, compression, start=start) as stream:
        left = None if end is None else end - start
        while num_read := stream.readinto(memoryview(room)[num_bytes:][:left]):
            left = None if left is None else left - num_read
            cut = room.rfind(b"\n", num_bytes, num_bytes + num_read) + 1
            num_bytes += num_read
            if cut:
                rest = room[cut:num_bytes]
                filled, num_bytes = [memoryview(room)[:cut]], len(rest)
                if len(room) > BLOCK_BYTES:  # a long line goes while its text is worked on
                    room = bytearray(max(BLOCK_BYTES, 2 * len(rest)))
                yield filled.pop()
                room[: len(rest)] = rest
            elif num_bytes > LONGEST_LINE_BYTES:
                raise LongLineError
            elif num_bytes == len(room):
                room += bytes(BLOCK_BYTES)
    if num_bytes:
        yield memoryview(room)[:num_bytes]


def read_chunks(path: Path, *, compression: str | None, most_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in pieces of `most_bytes` at most."""
    with opened(path, compression, start=0) as stream:
        while chunk := stream.read(most_bytes):
            yield chunk


@contextmanager
def opened(path: Path, compression: str | None, *, start: int) -> Iterator[pa.NativeFile]:
    """A raw file's bytes from `start` on, decompressed; a packed one is read from its own start."""
    with pa.OSFile(str(path)) as file:
        if compression is None:
            file.seek(start)
            yield file
            return
        if file.size() == 0:
            raise ValueError(f"{path} is empty, not {compression}: fetch it again, or remove it to build without it")
        with unpack(file, compression) as stream:
            try:
                yield stream
            except OSError as error:
                raise unreadable(path, compression, error) from error


def measure_unpacking(path: Path) -> float:
    """How many bytes a byte of a packed file unpacks to, from its first MEASURED_BYTES."""
    _, compression = find_kind(path)
    num_bytes = measured_bytes = measured_raw = 0
    with pa.OSFile(str(path)) as file, unpack(file, compression) as stream:
        while measured_raw < MEASURED_BYTES:
            raw_bytes = file.tell()
            try:
                chunk = stream.read(STEP_BYTES)
            except OSError as error:
                raise unreadable(path, compression, error) from error
            if not chunk:
                return num_bytes / max(1, file.size())
            if file.tell() > raw_bytes:  # it had to fetch more: what came out so far is what had gone in
                measured_bytes, measured_raw = num_bytes, raw_bytes
            num_bytes += len(chunk)
    return measured_bytes / measured_raw


def unreadable(path: Path, compression: str, error: OSError) -> ValueError:
    """The error for a compressed file that breaks off: says in which row, by reading it once more in small steps."""
    num_rows = 0
    with pa.OSFile(str(path)) as file, unpack(file, compression) as stream:
        try:
            for chunk in iter(lambda: stream.read(64), b""):
                num_rows += chunk.count(b"\n")
        except OSError as second_error:
            error = second_error
    if "too much memory" in str(error):
        how = "zstd --long: unpack it first (zstd -d --long=31)" if compression == "zstd" else "a huge dictionary"
        return ValueError(f"{path} was packed with {how}")
    what = "is cut short" if "Truncated" in str(error) else f"is not {compression} (or damaged)"
    return ValueError(
        f"{path} {what} near row {num_rows}: {error}. Fetch it again, or remove it to build without its documents"
    )


def read_text_file(path: Path, *, compression: str | None) -> Iterator[DocumentBatch]:
    """A text file as one document, row 0."""
    text = bytearray()
    for chunk in read_chunks(path, compression=compression):
        text += chunk
        if len(text) > LONGEST_LINE_BYTES:
            raise ValueError(
                f"{path}: row 0 is longer than {LONGEST_LINE_BYTES >> 20} MiB, and a text file is one document. "
                "Split the file, or turn it into JSON lines"
            )
    texts = make_strings(text, np.array([0, len(text)], np.int32))
    yield split_good_from_bad(texts.view(pa.binary()), first_row=0)
