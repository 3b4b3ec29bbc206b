"""Compiled loops for near duplicates: documents -> shingles of five words -> signatures and band keys. Knows no file.

A document is a slice of flat bytes of UTF-8: data[offsets[i]:offsets[i + 1]]. What a word is: word_table.py. A shingle
is the hash of five words in a row; a document of fewer words has none, and no signature.

MinHash (Broder 1997): NUM_PERMUTATIONS times one shingle of a document is chosen by its hash, each as likely as any
other; two documents choose the same one as often as their sets of shingles are alike (Jaccard). Each of NUM_BANDS bands
has a hash function of its own. Its BAND_ROWS rows choose the least and the greatest value, as they are and with some
bits turned over (xor): eight choices for one multiplication, which agree together as often as independent ones do, or a
little more often where a document has few shingles (tests/test_minhash.py).

Kept of it: for each band one key of KEY_BITS bits over its BAND_ROWS values, and 8 bits of each value for an estimate
(Li and Koenig, "b-Bit Minwise Hashing", 2010). Two documents of Jaccard similarity J share a band with probability
1 - (1 - J**8)**14, or a little more where they are short: 0.92 at 0.8, 0.99 at 0.85, 0.9995 at 0.9. Six of the values
are kept whole, too, as traces: any two documents that have some text in common share one as often as they are alike
(boilerplate.py).

A document is folded in blocks of a few KB (folding.py), so that memory does not depend on its length.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import BYTE_MASKS, load_word, njit
from pipeline.folding import FOLDED_BYTES, find_block_end, find_edges, fold_text
from pipeline.pair_kernels import keep_first_of_equal
from pipeline.word_table import build_word_table

SHINGLE_WORDS = 5
NUM_BANDS, BAND_ROWS = 14, 8
NUM_PERMUTATIONS = NUM_BANDS * BAND_ROWS
NUM_TRACES, TRACE_STEP = 6, 16  # of every so many least values
KEY_BITS = 40

WORD_ROOM = SHINGLE_WORDS + FOLDED_BYTES // 2
SHINGLE_ROOM = 4096
LANES = 16  # shingles are padded to a multiple: the loop over them has no rest

M1, M2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
M3, M4 = np.uint64(0xD6E8FEB86659FD93), np.uint64(0xFF51AFD7ED558CCD)
S1, S2 = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B)
PAIR_BYTES = 16
PAIR_MASKS = np.stack([np.pad(BYTE_MASKS, (0, 8), mode="edge"), np.pad(BYTE_MASKS, (8, 0))])  # of two words of 8 bytes


def make_functions() -> np.ndarray:
    """The factor (odd) and the addend of each band's hash function: uint32, shape (2, NUM_BANDS)."""
    values = np.random.Generator(np.random.PCG64(1)).integers(0, 1 << 32, (2, NUM_BANDS), np.uint64)
    values[0] |= np.uint64(1)
    return values.astype(np.uint32)


FUNCTIONS = make_functions()
# The bits that rows of a band turn over, two rows the same. Rows whose first bits are alike often choose the same
# shingle, rows whose first bits are all unlike never do: with these, bands agree 0.95 to 1.2 times as often as those of
# independent rows (tests/test_minhash.py).
TURNS = np.array([0, 0x2D0454DD, 0x5201F41A, 0x57C07302], np.uint32)


