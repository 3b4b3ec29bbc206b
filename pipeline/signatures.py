"""--keep-signatures: what a later build needs to find duplicates of a dataset's documents, kept with the dataset.

    OUT/signatures/<source>/part-00000-000/hashes.bin      16 bytes per document: its content hash
                                           rows.bin        one ROW record per document: where it came from
                                           signatures.bin  its signature, where the method has one
                                           bands.bin       for each band: keys with the documents' numbers, sorted

The last three as in sketch_file.py, of the documents that stay alone; a file that would be empty is not there. A part
is one run: documents of some raw files in a row, by split, then raw file and row. So the bytes follow from the raw
files and settings, not from how ingest cut its tasks and runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.drops import DropsTask, Ingest, find_beyond, read_documents, read_duplicates
from pipeline.shard import SIGNATURES_FOLDER, SPLITS
from pipeline.sketch_file import (
    KEYED,
    NUMBER_BITS,
    RECIPES,
    ROW,
    Recipe,
    Sketches,
    join_sketches,
    sort_keys,
)
from pipeline.storage import checksum_file, view_bytes, write_file
from pipeline.token_file import open_records

PART_DOCUMENTS = 1 << 20  # about 300 bytes of memory each, twice while they are sorted


@dataclass(frozen=True)
class SignaturesTask:
    """The signatures of the documents that stay of some raw files, those of a task of drops."""

    drops: DropsTask
    method: str

    @property
    def name(self) -> str:
        """The name of the task of drops."""
        return self.drops.name

    @property
    def subject(self) -> str:
        """What it writes, for a person."""
        number = self.drops.name.removeprefix(f"{self.drops.source}-")
        return f"{SIGNATURES_FOLDER}/{self.drops.source}/part-{number}"

    @property
    def fingerprint(self) -> str:
        """A digest of all raw files."""
        return self.drops.fingerprint

    def list_outputs(self, result: dict[str, Any]) -> list[Path]:
        """The files of all parts."""
        return [Path(self.drops.out) / part["path"] / name for part in result["parts"] for name in part["files"]]


@dataclass(frozen=True)
class KeptSketches:
    """Some documents that stay, an entry of each array for each.

    hashes: uint64, shape (documents, 2). rows: ROW records, counted from their raw files' first. splits: uint8.
    """

    hashes: np.ndarray
    rows: np.ndarray
    splits: np.ndarray
    sketches: Sketches

    def take(self, chosen: np.ndarray | slice) -> KeptSketches:
        """The chosen documents, in the order of `chosen`."""
        arrays = (getattr(self, name)[chosen] for name in ("hashes", "rows", "splits"))
        return KeptSketches(*arrays, self.sketches.take(chosen))


def run_signatures(task: SignaturesTask) -> dict[str, Any]:
    """Write a task's signatures; returns what dataset.json says of its parts, and how many documents they have."""
    parts = [write_part(task, number, kept) for number, kept in enumerate(cut_parts(read_kept(task)))]
    return {"parts": parts, "documents": sum(sum(part["splits"].values()) for part in parts)}


def read_kept(task: SignaturesTask) -> Iterator[KeptSketches]:
    """The documents that stay, run by run; by raw file and row."""
    for ingest in task.drops.ingests:
        documents = read_documents(task.drops, ingest)
        is_kept = ~find_beyond(ingest, documents)
        is_kept[read_duplicates(task.drops, ingest)["number"]] = False
        is_kept &= task.drops.is_own(documents)
        splits = np.empty(len(documents), np.uint8)
        for stretch in ingest.stretches:
            splits[stretch.first : stretch.last] = SPLITS.index(stretch.split)
        first = 0
        for number, (count, _) in enumerate(ingest.runs):
            run = slice(first, first + count)
            numbers = np.flatnonzero(is_kept[run])
            own = documents[run][numbers]
            numbers = numbers[np.lexsort((own["row"], own["raw_file"]))]
            sketches = read_sketches(ingest, number, RECIPES[task.method])
            yield take_kept(documents[run], splits[run], sketches, numbers)
            first += count


