"""JSON lines -> a batch of documents, at the speed of pyarrow.json and without its traps. Knows no file.

pyarrow.json reads a block of lines at once, but one bad line rejects the block, invalid UTF-8 passes, null and missing
look alike, blank lines vanish and `{}{}` is two rows. So a block is read at once only where each of its lines starts
with `{` and ends with `}` and all of it is UTF-8; a rejected block is halved until the bad lines stand alone. A line's
fate is therefore its own: it does not depend on its neighbours, nor on where blocks begin.

Why one row per line then: `}` and `{` never follow each other inside one JSON value, so no value can reach over a
line's end unseen; each line holds at least one value, and as many rows as lines means exactly one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from pipeline.document_batch import BadRow, DocumentBatch, as_text
from pipeline.json_long_line import cut_texts_out, one_text

NEWLINE, OPEN, CLOSE = b"\n{}"
IS_SPACE = np.isin(np.arange(256), list(b" \t\r"))
MOST_SPACES = 16  # at either end of a line; one with more is read by itself
LONG_BYTES = 16 << 20  # a line from here on is parsed in a way that takes little memory
FEED_SEARCH_BYTES = 8 << 20


@dataclass(frozen=True)
class LineFields:
    """Where a row holds its text, and its subset ("meta.redpajama_set_name"; None: not asked for)."""

    text: str
    subset: str | None = None

    def schemas(self) -> list[pa.Schema]:
        """What pyarrow.json is to look for: the way to the subset may be objects, or one JSON text."""
        text = pa.field(self.text, pa.string())
        if self.subset is None:
            return [pa.schema([text])]
        top, *rest = self.subset.split(".")
        nested: pa.DataType = pa.string()
        for name in reversed(rest):
            nested = pa.struct([pa.field(name, nested)])
        return [pa.schema([text, pa.field(top, kind)]) for kind in dict.fromkeys([nested, pa.string()])]


@dataclass(frozen=True)
class Lines:
    """A block cut into lines: line i is block[starts[i]:ends[i]], without its line feed."""

    block: memoryview
    starts: np.ndarray
    ends: np.ndarray
    first_row: int

    @classmethod
    def cut(cls, block: bytes | bytearray, *, first_row: int) -> Lines:
        """The lines of a block; the last may lack its line feed. first_row: the number of the first in its file."""
        feeds = find_line_feeds(np.frombuffer(block, np.uint8))
        ends = feeds if block.endswith(b"\n") or not block else np.append(feeds, len(block))
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
        return cls(memoryview(block), starts, ends, first_row)

    def part(self, first: int, last: int) -> Lines:
        """Some of the lines, as a block of their own, which is a view of this one."""
        start, end = int(self.starts[first]), int(self.ends[last - 1])
        return Lines(
            self.block[start:end],
            self.starts[first:last] - start,
            self.ends[first:last] - start,
            self.first_row + first,
        )

    def rows_if_objects(self) -> np.ndarray | None:
        """The indices of the lines that are not blank, or None where one of these is not framed by { and }."""
        if not self.block:  # one blank line
            return self.starts[:0]
        data = np.frombuffer(self.block, np.uint8)
        starts = skip_spaces(data, self.starts, until=self.ends, step=1)
        lasts = skip_spaces(data, self.ends - 1, until=starts - 1, step=-1)
        filled = np.flatnonzero(lasts >= starts)
        is_object = (data[starts[filled]] == OPEN) & (data[lasts[filled]] == CLOSE)
        return filled if is_object.all() else None


def find_line_feeds(data: np.ndarray) -> np.ndarray:
    """Where the line feeds of a block are: int64. In stretches, since what numpy compares takes memory once more."""
    stretches = range(0, len(data), FEED_SEARCH_BYTES)
    found = [np.flatnonzero(data[start : start + FEED_SEARCH_BYTES] == NEWLINE) + start for start in stretches]
    return np.concatenate([np.empty(0, np.int64), *found])


def skip_spaces(data: np.ndarray, positions: np.ndarray, *, until: np.ndarray, step: int) -> np.ndarray:
    """Each position moved on by steps over JSON's white space, not beyond its `until`. A line has a few, if any."""
    positions = positions.copy()
    moving = np.flatnonzero(positions != until)
    for _ in range(MOST_SPACES):
        moving = moving[IS_SPACE[data[positions[moving]]]]
        if not len(moving):
            break
        positions[moving] += step
        moving = moving[positions[moving] != until[moving]]
    return positions


