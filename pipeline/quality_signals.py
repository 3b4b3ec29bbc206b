"""The quality signals that lie in files beside those of the documents, as in RedPajama-V2: which documents fail rules.

    documents/2023-06/0000/en_head.json.gz    quality_signals/2023-06/0000/en_head.signals.json.gz

A line of signals is {"id": "2023-06/0000/en_head.json.gz/ROW", "quality_signals": {NAME: [[start, end, score], ...]}}
(https://arxiv.org/abs/2411.12372, section B.1.2). ROW is the line of the document. A signal's value is the mean of its
scores: one of a document has one score, one of lines one for each line. It is null where a score is, or where there is
none. Works in Arrow batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipeline.document_batch import DocumentBatch
from pipeline.documents import find_kind, read_blocks
from pipeline.file_parts import LongLineError
from pipeline.manifest import RawFile
from pipeline.signal_rules import Rule, parse_rule
from pipeline.source_options import nearest

DOCUMENTS, SIGNALS = "documents", "quality_signals"
DOCUMENTS_ENDING, SIGNALS_ENDING = ".json.gz", ".signals.json.gz"
TOGETHER = "Fetch both again, or build without signals="

Failures = tuple[np.ndarray, np.ndarray]  # rows (uint64), and 1 + the number of the first rule that each fails (uint32)


def find_signals(path: str, is_there: Callable[[str], bool]) -> str | None:
    """The file with the signals of a raw file's documents: in quality_signals/, or beside it; None: there is none."""
    return next((one for one in name_signals(path) if is_there(one)), None)


def name_signals(path: str) -> list[str]:
    """Where the signals of a raw file may lie, best first; nowhere for a file that is not of the layout."""
    if not path.endswith(DOCUMENTS_ENDING):
        return []
    beside = path.removesuffix(DOCUMENTS_ENDING) + SIGNALS_ENDING
    folders = beside.split("/")
    if DOCUMENTS in folders[:-1]:
        folders[folders.index(DOCUMENTS)] = SIGNALS
        return ["/".join(folders), beside]
    return [f"{SIGNALS}/{beside}", beside]


def attach_signals(files: Sequence[RawFile], is_there: Callable[[str], bool]) -> tuple[RawFile, ...]:
    """The raw files with the paths of their quality signals. Raises FileNotFoundError where one has none."""
    found = tuple(replace(file, signals=find_signals(file.path, is_there)) for file in files)
    missing = [file.path for file in found if file.signals is None]
    if missing:
        places = " or ".join(name_signals(missing[0])) or f"{SIGNALS}/NAME{SIGNALS_ENDING} for NAME{DOCUMENTS_ENDING}"
        raise FileNotFoundError(
            f"signals: there are no quality signals of {len(missing):,} raw files, the first of them {missing[0]} "
            f"(looked for {places}). Of tail none are published: only=head+middle"
        )
    return found


def judge(
    batches: Iterator[DocumentBatch], path: Path, signals: Path, rules: Sequence[str], *, is_whole: bool
) -> Iterator[DocumentBatch]:
    """The batches of a raw file with `failed`: 1 + the number of the first rule that each document fails, 0: none.

    is_whole: the batches are all of the file, so that what is left of the signals must be of no document.
    Raises ValueError where a document has no signals, or signals no document.
    """
    reader = read_failures(signals, path, [parse_rule(rule) for rule in rules])
    rows, failed = np.empty(0, np.uint64), np.empty(0, np.uint32)
    num_rows = 0
    for batch in batches:
        num_rows += batch.num_rows
        while len(batch.rows) and not (len(rows) and rows[-1] >= batch.rows[-1]):
            more = next(reader, None)
            if more is None:
                break
            rows, failed = np.concatenate([rows, more[0]]), np.concatenate([failed, more[1]])
        at = find_rows(rows, batch.rows, path, signals)
        yield replace(batch, failed=failed[at])
        done = int(at[-1]) + 1 if len(at) else 0
        rows, failed = rows[done:], failed[done:]
        del batch  # a huge text goes before the next is read
    for left in (rows, *(more[0] for more in reader)) if is_whole else ():
        if len(left) and left[-1] >= num_rows:
            raise ValueError(f"{signals}: has signals of row {left[-1]}, but {path} has {num_rows:,} rows. {TOGETHER}")


def find_rows(rows: np.ndarray, wanted: np.ndarray, path: Path, signals: Path) -> np.ndarray:
    """Where each wanted row stands among sorted rows. Raises ValueError for one that is not there."""
    at = np.searchsorted(rows, wanted)
    is_there = at < len(rows)
    is_there[is_there] = rows[at[is_there]] == wanted[is_there]
    if not is_there.all():
        raise ValueError(f"{signals}: has no signals of row {wanted[~is_there][0]} of {path}. {TOGETHER}")
    return at


