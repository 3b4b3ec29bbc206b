"""What every reader of raw files hands on: some documents, and the bad rows between them. Knows no file."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Why a row is not a document, and what that means for a person. The words stand in drops/ and in dataset.json.
BAD_REASONS = {
    "bad_utf8": "bytes that are not UTF-8",
    "bad_json": "not one JSON value on the line; a JSON array or an object over several lines must become JSON lines",
    "bad_object": "JSON, but not an object with the text in a field",
    "bad_text_missing": "no text field; --mix names the one that holds it, as in notes?column=NAME:1",
    "bad_text_null": "the text field is null",
    "bad_text_type": "the text field is not a string",
    "bad_surrogate": "half of a surrogate pair, which is no Unicode text",
}


BAD_NAMES = tuple(BAD_REASONS)
BAD_ROW = np.dtype([("row", "<u8"), ("num_bytes", "<u8"), ("reason", "u1")])  # reason: its index in BAD_NAMES


ROW_BITS = 40  # of a row's key: raw_file << ROW_BITS | row


def key_rows(raw_files: np.ndarray | int, rows: np.ndarray) -> np.ndarray:
    """One number for each (raw_file, row), in the same order: uint64."""
    return (np.asarray(raw_files).astype(np.uint64) << np.uint64(ROW_BITS)) | rows.astype(np.uint64)


def list_bad_rows(rows: np.ndarray, num_bytes: np.ndarray, reasons: np.ndarray | int) -> np.ndarray:
    """BAD_ROW records of rows that hold no document."""
    bad_rows = np.empty(len(rows), BAD_ROW)
    bad_rows["row"], bad_rows["num_bytes"], bad_rows["reason"] = rows, num_bytes, reasons
    return bad_rows


@dataclass(frozen=True)
class DocumentBatch:
    """Some documents of one raw file, in row order, and the bad rows found between them.

    texts: Arrow string array, no nulls. rows: uint64, one per text. subsets: Arrow string array, one per text, null
    where a row names none; None where no subset was asked for. bad_rows: BAD_ROW records, in row order.
    num_rows: how many rows of the file the batch covers, blank lines too; those of all batches add up to the file's.
    failed: uint32, one per text: 1 + the number of the rule about its quality that it fails, 0: none. None: no rules.
    """

    texts: pa.Array
    rows: np.ndarray
    subsets: pa.Array | None = None
    bad_rows: np.ndarray = field(default_factory=lambda: np.empty(0, BAD_ROW))
    num_rows: int = 0
    failed: np.ndarray | None = None


def make_strings(data: np.ndarray | bytearray, offsets: np.ndarray) -> pa.Array:
    """An Arrow string array of UTF-8 bytes, without a copy: text i is data[offsets[i]:offsets[i + 1]] (int32)."""
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


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
    suspects = np.array(find_suspects(texts))
    is_null = texts.is_null().to_numpy(zero_copy_only=False)[suspects]
    reasons = np.where(is_null, BAD_NAMES.index("bad_text_null"), BAD_NAMES.index("bad_utf8"))
    num_bytes = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False)[suspects]
    is_good = np.ones(len(texts), bool)
    is_good[suspects] = False
    bad_rows = list_bad_rows(rows[suspects], num_bytes, reasons)
    kept_subsets = None if subsets is None else subsets.filter(pa.array(is_good))
    kept_texts = texts.filter(pa.array(is_good)).cast(pa.string())
    return DocumentBatch(kept_texts, rows[is_good], kept_subsets, bad_rows, len(texts))


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
