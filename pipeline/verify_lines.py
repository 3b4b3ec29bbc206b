"""The lines of a raw file by Python's own json module: what the build's compiled reader is checked against.

Shares no code with json_lines.py and json_kernel.py, nor with what unpacks for them.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from pipeline.document_batch import BAD_NAMES, DocumentBatch
from pipeline.documents import LINE_SUFFIXES, find_kind

BLANK = "blank"


def verify_lines(
    path: Path, batches: Iterator[DocumentBatch], *, text_field: str, choose: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[DocumentBatch, list[str]]]:
    """Each batch of a raw file, and what in it is not what the json module says: nothing for other kinds of files.

    choose: of row numbers, which to look at (bool); bad rows are looked at always.
    """
    if find_kind(path)[0] not in LINE_SUFFIXES:
        yield from ((batch, []) for batch in batches)
        return
    with open_plain(path) as file:
        row = 0
        for batch in batches:
            rows = np.arange(row, row + batch.num_rows, dtype=np.uint64)
            wanted = rows[choose(rows) | np.isin(rows, batch.bad_rows["row"])]
            yield batch, list(compare(path, batch, read_rows(file, rows, wanted), text_field=text_field))
            row += batch.num_rows


def open_plain(path: Path) -> BinaryIO:
    """The unpacked bytes of a file."""
    if path.suffix == ".gz":
        return gzip.open(path)
    if path.suffix in (".bz2", ".xz"):
        return (bz2 if path.suffix == ".bz2" else lzma).open(path)
    if path.suffix == ".zst":
        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True)
        return io.BufferedReader(reader)
    return path.open("rb")


def read_rows(file: BinaryIO, rows: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """The wanted ones of the next lines, which are `rows`."""
    is_wanted = np.isin(rows, wanted)
    for row, is_one in zip(rows.tolist(), is_wanted.tolist(), strict=True):
        line = file.readline()
        if is_one:
            yield row, line.removesuffix(b"\n")


def compare(path: Path, batch: DocumentBatch, lines: Iterator[tuple[int, bytes]], *, text_field: str) -> Iterator[str]:
    """What a batch says of some lines and the json module does not."""
    places = {row: place for place, row in enumerate(batch.rows.tolist())}
    reasons = {row: BAD_NAMES[reason] for row, _, reason in batch.bad_rows.tolist()}
    for row, line in lines:
        fate, text = judge_line(line, text_field)
        found = None if row in reasons or row not in places else batch.texts[places[row]].as_py()
        found_fate = reasons.get(row, BLANK if found is None else None)
        if fate != found_fate:
            yield f"{path} row {row}: the build's reader says {found_fate or 'a document'}, json {fate or 'a document'}"
        elif text != found:
            yield f"{path} row {row}: the build's reader and json read different texts"


def judge_line(line: bytes, text_field: str) -> tuple[str | None, str | None]:
    """Why a line is no document (one of BAD_NAMES, or BLANK), or its text."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return "bad_utf8", None
    if not text.strip(" \t\r"):
        return BLANK, None
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return "bad_json", None
    if not isinstance(value, dict):
        return "bad_object", None
    if text_field not in value:
        return "bad_text_missing", None
    text = value[text_field]
    if not isinstance(text, str):
        return ("bad_text_null" if text is None else "bad_text_type"), None
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "bad_surrogate", None
    return None, text
