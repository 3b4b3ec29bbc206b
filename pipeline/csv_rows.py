"""A CSV or TSV file -> Arrow batches of documents. Its first record names the columns; rows count from 0 behind it.

As RFC 4180 says: a value in quotes may hold line ends, and a quote as two. Lines without a character are no rows.
pyarrow reads it, and not `datasets`, which guesses types: a text of digits would become a number, an empty one null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from pipeline.document_batch import DocumentBatch
from pipeline.json_lines import LineFields
from pipeline.parquet_rows import make_batches, parquet_columns

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BLOCK_BYTES = 32 << 20  # no row may be longer

OpenStream = Callable[[], AbstractContextManager[pa.NativeFile]]


def read_csv(path: Path, open_stream: OpenStream, *, delimiter: str, fields: LineFields) -> Iterator[DocumentBatch]:
    """The documents of a CSV file, whose unpacked bytes `open_stream` gives. All values are text, as they stand there.

    Raises ValueError where a row has another number of values than the first, or there is no text column.
    """
    blocks = read_blocks(path, open_stream, delimiter=delimiter, fields=fields)
    return make_batches(path, blocks, fields, first_row=0, kind="CSV")


def read_blocks(path: Path, open_stream: OpenStream, *, delimiter: str, fields: LineFields) -> Iterator[pa.RecordBatch]:
    """The wanted columns, a block of rows at a time."""
    parsing = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    reading = pa.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    converting = pa.csv.ConvertOptions(check_utf8=False)
    with open_stream() as stream:
        schema = pa.csv.open_csv(stream, reading, parsing, converting).schema
    columns = parquet_columns(path, pa.schema([(name, pa.binary()) for name in schema.names]), fields)
    converting.include_columns, converting.column_types = columns, dict.fromkeys(columns, pa.binary())
    with open_stream() as stream:
        yield from pa.csv.open_csv(stream, reading, parsing, converting)
