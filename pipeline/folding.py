"""Compiled loops over the words of documents: UTF-8 -> words folded, zeros between them. Knows no file.

A document is a slice of flat bytes of UTF-8: data[offsets[i]:offsets[i + 1]]. What a word is: word_table.py. fold_text
folds a piece of it, which ends where find_block_end says, so that memory does not depend on its length; fold_documents
folds whole documents, for what looks for words in a row (span_kernels.py).
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import VECTOR_BYTES, compiled, count_trailing_zeros, mark_equal, njit
from pipeline.word_table import ALONE, SKIPPED, TABLE_SIZE, build_word_table

BLOCK_BYTES = 2048
STEP_BYTES = 128  # folded at once where they are ASCII
LONGEST_CUT = 256  # a block ends with a separator, if there is one among its last bytes
FOLDED_BYTES = 4 * BLOCK_BYTES + VECTOR_BYTES  # a character alone, of 3 bytes or 4, is followed by a separator
PADDING_BYTES = 16  # zeros behind each document that is folded whole: words are read eight bytes at a time


def fold_documents(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words of whole documents, a 0 or several between them: uint8, and where each document begins, int64.

    It ends with PADDING_BYTES zeros, before the next begins; a last entry says where all end.
    """
    # At most 5 bytes for 3, where a character stands alone behind a word; pages that are not written to cost nothing.
    room = 2 * int(offsets[-1] - offsets[0]) + PADDING_BYTES * len(offsets) + STEP_BYTES
    folded, starts = np.empty(room, np.uint8), np.empty(len(offsets), np.int64)
    fold_all(data, offsets, build_word_table(), folded, starts)
    return folded[: starts[-1]], starts


@compiled
def fold_ascii(data, position, out, length):
    """Fold STEP_BYTES from data[position] to out[length] as if all were ASCII; returns whether they are.

    Every value stays a byte, for vectors of bytes: widened by a plain `|`, the loop takes three times as long.
    """
    seen = np.uint8(0)
    for place in range(np.uint64(STEP_BYTES)):
        byte = data[position + place]
        seen = np.uint8(seen | byte)
        lower = np.uint8(byte | np.uint8(0x20))
        is_letter = np.uint8(lower - np.uint8(97)) < np.uint8(26)
        is_digit = np.uint8(byte - np.uint8(48)) < np.uint8(10)
        out[length + place] = lower if is_letter else (byte if is_digit else np.uint8(0))
    return seen < 128


@njit(cache=True, nogil=True, inline="always")
def fold_code_point(code_point, table):
    """The entry of a code point, as word_table.py makes them below TABLE_SIZE; above, by its range."""
    if code_point < TABLE_SIZE:
        return table[code_point]
    if code_point >= 0x20000 and code_point < 0x40000:  # Chinese
        return np.uint32(code_point | ALONE)
    if (code_point >= 0x1D000 and code_point < 0x1D400) or (code_point >= 0x1F000 and code_point < 0x1FC00):
        return np.uint32(0)  # notes of music, pictures
    return np.uint32(code_point) if code_point < 0x20000 else np.uint32(0)


@njit(cache=True, nogil=True)
def fold_text(data, start, end, table, out):
    """Write data[start:end] to `out`: words folded, in UTF-8, a 0 for all else and around what stands alone.

    Returns the number of bytes written.
    """
    position, end, length, step = np.uint64(start), np.uint64(end), np.uint64(0), np.uint64(STEP_BYTES)
    while position + step <= end:
        if fold_ascii(data, position, out, length):
            position += step
            length += step
        else:
            position, length = fold_characters(data, position, position + step, table, out, length)
    position, length = fold_characters(data, position, end, table, out, length)
    return np.int64(length)


@njit(cache=True, nogil=True)
def fold_all(data, offsets, table, folded, starts):
    """fold_text of each document; writes where each begins to `starts`, and where all end."""
    length = 0
    for document in range(len(offsets) - 1):
        starts[document] = length
        length += fold_text(data, offsets[document], offsets[document + 1], table, folded[length:])
        folded[length : length + PADDING_BYTES] = 0
        length += PADDING_BYTES
    starts[len(offsets) - 1] = length


@njit(cache=True, nogil=True)
def fold_characters(data, position, end, table, out, length):
    """Fold the characters that begin in data[position:end], one by one, to out[length:].

    Returns where it stopped in both.
    """
    one = np.uint64(1)
    while position < end:
        byte = np.uint32(data[position])
        if byte < 128:
            out[length] = table[byte]
            length += one
            position += one
            continue
        num_bytes = 2 if byte < 0xE0 else (3 if byte < 0xF0 else 4)
        code_point = byte & np.uint32(0x7F >> num_bytes)
        for ahead in range(1, num_bytes):
            more = np.uint32(data[position + np.uint64(ahead)]) & np.uint32(0x3F)
            code_point = (code_point << np.uint32(6)) | more
        position += np.uint64(num_bytes)
        folded = fold_code_point(code_point, table)
        if folded == SKIPPED:
            continue
        is_alone = folded >= ALONE
        if is_alone and length and out[length - one]:
            out[length] = 0
            length += one
        length = write_code_point(folded & np.uint32(ALONE - 1), out, length)
        if is_alone:
            out[length] = 0
            length += one
    return position, length


@njit(cache=True, nogil=True, inline="always")
def write_code_point(code_point, out, length):
    """Write a code point as UTF-8; returns the length behind it."""
    if code_point < 0x80:
        out[length] = code_point
        return length + np.uint64(1)
    num_bytes = 2 if code_point < 0x800 else (3 if code_point < 0x10000 else 4)
    for place in range(num_bytes - 1, 0, -1):
        out[length + np.uint64(place)] = 0x80 | (code_point & 0x3F)
        code_point >>= np.uint32(6)
    out[length] = ((0xF00 >> num_bytes) & 0xFF) | code_point
    return length + np.uint64(num_bytes)


@njit(cache=True, nogil=True)
def find_block_end(data, start, end):
    """Where the block that begins at `start` ends: behind an ASCII separator if one is near, else between characters.

    Follows from the document's text alone, so equal documents are cut in the same places.
    """
    if end - start <= BLOCK_BYTES:
        return end
    last = start + BLOCK_BYTES
    for cut in range(last, last - LONGEST_CUT, -1):
        byte = data[cut - 1]
        lower = byte | 0x20
        if byte < 128 and not (97 <= lower <= 122 or 48 <= byte <= 57):
            return cut
    while data[last] & 0xC0 == 0x80:
        last -= 1
    return last


@njit(cache=True, nogil=True)
def find_edges(folded, length, edges):
    """Where words begin and end, in turns; returns the number of words. A 0 must stand behind the last."""
    count, before, one, step = np.uint64(0), np.uint64(0), np.uint64(1), np.uint64(VECTOR_BYTES)
    for number in range(np.uint64(length) // step + one):
        start = number * step
        words = ~mark_equal(folded, start, np.uint8(0))
        if start + step > length:
            words &= (one << (np.uint64(length) - start)) - one
        changes = words ^ (words << one | before)
        before = words >> np.uint64(63)
        while changes:
            edges[count] = start + count_trailing_zeros(changes)
            changes &= changes - one
            count += one
    return np.int64(count >> one)
