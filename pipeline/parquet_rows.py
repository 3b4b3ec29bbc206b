"""A parquet file, or some of its row groups -> Arrow batches of documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.document_batch import DocumentBatch, split_good_from_bad
from pipeline.file_parts import WHOLE, Part, split_weighted
from pipeline.json_lines import LineFields, find_subsets

BATCH_BYTES = 8 << 20
MOST_ROWS_PER_BATCH = 65_536


def read_parquet(path: Path, *, fields: LineFields, part: Part = WHOLE) -> Iterator[DocumentBatch]:
    """The documents of a parquet file's row groups `part`; rows count from 0 at the first of them."""
    row = first_row = 0
    with pa.OSFile(str(path)) as raw:
        try:
            file = pq.ParquetFile(raw)
            columns = parquet_columns(path, file.schema_arrow, fields)
            groups = list(range(file.num_row_groups))[part.start : part.end]
            first_row = sum(file.metadata.row_group(group).num_rows for group in range(groups[0] if groups else 0))
            num_rows = rows_per_batch(file.metadata)
            for batch in file.iter_batches(batch_size=num_rows, row_groups=groups, columns=columns, use_threads=False):
                subsets = None if fields.subset is None else find_subsets(batch, fields.subset)
                yield split_good_from_bad(text_column(batch, fields.text), first_row=row, subsets=subsets)
                row += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise broken(path, first_row + row, error) from error


def broken(path: Path, row: int, error: Exception) -> ValueError:
    """The error for a file that cannot be read on from a row."""
    return ValueError(
        f"{path} is cut short or not parquet, at row {row}: {error}. "
        "Fetch it again, or remove it to build without its documents"
    )


def split_row_groups(path: Path, part_bytes: int) -> list[Part]:
    """The parts of a parquet file: row groups that make about `part_bytes` as they lie in the file.

    Raises ValueError where the file has no readable footer.
    """
    try:
        metadata = pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise broken(path, 0, error) from error
    return split_weighted([group_bytes(metadata, group) for group in range(metadata.num_row_groups)], part_bytes)


def group_bytes(metadata: pq.FileMetaData, group: int) -> int:
    """How much of the file a row group takes."""
    columns = metadata.row_group(group)
    return sum(columns.column(index).total_compressed_size for index in range(columns.num_columns))


def parquet_columns(path: Path, schema: pa.Schema, fields: LineFields) -> list[str]:
    """The columns to read. Raises ValueError where the text column is missing or holds no text."""
    if fields.text not in schema.names:
        raise ValueError(f"{path} has no column {fields.text!r}: it has {', '.join(schema.names)}")
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


def rows_per_batch(metadata: pq.FileMetaData) -> int:
    """How many rows make about BATCH_BYTES, from the file's own totals."""
    total_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(MOST_ROWS_PER_BATCH, BATCH_BYTES * metadata.num_rows // max(total_bytes, 1)))


def text_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of text as a binary array."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.binary())