def sign_documents(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signatures, band keys and numbers of shingles of some documents.

    uint8, shape (documents, NUM_PERMUTATIONS); uint64 below 2**KEY_BITS, shape (documents, NUM_BANDS + NUM_TRACES), the
    traces last; int64. A document of no shingle has zeros.
    """
    signatures = np.zeros((len(offsets) - 1, NUM_PERMUTATIONS), np.uint8)
    keys = np.zeros((len(offsets) - 1, NUM_BANDS + NUM_TRACES), np.uint64)
    counts = sign(data, offsets, build_word_table(), FUNCTIONS, TURNS, signatures, keys)
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
def read_pair(data, start, length, masks):
    """Sixteen bytes of a word of which so many are left, mixed into 64 bits."""
    taken = min(length, np.uint64(PAIR_BYTES))
    first = load_word(data, start) & masks[0, taken]
    second = load_word(data, start + np.uint64(8)) & masks[1, taken]
    return (first * M3) ^ (second * M4)


@njit(cache=True, nogil=True)
def hash_words(folded, edges, num_words, masks, out):
    """Write the hash of each word. Nearly all words are read at once: what is longer costs a branch that surprises."""
    step = np.uint64(PAIR_BYTES)
    for word in range(np.uint64(num_words)):
        start = np.uint64(edges[word << np.uint64(1)])
        length = np.uint64(edges[(word << np.uint64(1)) + np.uint64(1)]) - start
        value = read_pair(folded, start, length, masks)
        value = (value ^ (value >> np.uint64(32))) * M1
        while length > step:
            start += step
            length -= step
            value = (value ^ (value >> np.uint64(29))) * M2
            value ^= read_pair(folded, start, length, masks)
            value = (value ^ (value >> np.uint64(32))) * M1
        out[word] = np.uint32(value >> np.uint64(32))


@njit(cache=True, nogil=True)
def hash_shingles(words, count, out):
    """Write the hashes of the first `count` runs of SHINGLE_WORDS words: a polynomial of theirs, mixed."""
    for place in range(np.uint64(count)):
        value = words[place]
        for ahead in range(1, SHINGLE_WORDS):
            value = np.uint32(value * S1 + words[place + np.uint64(ahead)])
        value = np.uint32(np.uint32(value ^ (value >> np.uint32(15))) * S2)
        out[place] = np.uint32(value ^ (value >> np.uint32(16)))


@njit(cache=True, nogil=True)
def add_shingles(folded, edges, num_words, masks, words, num_before, out, count):
    """Append the shingles that end with one of the words to `out`, behind its first `count`; returns the new count.

    words: uint32, the hashes of the four words before, if there were `num_before` words, and room for these; ends with
    the last four in front.
    """
    before = SHINGLE_WORDS - 1
    hash_words(folded, edges, num_words, masks, words[before:])
    missing = max(0, before - num_before)
    num_shingles = max(0, num_words - missing)
    hash_shingles(words[missing:], num_shingles, out[count:])
    for place in range(before):
        words[place] = words[num_words + place]
    return count + num_shingles


@njit(cache=True, nogil=True)
def choose_values(shingles, count, functions, turns, chosen):
    """Take `count` shingles into the values that bands and rows choose; writes behind them, up to LANES more.

    chosen: uint32, shape (NUM_BANDS, BAND_ROWS). Of a band's rows the first half choose the least, the others the
    greatest. Spelled out, the loop works on vectors and the values stay in registers.
    """
    padded = (count + LANES - 1) // LANES * LANES
    for place in range(count, padded):
        shingles[place] = shingles[count - 1]
    turn1, turn2, turn3 = turns[1], turns[2], turns[3]
    for band in range(len(chosen)):
        factor, addend, rows = functions[0, band], functions[1, band], chosen[band]
        low0, low1, low2, low3, high0, high1, high2, high3 = (
            rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
        )  # fmt: skip
        for place in range(padded):
            value = np.uint32(shingles[place] * factor + addend)
            value1, value2, value3 = np.uint32(value ^ turn1), np.uint32(value ^ turn2), np.uint32(value ^ turn3)
            low0, low1, low2, low3 = min(low0, value), min(low1, value1), min(low2, value2), min(low3, value3)
            high0, high1, high2, high3 = max(high0, value), max(high1, value1), max(high2, value2), max(high3, value3)
        rows[0], rows[1], rows[2], rows[3] = low0, low1, low2, low3
        rows[4], rows[5], rows[6], rows[7] = high0, high1, high2, high3


@njit(cache=True, nogil=True, inline="always")
def fold_block(data, start, end, table, folded, edges):
    """Fold data[start:end] and find its words; returns how many."""
    length = fold_text(data, start, end, table, folded)
    for place in range(length, length + 16):  # words are read eight bytes at a time
        folded[place] = 0
    return find_edges(folded, length, edges)


@njit(cache=True, nogil=True)
def sign(data, offsets, table, functions, turns, signatures, keys):
    """The loop of sign_documents: fills signatures and keys, and returns the numbers of shingles."""
    folded, edges = np.empty(FOLDED_BYTES, np.uint8), np.empty(FOLDED_BYTES, np.uint16)
    shingles = np.empty(SHINGLE_ROOM + FOLDED_BYTES // 2 + LANES, np.uint32)
    chosen, words = np.empty((NUM_BANDS, BAND_ROWS), np.uint32), np.zeros(WORD_ROOM, np.uint32)
    counts = np.zeros(len(offsets) - 1, np.int64)
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        chosen[:, : BAND_ROWS // 2] = np.uint32(0xFFFFFFFF)
        chosen[:, BAND_ROWS // 2 :] = np.uint32(0)
        num_words = count = 0
        while start < end:
            stop = find_block_end(data, start, end)
            new_words = fold_block(data, start, stop, table, folded, edges)
            count = add_shingles(folded, edges, new_words, PAIR_MASKS, words, num_words, shingles, count)
            num_words += new_words
            start = stop
            if count >= SHINGLE_ROOM or (start >= end and count):
                choose_values(shingles, count, functions, turns, chosen)
                count = 0
        counts[document] = max(0, num_words - SHINGLE_WORDS + 1)
        if counts[document]:
            shorten(chosen.reshape(-1), signatures[document], keys[document])
    return counts


@njit(cache=True, nogil=True)
def shorten(values, signature, keys):
    """Of the chosen values the signature's 8 bits each, and the keys of bands and traces; written in place."""
    for number in range(len(values)):
        value = np.uint32(values[number] * np.uint32(0x9E3779B1))
        signature[number] = np.uint8((value ^ (value >> np.uint32(15))) >> np.uint32(24))
    for trace in range(NUM_TRACES):
        keys[NUM_BANDS + trace] = (np.uint64(values[trace * TRACE_STEP]) * M1) >> np.uint64(64 - KEY_BITS)
    for band in range(NUM_BANDS):
        key = np.uint64(band)
        for row in range(BAND_ROWS):
            key = (key ^ np.uint64(values[band * BAND_ROWS + row])) * M4
            key ^= key >> np.uint64(32)
        keys[band] = (key * M1) >> np.uint64(64 - KEY_BITS)


@njit(cache=True, nogil=True)
def list_hashes(data, start, end, table):
    """All shingles of one document in their order: uint32."""
    folded, edges = np.empty(FOLDED_BYTES, np.uint8), np.empty(FOLDED_BYTES, np.uint16)
    words = np.zeros(WORD_ROOM, np.uint32)
    room = (end - start) // 2 + FOLDED_BYTES  # the shortest words are a character and a separator, or one of 3 bytes
    shingles = np.empty(room, np.uint32)
    num_words = count = 0
    while start < end:
        stop = find_block_end(data, start, end)
        new_words = fold_block(data, start, stop, table, folded, edges)
        count = add_shingles(folded, edges, new_words, PAIR_MASKS, words, num_words, shingles, count)
        num_words += new_words
        start = stop
    return shingles[:count]
