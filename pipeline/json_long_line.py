"""One huge JSON line -> a small one and its text, in no more memory than the line and the text take.

pyarrow.json and the json module make two to nine copies of a line. So the text is unescaped here, piece by piece, and
cut out: what is left is a short line with a placeholder where the text was, which is parsed like any other. Cutting
the inside of a string out of JSON changes nothing else, also where the JSON is bad: what stands before it is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

LEAST_TEXT_BYTES = 1 << 20  # a shorter text is not cut out

# Some of what may stand in a JSON string, from one character's start to another's; bytes above 0x7f are known to be
# UTF-8. Both halves of a surrogate pair are taken together.
STRING_PIECE = re.compile(
    rb'(?:[^"\\\x00-\x1f]{1,4096}+|\\u[dD][89abAB][\da-fA-F]{2}\\u[\da-fA-F]{4}|\\u[\da-fA-F]{4}|\\["\\/bfnrt]){1,8192}+'
)
QUOTE = ord('"')


@dataclass(frozen=True)
class ShortenedLine:
    """A line whose long texts are cut out. line: what is left (empty if all is, not to copy it). texts: by placeholder;
    None for what is no Unicode."""

    line: bytes
    texts: dict[str, bytearray | None]


def cut_texts_out(line: memoryview, text_field: str) -> ShortenedLine:
    """A line of UTF-8 without the long texts of its text field. A broken string is left in its place, cut off."""
    key = re.compile(b'"' + re.escape(text_field.encode()) + rb'"[ \t\r\n]*:[ \t\r\n]*"')
    kept, texts, kept_until, position = [], {}, 0, 0
    while found := key.search(line, position):
        text, position = unescape_string(line, found.end())
        is_broken = position == len(line) or line[position] != QUOTE
        if is_broken or position - found.end() >= LEAST_TEXT_BYTES:
            placeholder = make_placeholder(len(texts))
            texts[placeholder] = text
            kept += [line[kept_until : found.end()], placeholder.encode()]
            kept_until = position
        if is_broken:
            return ShortenedLine(b"".join(kept), texts)
    return ShortenedLine(b"".join([*kept, line[kept_until:]]) if kept else b"", texts)


def make_placeholder(number: int) -> str:
    """What stands for a text: longer than any text that was left in the line, so it is none of these."""
    return "x" * LEAST_TEXT_BYTES + str(number)


def unescape_string(line: memoryview, start: int) -> tuple[bytearray | None, int]:
    """The UTF-8 of the JSON string whose inside begins at `start`, and where that ends: at its quote, if it is whole.

    None for the text where the string holds half of a surrogate pair.
    """
    text: bytearray | None = bytearray()
    position = start
    for piece in split_string(line, start):
        position += len(piece)
        try:
            if text is not None:
                text += unescape(piece)
        except UnicodeEncodeError:
            text = None
    return text, position


def split_string(line: memoryview, start: int) -> Iterator[bytes]:
    """The inside of a JSON string in pieces that can be unescaped by themselves, up to its quote or what is no JSON."""
    while found := STRING_PIECE.match(line, start):
        end = found.end()
        while end < len(line) and 0x80 <= line[end] < 0xC0:  # within a character
            end -= 1
        yield bytes(line[start:end])
        start = end


def unescape(piece: bytes) -> bytes:
    """UTF-8 of a piece of a JSON string. Raises UnicodeEncodeError for half of a surrogate pair."""
    return json.loads(b'"' + piece + b'"').encode() if b"\\" in piece else piece


def one_text(text: bytearray) -> pa.Array:
    """A text as an Arrow string array of one, without a copy. It is UTF-8, of at most 2 GiB."""
    offsets = pa.py_buffer(np.array([0, len(text)], np.int32))
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(text)])
