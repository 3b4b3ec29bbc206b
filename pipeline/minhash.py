"""Compiled loops for near duplicates: documents -> shingles of five words -> signatures and band keys. Knows no file.

A document is a slice of flat bytes of UTF-8: data[offsets[i]:offsets[i + 1]]. What a word is: word_table.py. A shingle
is the hash of five words in a row; a document of fewer words has none, and no signature.

MinHash (Broder 1997): of each of NUM_PERMUTATIONS hash functions the least value over a document's shingles; two
documents have the same least value as often as their sets of shingles are alike (Jaccard). Kept of it: for each of
NUM_BANDS bands one key of KEY_BITS bits over its BAND_ROWS values, and 8 bits of each value for an estimate (Li and
Koenig, "b-Bit Minwise Hashing", 2010). Two documents of Jaccard similarity J share a band with probability
1 - (1 - J**8)**14: 0.92 at 0.8, 0.99 at 0.85, 0.9995 at 0.9. Six of the least values are kept whole, too, as traces:
any two documents that have some text in common share one as often as they are alike (boilerplate.py).

A document is folded in blocks of a few KB (folding.py), so that memory does not depend on its length.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import njit
from pipeline.folding import FOLDED_BYTES, find_block_end, find_edges, fold_text
from pipeline.pair_kernels import keep_first_of_equal
from pipeline.word_table import build_word_table

SHINGLE_WORDS = 5
NUM_BANDS, BAND_ROWS = 14, 8
NUM_PERMUTATIONS = NUM_BANDS * BAND_ROWS
NUM_TRACES, TRACE_STEP = 6, 16  # of every so many least values
KEY_BITS = 40

SHINGLE_ROOM = 4096
LANES = 16  # shingles are padded to a multiple: the loop over them has no rest

M1, M2, M3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
M4, M5 = np.uint64(0xD6E8FEB86659FD93), np.uint64(0xFF51AFD7ED558CCD)
BYTE_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def make_permutations() -> np.ndarray:
    """The factor (odd) and the addend of each hash function: uint32, shape (2, NUM_PERMUTATIONS)."""
    values = np.random.Generator(np.random.PCG64(1)).integers(0, 1 << 32, (2, NUM_PERMUTATIONS), np.uint64)
    values[0] |= np.uint64(1)
    return values.astype(np.uint32)


PERMUTATIONS = make_permutations()


def sign_documents(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signatures, band keys and numbers of shingles of some documents.

    uint8, shape (documents, NUM_PERMUTATIONS); uint64 below 2**KEY_BITS, shape (documents, NUM_BANDS + NUM_TRACES), the
    traces last; int64. A document of no shingle has zeros.
    """
    signatures = np.zeros((len(offsets) - 1, NUM_PERMUTATIONS), np.uint8)
    keys = np.zeros((len(offsets) - 1, NUM_BANDS + NUM_TRACES), np.uint64)
    counts = sign(data, offsets, build_word_table(), PERMUTATIONS, signatures, keys)
    return signatures, keys, counts


def find_probability(similarity: float) -> float:
    """The share of pairs of a Jaccard similarity that have a band in common."""
    return 1 - (1 - similarity**BAND_ROWS) ** NUM_BANDS


def list_shingles(data: np.ndarray, start: int, end: int) -> np.ndarray:
    """The set of shingles of one document, data[start:end]: uint32, sorted, each once."""
    shingles = list_hashes(data, start, end, build_word_table())
    shingles.sort()  # np.unique would take four times as long: it hashes
    return shingles[: keep_first_of_equal(shingles)]


@njit(cache=True, nogil=True, inline="always")
def read_word(data, start):
    value = np.uint64(0)
    for byte in range(8):
        value |= np.uint64(data[start + np.uint64(byte)]) << np.uint64(8 * byte)
    return value


@njit(cache=True, nogil=True)
def hash_words(folded, edges, num_words, masks, last_words, num_before, out, count):
    """Append the shingles that end with one of the words to `out`, behind its first `count`; returns the new count.

    last_words: the four before, changed in place; num_before: how many words of the document came before.
    """
    h1, h2, h3, h4 = last_words[0], last_words[1], last_words[2], last_words[3]
    eight, count = np.uint64(8), np.uint64(count)
    for word in range(num_words):
        start = np.uint64(edges[np.uint64(2 * word)])
        length = np.uint64(edges[np.uint64(2 * word + 1)]) - start
        value = (read_word(folded, start) & masks[min(length, eight)]) * M5
        value = (value ^ (value >> np.uint64(32))) * M1
        while length > eight:
            start += eight
            length -= eight
            value = (value ^ (read_word(folded, start) & masks[min(length, eight)])) * M5
            value ^= value >> np.uint64(32)
        value ^= value >> np.uint64(29)
        shingle = value * M1 + h1 * M2 + h2 * M3 + h3 * M4 + h4
        shingle = (shingle ^ (shingle >> np.uint64(29))) * M5
        out[count] = np.uint32(shingle >> np.uint64(32))
        count += np.uint64(num_before + word >= SHINGLE_WORDS - 1)
        h4, h3, h2, h1 = h3, h2, h1, value
    last_words[0], last_words[1], last_words[2], last_words[3] = h1, h2, h3, h4
    return np.int64(count)


