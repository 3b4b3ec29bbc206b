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

from pipeline.compiled import compiled, count_ones, count_trailing_zeros, load_word, mark_at_least

# numba makes float64 of uint64 and int64 together, so constants have a type.
N0, N1, N2, N3, N6, N8, N15, N48, N61, N62, N63 = map(np.uint64, (0, 1, 2, 3, 6, 8, 15, 48, 61, 62, 63))
ALL, PAIR, FIRST_OTHER = map(np.uint64, (0xFFFFFFFFFFFFFFFF, 0xFFFF, 0x80))
B80, B90, BA0, BC0, BC2, BE0, BE1 = map(np.uint8, (0x80, 0x90, 0xA0, 0xC0, 0xC2, 0xE0, 0xE1))
BED, BEE, BF0, BF1, BF4, BF5 = map(np.uint8, (0xED, 0xEE, 0xF0, 0xF1, 0xF4, 0xF5))
HASH_LEFT, HASH_RIGHT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
LENGTHS = np.uint64(0x4322000011111111)  # in bytes, of a character, by the first four bits of its UTF-8
FEW = np.uint64(24)  # pairs of ASCII characters in a block, which are sooner judged one by one than by mark_ascii
BLOCK, MARGIN = 64, 8  # bytes that are looked at together, and how many behind them are read


class CutTables(NamedTuple):
    """Which pairs of characters a model bridges; made by spm_tables.py."""

    cuts: np.ndarray  # uint8 per pair of bytes, first + 256 * second: 1 where both are ASCII and a text may be cut
    bridges: np.ndarray  # uint64 words of hashed bits, for pairs of any characters: 0 where a text may be cut
    is_piece: np.ndarray  # bool per number of 21 bits, a code point, where there are no byte pieces; else empty


def hash_pair(left: str, right: str, num_words: int) -> tuple[int, int]:
    """The word and the bit of a pair of characters in CutTables.bridges."""
    first, second = (int.from_bytes(character.encode(), "little") for character in (left, right))
    mixed = ((first * int(HASH_LEFT)) ^ (second * int(HASH_RIGHT))) & int(ALL)
    place = mixed >> (64 - (64 * num_words - 1).bit_length())
    return place >> 6, place & 63


@compiled
def read_character(data, position):
    """The UTF-8 of the character that begins at a position, its first byte the lowest: uint64."""
    word = load_word(data, position)
    length = (LENGTHS >> ((word >> N2) & np.uint64(0x3C))) & N15
    return word & ((N1 << (length << N3)) - N1)


@compiled
def find_code_point(character):
    """The code point of a character's UTF-8."""
    length = (LENGTHS >> ((character >> N2) & np.uint64(0x3C))) & N15
    code_point = character & (np.uint64(0x7F) >> (length if length > N1 else N0))
    for at in range(1, length):
        code_point = (code_point << N6) | ((character >> np.uint64(8 * at)) & np.uint64(0x3F))
    return code_point


@compiled
def mark_ascii(cuts, data, position, before):
    """The cuts among the pairs of ASCII characters of 64 bytes, as bits. before: the byte before them."""
    word = N0
    for group in range(8):
        after = load_word(data, position + np.uint64(8 * group))
        pairs, bits = (after << N8) | before, np.uint64(cuts[after >> N48])
        for at in range(6, -1, -1):
            bits = bits + bits + np.uint64(cuts[(pairs >> np.uint64(8 * at)) & PAIR])
        word |= bits << np.uint64(8 * group)
        before = after >> np.uint64(56)
    return word


@compiled
def mark_others(bridges, data, position, starts, left):
    """Which of the characters that begin at some bits of 64 bytes are bridged to the one before them, as bits; and the
    last one."""
    bridged, shift = N0, np.uint64(58) - count_trailing_zeros(np.uint64(len(bridges)))
    while starts:
        at = count_trailing_zeros(starts)
        starts &= starts - N1
        right = read_character(data, position + at)
        pair = ((left * HASH_LEFT) ^ (right * HASH_RIGHT)) >> shift
        bridged |= ((bridges[pair >> N6] >> (pair & N63)) & N1) << at
        left = right
    return bridged, left


@compiled
def mark_unknown(is_piece, data, position, starts, left):
    """Which of the characters that begin at some bits of 64 bytes are unknown, as is the one before them."""
    unknown = N0
    while starts:
        at = count_trailing_zeros(starts)
        starts &= starts - N1
        right = read_character(data, position + at)
        unknown |= np.uint64(not (is_piece[find_code_point(left)] or is_piece[find_code_point(right)])) << at
        left = right
    return unknown


