"""A parquet file, or some of its row groups -> Arrow batches of documents."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.document_batch import DocumentBatch, split_good_from_bad
from pipeline.file_parts import WHOLE, Part, split_weighted
from pipeline.json_lines import LineFields
from pipeline.subsets import find_subsets
from pipeline.unpacked_sizes import find_largest_page

FOOTER_BYTES = 64 << 10
FOOTER_END = struct.Struct("<I4s")  # the footer's length and the magic: https://parquet.apache.org/docs/file-format/
BATCH_BYTES = 8 << 20
BUFFER_BYTES = 1 << 20
MOST_BYTES_AT_ONCE = 128 << 20  # as text, as columns and as ids: they stand in memory several times
MOST_ROWS_AT_ONCE = 64  # many rows can be one text of a dictionary page, which has a MB
LARGE_GROUP_BYTES = 128 << 20
LARGE_ROW_BYTES = 16 << 10


def read_parquet(path: Path, *, fields: LineFields, part: Part = WHOLE) -> Iterator[DocumentBatch]:
    """The documents of a parquet file's row groups `part`; rows count from 0 at the first of them."""
    with pa.OSFile(str(path)) as raw:
        try:
            # Buffered, a row group is read as it is decoded; else all of its compressed bytes stand in memory.
            file = pq.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False)
            columns = parquet_columns(path, file.schema_arrow, fields)
            groups = list(range(file.num_row_groups))[part.start : part.end]
            first_row = sum(file.metadata.row_group(group).num_rows for group in range(groups[0] if groups else 0))
        except (pa.ArrowInvalid, OSError) as error:
            raise broken(path, 0, error, kind="parquet") from error
        rows = (
            batch
            for group in groups
            for batch in read_few_rows(
                file, group, columns, largest_page=find_largest_page(path, raw, file.metadata.row_group(group), columns)
            )
        )
        yield from make_batches(path, rows, fields, first_row=first_row, kind="parquet")


def make_batches(
    path: Path, reads: Iterator[pa.RecordBatch], fields: LineFields, *, first_row: int, kind: str
) -> Iterator[DocumentBatch]:
    """The documents of some rows, numbered from 0. first_row: the first one's number in the file, for the error where
    they cannot be read to their end."""
    row = 0
    try:
        for rows in join_rows(reads):
            subsets = None if fields.subset is None else find_subsets(rows, fields.subset)
            batch = split_good_from_bad(text_column(rows, fields.text), first_row=row, subsets=subsets)
            row += batch.num_rows
            del rows
            yield batch
            del batch  # a huge text goes before the next is read
    except (pa.ArrowInvalid, OSError) as error:
        raise broken(path, first_row + row, error, kind=kind) from error