def read_failures(signals: Path, path: Path, rules: Sequence[Rule]) -> Iterator[Failures]:
    """What fails, block by block, in the order of rows. path: the raw file that the signals should be of."""
    last = -1
    schema = describe_line({rule.signal for rule in rules})
    try:
        for block in read_blocks(signals, compression=find_kind(signals)[1], start=0, end=None):
            table = parse_block(block, schema, signals)
            if not len(table):
                continue
            rows = read_rows(table["id"], path, signals)
            if int(rows[0]) <= last or (rows[1:] <= rows[:-1]).any():
                raise ValueError(f"{signals}: its rows are not in order, or one is there twice. {TOGETHER}")
            last = int(rows[-1])
            yield rows, find_failures(table["quality_signals"].combine_chunks(), rules, rows, block, signals)
    except LongLineError:
        raise ValueError(f"{signals}: a line is too long to be read") from None


def describe_line(names: set[str]) -> pa.Schema:
    """The schema of what is read of a line: its id, and the signals of these names."""
    spans = pa.list_(pa.list_(pa.float64()))
    return pa.schema([("id", pa.string()), ("quality_signals", pa.struct([(name, spans) for name in sorted(names)]))])


def parse_block(block: memoryview, schema: pa.Schema, signals: Path) -> pa.Table:
    """The lines of a block as a table."""
    if not bytes(block).strip():
        return schema.empty_table()
    how = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    size = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        return pyarrow.json.read_json(pa.BufferReader(pa.py_buffer(block)), read_options=size, parse_options=how)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{signals}: not a file of quality signals: {str(error).splitlines()[0]}") from None


def read_rows(ids: pa.ChunkedArray, path: Path, signals: Path) -> np.ndarray:
    """The rows that ids name: uint64. Raises ValueError where one names another raw file than `path`."""
    parts = pc.split_pattern(ids.combine_chunks(), "/", max_splits=1, reverse=True)
    if ids.null_count or pc.any(pc.not_equal(pc.list_value_length(parts), 2)).as_py():
        raise ValueError(f"{signals}: a line has no id such as 2023-06/0000/en_head.json.gz/0")
    names, rows = parts.flatten()[0::2], parts.flatten()[1::2]
    for name in names.unique().to_pylist():
        if not f"/{path}".endswith(f"/{name}"):
            raise ValueError(f"{signals}: has signals of {name}, not of {path}. {TOGETHER}")
    try:
        return rows.cast(pa.uint64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{signals}: an id does not end with a row: {str(error).splitlines()[0]}") from None


def find_failures(
    table: pa.StructArray, rules: Sequence[Rule], rows: np.ndarray, block: memoryview, signals: Path
) -> np.ndarray:
    """1 + the number of the first rule that each document fails: uint32. Raises ValueError for a missing signal."""
    failed = np.zeros(len(table), np.uint32)
    values: dict[str, np.ndarray] = {}
    for number, rule in reversed(list(enumerate(rules, start=1))):
        if rule.signal not in values:
            spans = pc.struct_field(table, rule.signal)
            if spans.null_count:
                row = rows[spans.is_null().to_numpy(zero_copy_only=False)][0]
                raise ValueError(f"{signals}: row {row} has no signal {rule.signal!r}{find_nearest(rule, block)}")
            values[rule.signal] = find_means(spans, signals)
        failed[~rule.passes(values[rule.signal])] = number
    return failed


def find_nearest(rule: Rule, block: memoryview) -> str:
    """The signals of a block's first line whose names are nearest."""
    line = json.loads(bytes(block).lstrip().split(b"\n", 1)[0])
    return nearest(rule.signal, line.get("quality_signals") or ())


def find_means(spans: pa.ListArray, signals: Path) -> np.ndarray:
    """The mean of each document's scores: float64, NaN where one is null, or where there is none."""
    num_scores = pc.list_value_length(spans).to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(spans.flatten())
    if pc.any(pc.not_equal(lengths, 3)).as_py() or lengths.null_count:
        raise ValueError(f"{signals}: a signal is no list of [start, end, score]")
    scores = spans.flatten().flatten().to_numpy(zero_copy_only=False)[2::3]
    documents = np.repeat(np.arange(len(spans)), num_scores)
    sums = np.bincount(documents, weights=scores, minlength=len(spans))
    return np.divide(sums, num_scores, out=np.full(len(spans), np.nan), where=num_scores > 0)
