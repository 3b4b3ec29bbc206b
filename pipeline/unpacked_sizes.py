"""What packed pieces of parquet and Arrow files claim to become, found before they are unpacked: bombs are refused.

A reader gives a page, or a record batch, as much memory as it claims. Here the claims alone are read, a few bytes each.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LARGE_BYTES, MOST_BYTES = 256 << 20, 2 << 30
MOST_RATIO = 100  # text never packs so well
HEAD_BYTES, LONGEST_HEAD_BYTES = 4 << 10, 32 << 20  # a page's header can hold the least and largest value
VARINTS, DOUBLE, BINARY, STRUCT, BOOLEANS = (4, 5, 6), 7, 8, 12, (1, 2)
DICTIONARY_BATCH, RECORD_BATCH = 2, 3
CONTINUATION = 0xFFFFFFFF


def refuse_bomb(path: Path, what: str, *, claimed_bytes: int, packed_bytes: int) -> None:
    """Raise ValueError where a piece of a file claims to become much more than text could."""
    is_wide = claimed_bytes > LARGE_BYTES and claimed_bytes > MOST_RATIO * packed_bytes
    if is_wide or claimed_bytes > MOST_BYTES:
        raise ValueError(
            f"{path}: {what} has {packed_bytes:,} bytes and claims to become {claimed_bytes:,}: too many to be read. "
            "Remove the file to build without it, or write it anew in smaller pieces"
        )


def find_largest_page(path: Path, file: pa.NativeFile, group: pq.RowGroupMetaData, columns: Iterable[str]) -> int:
    """The bytes of the largest page of some columns of a row group, unpacked. Raises ValueError for a bomb."""
    wanted, largest = set(columns), 0
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema.split(".")[0] in wanted:
            for claimed_bytes, packed_bytes in walk_pages(file, column):
                refuse_bomb(path, "a page", claimed_bytes=claimed_bytes, packed_bytes=packed_bytes)
                largest = max(largest, claimed_bytes)
    return largest


def walk_pages(file: pa.NativeFile, column: pq.ColumnChunkMetaData) -> Iterator[tuple[int, int]]:
    """What each page of a column claims to become, and what it has. Stops where it is no page: its reader will say."""
    at = find_first_page(column)
    end = min(at + column.total_compressed_size, file.size())
    num_bytes = HEAD_BYTES
    while at < end:
        try:
            sizes, length = read_page_header(file.read_at(min(num_bytes, end - at), at))
        except IndexError:  # the header goes on
            num_bytes *= 4
            if num_bytes > LONGEST_HEAD_BYTES:
                return
            continue
        except KeyError:
            return
        claimed_bytes, packed_bytes = sizes[2], sizes[3]
        yield claimed_bytes, packed_bytes
        at += length + max(0, packed_bytes)
        num_bytes = HEAD_BYTES


def find_first_page(column: pq.ColumnChunkMetaData) -> int:
    """Where in the file a column of a row group begins."""
    return min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)


def read_page_header(data: bytes) -> tuple[dict[int, int], int]:
    """The numbers of a PageHeader by field (2: bytes unpacked, 3: packed), and its length.

    In Thrift's compact protocol, as https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
    and https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md say. Raises IndexError where
    it is not all there, KeyError where it is none.
    """
    numbers: dict[int, int] = {}
    at, fields = 0, [0]  # the last field of each open struct
    while fields:
        head, at = data[at], at + 1
        if head == 0:
            fields.pop()
            continue
        kind = head & 15
        if head >> 4:
            fields[-1] += head >> 4
        else:
            fields[-1], at = read_varint(data, at)
        if kind == STRUCT:
            fields.append(0)
        elif kind in VARINTS:
            number, at = read_varint(data, at)
            if len(fields) == 1:
                numbers[fields[0]] = (number >> 1) ^ -(number & 1)
        else:
            at = skip(kind, data, at)
    return {field: numbers[field] for field in (2, 3)}, at


def skip(kind: int, data: bytes, at: int) -> int:
    """Where a value of another kind ends."""
    if kind == BINARY:
        length, at = read_varint(data, at)
        return at + length
    return at + {**dict.fromkeys(BOOLEANS, 0), 3: 1, DOUBLE: 8}[kind]


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    number = shift = 0
    while True:
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at


def refuse_arrow_bombs(path: Path, file: pa.NativeFile, start: int) -> None:
    """Raise ValueError where a batch of an Arrow stream, from byte `start` of a file on, claims too much.

    Raises pyarrow's ArrowInvalid where it is no such stream, or cut short.
    """
    at = start
    try:
        while at < file.size():
            body, body_bytes, buffers = read_message(file, at)
            claims = (struct.unpack("<q", file.read_at(8, body + offset))[0] for offset in buffers)
            claimed_bytes = sum(max(0, claim) for claim in claims)
            refuse_bomb(path, f"a batch at byte {at:,}", claimed_bytes=claimed_bytes, packed_bytes=body_bytes)
            if body == at:
                return
            at = body + body_bytes
    except struct.error:
        raise pa.ArrowInvalid(f"no message at byte {at:,}") from None


def read_message(file: pa.NativeFile, at: int) -> tuple[int, int, list[int]]:
    """Where a message's body begins (where it itself does, at the stream's end), its length, and its packed buffers.

    https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
    """
    marker = struct.unpack("<I", file.read_at(4, at))[0]
    head_bytes = 8 if marker == CONTINUATION else 4  # as before Arrow 0.15
    length = struct.unpack("<I", file.read_at(4, at + 4))[0] if marker == CONTINUATION else marker
    if length == 0:
        return at, 0, []
    body_bytes, buffers = read_metadata(file.read_at(length, at + head_bytes))
    if body_bytes < 0:
        raise struct.error
    return at + head_bytes + length, body_bytes, buffers


def read_metadata(metadata: bytes) -> tuple[int, list[int]]:
    """The length of a message's body, and where in it packed buffers begin.

    A flatbuffer: https://flatbuffers.dev/internals, its tables in Arrow's Message.fbs. Raises struct.error.
    """
    message = struct.unpack_from("<I", metadata)[0]
    kind_at, header, length_at = (find_field(metadata, message, field) for field in (1, 2, 3))
    kind = metadata[kind_at] if kind_at else 0
    body_bytes = struct.unpack_from("<q", metadata, length_at)[0] if length_at else 0
    if kind not in (DICTIONARY_BATCH, RECORD_BATCH) or not header:
        return body_bytes, []
    batch = follow(metadata, header)
    if kind == DICTIONARY_BATCH:
        batch = follow(metadata, find_field(metadata, batch, 1))
    if not find_field(metadata, batch, 3) or not (buffers := find_field(metadata, batch, 2)):  # not packed
        return body_bytes, []
    first = follow(metadata, buffers)
    count = struct.unpack_from("<I", metadata, first)[0]
    spans = struct.iter_unpack("<qq", metadata[first + 4 : first + 4 + 16 * count])
    return body_bytes, [offset for offset, num_bytes in spans if num_bytes]


def find_field(data: bytes, table: int, field: int) -> int:
    """Where a field of a table stands; 0 where it has none."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * field
    if place >= struct.unpack_from("<H", data, entries)[0]:
        return 0
    offset = struct.unpack_from("<H", data, entries + place)[0]
    return table + offset if offset else 0


def follow(data: bytes, at: int) -> int:
    """Where an offset at a place of the flatbuffer leads."""
    return at + struct.unpack_from("<I", data, at)[0]
