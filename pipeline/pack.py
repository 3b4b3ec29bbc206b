"""Token files - dropped documents, shuffled -> shards.

A shard is a range of places of one source and split. Its documents stand in the tables of kept documents as one piece;
their ids are one contiguous piece of each run of the token files, but for what was dropped between them. So a shard
is read forward, each piece once, and put in order in memory: a global shuffle that holds one shard.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.direct import Room
from pipeline.kernels import scatter_documents
from pipeline.shard import list_shard_files, write_shard
from pipeline.storage import read_into
from pipeline.token_file import starts_of, tokens_path
from pipeline.work import NUM_BUCKETS, KeptSlice, kept_dtype

MOST_DOCUMENTS = 4_000_000  # of a shard: about 100 bytes of memory each
GAP_BYTES = 64 << 10  # dropped documents up to this size are read over
READ_BYTES = 8 << 20


@dataclass(frozen=True)
class PackTask:
    """One shard: its documents, and the folders of all ingest tasks. tokenizer: which of the build's."""

    name: str
    source: str
    shard: str
    documents: tuple[KeptSlice, ...]
    folders: tuple[str, ...]
    tokenizer: int
    num_tokenizers: int
    dtype: str
    out: str
    fingerprint: str  # of the source's raw files and the shard's documents: no other source's

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        return self.shard

    @property
    def num_documents(self) -> int:
        """How many documents the shard holds."""
        return sum(piece.last - piece.first for piece in self.documents)

    def list_outputs(self, _: Any) -> list[Path]:
        """The shard's files."""
        return list_shard_files(Path(self.out) / self.shard)


def plan_shards(tokens: np.ndarray, documents: np.ndarray, *, shard_tokens: int) -> list[tuple[int, int]]:
    """Bucket ranges of shards that hold about `shard_tokens` each, from what each bucket holds; none is empty."""
    ends = np.cumsum(tokens)
    total = int(ends[-1])
    num_shards = max(-(-total // shard_tokens), -(-int(documents.sum()) // MOST_DOCUMENTS))
    goals = [total * number // num_shards for number in range(1, num_shards)]
    borders = [0, *(np.searchsorted(ends, goals) + 1).tolist(), NUM_BUCKETS]
    ranges = zip(borders[:-1], borders[1:], strict=True)
    return [(first, last) for first, last in ranges if first < last and documents[first:last].any()]


def run_pack(task: PackTask) -> dict[str, Any]:
    """Write one shard; returns its Shard record as a dict, and how its ids were read."""
    pieces = [piece.read(task.num_tokenizers) for piece in task.documents]
    documents = np.concatenate([np.empty(0, kept_dtype(task.num_tokenizers)), *pieces])
    lengths = documents["num_tokens"][:, task.tokenizer].astype(np.int64)
    starts = documents["token_start"][:, task.tokenizer].astype(np.int64)
    ids = Room().take(int(lengths.sum()), np.dtype(task.dtype))
    reads = gather(task, documents["task"], starts, lengths, ids)
    columns = {name: documents[name] for name in ("raw_file", "row", "content_hash")}
    shard = write_shard(Path(task.out), task.shard, ids=ids, lengths=lengths, documents=columns)
    return {"shard": asdict(shard), "reads": reads}


def gather(
    task: PackTask, tasks: np.ndarray, starts: np.ndarray, lengths: np.ndarray, ids: np.ndarray
) -> dict[str, int]:
    """Fill `ids` with the documents' tokens in their order; returns the number of reads and their bytes.

    tasks, starts, lengths: of each document its ingest task, and where its ids are in the task's token file.
    """
    targets = starts_of(lengths)
    order = np.lexsort((starts, tasks))  # forward through each file, one file after the other
    tasks, starts, lengths, targets = (column[order] for column in (tasks, starts, lengths, targets))
    pieces = plan_reads(tasks, starts, lengths, itemsize=ids.itemsize)
    num_bytes = 0
    for (first, last), number in zip(pieces, tasks[[first for first, _ in pieces]].tolist(), strict=True):
        path = tokens_path(Path(task.folders[number]), task.tokenizer)
        start, end = int(starts[first]), int(starts[last - 1] + lengths[last - 1])
        tokens = read_tokens(path, start, end, ids.dtype)
        scatter_documents(tokens, starts[first:last] - start, lengths[first:last], targets[first:last], ids)
        num_bytes += tokens.nbytes
    return {"count": len(pieces), "bytes": num_bytes}


def plan_reads(tasks: np.ndarray, starts: np.ndarray, lengths: np.ndarray, *, itemsize: int) -> list[tuple[int, int]]:
    """Which documents, sorted by task and start, to read at once: first and last of each piece.

    A piece ends where the file does, before a gap of more than GAP_BYTES, and behind READ_BYTES.
    """
    if not len(tasks):
        return []
    ends = starts + lengths
    is_new = (tasks[1:] != tasks[:-1]) | ((starts[1:] - ends[:-1]) * itemsize > GAP_BYTES)
    edges = [0, *(np.flatnonzero(is_new) + 1).tolist(), len(tasks)]
    pieces = []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        while first < last:
            limit = starts[first] + READ_BYTES // itemsize
            stop = max(first + 1, first + int(np.searchsorted(ends[first:last], limit, side="right")))
            pieces.append((first, stop))
            first = stop
    return pieces


def read_tokens(path: Path, start: int, end: int, dtype: np.dtype) -> np.ndarray:
    """The ids start to end of a token file. Raises OSError where it is gone or shorter."""
    tokens = np.empty(end - start, dtype)
    read_into(path, start * dtype.itemsize, tokens.view(np.uint8))
    return tokens
