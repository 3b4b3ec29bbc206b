"""JSON lines -> a batch of documents: each line becomes one, or a bad row, or nothing if it is blank. Knows no file.

The compiled loop is in json_kernel.py. A line's fate is its own: it does not depend on its neighbours, nor on where
blocks begin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import json_kernel
from pipeline.document_batch import BAD_NAMES, DocumentBatch, as_text, find_suspects, list_bad_rows, make_strings
from pipeline.subsets import find_in_json

REASONS = np.zeros(json_kernel.BLANK, np.uint8)  # by the kernel's fates, each one's index in BAD_NAMES
REASONS[json_kernel.BAD_JSON] = BAD_NAMES.index("bad_json")
REASONS[json_kernel.BAD_OBJECT] = BAD_NAMES.index("bad_object")
REASONS[json_kernel.TEXT_MISSING] = BAD_NAMES.index("bad_text_missing")
REASONS[json_kernel.TEXT_NULL] = BAD_NAMES.index("bad_text_null")
REASONS[json_kernel.TEXT_TYPE] = BAD_NAMES.index("bad_text_type")
REASONS[json_kernel.BAD_SURROGATE] = BAD_NAMES.index("bad_surrogate")


@dataclass(frozen=True)
class LineFields:
    """Where a row holds its text, and its subset ("meta.redpajama_set_name"; None: not asked for)."""

    text: str
    subset: str | None = None

    @property
    def keys(self) -> tuple[np.ndarray, np.ndarray]:
        """The keys of an object that hold them, as UTF-8."""
        subset = "" if self.subset is None else self.subset.split(".")[0]
        return tuple(np.array(list(key.encode()), np.uint8) for key in (self.text, subset))


def parse_lines(block: bytearray | memoryview, *, first_row: int, fields: LineFields) -> DocumentBatch:
    """The documents of some whole lines; the last may lack its line feed. first_row: the first line's number.

    Nothing of the block, which must be writable memory, is kept. Takes as much memory as the block, for the texts.
    """
    data = np.frombuffer(block, np.uint8)
    num_lines = json_kernel.count_lines(data)
    text, lines = np.empty(len(data) + json_kernel.SLACK_BYTES, np.uint8), np.empty(num_lines, np.int64)
    offsets, subset_offsets = np.zeros(num_lines + 1, np.int32), np.zeros(num_lines + 1, np.int32)
    subset, bad = np.empty(0 if fields.subset is None else len(data), np.uint8), np.empty((num_lines, 3), np.int64)
    closers = np.empty(json_kernel.MOST_DEPTH, np.uint8)
    num_texts, num_bad = json_kernel.read_lines(
        data, fields.keys, text, offsets, lines, subset, subset_offsets, bad, closers
    )
    texts = make_strings(text, offsets[: num_texts + 1])
    subsets = None
    if fields.subset is not None:
        names = fields.subset.split(".")[1:]
        subsets = find_in_json(make_strings(subset, subset_offsets[: num_texts + 1]), names)
    rows = (lines[:num_texts] + first_row).astype(np.uint64)
    bad_rows = list_bad_rows(bad[:num_bad, 0] + first_row, bad[:num_bad, 2], REASONS[bad[:num_bad, 1]])
    batch = DocumentBatch(texts, rows, subsets, bad_rows, num_lines)
    return batch if is_utf8(block) else leave_out_bad_utf8(batch, block, first_row=first_row)


def is_utf8(block: bytearray | memoryview) -> bool:
    """Whether the bytes are UTF-8, checked in place."""
    return as_text(make_strings(block, np.array([0, len(block)], np.int32)).view(pa.binary())) is not None


def leave_out_bad_utf8(batch: DocumentBatch, block: bytearray | memoryview, *, first_row: int) -> DocumentBatch:
    """The batch of a block with each line that is not UTF-8 made a bad row, whatever else it is."""
    feeds = np.flatnonzero(np.frombuffer(block, np.uint8) == json_kernel.LINE_FEED)
    starts = np.unique(np.concatenate([[0], feeds + 1, [len(block)]])).astype(np.int32)
    lines = np.array(find_suspects(make_strings(block, starts).view(pa.binary())))
    sizes = np.diff(starts)[lines] - np.isin(starts[lines + 1] - 1, feeds)
    bad_utf8 = list_bad_rows(lines + first_row, sizes, BAD_NAMES.index("bad_utf8"))
    others = batch.bad_rows[~np.isin(batch.bad_rows["row"], bad_utf8["row"])]
    bad_rows = np.sort(np.concatenate([others, bad_utf8]), order="row")
    is_good = ~np.isin(batch.rows, bad_utf8["row"])
    subsets = None if batch.subsets is None else batch.subsets.filter(pa.array(is_good))
    return DocumentBatch(batch.texts.filter(pa.array(is_good)), batch.rows[is_good], subsets, bad_rows, batch.num_rows)
