"""An Arrow file, as `datasets` saves them to a disk or a hub -> batches of documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.document_batch import DocumentBatch
from pipeline.json_lines import LineFields
from pipeline.parquet_rows import decode_texts, make_batches, parquet_columns
from pipeline.unpacked_sizes import refuse_arrow_bombs

FILE_MAGIC = b"ARROW1"  # https://arrow.apache.org/docs/format/Columnar.html#ipc-file-format: a stream lies behind it
FILE_HEAD_BYTES = 8
ROWS_AT_ONCE = 64


def read_arrow(path: Path, *, fields: LineFields) -> Iterator[DocumentBatch]:
    """The documents of an Arrow file or stream. One record batch at a time is in memory: its own size is its writer's.

    Raises ValueError where it cannot be read to its end, or has no text column.
    """
    return make_batches(path, read_few_rows(path, fields), fields, first_row=0, kind="arrow")


def read_few_rows(path: Path, fields: LineFields) -> Iterator[pa.RecordBatch]:
    """The wanted columns of the rows, few at once."""
    with pa.OSFile(str(path)) as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        start = FILE_HEAD_BYTES if is_file else 0
        refuse_arrow_bombs(path, file, start)
        file.seek(start)
        reader = pa.ipc.open_stream(file)
        columns = parquet_columns(path, reader.schema, fields)
        for batch in reader:
            wanted = batch.select(columns)
            for start in range(0, len(wanted), ROWS_AT_ONCE):
                yield decode_texts(wanted.slice(start, ROWS_AT_ONCE), fields.text)
