"""Reads a sample of each source's raw files as ingest would, keeps nothing but counts, and scales them to the source.

The scaling is the regression estimator of survey sampling: of each piece, how much of the source it covers and what is
in it, both divided by how likely a place fell on it. It holds for pieces of unequal sizes, and where lines reach over a
piece's end: what goes with the bytes of its lines is taken per byte that is covered, as tokens are; what does not, per
byte that was aimed at, as documents are where a few are huge.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.document_batch import DocumentBatch, make_strings, text_buffers
from pipeline.forecast_fetch import RemoteSample
from pipeline.forecast_pieces import Piece, cut_all, cut_first_line, cut_sample, estimate_text
from pipeline.forecast_unpack import GOLDEN_RATIO, Gathered
from pipeline.ingest import (
    IngestSettings,
    TaskFile,
    change_texts,
    choose_fields,
    ingest_batch,
    judge_rows,
    keep_wanted,
    read_file,
)
from pipeline.json_lines import parse_lines
from pipeline.plan import PlannedSource
from pipeline.sketch_file import Sketches
from pipeline.wanted_documents import WantedDocuments, join_small

WARM_UP_SHARE = 0.2  # of the text read: the tokenizers' caches fill, so it is not timed
MOST_EXCESS = 1.25  # over the budget, where documents are longer than a piece


class Tally:
    """Counts what ingest finds in a piece. Stands in for its TokenFile, and writes nothing.

    documents, bytes: by outcome, as in an IngestRecord. tokens: per tokenizer. weight: what a document counts for of
    whose text only a part is there.
    """

    def __init__(self, dtypes: list[np.dtype]):
        self.dtypes = dtypes
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.tokens = [0] * len(dtypes)
        self.num_rows = self.num_without_subset = 0
        self.weight = 1.0

    def drop(self, raw_file: int, rows: Any, num_bytes: Any, *, reason: str, items: Any = 0) -> None:
        """Count rows that are not kept."""
        self.count(reason, len(rows), int(np.sum(num_bytes)))

    def reserve(self, most_ids: int) -> list[np.ndarray]:
        """Room for so many ids of each tokenizer, which nobody will read."""
        return [np.empty(most_ids, dtype) for dtype in self.dtypes]

    def add(self, documents: np.ndarray, splits: np.ndarray, ids: list[np.ndarray], sketches: Sketches) -> None:
        """Count documents that are kept, and their ids."""
        self.tokens = [before + len(more) for before, more in zip(self.tokens, ids, strict=True)]
        self.count("accepted", len(documents), int(documents["num_bytes"].sum()))

    def add_short(self, keys: np.ndarray) -> None:
        """Nothing: they are counted as dropped."""

    def count(self, outcome: str, num_documents: int, num_bytes: int) -> None:
        """Add to what was read, by outcome."""
        for name in ("read", outcome):
            self.documents[name] += num_documents * self.weight
            self.bytes[name] += num_bytes


@dataclass(frozen=True)
class Reading:
    """A piece and what was in it. laps: bytes of text and seconds of a core, batch by batch."""

    piece: Piece
    tally: Tally
    laps: list[tuple[int, float]]


@dataclass(frozen=True)
class Fit:
    """A value per byte of the source: its mean, and how much more it is where more is covered (1 is what was aimed at).

    residuals: float64, what of each piece's share of the mean is its own.
    """

    mean: float
    covered: float
    slope: float
    residuals: np.ndarray


@dataclass(frozen=True)
class SourceSample:
    """What a source holds, from the pieces of it that were read. is_exact: they were all there are."""

    source: PlannedSource
    readings: list[Reading]
    is_exact: bool

    @property
    def read_bytes(self) -> int:
        """The text that was read."""
        return sum(reading.tally.bytes["read"] for reading in self.readings)

    @property
    def total_bytes(self) -> int:
        """The source's text, as `estimate_text` has it."""
        return sum(map(estimate_text, self.source.files))

    def estimate(self, value: Callable[[Tally], float]) -> float:
        """A value of the whole source, from what it is in each piece."""
        if self.is_exact:
            return float(sum(value(reading.tally) for reading in self.readings))
        fit = self.fit(value)
        return self.total_bytes * (fit.mean + fit.slope * (1 - fit.covered))

    def fit(self, value: Callable[[Tally], float]) -> Fit:
        """How a value goes with what is covered, piece by piece."""
        pieces = [reading.piece for reading in self.readings]
        rates = np.array([piece.num_places / piece.aimed_bytes for piece in pieces])
        values = rates * [value(reading.tally) for reading in self.readings]
        covered = rates * [piece.covered_bytes for piece in pieces]
        return fit_pieces(values, covered, np.array([piece.num_places for piece in pieces]))

    def estimate_tokens(self, tokenizer: int) -> float:
        """Tokens of the documents that are kept before dedup, with the ids that frame them."""
        return self.estimate(lambda tally: tally.tokens[tokenizer])

    def find_error(self, value: Callable[[Tally], float]) -> float | None:
        """Two standard errors of an estimate, as a share of it; None where one piece cannot tell.

        The linearised variance (Cochran, Sampling Techniques, 7.3), from how much a piece differs from the one before
        it, as the places are evenly spread (Wolter, An Investigation of Some Estimators of Variance for Systematic
        Sampling, 1984): where files are sorted, most of what sets all pieces apart is no error.
        """
        num_pieces = len(self.readings)
        if self.is_exact or num_pieces < 2:
            return 0.0 if self.is_exact else None
        order = sorted(range(num_pieces), key=lambda index: self.readings[index].piece.place)
        variance = (np.diff(self.fit(value).residuals[order]) ** 2).sum() / 2 * num_pieces / (num_pieces - 1)
        return 2 * self.total_bytes * float(np.sqrt(variance)) / max(self.estimate(value), 1)

    @property
    def bytes_per_second(self) -> float:
        """Of text, read and encoded in a second of a core's work, once the tokenizers are warm."""
        laps = np.array([lap for reading in self.readings for lap in reading.laps] or [(1, 1e-9)])
        is_warm = np.cumsum(laps[:, 0]) > WARM_UP_SHARE * laps[:, 0].sum()
        num_bytes, seconds = laps[is_warm].sum(axis=0)
        return float(num_bytes / max(seconds, 1e-9))


