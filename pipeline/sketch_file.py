"""The work files of an ingest task by which near duplicates are found, and how they are written, run by run.

    rows.bin        one ROW record per document: where it stands in the raw files
    signatures.bin  its signature, where the method has one
    bands.bin       for each run and band: the documents' keys with their numbers in the run, sorted; a uint64 each,
                    key << 24 | number, or where nothing verifies what the keys say, a KEYED record

A document's number in its task is its place in these tables: by run, in a run by split, then as it was read. In
bands.bin a run's numbers go on behind its documents with those that were too short to keep, where such take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline import slimpajama
from pipeline.document_batch import text_buffers
from pipeline.minhash import KEY_BITS, NUM_BANDS, NUM_PERMUTATIONS, NUM_TRACES, sign_documents
from pipeline.storage import naming, view_bytes, write_all

NUMBER_BITS = 64 - KEY_BITS  # a run must have fewer documents than 2**24
KEYED = np.dtype([("key", "<u8"), ("number", "<u8")])
ROW = np.dtype([("raw_file", "<u4"), ("row", "<u8")])  # row: counted from the task's first
SKETCH_VERSION = 3  # of what shingles, signatures and keys are: another version's kept ones are not compared with
SKETCH_FILES = ("rows.bin", "signatures.bin", "bands.bin")


@dataclass(frozen=True)
class Recipe:
    """The sizes of a method's sketches: bytes of a signature, number of bands and of traces, bits of a key."""

    signature_bytes: int
    num_bands: int
    num_traces: int = 0
    key_bits: int = KEY_BITS

    @property
    def num_keys(self) -> int:
        """Of a document, in bands.bin: of its bands, then its traces."""
        return self.num_bands + self.num_traces

    @property
    def record(self) -> np.dtype:
        """Of bands.bin."""
        return np.dtype("<u8") if self.key_bits + NUMBER_BITS <= 64 else KEYED

    @property
    def document_bytes(self) -> int:
        """What a document takes in the three files."""
        return ROW.itemsize + self.signature_bytes + self.record.itemsize * self.num_keys

    def no_sketches(self) -> Sketches:
        """Those of no documents."""
        shapes = ((0, self.signature_bytes), (0, self.num_keys))
        return Sketches(*map(np.empty, shapes, (np.uint8, np.uint64)), np.empty(0, bool))


@dataclass(frozen=True)
class Sketches:
    """What is kept of some documents to find those near to them.

    signatures: uint8, shape (documents, signature_bytes). keys: uint64, shape (documents, bands). is_signed: bool; one
    that is not has no near duplicate.
    """

    signatures: np.ndarray
    keys: np.ndarray
    is_signed: np.ndarray

    def take(self, order: np.ndarray | slice) -> Sketches:
        """Some of them, or all in another order."""
        return Sketches(self.signatures[order], self.keys[order], self.is_signed[order])


RECIPES = {
    "none": Recipe(0, 0),
    "exact": Recipe(0, 0),
    "near": Recipe(NUM_PERMUTATIONS, NUM_BANDS, NUM_TRACES),
    "slimpajama": Recipe(0, slimpajama.NUM_BANDS, key_bits=64),
}


def sketch_texts(texts: pa.Array, *, method: str) -> Sketches:
    """The sketches of some documents."""
    nothing = np.empty((len(texts), 0), np.uint8)
    if method == "near":
        signatures, keys, counts = sign_documents(*text_buffers(texts))
        return Sketches(signatures, keys, counts > 0)
    if method == "slimpajama":
        return Sketches(nothing, slimpajama.make_keys(texts), np.ones(len(texts), bool))
    return Sketches(nothing, nothing.astype(np.uint64), np.zeros(len(texts), bool))


def join_sketches(parts: Sequence[Sketches]) -> Sketches:
    """Several as one."""
    return Sketches(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("signatures", "keys", "is_signed"))
    )


def write_sketches(
    files: Sequence[BinaryIO], rows: np.ndarray, sketches: Sketches, short_keys: np.ndarray, *, recipe: Recipe
) -> int:
    """Append a run to the three files, given in the order of its numbers; returns how many documents have keys.

    short_keys: of those too short to keep, whose numbers come behind.
    """
    rows_file, signatures_file, bands_file = files
    write_records(rows_file, rows)
    write_records(signatures_file, sketches.signatures)
    all_keys = np.concatenate([sketches.keys[sketches.is_signed], short_keys])
    num_documents = len(sketches.is_signed)
    short_numbers = np.arange(num_documents, num_documents + len(short_keys))
    numbers = np.concatenate([np.flatnonzero(sketches.is_signed), short_numbers]).astype(np.uint64)
    for keys in all_keys.T:
        write_records(bands_file, sort_keys(keys, numbers, recipe))
    return len(numbers)


def sort_keys(keys: np.ndarray, numbers: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The records of one band of a run."""
    if recipe.record != KEYED:
        assert len(numbers) < 1 << NUMBER_BITS
        return np.sort(keys << np.uint64(NUMBER_BITS) | numbers)
    records = np.empty(len(keys), KEYED)
    order = np.argsort(keys, kind="stable")  # kept signatures are the same on any machine
    records["key"], records["number"] = keys[order], numbers[order]
    return records


def write_records(file: BinaryIO, records: np.ndarray) -> None:
    """Append an array's bytes to an unbuffered file, naming it where the disk refuses."""
    with naming(Path(file.name)):
        write_all(file, view_bytes(records))
