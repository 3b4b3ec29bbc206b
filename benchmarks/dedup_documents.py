"""Synthetic documents for the benchmark of dedup's stages: work files as ingest leaves them with --dedup near.

Of each task's documents
    30 % are planted near duplicates by their sketches alone (in one of five one value of the signature differs),
         of documents of the first task; of some tasks 70 %, all of one document, until a million are near to it,
    12 % have texts in a raw file, and the sketches that these texts have: TEXTS_SHARE of the documents each are
         originals; altered copies of them, of a similarity from 0.7 to 0.92, so that most must be compared by text;
         long and short documents with a licence above them that others have, too, whose rests differ.
The other lines of raw files are blank, and the other documents have nothing in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.document_batch import text_buffers
from pipeline.ingest import EncodeSettings, IngestSettings, IngestTask, TaskFile, find_places
from pipeline.minhash import NUM_BANDS, NUM_PERMUTATIONS, NUM_TRACES, TRACE_STEP, sign_documents
from pipeline.sketch_file import RECIPES, Sketches
from pipeline.storage import write_file
from pipeline.token_file import TokenFile, document_dtype
from pipeline.workshop import Ingested

TASK_DOCUMENTS = 500_000
DUPLICATE_SHARE, CLUSTER = 0.3, 1_000_000
CHANGED = 0.2  # of planted duplicates one value differs: of those with more the texts are looked at (FAINT)
TEXTS_SHARE = 0.03
WORDS, LETTERS = 200, 5
FEWEST_ALTERED, MOST_ALTERED = 8, 36  # words at the end: of 196 shingles k fewer are shared, and k more are in all
LICENCE_WORDS, LONG_WORDS, SHORT_WORDS = 120, 80, 12
LICENCE_DOCUMENTS = 50  # long ones of each licence, and as many short ones


def make_ingested(folder: Path, num_documents: int) -> Ingested:
    """Work files of so many documents, without ids, and their raw files."""
    rng = np.random.default_rng(0)
    tasks, records = [], []
    for number in range(-(-num_documents // TASK_DOCUMENTS)):
        size = min(TASK_DOCUMENTS, num_documents - number * TASK_DOCUMENTS)
        texts = [text for group in draw_groups(rng, int(size * TEXTS_SHARE)) for text in group]
        sketches = draw_sketches(rng, size)
        if number == 0:
            originals = sketches.take(slice(len(texts), None))
        else:
            of_cluster = number <= CLUSTER * 10 // 7 // TASK_DOCUMENTS + 1
            plant(rng, originals, sketches, first=len(texts), is_cluster=of_cluster)
        sketch_texts(texts, sketches)
        task, record = write_task(folder, number, sketches, texts, rng)
        tasks.append(task)
        records.append(record)
    return Ingested(["random"], ["random"], tasks, records)


def draw_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Words with a space behind each: uint8, with a last axis of LETTERS + 1."""
    words = rng.integers(97, 123, (*shape, LETTERS + 1), np.uint8)
    words[..., -1] = 32
    return words


def draw_groups(rng: np.random.Generator, size: int) -> Iterator[list[bytes]]:
    """The texts of a task: originals, altered copies of them, and those with licences; `size` of each, or fewer."""
    originals = draw_words(rng, size, WORDS)
    is_altered = np.arange(WORDS) >= WORDS - rng.integers(FEWEST_ALTERED, MOST_ALTERED, (size, 1))
    yield from (as_texts(originals), as_texts(np.where(is_altered[..., None], draw_words(rng, size, WORDS), originals)))
    num_licences = size // LICENCE_DOCUMENTS
    licences = np.repeat(draw_words(rng, num_licences, LICENCE_WORDS), LICENCE_DOCUMENTS, axis=0)
    for own_words in (LONG_WORDS, SHORT_WORDS):
        yield as_texts(np.concatenate([licences, draw_words(rng, len(licences), own_words)], axis=1))


def as_texts(words: np.ndarray) -> list[bytes]:
    """The text of each row of words."""
    return [row.tobytes() for row in words]


def draw_sketches(rng: np.random.Generator, size: int) -> Sketches:
    """Of documents that have nothing in common."""
    signatures = rng.integers(0, 256, (size, NUM_PERMUTATIONS), np.uint8)
    keys = rng.integers(0, 1 << 40, (size, NUM_BANDS + NUM_TRACES), np.uint64) | np.uint64(1)  # no text has such a key
    return Sketches(signatures, keys, np.ones(size, bool))


def plant(rng: np.random.Generator, originals: Sketches, sketches: Sketches, *, first: int, is_cluster: bool) -> None:
    """Make a share of the documents from `first` on near to originals, or most of them to the first one, in place."""
    size = len(sketches.keys)
    num_planted = min(int(size * (0.7 if is_cluster else DUPLICATE_SHARE)), size - first)
    chosen = first + rng.choice(size - first, num_planted, replace=False)
    of = np.zeros(num_planted, np.int64) if is_cluster else rng.integers(0, len(originals.keys), num_planted)
    is_kept = np.ones((num_planted, NUM_PERMUTATIONS), bool)
    is_kept[np.arange(num_planted), rng.integers(0, NUM_PERMUTATIONS, num_planted)] = rng.random(num_planted) >= CHANGED
    sketches.signatures[chosen] = np.where(is_kept, originals.signatures[of], sketches.signatures[chosen])
    in_band = is_kept.reshape(num_planted, NUM_BANDS, -1).all(axis=2)
    is_equal = np.concatenate([in_band, is_kept[:, : NUM_TRACES * TRACE_STEP : TRACE_STEP]], axis=1)
    sketches.keys[chosen] = np.where(is_equal, originals.keys[of], sketches.keys[chosen])


def sketch_texts(texts: list[bytes], sketches: Sketches) -> None:
    """Give the first documents the sketches of the texts, in place.

    Keys are even, so that none is by chance that of a document without a text: it could become a witness.
    """
    signatures, keys, _ = sign_documents(*text_buffers(pa.array(texts, pa.binary()).cast(pa.string())))
    sketches.signatures[: len(texts)], sketches.keys[: len(texts)] = signatures, keys & ~np.uint64(1)


def write_task(
    folder: Path, number: int, sketches: Sketches, texts: list[bytes], rng: np.random.Generator
) -> tuple[IngestTask, dict[str, Any]]:
    """The work files of one task and its raw file: a line for each text, the other documents' lines are blank."""
    place, raw_path = folder / "in" / f"random-{number:05d}", folder / "raw" / f"random-{number:05d}.jsonl"
    place.mkdir(parents=True)
    lines = [b'{"text": "%b"}\n' % text for text in texts]
    write_file(raw_path, [b"".join(lines), b"\n" * (len(sketches.keys) - len(texts))])
    encode = (EncodeSettings("random", "", "fast", "eos", "<u2"),)
    settings = IngestSettings("text", None, (), 1, 0.0, 0, "near", encode)
    documents = np.zeros(len(sketches.keys), document_dtype(1))
    documents["content_hash"] = rng.integers(0, 1 << 63, (len(documents), 2), np.uint64)
    documents["place"] = find_places(documents["content_hash"], seed=0)
    documents["raw_file"], documents["row"] = number, np.arange(len(documents))
    with TokenFile(place, dtypes=[np.dtype("<u2")], recipe=RECIPES["near"]) as token_file:
        token_file.add(documents, np.zeros(len(documents), np.uint8), [np.empty(0, "<u2")], sketches)
        token_file.num_rows = len(documents)
    files = (TaskFile(number, str(raw_path), "train", None),)
    return IngestTask(place.name, "random", files, 1, settings, str(place), ""), asdict(token_file.record())