def fit_pieces(values: np.ndarray, covered: np.ndarray, num_places: np.ndarray) -> Fit:
    """The regression of values on what is covered, both for each place, from no slope to the ratio of both."""
    shares = num_places / num_places.sum()
    mean, mean_covered = values.sum() / num_places.sum(), covered.sum() / num_places.sum()
    own, own_covered = values / num_places.sum() - shares * mean, covered / num_places.sum() - shares * mean_covered
    ratio = mean / mean_covered if mean_covered else 0.0
    slope = float(np.clip(own @ own_covered / max(own_covered @ own_covered, 1e-300), min(ratio, 0), max(ratio, 0)))
    return Fit(float(mean), float(mean_covered), slope, own - slope * own_covered)


def read_sample(source: PlannedSource, settings: IngestSettings, budget_bytes: int) -> SourceSample:
    """Read about `budget_bytes` of a source's text, or all of it where that is not more.

    Raises as ingest does.
    """
    is_exact = sum(map(estimate_text, source.files)) <= budget_bytes
    sample = SourceSample(source, [], is_exact)
    num_bytes = 0
    for pieces in cut_all(source) if is_exact else cut_sample(source, budget_bytes):
        readings = [read_piece(piece, settings) for piece in pieces]
        sample.readings.extend(readings)
        num_bytes += sum(reading.tally.bytes["read"] for reading in readings)
        fetched_bytes = source.fetching.num_bytes if isinstance(source.fetching, RemoteSample) else 0
        if max(num_bytes, fetched_bytes) > budget_bytes * MOST_EXCESS and not is_exact:
            break
    if not is_exact and not any(reading.piece.covered_bytes for reading in sample.readings):
        sample.readings.append(read_piece(cut_first_line(source), settings))
    return sample


