"""The shards of one source and split as one row of documents and tokens, each file opened on first use. numpy only.

"Counted over all shards" means: as if the shards stood one after the other.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.maps import OpenFile, OpenFiles
from pipeline.remote_dataset import bring, is_fetched_later
from pipeline.shard import check_size, documents_path, index_path, read_documents


class SourceShards:
    """The shards of one source and split, their tokens and document ends opened on first use."""

    def __init__(self, folder: Path, shards: Sequence[Mapping], *, dtype: np.dtype, files: OpenFiles | None = None):
        self.paths = [folder / shard["path"] for shard in shards]
        self.shards, self.dtype = shards, dtype
        self.files = OpenFiles() if files is None else files
        self.num_tokens_of = np.array([shard["tokens"] for shard in shards], dtype=np.int64)
        self.first_tokens = np.concatenate([[0], np.cumsum(self.num_tokens_of)])
        self.num_tokens = int(self.first_tokens[-1])
        documents = np.array([shard["documents"] for shard in shards], dtype=np.int64)
        self.first_documents = np.concatenate([[0], np.cumsum(documents)])

    def check_files(self) -> None:
        """Raise where a file of tokens is missing or has another size than dataset.json says: before a run begins.

        Those of a published dataset are fetched when they are first wanted.
        """
        for path, shard in zip(self.paths, self.shards, strict=True):
            if not is_fetched_later(path):
                check_size(path, shard["tokens"] * self.dtype.itemsize)

    def tokens(self, shard: int) -> OpenFile:
        """The ids of one shard."""
        return self.files.open(self.paths[shard], dtype=self.dtype, count=self.shards[shard]["tokens"])

    def in_file_order(
        self, shards: np.ndarray, starts: np.ndarray, *columns: np.ndarray
    ) -> Iterator[tuple[OpenFile, Iterable[tuple[int, ...]]]]:
        """The tokens of each of these shards, opened once, with the start and other columns of each of its entries."""
        order = np.lexsort((starts, shards))
        borders = [0, *(np.flatnonzero(np.diff(shards[order])) + 1).tolist(), len(order)]
        for first, last in pairwise(borders):
            if first < last:
                of_shard = order[first:last]
                entries = zip(*(column[of_shard].tolist() for column in (starts, *columns)), strict=True)
                yield self.tokens(int(shards[of_shard[0]])), entries

    def ends(self, shard: int) -> OpenFile:
        """Where the documents of one shard end, in tokens."""
        path = index_path(self.paths[shard])
        return self.files.open(path, dtype=np.dtype("<u8"), count=self.shards[shard]["documents"])

    def document_lengths(self, first: int, last: int) -> np.ndarray:
        """The tokens of documents [first, last), counted over all shards: int64."""
        parts = [np.empty(0, np.int64)]
        for shard, start, stop in self._split_range(self.first_documents, first, last):
            ends = self.ends(shard)
            before = ends[start - 1] if start else 0
            parts.append(np.diff(ends.view(start, stop).astype(np.int64), prepend=before))
        return np.concatenate(parts)

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """A copy of tokens [start, stop), counted over all shards."""
        out, done = np.empty(stop - start, dtype=self.dtype), 0
        for shard, first, last in self._split_range(self.first_tokens, start, stop):
            self.tokens(shard).read_into(first, out[done : done + last - first])
            done += last - first
        return out

    def find_document(self, token: int) -> int:
        """The first document that begins at or after a token; both counted over all shards."""
        if token >= self.num_tokens:
            return int(self.first_documents[-1])
        shard = int(np.searchsorted(self.first_tokens, token, side="right")) - 1
        inside = token - int(self.first_tokens[shard])
        return int(self.first_documents[shard]) + (bisect.bisect_left(self.ends(shard), inside) + 1 if inside else 0)

    def document_start(self, document: int) -> int:
        """The first token of a document, both counted over all shards; of one too many, the number of tokens."""
        if document >= self.first_documents[-1]:
            return self.num_tokens
        shard, inside = self.locate_document(document)
        return int(self.first_tokens[shard]) + (self.ends(shard)[inside - 1] if inside else 0)

    def locate_document(self, document: int) -> tuple[int, int]:
        """The shard of a document that is counted over all shards, and its number in it."""
        shard = int(np.searchsorted(self.first_documents, document, side="right")) - 1
        return shard, document - int(self.first_documents[shard])

    def document_columns(self, first: int, last: int) -> dict[str, np.ndarray]:
        """What read_documents says of documents [first, last), counted over all shards."""
        parts = []
        # Of no documents too the columns of some shard, so that they have their dtypes.
        for shard, start, stop in self._split_range(self.first_documents, first, last) or [(0, 0, 0)]:
            bring(documents_path(self.paths[shard]))
            columns = read_documents(self.paths[shard])
            parts.append({name: column[start:stop] for name, column in columns.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    @staticmethod
    def _split_range(firsts: np.ndarray, start: int, stop: int) -> list[tuple[int, int, int]]:
        """A range over all shards as ranges within each: shard, start, stop."""
        ranges = []
        shard = int(np.searchsorted(firsts, start, side="right")) - 1
        while start < stop:
            first, last = int(firsts[shard]), min(stop, int(firsts[shard + 1]))
            if start < last:
                ranges.append((shard, start - first, last - first))
                start = last
            shard += 1
        return ranges


def ends_between(ends: OpenFile, start: int, stop: int) -> np.ndarray:
    """Where the pieces of documents in tokens [start, stop) of a shard end, counted from start; the last at stop."""
    first = bisect.bisect_right(ends, start)
    last = bisect.bisect_left(ends, stop, lo=first)
    inside = ends.view(first, last).astype(np.int64) - start
    return np.append(inside, stop - start)


def offset_in_document(ends: OpenFile, start: int) -> int:
    """How many tokens of its document precede the token at `start` of a shard."""
    document = bisect.bisect_right(ends, start)
    return start - (ends[document - 1] if document else 0)
