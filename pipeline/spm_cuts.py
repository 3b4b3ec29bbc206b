"""Where a text may be cut without changing its SentencePiece BPE ids: compiled; UTF-8 is checked on the way.

SentencePiece begins with a text's characters (spaces written as U+2581, one more in front where the model says so). Of
all neighbours that together are a piece, those with the highest score are joined, the leftmost first among equals,
until none are left.

Why cutting changes nothing: the first joining across a place between two characters joins a symbol that ends there with
one that begins there, and together they are a piece in which these two characters stand side by side. Where they do so
in no piece of the vocabulary, nothing is ever joined across. What is joined on one side does not depend on the other:
each pair is judged by its own score, and the order within a side is the same with and without the other side. So a text
may be cut at every such place, and any choice of these places is as good: a pair that is taken for a bridge and is none
makes a chunk longer, never wrong.

A user-defined piece is one symbol from the start; its characters count as bridged, so no chunk holds a part of one.
Unknown characters in a row are one unknown piece where there are no byte pieces, so there they count as bridged, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.compiled import compiled

# numba makes float64 of uint64 and int64 together, so constants have a type.
N0, N1, N2, N3, N4, N63, N64 = map(np.uint64, (0, 1, 2, 3, 4, 63, 64))
W5, W6, W15, W31, W80 = map(np.uint32, (5, 6, 15, 31, 0x80))
HASH_LEFT, HASH_RIGHT = 0x9E3779B1, 0x85EBCA77


class CutTables(NamedTuple):
    """Which pairs of characters a model bridges; made by spm_tables.py."""

    cuts: np.ndarray  # uint8 per pair of ASCII bytes, first + 256 * second: 1 where a text may be cut
    bridges: np.ndarray  # uint32 words of hashed bits, for pairs of other characters: 0 where a text may be cut
    is_piece: np.ndarray  # bool per code point, where there are no byte pieces; else empty


def hash_pair(left: int, right: int, num_words: int) -> tuple[int, int]:
    """The word and the bit of a pair in CutTables.bridges."""
    mixed = ((left * HASH_LEFT) ^ (right * HASH_RIGHT)) & 0xFFFFFFFF
    mixed = (mixed ^ (mixed >> 15)) & (32 * num_words - 1)
    return mixed >> 5, mixed & 31


@compiled
def decode_character(data, position, end):
    """The code point of the UTF-8 at a position, uint32, and its length; 0 if it is not UTF-8, or cut at `end`."""
    first = np.uint32(data[position])
    if first < W80:
        return first, N1
    length = N2 if first < np.uint32(0xE0) else (N3 if first < np.uint32(0xF0) else N4)
    if first < np.uint32(0xC2) or first > np.uint32(0xF4) or position + length > end:
        return first, N0
    character = first & (np.uint32(0x7F) >> np.uint32(length))
    for at in range(N1, length):
        byte = np.uint32(data[position + at])
        if byte & np.uint32(0xC0) != W80:
            return first, N0
        character = (character << W6) | (byte & np.uint32(0x3F))
    is_overlong = (length == N3 and character < np.uint32(0x800)) or (length == N4 and character < np.uint32(0x10000))
    is_surrogate = character >> np.uint32(11) == np.uint32(0x1B)
    if is_overlong or is_surrogate or character > np.uint32(0x10FFFF):
        return first, N0
    return character, length


@compiled
def may_cut(tables, left, right):
    """1 where a text may be cut between two characters, not both ASCII; else 0. uint64."""
    mixed = np.uint32((left * np.uint32(HASH_LEFT)) ^ (right * np.uint32(HASH_RIGHT)))  # numba multiplies in 64 bits
    mixed = (mixed ^ (mixed >> W15)) & np.uint32(32 * len(tables.bridges) - 1)
    if (tables.bridges[np.uint64(mixed >> W5)] >> (mixed & W31)) & np.uint32(1):
        return N0
    if len(tables.is_piece) and not (tables.is_piece[np.uint64(left)] or tables.is_piece[np.uint64(right)]):
        return N0
    return N1


@compiled
def mark_characters(tables, data, position, stop, end, left):
    """The cuts among the characters that begin in data[position:stop], as bits from the block's first byte; where the
    next one begins, or 0 if there is an error; and the last one."""
    word, block = N0, (stop - N1) & ~N63
    while position < stop:
        right, length = decode_character(data, position, end)
        if length == N0:
            return word, N0, right
        if (left | right) < W80:
            cut = np.uint64(tables.cuts[np.uint64(left) | (np.uint64(right) << np.uint64(8))])
        else:
            cut = may_cut(tables, left, right)
        word |= cut << (position - block)
        position += length
        left = right
    return word, position, left


@compiled
def mark_ascii(cuts, data, position, stop):
    """The cuts before each of the bytes data[position:stop], all ASCII, as bits from the block's first byte."""
    word = N0
    for at in range(position, stop):
        pair = np.uint64(data[at - N1]) | (np.uint64(data[at]) << np.uint64(8))
        word |= np.uint64(cuts[pair]) << (at & N63)
    return word


@compiled
def is_ascii(data, position, stop):
    """Whether all of data[position:stop] are below 128."""
    every = np.uint8(0)
    for at in range(position, stop):
        every |= data[at]
    return every < np.uint8(0x80)


@compiled
def mark_cuts(tables, data, offsets, words):
    """Set a bit in `words`, uint64 and zeroed, for each byte of `data` before which its document may be cut.

    Bit i of word w stands for byte 64 w + i. Where a document ends there is a bit, too. Returns the number of the first
    document that is not UTF-8, or -1. data: uint8; offsets: int64, one more than documents.
    """
    for document in range(len(offsets) - 1):
        position, end = np.uint64(offsets[document]), np.uint64(offsets[document + 1])
        if position == end:
            continue
        left, length = decode_character(data, position, end)
        if length == N0:
            return document
        position += length
        while position < end:
            stop = min((position | N63) + N1, end)
            if left < W80 and is_ascii(data, position, stop):
                word, left, next_position = (
                    mark_ascii(tables.cuts, data, position, stop),
                    np.uint32(data[stop - N1]),
                    stop,
                )
            else:
                word, next_position, left = mark_characters(tables, data, position, stop, end, left)
                if next_position == N0:
                    return document
            words[position >> np.uint64(6)] |= word
            position = next_position
        words[end >> np.uint64(6)] |= N1 << (end & N63)
    return -1


@compiled
def bound_chunks(words):
    """No chunk has more bytes than this."""
    longest = empty = 0
    for word in words:
        empty = 0 if word else empty + 1
        longest = max(longest, empty)
    return 64 * (longest + 2)