def parse_lines(lines: Lines, *, fields: LineFields) -> DocumentBatch:
    """The documents of some lines, each of which is a row."""
    batch = join_batches(parse_part(lines, fields) if len(lines.starts) else [], fields)
    return replace(batch, num_rows=len(lines.starts))


def parse_part(lines: Lines, fields: LineFields) -> list[DocumentBatch]:
    """The lines in one go if they allow it, else each half by itself; long lines by themselves."""
    is_long = len(lines.block) >= LONG_BYTES
    if len(lines.starts) == 1:
        return [(parse_long if is_long else parse_short)(lines, fields=fields)]
    batch = None if is_long else parse_together(lines, fields)
    if batch is not None:
        return [batch]
    middle = len(lines.starts) // 2
    return parse_part(lines.part(0, middle), fields) + parse_part(lines.part(middle, len(lines.starts)), fields)


def parse_short(line: Lines, *, fields: LineFields) -> DocumentBatch:
    """One line, by the first parser that says what it is."""
    batch = parse_together(line, fields)
    return parse_alone(line, fields=fields) if batch is None else batch


def parse_long(line: Lines, *, fields: LineFields) -> DocumentBatch:
    """One line, as parse_short, but in little more memory than the line and its text take."""
    num_bytes = int(line.ends[0])
    if not is_utf8(line.block):
        return join_batches([], fields, bad_rows=[BadRow(line.first_row, "bad_utf8", num_bytes)])
    short = cut_texts_out(line.block, fields.text)
    left = Lines.cut(short.line, first_row=line.first_row) if short.texts else line
    batch = parse_short(left, fields=fields)
    if batch.bad_rows:
        return replace(batch, bad_rows=[batch.bad_rows[0]._replace(num_bytes=num_bytes)])
    placeholder = batch.texts[0].as_py() if len(batch.texts) else None
    if placeholder not in short.texts:
        return batch
    if short.texts[placeholder] is None:
        return join_batches([], fields, bad_rows=[BadRow(line.first_row, "bad_surrogate", num_bytes)])
    return replace(batch, texts=one_text(short.texts[placeholder]))


def parse_together(lines: Lines, fields: LineFields) -> DocumentBatch | None:
    """All lines by pyarrow.json, or None where it could be wrong about one of them."""
    filled = lines.rows_if_objects()
    if filled is None or not is_utf8(lines.block):
        return None
    if not len(filled):
        return join_batches([], fields)
    table = read_table(lines.block, fields)
    if table is None or len(table) != len(filled):
        return None
    chunks = table.column(fields.text).chunks
    texts = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)
    subsets = None if fields.subset is None else find_subsets(table, fields.subset)
    rows = (filled + lines.first_row).astype(np.uint64)
    if not texts.null_count:
        return DocumentBatch(texts, rows, subsets)
    is_valid = texts.is_valid()
    missing = filled[~is_valid.to_numpy(zero_copy_only=False)]  # null or no field: only the line itself tells which
    alone = [parse_alone(lines.part(line, line + 1), fields=fields) for line in missing.tolist()]
    kept_subsets = None if subsets is None else subsets.filter(is_valid)
    kept_rows = rows[is_valid.to_numpy(zero_copy_only=False)]
    bad_rows = [bad for batch in alone for bad in batch.bad_rows]
    return DocumentBatch(texts.drop_null(), kept_rows, kept_subsets, bad_rows)


