"""What every reader of raw files hands on: some documents, and the bad rows between them. Knows no file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

# Why a row is not a document, and what that means for a person. The words stand in drops/ and in dataset.json.
BAD_REASONS = {
    "bad_utf8": "bytes that are not UTF-8",
    "bad_json": "not one JSON value on the line; a JSON array or an object over several lines must become JSON lines",
    "bad_object": "JSON, but not an object with the text in a field",
    "bad_text_missing": "no text field",
    "bad_text_null": "the text field is null",
    "bad_text_type": "the text field is not a string",
    "bad_surrogate": "half of a surrogate pair, which is no Unicode text",
}


class BadRow(NamedTuple):
    """A row that holds no document: its number, one of BAD_REASONS, and its size."""

    row: int
    reason: str
    num_bytes: int


@dataclass(frozen=True)
class DocumentBatch:
    """Some documents of one raw file, in row order, and the bad rows found between them.

    texts: Arrow string array, no nulls. rows: uint64, one per text. subsets: Arrow string array, one per text, null
    where a row names none; None where no subset was asked for. num_rows: how many rows of the file the batch covers,
    blank lines too; those of all batches add up to the file's.
    """

    texts: pa.Array
    rows: np.ndarray
    subsets: pa.Array | None = None
    bad_rows: list[BadRow] = field(default_factory=list)
    num_rows: int = 0


def as_text(texts: pa.Array) -> pa.Array | None:
    """A binary array as a string array without a copy, or None where a value is null or not UTF-8."""
    if texts.null_count:
        return None
    try:
        return texts.cast(pa.string())
    except pa.ArrowInvalid:
        return None


def split_good_from_bad(texts: pa.Array, *, first_row: int, subsets: pa.Array | None = None) -> DocumentBatch:
    """A batch from a binary array of consecutive rows: a null or a text that is not UTF-8 becomes a bad row."""
    rows = np.arange(first_row, first_row + len(texts), dtype=np.uint64)
    strings = as_text(texts)
    if strings is not None:
        return DocumentBatch(strings, rows, subsets, num_rows=len(texts))
    bad_rows = []
    for index in find_suspects(texts):
        text = texts[index].as_py()
        reason = "bad_text_null" if text is None else "bad_utf8"
        bad_rows.append(BadRow(first_row + index, reason, len(text or b"")))
    is_good = np.ones(len(texts), bool)
    is_good[[bad.row - first_row for bad in bad_rows]] = False
    is_good = pa.array(is_good)
    kept_subsets = None if subsets is None else subsets.filter(is_good)
    good_rows = rows[is_good.to_numpy(zero_copy_only=False)]
    return DocumentBatch(texts.filter(is_good).cast(pa.string()), good_rows, kept_subsets, bad_rows, len(texts))


def find_suspects(texts: pa.Array) -> list[int]:
    """The indices of a binary array's values that are null or not UTF-8; the good ones are only looked at in bulk."""
    if as_text(texts) is not None:
        return []
    if len(texts) == 1:
        return [0]
    middle = len(texts) // 2
    return find_suspects(texts[:middle]) + [middle + index for index in find_suspects(texts[middle:])]


def text_buffers(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of an Arrow string array and its offsets (int64, one more than texts), without copying the bytes."""
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), offsets.astype(np.int64)
