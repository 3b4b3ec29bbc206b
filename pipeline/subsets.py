"""Which subset each row names, such as the corpus that a row of SlimPajama is from. Knows no file.

A field "meta.redpajama_set_name" is a way through objects; on it, a JSON text may stand for the object that it holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc


def find_subsets(table: pa.Table | pa.RecordBatch, subset_field: str) -> pa.Array:
    """The subset of each row of a table: strings, null where the way ends."""
    top, *names = subset_field.split(".")
    if top not in table.schema.names:
        return pa.nulls(len(table), pa.string())
    column = table.column(top)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    for index, name in enumerate(names):
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return find_in_json(column, names[index:])
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return pa.nulls(len(table), pa.string())
        column = pc.struct_field(column, name)
    return column.cast(pa.string())


def find_in_json(texts: pa.Array, names: Sequence[str]) -> pa.Array:
    """The subset that each JSON text leads to; null where it is none. Equal texts are read once: metadata repeats."""
    encoded = texts.dictionary_encode()
    subsets = pa.array([find_subset(text, names) for text in encoded.dictionary.to_pylist()], pa.string())
    return subsets.take(encoded.indices)


def find_subset(text: str, names: Sequence[str]) -> str | None:
    """The subset that one JSON text leads to, or None."""
    value = read_json_text(text)
    for name in names:
        if isinstance(value, str):
            value = read_json_text(value)
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) and is_unicode(value) else None


def read_json_text(text: str) -> object:
    """The value of a JSON text; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