def read_few_rows(
    file: pq.ParquetFile, group: int, columns: list[str], *, largest_page: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, so few at once that they fit into memory however long the longest are.

    columns: the texts' first. largest_page: in bytes.

    A row's length is not known before it is read, and an average says nothing of the longest; but no row is longer than
    its row group. Where that is large, reading four rows at once costs 1 us a row more than reading many, one at once
    10 us: little beside what is done with rows so long.
    """
    num_rows = rows_at_once(file.metadata.row_group(group), largest_page)
    for rows in file.iter_batches(num_rows, row_groups=[group], columns=columns, use_threads=False):
        yield decode_texts(rows, columns[0])


def decode_texts(rows: pa.RecordBatch, text_field: str) -> pa.RecordBatch:
    """The same rows with the texts themselves, where a dictionary gives them: each few rows carry all of that."""
    texts = rows.column(text_field)
    if not pa.types.is_dictionary(texts.type):
        return rows
    return rows.set_column(rows.schema.get_field_index(text_field), text_field, texts.dictionary_decode())


def rows_at_once(group: pq.RowGroupMetaData, largest_page: int) -> int:
    """How many rows of a row group to read together: a page can be one text, or one that many rows repeat."""
    most_rows = min(MOST_ROWS_AT_ONCE, MOST_BYTES_AT_ONCE // max(1, largest_page))
    mean_row_bytes = max(1, group.total_byte_size // max(1, group.num_rows))  # of all columns, without compression
    if group.total_byte_size <= LARGE_GROUP_BYTES:
        return max(1, min(most_rows, BATCH_BYTES // mean_row_bytes))
    return max(1, min(most_rows, 4 if mean_row_bytes < LARGE_ROW_BYTES else 1))


def join_rows(reads: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of BATCH_BYTES, longer by one read at most."""
    waiting: list[pa.RecordBatch] = []
    num_bytes = 0
    for read in reads:
        waiting.append(read)
        num_bytes += read.nbytes
        del read
        if num_bytes >= BATCH_BYTES:
            table, waiting, num_bytes = [pa.Table.from_batches(waiting)], [], 0
            yield table.pop()  # so that huge rows are not held here while they are worked on
    if waiting:
        yield pa.Table.from_batches(waiting)


def broken(path: Path, row: int, error: Exception, *, kind: str) -> ValueError:
    """The error for a file that cannot be read on from a row."""
    return ValueError(
        f"{path} is cut short or not {kind}, at row {row}: {error}. "
        "Fetch it again, or remove it to build without its documents"
    )


def split_row_groups(path: Path, part_bytes: int) -> list[Part]:
    """The parts of a parquet file: row groups that make about `part_bytes` as they lie in the file.

    Raises ValueError where the file has no readable footer.
    """
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise broken(path, 0, error, kind="parquet") from error
    return split_by_footer(metadata, part_bytes)


def split_by_footer(metadata: pq.FileMetaData, part_bytes: int) -> list[Part]:
    """The parts of a parquet file by its footer."""
    return split_weighted([group_bytes(metadata, group) for group in range(metadata.num_row_groups)], part_bytes)


def read_footer(read_end: Callable[[int], bytes], size_bytes: int) -> pq.FileMetaData:
    """What a parquet file of `size_bytes` says of itself. read_end: gives its last bytes, so many.

    Raises pyarrow's ArrowInvalid where it is none.
    """
    end = read_end(min(FOOTER_BYTES, size_bytes))
    num_bytes = FOOTER_END.size + (FOOTER_END.unpack(end[-FOOTER_END.size :])[0] if len(end) >= FOOTER_END.size else 0)
    if len(end) < num_bytes <= size_bytes:
        end = read_end(num_bytes)
    return pq.read_metadata(pa.BufferReader(end))


def rows_before_group(path: Path, group: int) -> int:
    """How many rows a parquet file has before a row group."""
    metadata = pq.read_metadata(path)
    return sum(metadata.row_group(number).num_rows for number in range(group))


def group_bytes(metadata: pq.FileMetaData, group: int) -> int:
    """How much of the file a row group takes."""
    columns = metadata.row_group(group)
    return sum(columns.column(index).total_compressed_size for index in range(columns.num_columns))


def parquet_columns(path: Path, schema: pa.Schema, fields: LineFields) -> list[str]:
    """The columns to read. Raises ValueError where the text column is missing or holds no text."""
    if fields.text not in schema.names:
        raise ValueError(
            f"{path} has no column {fields.text!r}: it has {', '.join(schema.names)}. --mix names the one with the "
            "text, as in notes?column=NAME:1"
        )
    if schema.names.count(fields.text) > 1:
        raise ValueError(f"{path} has more than one column {fields.text!r}")
    text_type = schema.field(fields.text).type
    if pa.types.is_dictionary(text_type):
        text_type = text_type.value_type
    if not (pa.types.is_binary(text_type) or pa.types.is_large_binary(text_type) or is_string(text_type)):
        raise ValueError(f"{path}: column {fields.text!r} holds {text_type}, not text")
    top = [] if fields.subset is None else [fields.subset.split(".")[0]]
    return [fields.text, *(name for name in top if name in schema.names)]


def is_string(arrow_type: pa.DataType) -> bool:
    """Whether a column of this type holds text."""
    return pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type)


def text_column(rows: pa.Table, name: str) -> pa.Array:
    """A column of text as a binary array; a copy only where it lies in several pieces."""
    chunks = rows.column(name).chunks
    texts = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    return texts.cast(pa.binary())
