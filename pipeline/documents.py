"""One raw file -> Arrow batches of its documents; every row that is not a document is named. Knows no tokenizer.

A row is a line of a JSON lines file (counted from 0, blank lines too), a row of a parquet file, or 0 for a text file,
which is one document. Texts come out as they stand in the file: valid UTF-8, nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.document_batch import DocumentBatch, split_good_from_bad
from pipeline.json_lines import LineFields, Lines, find_subsets, parse_lines

BLOCK_BYTES = 8 << 20
LONGEST_LINE_BYTES = 256 << 20  # a line takes up to nine times its size in memory
ROWS_PER_PARQUET_BATCH = 65_536

COMPRESSIONS = {".zst": "zstd", ".gz": "gzip"}
LINE_SUFFIXES = (".jsonl", ".json", ".ndjson")


def read_documents(path: Path, *, text_field: str, subset_field: str | None = None) -> Iterator[DocumentBatch]:
    """The documents of one raw file, batch by batch, in bounded memory.

    subset_field: where a row names its subset, such as "meta.redpajama_set_name"; None leaves it unread.
    Raises ValueError with the file's name and row where the file cannot be read to its end (cut short, not what its
    ending says, no text column); OSError where the system refuses.
    """
    fields = LineFields(text_field, subset_field)
    compression = COMPRESSIONS.get(path.suffix)
    kind = Path(path.stem).suffix if compression else path.suffix
    if kind in LINE_SUFFIXES:
        return read_json_lines(path, compression=compression, fields=fields)
    if kind == ".txt":
        return read_text_file(path, compression=compression)
    if kind == ".parquet":
        return read_parquet(path, fields=fields)
    raise ValueError(f"{path}: no reader for this ending (jsonl, json, ndjson or txt, each also .zst or .gz; parquet)")


def read_json_lines(path: Path, *, compression: str | None, fields: LineFields) -> Iterator[DocumentBatch]:
    """The documents of a JSON lines file."""
    row = 0
    try:
        for block in read_blocks(path, compression=compression):
            lines = Lines.cut(block, first_row=row)
            yield parse_lines(lines, fields=fields)
            row += len(lines.starts)
    except LongLineError:
        raise ValueError(
            f"{path}: row {row} is longer than {LONGEST_LINE_BYTES >> 20} MiB, but a document per line is expected. "
            "Split the file, or remove it to build without it"
        ) from None


class LongLineError(Exception):
    """A line does not end within LONGEST_LINE_BYTES."""


def read_blocks(path: Path, *, compression: str | None) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in blocks that end with a line; a longer line makes its block longer."""
    pieces: list[bytes] = []
    num_bytes = 0
    for chunk in read_chunks(path, compression=compression):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield b"".join([*pieces, chunk[:cut]])
            pieces, num_bytes = [], 0
        pieces.append(chunk[cut:])
        num_bytes += len(pieces[-1])
        if num_bytes > LONGEST_LINE_BYTES:
            raise LongLineError
    if num_bytes:
        yield b"".join(pieces)


def read_chunks(path: Path, *, compression: str | None) -> Iterator[bytes]:
    """The bytes of a file, decompressed, in pieces of BLOCK_BYTES at most."""
    with pa.OSFile(str(path)) as file:
        if compression is None:
            yield from iter(lambda: file.read(BLOCK_BYTES), b"")
            return
        if file.size() == 0:
            raise ValueError(f"{path} is empty, not {compression}: fetch it again, or remove it to build without it")
        with pa.CompressedInputStream(file, compression) as stream:
            try:
                yield from iter(lambda: stream.read(BLOCK_BYTES), b"")
            except OSError as error:
                raise unreadable(path, compression, error) from error


def unreadable(path: Path, compression: str, error: OSError) -> ValueError:
    """The error for a compressed file that breaks off: says in which row, by reading it once more in small steps."""
    num_rows = 0
    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, compression) as stream:
        try:
            for chunk in iter(lambda: stream.read(64), b""):
                num_rows += chunk.count(b"\n")
        except OSError as second_error:
            error = second_error
    if "too much memory" in str(error):
        return ValueError(f"{path} was packed with zstd --long: unpack it first (zstd -d --long=31)")
    what = "is cut short" if "Truncated" in str(error) else f"is not {compression} (or damaged)"
    return ValueError(
        f"{path} {what} near row {num_rows}: {error}. Fetch it again, or remove it to build without its documents"
    )


def read_text_file(path: Path, *, compression: str | None) -> Iterator[DocumentBatch]:
    """A text file as one document, row 0."""
    pieces, num_bytes = [], 0
    for chunk in read_chunks(path, compression=compression):
        pieces.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > LONGEST_LINE_BYTES:
            raise ValueError(
                f"{path}: row 0 is longer than {LONGEST_LINE_BYTES >> 20} MiB, and a text file is one document. "
                "Split the file, or turn it into JSON lines"
            )
    yield split_good_from_bad(pa.array([b"".join(pieces)], pa.binary()), first_row=0)


def read_parquet(path: Path, *, fields: LineFields) -> Iterator[DocumentBatch]:
    """The documents of a parquet file."""
    row = 0
    with pa.OSFile(str(path)) as raw:
        try:
            file = pq.ParquetFile(raw)
            columns = parquet_columns(path, file.schema_arrow, fields)
            num_rows = rows_per_batch(file.metadata)
            for batch in file.iter_batches(batch_size=num_rows, columns=columns, use_threads=False):
                subsets = None if fields.subset is None else find_subsets(batch, fields.subset)
                yield split_good_from_bad(text_column(batch, fields.text), first_row=row, subsets=subsets)
                row += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"{path} is cut short or not parquet, at row {row}: {error}. "
                "Fetch it again, or remove it to build without its documents"
            ) from error


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
    """How many rows make about BLOCK_BYTES, from the file's own totals."""
    total_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(ROWS_PER_PARQUET_BATCH, BLOCK_BYTES * metadata.num_rows // max(total_bytes, 1)))


def text_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A column of text as a binary array."""
    column = batch.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.binary())
