"""The work files of an ingest task by which near duplicates are found, and how they are written, run by run.

    rows.bin        one ROW record per document: where it stands in the raw files
    signatures.bin  its signature, where the method has one
    bands.bin       for each run and band: the documents' keys with their numbers in the run, sorted, uint64

A document's number in its task is its place in these tables: by run, in a run by split, then as it was read. In
bands.bin a run's numbers go on behind its documents with those that were too short to keep, where such take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.minhash import KEY_BITS, NUM_BANDS, NUM_PERMUTATIONS, sign_documents
from pipeline.storage import naming

NUMBER_BITS = 64 - KEY_BITS  # a run must have fewer documents than 2**24
ROW = np.dtype([("raw_file", "<u4"), ("row", "<u8")])  # row: counted from the task's first
SKETCH_FILES = ("rows.bin", "signatures.bin", "bands.bin")


@dataclass(frozen=True)
class Recipe:
    """The sizes of a method's sketches: bytes of a signature, number of bands."""

    signature_bytes: int
    num_bands: int

    @property
    def document_bytes(self) -> int:
        """What a document takes in the three files."""
        return ROW.itemsize + self.signature_bytes + 8 * self.num_bands


RECIPES = {
    "none": Recipe(0, 0),
    "exact": Recipe(0, 0),
    "near": Recipe(NUM_PERMUTATIONS, NUM_BANDS),
}


@dataclass(frozen=True)
class Sketches:
    """What is kept of some documents to find those near to them.

    signatures: uint8, shape (documents, signature_bytes). keys: uint64, shape (documents, bands). is_signed: bool; one
    that is not has no near duplicate.
    """

    signatures: np.ndarray
    keys: np.ndarray
    is_signed: np.ndarray

    def take(self, order: np.ndarray) -> Sketches:
        """The same in another order."""
        return Sketches(self.signatures[order], self.keys[order], self.is_signed[order])


def sketch_documents(data: np.ndarray, offsets: np.ndarray, *, method: str) -> Sketches:
    """The sketches of documents data[offsets[i]:offsets[i + 1]]."""
    if method == "near":
        signatures, keys, counts = sign_documents(data, offsets)
        return Sketches(signatures, keys, counts > 0)
    num_documents = len(offsets) - 1
    nothing = np.empty((num_documents, 0), np.uint8)
    return Sketches(nothing, nothing.astype(np.uint64), np.zeros(num_documents, bool))


def join_sketches(parts: Sequence[Sketches]) -> Sketches:
    """Several as one."""
    return Sketches(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("signatures", "keys", "is_signed"))
    )


def write_sketches(files: Sequence[BinaryIO], rows: np.ndarray, sketches: Sketches) -> int:
    """Append a run to the three files, given in the order of its numbers; returns how many documents have keys."""
    rows_file, signatures_file, bands_file = files
    write_records(rows_file, rows)
    write_records(signatures_file, sketches.signatures)
    numbers = np.flatnonzero(sketches.is_signed).astype(np.uint64)
    assert len(sketches.is_signed) < 1 << NUMBER_BITS
    for band in range(sketches.keys.shape[1]):
        keys = sketches.keys[sketches.is_signed, band] << np.uint64(NUMBER_BITS)
        write_records(bands_file, np.sort(keys | numbers))
    return len(numbers)


def write_records(file: BinaryIO, records: np.ndarray) -> None:
    """Append an array's bytes to an unbuffered file, naming it where the disk refuses."""
    left = memoryview(np.ascontiguousarray(records).reshape(-1).view(np.uint8))
    with naming(Path(file.name)):
        while left:
            left = left[file.write(left) :]
