"""The work files of one ingest task, and how they are written: in runs that fit into memory.

    tokens.bin      the framed ids of its documents, in the dataset's dtype, in runs
    documents.npy   one DOCUMENT record each, in the same order
    drops.npy       one DROP record for every row that is not a document to keep (bad, excluded, short)

In a run documents stand by split, then by place, so that later stages read a range of places from every run as one
contiguous piece.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.document_batch import BAD_REASONS
from pipeline.kernels import scatter_documents
from pipeline.shard import SPLITS
from pipeline.storage import naming, write_array

WORK_FILES = ("tokens.bin", "documents.npy", "drops.npy")
RUN_TOKENS = 1 << 26

DOCUMENT = np.dtype(
    [
        ("place", "<u8"),  # keyed hash of the content: decides the order
        ("content_hash", "<u8", 2),
        ("row", "<u8"),
        ("token_start", "<u8"),  # where its ids start in tokens.bin
        ("num_bytes", "<u8"),
        ("num_tokens", "<u4"),  # with the ids that frame it
        ("raw_file", "<u4"),
    ]
)
DROP = np.dtype([("raw_file", "<u4"), ("row", "<u8"), ("num_bytes", "<u8"), ("reason", "u1")])
DROP_REASONS = ("excluded", "short", *BAD_REASONS, "duplicate_exact")


@dataclass
class IngestRecord:
    """What a finished task reports: its segments, and what it read. Documents and bytes of text by outcome."""

    segments: list[dict[str, Any]]  # split, first and last document of each stretch that is sorted by place
    documents: dict[str, int]
    bytes: dict[str, int]
    tokens: int
    num_without_subset: int  # documents that named no subset, where some subsets were to be left out


class TokenFile:
    """A task's output while it is written: gathers documents up to a run's size, sorts the run, appends it."""

    def __init__(self, folder: Path, *, dtype: np.dtype):
        self.folder, self.path, self.dtype = folder, folder / "tokens.bin", dtype
        self.segments: list[dict[str, Any]] = []
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.num_documents = self.num_tokens = self.num_without_subset = 0
        self._drops: list[np.ndarray] = []
        self._tables: list[np.ndarray] = []
        self._start_run()

    def _start_run(self) -> None:
        self._ids: list[np.ndarray] = []
        self._documents: list[np.ndarray] = []
        self._splits: list[np.ndarray] = []
        self._run_tokens = 0

    def __enter__(self) -> TokenFile:
        self._file = open(self.path, "wb")  # noqa: SIM115 - closed in __exit__
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if error_type is None:
                self._finish()

    def add(self, ids: np.ndarray, documents: np.ndarray, splits: np.ndarray) -> None:
        """Take in some documents: their ids back to back, a DOCUMENT record and a split each."""
        self._ids.append(ids)
        self._documents.append(documents)
        self._splits.append(splits)
        self._run_tokens += len(ids)
        self.count("accepted", len(documents), int(documents["num_bytes"].sum()))
        if self._run_tokens >= RUN_TOKENS:
            self._write_run()

    def drop(self, raw_file: int, rows: Any, num_bytes: Any, *, reason: str) -> None:
        """Write down rows that are not kept."""
        if not len(rows):
            return
        drops = np.zeros(len(rows), DROP)
        drops["raw_file"], drops["row"], drops["num_bytes"] = raw_file, rows, num_bytes
        drops["reason"] = DROP_REASONS.index(reason)
        self._drops.append(drops)
        self.count(reason, len(drops), int(drops["num_bytes"].sum()))

    def count(self, outcome: str, num_documents: int, num_bytes: int) -> None:
        """Add to what was read, by outcome."""
        for name in ("read", outcome):
            self.documents[name] += num_documents
            self.bytes[name] += num_bytes

    def _write_run(self) -> None:
        if not self._documents:
            return
        ids, documents, splits = map(np.concatenate, (self._ids, self._documents, self._splits))
        self._start_run()
        starts = starts_of(documents["num_tokens"])
        order = sort_documents(documents, splits)
        documents, splits = documents[order], splits[order]
        targets = starts_of(documents["num_tokens"])
        out = np.empty_like(ids)
        scatter_documents(ids, starts[order], documents["num_tokens"], targets, out)
        documents["token_start"] = self.num_tokens + targets
        with naming(self.path):
            self._file.write(out.data)
        self._tables.append(documents)
        self._note_segments(splits)
        self.num_tokens += len(ids)
        self.num_documents += len(documents)

    def _note_segments(self, splits: np.ndarray) -> None:
        edges = np.searchsorted(splits, range(len(SPLITS) + 1)) + self.num_documents
        for split, first, last in zip(SPLITS, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if first < last:
                self.segments.append({"split": split, "first": first, "last": last})

    def _finish(self) -> None:
        self._write_run()
        with naming(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        for name, parts, dtype in (("documents", self._tables, DOCUMENT), ("drops", self._drops, DROP)):
            write_array(self.folder / f"{name}.npy", np.concatenate([np.empty(0, dtype), *parts]))

    def record(self) -> IngestRecord:
        """What was written."""
        counts = dict(self.documents), dict(self.bytes)
        return IngestRecord(self.segments, *counts, self.num_tokens, self.num_without_subset)


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of several stretches laid back to back starts: int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def sort_documents(documents: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """The order of a run: split, place, content, then (raw file, row), so that it depends on nothing else."""
    first, second = documents["content_hash"][:, 0], documents["content_hash"][:, 1]
    return np.lexsort((documents["row"], documents["raw_file"], second, first, documents["place"], splits))
