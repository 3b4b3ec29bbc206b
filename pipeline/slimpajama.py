"""SlimPajama's own recipe, to the bit: its normalisation, its filter of short texts, its signatures and bands.

Source: Cerebras' modelzoo, data_preparation/nlp/slimpajama, with ftfy 6.1.1 and datasketch 1.5.9. A text is what
ftfy.fix_text(text, normalization="NFC") makes of it. For signatures and the filter it is lowered, ASCII punctuation is
deleted, white space becomes single spaces; below 200 characters it is short. Shingles are 13 characters, their hash is
the first four bytes of their sha1, little-endian; 128 permutations (a * hash + b), modulo 2**64, then 2**61 - 1, then
2**32, of which 9 bands of 13 values are used. Texts of fewer than 13 characters all have the same signature.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

import ftfy
import numpy as np
import pyarrow as pa

from pipeline.document_batch import text_buffers
from pipeline.slimpajama_kernels import (
    MERSENNE,
    NUM_BANDS,
    NUM_PERMUTATIONS,
    clean_ascii,
    hash_bands,
    sign,
)

SHORTEST_CHARS = 200

# What no step of ftfy changes: one-byte characters but "&" (entities), "\r" and what it strips as control characters.
PLAIN = re.compile(r"[\t\n\x0c\x20-\x25\x27-\x7e]*")
PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]+")
FTFY = ftfy.TextFixerConfig(normalization="NFC", explain=False)


def normalise_texts(texts: pa.Array) -> pa.Array:
    """The texts as ftfy leaves them; the same array where it changes none."""
    fixed = [normalise(text) for text in texts.to_pylist()]
    joined = pa.array(fixed, pa.string())
    return texts if joined.equals(texts) else joined


def normalise(text: str) -> str:
    """What ftfy.fix_text(text, normalization="NFC") returns: line by line as there, plain lines as they are."""
    if PLAIN.fullmatch(text):
        return text
    return "".join(normalise_lines(text))


def normalise_lines(text: str) -> Iterator[str]:
    """The lines of a text. As there, entities are left alone from the first line with a "<" on."""
    config, position = FTFY, 0
    while position < len(text):
        end = text.find("\n", position) + 1 or len(text)
        end = min(end, position + config.max_decode_length)
        line = text[position:end]
        if config.unescape_html == "auto" and "<" in line:
            config = config._replace(unescape_html=False)
        yield line if PLAIN.fullmatch(line) else ftfy.fix_and_explain(line, config).text
        position = end


def clean(text: str) -> str:
    """What signatures and the filter are made from."""
    return " ".join(PUNCTUATION.sub("", text.lower()).split())


@dataclass(frozen=True)
class CleanTexts:
    """Cleaned texts: UTF-8, text i is data[offsets[i]:offsets[i + 1]]; and how many characters each has."""

    data: np.ndarray
    offsets: np.ndarray
    num_chars: np.ndarray

    @classmethod
    def of(cls, texts: pa.Array) -> CleanTexts:
        """Clean some normalised texts."""
        data, offsets = text_buffers(texts)
        out = np.empty(int(offsets[-1] - offsets[0]), np.uint8)
        lengths = np.empty(len(texts), np.int64)
        clean_ascii(data, offsets, classify_bytes(), out, lengths)
        num_chars, parts = lengths.copy(), []
        for place, (start, length) in enumerate(
            zip((offsets[:-1] - offsets[0]).tolist(), lengths.tolist(), strict=True)
        ):
            if length >= 0:
                parts.append(out[start : start + length].tobytes())
            else:
                cleaned = clean(texts[place].as_py())
                parts.append(cleaned.encode())
                num_chars[place], lengths[place] = len(cleaned), len(parts[-1])
        ends = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(lengths, out=ends[1:])
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends, num_chars)

    @property
    def is_short(self) -> np.ndarray:
        """Which texts are too short to keep: bool."""
        return self.num_chars < SHORTEST_CHARS


@functools.cache
def classify_bytes() -> np.ndarray:
    """What cleaning makes of each ASCII character: itself lowered, 0 where it is deleted, 32 for white space: uint8."""
    characters = [chr(byte) for byte in range(128)]
    deleted = set(string.punctuation)
    return np.array(
        [0 if one in deleted else (32 if one.isspace() else ord(one.lower())) for one in characters], np.uint8
    )


@functools.cache
def make_permutations() -> np.ndarray:
    """The factors and addends of datasketch's permutations with seed 1: uint64, shape (2, NUM_PERMUTATIONS)."""
    draws = np.random.RandomState(1)
    pairs = [
        (draws.randint(1, MERSENNE, dtype=np.uint64), draws.randint(0, MERSENNE, dtype=np.uint64))
        for _ in range(NUM_PERMUTATIONS)
    ]
    return np.ascontiguousarray(np.array(pairs, np.uint64).T)


def sign_texts(texts: CleanTexts) -> np.ndarray:
    """datasketch's hash values of some texts: uint64, shape (texts, NUM_PERMUTATIONS)."""
    signatures = np.empty((len(texts.num_chars), NUM_PERMUTATIONS), np.uint64)
    sign(texts.data, texts.offsets, make_permutations(), signatures)
    return signatures


def make_keys(texts: pa.Array) -> np.ndarray:
    """Of normalised texts, a key of 64 bits for each band of 13 values: uint64, shape (texts, NUM_BANDS)."""
    signatures = sign_texts(CleanTexts.of(texts))
    keys = np.empty((len(signatures), NUM_BANDS), np.uint64)
    hash_bands(signatures, keys)
    return keys
