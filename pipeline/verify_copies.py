"""That of documents with the same text one stays, over all sources and splits, where settings.dedup says so.

Shards stand in the order of places, and equal texts have equal places: so all shards are walked side by side, and a few
batches of each source and split are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.shard import documents_path
from pipeline.verify_shard import DOCUMENT_ROW, as_document_rows, places_of
from pipeline.verify_source import ClaimedSource

DOCUMENTS_AT_ONCE = 1 << 18
WALKED = np.dtype([("place", "<u8"), ("content_hash", "<u8", 2), ("key", "<u8"), ("source", "<u8")])


class Walk:
    """The documents of one source and split in the order of their places, a batch at a time."""

    def __init__(self, folder: Path, source: ClaimedSource, split: str):
        self.source = source
        self.waiting = np.empty(0, WALKED)
        self._batches = self._read(folder, source.entry["splits"][split]["shards"])

    def _read(self, folder: Path, shards: Sequence[dict]) -> Iterator[np.ndarray]:
        for shard in shards:
            with pq.ParquetFile(documents_path(folder / shard["path"])) as file:
                for batch in file.iter_batches(batch_size=DOCUMENTS_AT_ONCE, use_threads=False):
                    yield as_document_rows(batch)

    def refill(self) -> bool:
        """Read on where nothing waits; returns whether there is anything."""
        if not len(self.waiting):
            documents = next(self._batches, np.empty(0, DOCUMENT_ROW))
            self.waiting = np.empty(len(documents), WALKED)
            self.waiting["place"], self.waiting["source"] = places_of(documents, self.source), self.source.number
            self.waiting["content_hash"], self.waiting["key"] = documents["content_hash"], documents["key"]
        return len(self.waiting) > 0

    def take(self, last_place: np.uint64) -> np.ndarray:
        """What waits up to this place, with it."""
        end = int(np.searchsorted(self.waiting["place"], last_place, side="right"))
        taken, self.waiting = self.waiting[:end], self.waiting[end:]
        return taken


def verify_copies(folder: Path, sources: Sequence[ClaimedSource]) -> Iterator[str]:
    """The first two documents that have one content hash, in words. The shards' order must have been found right."""
    walks = [Walk(folder, source, split) for source in sources for split in source.entry["splits"]]
    last = np.empty(0, WALKED)  # of the round before: its last place may go on
    while walks := [walk for walk in walks if walk.refill()]:
        last_place = min(walk.waiting["place"][-1] for walk in walks)
        taken = np.concatenate([last, *(walk.take(last_place) for walk in walks)])
        hashes = taken["content_hash"]
        taken = taken[np.lexsort((taken["key"], taken["source"], hashes[:, 1], hashes[:, 0]))]
        is_copy = (taken["content_hash"][1:] == taken["content_hash"][:-1]).all(axis=1)
        if is_copy.any():
            at = int(np.flatnonzero(is_copy)[0])
            first, second = (sources[int(one["source"])].name_row(one["key"]) for one in taken[at : at + 2])
            yield f"{first} and {second} have one content hash, but settings.dedup is exact; there may be more"
            return
        last = taken[taken["place"] == last_place]
