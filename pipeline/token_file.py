"""The work files of one ingest task, and how they are written: in runs that fit into memory.

    tokens-0.bin    the framed ids of its documents, in runs; one such file per tokenizer, in that dataset's dtype
    documents.bin   one DOCUMENT record each, in the same order
    drops.bin       one DROP record for every row that is not a document to keep (bad, excluded, short, contaminated)
    and those of sketch_file.py, in the order in which the documents were read

In a run documents stand by split, then by place, so that later stages read a range of places from every run as one
contiguous piece. A run is as long as memory allows: the longer, the longer are these pieces.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.document_batch import BAD_REASONS
from pipeline.kernels import scatter_documents
from pipeline.shard import SPLITS
from pipeline.sketch_file import ROW, SKETCH_FILES, Recipe, Sketches, join_sketches, write_records, write_sketches
from pipeline.storage import naming, sync_files

# At SlimPajama's size (627 billion ids of 2 bytes, shards of 512 MiB) a shard takes 140 KB from each run of this size.
RUN_BYTES = 320 << 20  # of ids, all tokenizers together
RUN_DOCUMENTS = 1 << 20  # about 300 bytes each with their sketches, and as much again while they are sorted
WRITE_BYTES = 16 << 20  # ids in order, waiting to be written

# item: of a contaminated row 1 + the number of the evaluation text (contamination.py), of an excluded one 1 + that of
# the rule that it fails (signal_rules.py); else 0
DROP = np.dtype([("raw_file", "<u4"), ("row", "<u8"), ("num_bytes", "<u8"), ("reason", "u1"), ("item", "<u4")])
DROP_REASONS = ("excluded", "short", "contaminated", *BAD_REASONS, "duplicate_exact", "duplicate_near", "beyond_tokens")


def document_dtype(num_tokenizers: int) -> np.dtype:
    """The DOCUMENT record. token_start and num_tokens are vectors: one entry per tokenizer."""
    return np.dtype(
        [
            ("place", "<u8"),  # keyed hash of the content: decides the order
            ("content_hash", "<u8", 2),
            ("row", "<u8"),  # counted from the task's first row
            ("num_bytes", "<u8"),
            ("token_start", "<u8", (num_tokenizers,)),  # where its ids start in tokens-*.bin
            ("num_tokens", "<u4", (num_tokenizers,)),  # with the ids that frame it
            ("raw_file", "<u4"),
            ("number", "<u4"),  # of its row in the task's sketch files
        ]
    )


def tokens_path(folder: Path, tokenizer: int) -> Path:
    """Where the ids of one tokenizer are."""
    return folder / f"tokens-{tokenizer}.bin"


def list_work_files(folder: Path, num_tokenizers: int) -> list[Path]:
    """All files of a task."""
    tables = [folder / name for name in (*SKETCH_FILES, "documents.bin", "drops.bin")]
    return [*(tokens_path(folder, number) for number in range(num_tokenizers)), *tables]


def open_documents(folder: Path, num_tokenizers: int) -> np.ndarray:
    """The DOCUMENT records of a task, mapped."""
    return open_records(folder / "documents.bin", document_dtype(num_tokenizers))


def open_drops(folder: Path) -> np.ndarray:
    """The DROP records of a task, mapped."""
    return open_records(folder / "drops.bin", DROP)


def open_records(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file of records, mapped; an empty file cannot be."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


@dataclass
class IngestRecord:
    """What a finished task reports: its segments, and what it read. Documents and bytes of text by outcome."""

    segments: list[dict[str, Any]]  # split, first and last document of each stretch that is sorted by place
    runs: list[dict[str, int]]  # how many documents, how many too short to keep, and how many of both have band keys
    documents: dict[str, int]
    bytes: dict[str, int]
    tokens: list[int]  # per tokenizer
    num_rows: int  # lines or rows read, blank lines too
    num_without_subset: int  # documents that named no subset, where some subsets were to be left out


class TokenFile:
    """A task's output while it is written: gathers documents up to a run's size, sorts the run, appends it.

    dtypes: of each tokenizer's ids. recipe: what the documents' sketches are.
    """

    def __init__(self, folder: Path, *, dtypes: list[np.dtype], recipe: Recipe):
        self.folder, self.dtypes, self.recipe = folder, dtypes, recipe
        self.segments: list[dict[str, Any]] = []
        self.runs: list[dict[str, int]] = []
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.num_documents = self.num_rows = self.num_without_subset = 0
        self.num_tokens = [0] * len(dtypes)
        self._run = Run(dtypes, recipe)

    def __enter__(self) -> TokenFile:
        paths = list_work_files(self.folder, len(self.dtypes))
        self._files = [open(path, "wb", buffering=0) for path in paths]  # noqa: SIM115 - closed in __exit__
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self.write_run()
                with naming(self.folder):
                    sync_files(self._files)
        finally:
            for file in self._files:
                file.close()

    def reserve(self, most_ids: int) -> list[np.ndarray]:
        """Room for so many ids of each tokenizer, where those of the documents that are added next are best put."""
        if not self._run.has_room(most_ids):
            self.write_run()
        return self._run.reserve(most_ids)

    def add(self, documents: np.ndarray, splits: np.ndarray, ids: list[np.ndarray], sketches: Sketches) -> None:
        """Take in documents: a DOCUMENT record and a split each, and per tokenizer their ids back to back, which are
        copied unless they stand at the start of what was reserved last."""
        self._run.add(documents, splits, ids, sketches)
        self.count("accepted", len(documents), int(documents["num_bytes"].sum()))
        if self._run.num_documents >= RUN_DOCUMENTS:
            self.write_run()

    def add_short(self, keys: np.ndarray) -> None:
        """Take in the band keys of documents that are too short to keep, but connect others."""
        self._run.short_keys.append(keys)
        self._run.num_short += len(keys)
        if self._run.num_short >= RUN_DOCUMENTS:
            self.write_run()

    def drop(self, raw_file: int, rows: Any, num_bytes: Any, *, reason: str, items: Any = 0) -> None:
        """Write down rows that are not kept. items: items of contaminated rows, or rules that rows fail."""
        if not len(rows):
            return
        drops = np.zeros(len(rows), DROP)
        drops["raw_file"], drops["row"], drops["num_bytes"] = raw_file, rows, num_bytes
        drops["reason"], drops["item"] = DROP_REASONS.index(reason), items
        write_records(self._files[-1], drops)
        self.count(reason, len(drops), int(drops["num_bytes"].sum()))

    def count(self, outcome: str, num_documents: int, num_bytes: int) -> None:
        """Add to what was read, by outcome."""
        for name in ("read", outcome):
            self.documents[name] += num_documents
            self.bytes[name] += num_bytes

    def write_run(self) -> None:
        """Write what was taken in and not yet written; the end of the block does it, too."""
        run, self._run = self._run, Run(self.dtypes, self.recipe)
        if not run.num_documents and not run.num_short:
            return
        documents, splits = map(np.concatenate, (run.documents, run.splits))
        self._write_sketches(run, documents, splits)
        order = sort_documents(documents, splits)
        documents, splits = documents[order], splits[order]
        for number, ids in enumerate(run.ids):
            starts = documents["token_start"][:, number].astype(np.int64)
            lengths = documents["num_tokens"][:, number].astype(np.int64)
            write_in_order(self._files[number], ids, starts, lengths)
            documents["token_start"][:, number] = self.num_tokens[number] + starts_of(lengths)
            self.num_tokens[number] += run.filled[number]
        write_records(self._files[-2], documents)
        self._note_segments(splits)
        self.num_documents += len(documents)

    def _write_sketches(self, run: Run, documents: np.ndarray, splits: np.ndarray) -> None:
        """Number the documents, in place, and write what near duplicates are found by."""
        order = np.argsort(splits, kind="stable")
        documents["number"][order] = self.num_documents + np.arange(len(order))
        rows = np.empty(len(order), ROW)
        rows["raw_file"], rows["row"] = documents["raw_file"][order], documents["row"][order]
        sketches, short_keys = join_sketches(run.sketches).take(order), np.concatenate(run.short_keys)
        num_signed = write_sketches(self._files[-5:-2], rows, sketches, short_keys, recipe=self.recipe)
        self.runs.append({"documents": len(documents), "short": len(short_keys), "signed": num_signed})

    def _note_segments(self, splits: np.ndarray) -> None:
        edges = np.searchsorted(splits, range(len(SPLITS) + 1)) + self.num_documents
        for split, first, last in zip(SPLITS, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if first < last:
                self.segments.append({"split": split, "first": first, "last": last})

    def record(self) -> IngestRecord:
        """What was written."""
        counts = dict(self.documents), dict(self.bytes)
        return IngestRecord(self.segments, self.runs, *counts, self.num_tokens, self.num_rows, self.num_without_subset)


class Run:
    """Documents of one run, in the order in which they were read."""

    def __init__(self, dtypes: list[np.dtype], recipe: Recipe):
        room = RUN_BYTES // max(1, sum(dtype.itemsize for dtype in dtypes))
        self.ids = [np.empty(room, dtype) for dtype in dtypes]  # the system gives memory to what is touched
        self.filled = [0] * len(dtypes)
        self.documents = [np.empty(0, document_dtype(len(dtypes)))]
        self.splits = [np.empty(0, np.uint8)]
        self.sketches = [recipe.no_sketches()]
        self.short_keys = [self.sketches[0].keys]
        self.num_documents = self.num_short = 0

    def has_room(self, most_ids: int) -> bool:
        """Whether so many ids of each tokenizer fit beside what is there; into an empty run anything does."""
        is_enough = all(start + most_ids <= len(ids) for start, ids in zip(self.filled, self.ids, strict=True))
        return not self.num_documents or is_enough

    def reserve(self, most_ids: int) -> list[np.ndarray]:
        """Room for so many ids of each tokenizer behind those that are there."""
        for number, start in enumerate(self.filled):
            if start + most_ids > len(self.ids[number]):  # an empty run, and a document larger than any
                self.ids[number] = np.empty(start + most_ids, self.ids[number].dtype)
        return [ids[start : start + most_ids] for ids, start in zip(self.ids, self.filled, strict=True)]

    def add(self, documents: np.ndarray, splits: np.ndarray, ids: list[np.ndarray], sketches: Sketches) -> None:
        """Take in documents and their ids."""
        for number, more in enumerate(ids):
            start = self.filled[number]
            documents["token_start"][:, number] = start + starts_of(documents["num_tokens"][:, number])
            self.filled[number] += len(more)
            if self.filled[number] > len(self.ids[number]):  # a tokenizer that makes more ids than texts have bytes
                self.ids[number] = np.concatenate([self.ids[number][:start], more])
            elif not np.may_share_memory(more, self.ids[number]):
                self.ids[number][start : self.filled[number]] = more
        self.documents.append(documents)
        self.splits.append(splits)
        self.sketches.append(sketches)
        self.num_documents += len(documents)


def write_in_order(file: BinaryIO, ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> None:
    """Append documents ids[starts[i]:starts[i] + lengths[i]] to a file, a piece of WRITE_BYTES or so at a time."""
    ends = np.cumsum(lengths, dtype=np.int64)
    first = 0
    while first < len(ends):
        done = ends[first] - lengths[first]
        last = max(first + 1, int(np.searchsorted(ends, done + WRITE_BYTES // ids.itemsize, side="right")))
        out = np.empty(ends[last - 1] - done, ids.dtype)
        targets = starts_of(lengths[first:last])
        scatter_documents(ids, starts[first:last], lengths[first:last], targets, out)
        write_records(file, out)
        first = last


def starts_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of several stretches laid back to back starts: int64."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - lengths


def sort_documents(documents: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """The order of a run: split, place, content, then (raw file, row), so that it depends on nothing else."""
    first, second = documents["content_hash"][:, 0], documents["content_hash"][:, 1]
    return np.lexsort((documents["row"], documents["raw_file"], second, first, documents["place"], splits))