def take_kept(documents: np.ndarray, splits: np.ndarray, sketches: Sketches, numbers: np.ndarray) -> KeptSketches:
    """The documents of a run with these numbers, from its DOCUMENT records in the order of their numbers."""
    rows = np.empty(len(numbers), ROW)
    for name in rows.dtype.names:
        rows[name] = documents[name][numbers]
    return KeptSketches(documents["content_hash"][numbers], rows, splits[numbers], sketches.take(numbers))


def read_sketches(ingest: Ingest, number: int, recipe: Recipe) -> Sketches:
    """The sketches of a run of an ingest task, in the order of its documents' numbers."""
    counts = np.array(ingest.runs, np.int64)
    count, num_signed = ingest.runs[number]
    first, start = int(counts[:number, 0].sum()), int(counts[:number, 1].sum()) * recipe.num_keys
    folder = Path(ingest.folder)
    signatures = np.empty((count, recipe.signature_bytes), np.uint8)
    if recipe.signature_bytes:
        record = np.dtype((np.uint8, (recipe.signature_bytes,)))
        signatures[:] = open_records(folder / "signatures.bin", record)[first : first + count]
    keys, is_signed = np.zeros((count, recipe.num_keys), np.uint64), np.zeros(count, bool)
    for band in range(recipe.num_keys if num_signed else 0):
        offset = (start + band * num_signed) * recipe.record.itemsize
        records = np.fromfile(folder / "bands.bin", recipe.record, num_signed, offset=offset)
        of_band, numbers = split_records(records)
        is_own = numbers < count  # behind them come those too short to keep
        keys[numbers[is_own], band] = of_band[is_own]
        is_signed[numbers[is_own]] = True
    return Sketches(signatures, keys, is_signed)


def split_records(records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys and numbers of a band's records: uint64, int64."""
    if records.dtype == KEYED:
        return records["key"], records["number"].astype(np.int64)
    mask = np.uint64((1 << NUMBER_BITS) - 1)
    return records >> np.uint64(NUMBER_BITS), (records & mask).astype(np.int64)


def cut_parts(chunks: Iterable[KeptSketches]) -> Iterator[KeptSketches]:
    """The same documents in parts of PART_DOCUMENTS, the last one smaller; none is empty."""
    waiting: list[KeptSketches] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(len(one.rows) for one in waiting) < PART_DOCUMENTS:
            continue
        joined = join_kept(waiting)
        num_whole = len(joined.rows) // PART_DOCUMENTS * PART_DOCUMENTS
        for first in range(0, num_whole, PART_DOCUMENTS):
            yield joined.take(slice(first, first + PART_DOCUMENTS))
        waiting = [joined.take(slice(num_whole, None))]
    if any(len(one.rows) for one in waiting):
        yield join_kept(waiting)


def join_kept(parts: Sequence[KeptSketches]) -> KeptSketches:
    """The documents of several parts as one part."""
    arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("hashes", "rows", "splits"))
    return KeptSketches(*arrays, join_sketches([part.sketches for part in parts]))


def write_part(task: SignaturesTask, number: int, kept: KeptSketches) -> dict[str, Any]:
    """Write one part; returns what dataset.json says of it."""
    kept = kept.take(np.argsort(kept.splits, kind="stable"))
    path = f"{task.subject}-{number:03d}"
    numbers = np.flatnonzero(kept.sketches.is_signed).astype(np.uint64)
    keys = kept.sketches.keys[kept.sketches.is_signed]
    tables = {
        "hashes.bin": [kept.hashes],
        "rows.bin": [kept.rows],
        "signatures.bin": [kept.sketches.signatures],
        "bands.bin": [sort_keys(of_band, numbers, RECIPES[task.method]) for of_band in keys.T],
    }
    folder, files = Path(task.drops.out) / path, {}
    for name, arrays in tables.items():
        num_bytes = sum(array.nbytes for array in arrays)
        if num_bytes:
            write_file(folder / name, map(view_bytes, arrays))
            files[name] = {"bytes": num_bytes, "xxh3_128": checksum_file(folder / name)}
    counts = np.bincount(kept.splits, minlength=len(SPLITS)).tolist()
    splits = {split: count for split, count in zip(SPLITS, counts, strict=True) if count}
    return {"path": path, "source": task.drops.source, "splits": splits, "signed": len(numbers), "files": files}
