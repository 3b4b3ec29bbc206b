"""The documents of raw files that are to be kept, joined into batches that are worth working on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

SMALLEST_BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class WantedDocuments:
    """Documents to keep, of one raw file or of several small ones in a row.

    texts: Arrow string array. rows: uint64. raw_files: uint32 numbers. splits: uint8 indices into SPLITS.
    """

    texts: pa.Array
    rows: np.ndarray
    raw_files: np.ndarray
    splits: np.ndarray


def join_small(batches: Iterator[WantedDocuments]) -> Iterator[WantedDocuments]:
    """The same documents in batches of SMALLEST_BATCH_BYTES or more: each batch has a cost, however small it is."""
    waiting: list[WantedDocuments] = []
    num_bytes = 0
    for batch in batches:
        waiting.append(batch)
        num_bytes += batch.texts.nbytes
        del batch
        if num_bytes >= SMALLEST_BATCH_BYTES:
            joined, waiting, num_bytes = [join_wanted(waiting)], [], 0
            yield joined.pop()  # so that a huge text is not held here while it is worked on
    if waiting:
        yield join_wanted(waiting)


def join_wanted(parts: list[WantedDocuments]) -> WantedDocuments:
    """The documents of several batches as one batch."""
    if len(parts) == 1:
        return parts[0]
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "raw_files", "splits"))
    return WantedDocuments(pa.concat_arrays([part.texts for part in parts]), *columns)
