"""Evaluation files, as --decontaminate names them -> their texts, each with a name. Knows nothing of spans.

An item is a row of a file: a line of JSON lines, a row of Arrow or parquet, counted from 0 as in raw files. Each string
in it, however deep, is a text by itself: a question, a passage, one choice of several. Names of fields are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrow_rows import FILE_MAGIC
from pipeline.documents import LINE_SUFFIXES, find_kind, long_line, read_blocks
from pipeline.file_parts import LongLineError
from pipeline.storage import sha256_file

ROWS_AT_ONCE = 64
SHOWN_DIGITS = 8  # of a file's sha256, where another has its name


@dataclass(frozen=True)
class EvaluationFile:
    """A file of evaluation items. name: without its folder, and unlike the other files' names."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class EvaluationText:
    """One string of an item. field: its way there, such as "choices.text[2]"; "" where the row is a string."""

    row: int
    field: str
    text: str


def find_evaluation_files(paths: Sequence[Path]) -> tuple[EvaluationFile, ...]:
    """The files, each content once, in the order of their names, however they were given.

    Raises FileNotFoundError for one that is not there, ValueError for one that has an ending that is not read.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            what = "is a folder: name its files" if path.is_dir() else "is not there"
            raise FileNotFoundError(f"--decontaminate {path}: it {what}")
        if find_kind(path)[0] not in (*LINE_SUFFIXES, ".arrow", ".parquet"):
            raise ValueError(
                f"--decontaminate {path}: no reader for this ending (JSON lines, packed or not, arrow or parquet)"
            )
        found.setdefault(sha256_file(path), path)
    names = [path.name for path in found.values()]
    files = [
        EvaluationFile(
            f"{path.name}@{sha256[:SHOWN_DIGITS]}" if names.count(path.name) > 1 else path.name, path, sha256
        )
        for sha256, path in found.items()
    ]
    return tuple(sorted(files, key=lambda file: file.name))


def read_texts(file: EvaluationFile) -> Iterator[EvaluationText]:
    """All texts of a file, in their order. A row that has none is left out.

    Raises ValueError naming file and row for what cannot be read.
    """
    for row, item in read_items(file.path):
        for field, text in list_strings(item):
            yield EvaluationText(row, field, text)


def read_items(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file, with their numbers."""
    kind, compression = find_kind(path)
    if kind in LINE_SUFFIXES:
        yield from read_lines(path, compression)
        return
    row = 0
    try:
        for batch in read_parquet_batches(path) if kind == ".parquet" else read_arrow_batches(path):
            texts = batch.select([field.name for field in batch.schema if holds_text(field.type)])
            for start in range(0, len(texts), ROWS_AT_ONCE):
                for item in texts.slice(start, ROWS_AT_ONCE).to_pylist():
                    yield row, item
                    row += 1
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable from row {row} on: {str(error).splitlines()[0]}") from error


def read_lines(path: Path, compression: str | None) -> Iterator[tuple[int, Any]]:
    """The values of a file of JSON lines; blank lines count."""
    row = 0
    try:
        for block in read_blocks(path, compression=compression, start=0, end=None):
            for line in bytes(block).removesuffix(b"\n").split(b"\n"):
                if line.strip():
                    yield row, parse_line(line, path, row)
                row += 1
    except LongLineError:
        raise long_line(path, row) from None


def parse_line(line: bytes, path: Path, row: int) -> Any:  # noqa: ANN401 - JSON's
    """The value on a line. Raises ValueError naming it where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        more = "; a JSON array or an object over several lines must become JSON lines" if row == 0 else ""
        raise ValueError(f"{path} row {row} (line {row + 1}) is not JSON: {error}{more}") from None


def read_arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow file or stream, one in memory at a time."""
    with pa.OSFile(str(path)) as file:
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        file.seek(0)
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        yield from map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader


def read_parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, few at once."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE)


def holds_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type may hold a string."""
    if pa.types.is_dictionary(kind):
        return holds_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(holds_text(kind.field(number).type) for number in range(kind.num_fields))
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def list_strings(item: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - JSON's
    """Every string in a value and its field, in their order, however deep."""
    waiting = [("", item)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, str):
            yield field, value
        elif isinstance(value, dict):
            waiting += [(f"{field}.{key}" if field else key, inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list | tuple):
            waiting += [(f"{field}[{number}]", value[number]) for number in reversed(range(len(value)))]
