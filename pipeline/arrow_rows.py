"""An Arrow file, as `datasets` saves them to a disk or a hub -> batches of documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.document_batch import DocumentBatch, split_good_from_bad
from pipeline.json_lines import LineFields
from pipeline.parquet_rows import broken, join_rows, parquet_columns, text_column
from pipeline.subsets import find_subsets

FILE_MAGIC = b"ARROW1"  # https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format; else it is a stream
ROWS_AT_ONCE = 64


def read_arrow(path: Path, *, fields: LineFields) -> Iterator[DocumentBatch]:
    """The documents of an Arrow file or stream. One record batch at a time is in memory: its own size is its writer's.

    Raises ValueError where it cannot be read to its end, or has no text column.
    """
    row = 0
    try:
        for rows in join_rows(read_few_rows(path, fields)):
            subsets = None if fields.subset is None else find_subsets(rows, fields.subset)
            batch = split_good_from_bad(text_column(rows, fields.text), first_row=row, subsets=subsets)
            row += batch.num_rows
            del rows
            yield batch
            del batch  # a huge text goes before the next is read
    except (pa.ArrowInvalid, OSError) as error:
        raise broken(path, row, error, kind="arrow") from error


def read_few_rows(path: Path, fields: LineFields) -> Iterator[pa.RecordBatch]:
    """The wanted columns of the rows, few at once."""
    with pa.OSFile(str(path)) as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        columns = parquet_columns(path, reader.schema, fields)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            wanted = batch.select(columns)
            for start in range(0, len(wanted), ROWS_AT_ONCE):
                yield decode(wanted.slice(start, ROWS_AT_ONCE), fields.text)


def decode(rows: pa.RecordBatch, text_field: str) -> pa.RecordBatch:
    """The same rows with the texts themselves, where they are given by a dictionary."""
    texts = rows.column(text_field)
    if not pa.types.is_dictionary(texts.type):
        return rows
    return rows.set_column(rows.schema.get_field_index(text_field), text_field, texts.dictionary_decode())