def is_utf8(block: memoryview) -> bool:
    """Whether the bytes are UTF-8, checked in place."""
    offsets = pa.array([0, len(block)], pa.int32()).buffers()[1]
    return as_text(pa.Array.from_buffers(pa.binary(), 1, [None, offsets, pa.py_buffer(block)])) is not None


def read_table(block: memoryview, fields: LineFields) -> pa.Table | None:
    """The block as a table of the text and subset columns, or None where pyarrow.json rejects it."""
    read_options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    for schema in fields.schemas():
        parse_options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            return pyarrow.json.read_json(
                pa.BufferReader(block), read_options=read_options, parse_options=parse_options
            )
        except pa.ArrowInvalid:
            continue
    return None


def find_subsets(table: pa.Table | pa.RecordBatch, subset_field: str) -> pa.Array:
    """Each row's subset, null where the way to it ends; on the way, a JSON text may stand for the object it holds."""
    top, *names = subset_field.split(".")
    if top not in table.schema.names:
        return pa.nulls(len(table), pa.string())
    column = table.column(top)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    for index, name in enumerate(names):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return find_in_texts(column, ".".join(names[index:]))
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return pa.nulls(len(table), pa.string())
        column = pc.struct_field(column, name)
    return column.cast(pa.string())


def find_in_texts(texts: pa.Array, subset_field: str) -> pa.Array:
    """Each JSON text's subset. Equal texts are read once: metadata repeats."""
    encoded = texts.dictionary_encode()
    subsets = pa.array([find_subset(text, subset_field) for text in encoded.dictionary.to_pylist()], pa.string())
    return subsets.take(encoded.indices)


def parse_alone(line: Lines, *, fields: LineFields) -> DocumentBatch:
    """One line by the json module: a document, a bad row, or nothing for a blank line."""
    try:
        value = json.loads(str(line.block, "utf-8-sig"))
        reason = find_fault(value, fields.text)
    except UnicodeDecodeError:
        reason = "bad_utf8"
    except (ValueError, RecursionError):
        if not bytes(line.block).strip():
            return join_batches([], fields)
        reason = "bad_json"
    if reason is not None:
        num_bytes = int(line.ends[0])  # without its line feed, which the last line of a block still has
        return join_batches([], fields, bad_rows=[BadRow(line.first_row, reason, num_bytes)])
    subsets = None
    if fields.subset is not None:
        subsets = pa.array([find_subset(value, fields.subset)], pa.string())
    return DocumentBatch(pa.array([value[fields.text]], pa.string()), np.array([line.first_row], np.uint64), subsets)


def find_fault(value: object, text_field: str) -> str | None:
    """Why a JSON value is no document, or None where it is one."""
    if not isinstance(value, dict):
        return "bad_object"
    if text_field not in value:
        return "bad_text_missing"
    text = value[text_field]
    if not isinstance(text, str):
        return "bad_text_null" if text is None else "bad_text_type"
    return None if is_unicode(text) else "bad_surrogate"


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_subset(value: object, subset_field: str) -> str | None:
    """The subset that one row names, or None."""
    for name in subset_field.split("."):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value if isinstance(value, str) and is_unicode(value) else None


def join_batches(
    batches: list[DocumentBatch], fields: LineFields, *, bad_rows: list[BadRow] | None = None
) -> DocumentBatch:
    """The documents of consecutive batches as one."""
    if len(batches) == 1:
        return batches[0]
    empty = pa.array([], pa.string())
    subsets = None
    if fields.subset is not None:
        subsets = pa.concat_arrays([batch.subsets for batch in batches] or [empty])
    return DocumentBatch(
        pa.concat_arrays([batch.texts for batch in batches] or [empty]),
        np.concatenate([batch.rows for batch in batches] or [np.empty(0, np.uint64)]),
        subsets,
        [bad for batch in batches for bad in batch.bad_rows] + (bad_rows or []),
    )