def read_piece(piece: Piece, settings: IngestSettings) -> Reading:
    """Read a piece as ingest does, and count."""
    tally = Tally([np.dtype(encode.dtype) for encode in settings.encode])
    if piece.gathered is not None:
        laps = read_gathered(piece.gathered, piece.files[0], settings, tally)
        return Reading(replace(piece, gathered=None), tally, laps)
    batches = (
        keep_wanted(batch, file, settings, tally)
        for file in piece.files
        for batch in take_rows(judge_rows(read_file(file, settings), file, settings), piece.most_rows)
    )
    return Reading(piece, tally, count_documents(batches, settings, tally))


def read_gathered(
    gathered: Gathered, file: TaskFile, settings: IngestSettings, tally: Tally
) -> list[tuple[int, float]]:
    """Count short lines, and a share of each long one: what a sample has of them where they are many."""
    laps, fields = [], choose_fields(file, settings)
    for lines, weight in ((gathered.short, 1.0), (gathered.long, gathered.share)):
        tally.weight, before_seconds = weight, weight * len(lines) * gathered.unpacking_seconds
        started = time.process_time()
        batch = parse_lines(lines, first_row=0, fields=fields)
        before_seconds += weight * (time.process_time() - started)
        batch = cut_texts(batch, weight) if weight < 1 else batch
        batches = (keep_wanted(change_texts(one, file, settings), file, settings, tally) for one in [batch])
        laps += count_documents(batches, settings, tally, before_seconds=before_seconds)
    return laps


def count_documents(
    batches: Iterator[WantedDocuments], settings: IngestSettings, tally: Tally, *, before_seconds: float = 0.0
) -> list[tuple[int, float]]:
    """Count documents; returns the laps. before_seconds: of a core, already worked on them."""
    laps, started, num_bytes = [], time.process_time() - before_seconds, tally.bytes["read"]
    for wanted in join_small(batches):
        ingest_batch(wanted, settings, tally)
        now = time.process_time()
        laps.append((tally.bytes["read"] - num_bytes, now - started))
        started, num_bytes = now, tally.bytes["read"]
    return laps


def cut_texts(batch: DocumentBatch, share: float) -> DocumentBatch:
    """The batch with so much of each text, from anywhere in it, and of each bad row's bytes."""
    data, offsets = text_buffers(batch.texts)
    slices = []
    for start, end in zip(offsets.tolist(), offsets[1:].tolist(), strict=False):
        size = round(share * (end - start))
        first = start + int((end - start - size) * (end * GOLDEN_RATIO % 1))
        slices.append(data[find_character(data, first) : find_character(data, first + size)])
    ends = np.cumsum([0, *map(len, slices)]).astype(np.int32)
    bad_rows = batch.bad_rows.copy()
    bad_rows["num_bytes"] = share * bad_rows["num_bytes"]
    return replace(batch, texts=make_strings(bytearray().join(slices), ends), bad_rows=bad_rows)


def find_character(data: np.ndarray, position: int) -> int:
    """Where the first character of UTF-8 that starts at `position` or later does."""
    while position < len(data) and data[position] & 0xC0 == 0x80:
        position += 1
    return position


def take_rows(batches: Iterator[DocumentBatch], most_rows: int | None) -> Iterator[DocumentBatch]:
    """The first rows of a file or part; None: all."""
    num_rows = 0
    for batch in batches:
        num_rows += batch.num_rows
        if most_rows is not None and num_rows > most_rows:
            yield cut_batch(batch, most_rows, batch.num_rows - (num_rows - most_rows))
            return
        yield batch


def cut_batch(batch: DocumentBatch, end_row: int, num_rows: int) -> DocumentBatch:
    """The rows of a batch before `end_row`: its first `num_rows`."""
    num_documents = int(np.searchsorted(batch.rows, end_row))
    bad_rows = batch.bad_rows[batch.bad_rows["row"] < end_row]
    subsets = None if batch.subsets is None else batch.subsets[:num_documents]
    failed = None if batch.failed is None else batch.failed[:num_documents]
    return DocumentBatch(batch.texts[:num_documents], batch.rows[:num_documents], subsets, bad_rows, num_rows, failed)