@compiled
def check_block(data, position, others, owed):
    """Of 64 bytes, as bits: which begin a character; which are not UTF-8; and which of the next 64 belong to a
    character that begins here.

    others: which are not ASCII. owed: the last of these three, of the 64 bytes before.
    """
    from_c0, from_e0 = mark_at_least(data, position, BC0), mark_at_least(data, position, BE0)
    from_f0, from_f5 = mark_at_least(data, position, BF0), mark_at_least(data, position, BF5)
    next_90, next_a0 = mark_at_least(data, position + N1, B90), mark_at_least(data, position + N1, BA0)
    following = others & ~from_c0
    broken = following ^ ((from_c0 << N1) | (from_e0 << N2) | (from_f0 << N3) | owed)
    broken |= (from_c0 & ~mark_at_least(data, position, BC2)) | from_f5
    broken |= from_e0 & ~mark_at_least(data, position, BE1) & ~next_a0  # could be shorter
    broken |= mark_at_least(data, position, BED) & ~mark_at_least(data, position, BEE) & next_a0  # a surrogate
    broken |= from_f0 & ~mark_at_least(data, position, BF1) & ~next_90  # could be shorter
    broken |= mark_at_least(data, position, BF4) & ~from_f5 & next_90  # beyond Unicode
    return ~following, broken, (from_c0 >> N63) | (from_e0 >> N62) | (from_f0 >> N61)


@compiled
def mark_block(tables, data, position, left, owed):
    """Of 64 bytes, as bits: the cuts; and which are not UTF-8. Then the last character, and what check_block owes."""
    others = mark_at_least(data, position, B80)
    if others == N0 and left < FIRST_OTHER:
        return mark_ascii(tables.cuts, data, position, left), owed, np.uint64(data[position + N63]), N0
    starts, broken, owed = check_block(data, position, others, owed)
    judged = starts & (others | (others << N1) | np.uint64(left >= FIRST_OTHER))
    seen = judged | (starts & (others >> N1))  # so that the one before is known
    if count_ones(starts & ~judged) < FEW:
        word, judged, seen = N0, starts, starts
    else:
        word = mark_ascii(tables.cuts, data, position, min(left, FIRST_OTHER))
    if len(tables.is_piece):
        judged &= ~mark_unknown(tables.is_piece, data, position, seen, left)
    bridged, left = mark_others(tables.bridges, data, position, seen, left)
    last = np.uint64(data[position + N63])
    return word | (judged & ~bridged), broken, last if last < FIRST_OTHER else left, owed


@compiled
def mark_cuts(tables, data, tail, offsets, words):
    """Set a bit in `words`, uint64, for each byte of `data` before which its document may be cut; False where not every
    document is UTF-8.

    Bit i of word w stands for byte 64 w + i. Where a document ends there is a bit, too; behind the last one there may
    be others. data: uint8; tail: of copy_tail; offsets: int64, one more than documents.
    """
    left = owed = N0
    in_data = np.uint64(max(0, len(data) - MARGIN) // BLOCK)
    for block in range(len(words)):
        number = np.uint64(block)
        if number < in_data:
            words[block], broken, left, owed = mark_block(tables, data, number << N6, left, owed)
        else:
            words[block], broken, left, owed = mark_block(tables, tail, (number - in_data) << N6, left, owed)
        if broken:
            return False
    for offset in offsets:
        if offset < len(data) and data[offset] & BC0 == B80:  # inside a character
            return False
        words[np.uint64(offset) >> N6] |= N1 << (np.uint64(offset) & N63)
    return True


def copy_tail(data: np.ndarray) -> np.ndarray:
    """The bytes that mark_cuts cannot read in blocks, since there is too little behind them, with zeros behind."""
    rest = data[max(0, len(data) - MARGIN) // BLOCK * BLOCK :]
    tail = np.zeros(2 * BLOCK + MARGIN, np.uint8)
    tail[: len(rest)] = rest
    tail.flags.writeable = False
    return tail


@compiled
def bound_chunks(words):
    """No chunk has more bytes than this."""
    longest = empty = 0
    for word in words:
        empty = 0 if word else empty + 1
        longest = max(longest, empty)
    return 64 * (longest + 2)