@njit(cache=True, nogil=True)
def lower_minima(shingles, count, permutations, minima):
    """Take `count` shingles into the least values of all hash functions; writes behind them, up to LANES more."""
    padded = (count + LANES - 1) // LANES * LANES
    for place in range(count, padded):
        shingles[place] = shingles[count - 1]
    for number in range(len(minima)):
        factor, addend, least = permutations[0, number], permutations[1, number], minima[number]
        for place in range(padded):
            least = min(least, np.uint32(shingles[place] * factor + addend))
        minima[number] = least


@njit(cache=True, nogil=True, inline="always")
def fold_block(data, start, end, table, folded, edges):
    """Fold data[start:end] and find its words; returns how many."""
    length = fold_text(data, start, end, table, folded)
    for place in range(length, length + 16):  # words are read eight bytes at a time
        folded[place] = 0
    return find_edges(folded, length, edges)


@njit(cache=True, nogil=True)
def sign(data, offsets, table, permutations, signatures, keys):
    masks = BYTE_MASKS
    folded, edges = np.empty(FOLDED_BYTES, np.uint8), np.empty(FOLDED_BYTES, np.uint16)
    shingles = np.empty(SHINGLE_ROOM + FOLDED_BYTES // 2 + LANES, np.uint32)
    minima, last_words = np.empty(NUM_PERMUTATIONS, np.uint32), np.zeros(4, np.uint64)
    counts = np.zeros(len(offsets) - 1, np.int64)
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        minima[:] = np.uint32(0xFFFFFFFF)
        last_words[:] = 0
        num_words = count = 0
        while start < end:
            stop = find_block_end(data, start, end)
            words = fold_block(data, start, stop, table, folded, edges)
            count = hash_words(folded, edges, words, masks, last_words, num_words, shingles, count)
            num_words += words
            start = stop
            if count >= SHINGLE_ROOM or (start >= end and count):
                lower_minima(shingles, count, permutations, minima)
                count = 0
        counts[document] = max(0, num_words - SHINGLE_WORDS + 1)
        if counts[document]:
            shorten(minima, signatures[document], keys[document])
    return counts


@njit(cache=True, nogil=True)
def shorten(minima, signature, keys):
    """Of the least values the signature's 8 bits each, and the keys of bands and traces; written in place."""
    for number in range(len(minima)):
        value = np.uint32(minima[number] * np.uint32(0x9E3779B1))
        signature[number] = np.uint8((value ^ (value >> np.uint32(15))) >> np.uint32(24))
    for trace in range(NUM_TRACES):
        keys[NUM_BANDS + trace] = (np.uint64(minima[trace * TRACE_STEP]) * M1) >> np.uint64(64 - KEY_BITS)
    for band in range(NUM_BANDS):
        key = np.uint64(band)
        for row in range(BAND_ROWS):
            key = (key ^ np.uint64(minima[band * BAND_ROWS + row])) * M5
            key ^= key >> np.uint64(32)
        keys[band] = (key * M1) >> np.uint64(64 - KEY_BITS)


@njit(cache=True, nogil=True)
def list_hashes(data, start, end, table):
    """All shingles of one document in their order: uint32."""
    folded, edges = np.empty(FOLDED_BYTES, np.uint8), np.empty(FOLDED_BYTES, np.uint16)
    last_words = np.zeros(4, np.uint64)
    room = (end - start) // 2 + FOLDED_BYTES  # the shortest words are a character and a separator, or one of 3 bytes
    shingles = np.empty(room, np.uint32)
    num_words = count = 0
    while start < end:
        stop = find_block_end(data, start, end)
        words = fold_block(data, start, stop, table, folded, edges)
        count = hash_words(folded, edges, words, BYTE_MASKS, last_words, num_words, shingles, count)
        num_words += words
        start = stop
    return shingles[:count]
