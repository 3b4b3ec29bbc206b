"""Compiled loops of SlimPajama's recipe (slimpajama.py): clean ASCII texts, sha1 of shingles, permutations, bands.

sha1 (FIPS 180-4) is computed for LANES shingles side by side, each of which is one block.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import njit

NUM_PERMUTATIONS = 128
NUM_BANDS, BAND_ROWS = 9, 13
SHINGLE_CHARS = 13
MERSENNE = np.uint64((1 << 61) - 1)
NO_VALUE = np.uint64(0xFFFFFFFF)
LANES = 64  # shingles hashed side by side: one pass over them is compiled to vector instructions
HASHES_AT_ONCE = 2048
WORDS_OF_BLOCK = 16  # a sha1 block; 13 characters are 52 bytes at most, so there is one
START = np.array([0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0], np.uint32)  # of sha1


@njit(cache=True, nogil=True)
def clean_ascii(data, offsets, classes, out, lengths):
    """Clean documents of ASCII alone: each to out[offsets[i] - offsets[0]:].

    lengths: of each, -1 where it is not ASCII. A 0 in `classes` deletes a byte; but a NUL, which is no punctuation,
    stays.
    """
    for document in range(len(lengths)):
        first = place = offsets[document] - offsets[0]
        was_space = True
        for position in range(offsets[document], offsets[document + 1]):
            byte = data[position]
            if byte >= 128:
                place = -1
                break
            kept = classes[byte]
            if kept == 32:
                if not was_space:
                    out[place] = 32
                    place += 1
                was_space = True
            elif kept or byte == 0:
                out[place] = kept
                place += 1
                was_space = False
        if place > first and was_space:
            place -= 1
        lengths[document] = place - first if place >= 0 else -1


@njit(cache=True, nogil=True, inline="always")
def rotate(value, count):
    """A uint32 with its bits moved up, those that fall out coming in below."""
    return np.uint32((value << np.uint32(count)) | (value >> np.uint32(32 - count)))


@njit(cache=True, nogil=True)
def schedule(words):
    """The message schedule of sha1 (FIPS 180-4): words 16 to 79 of every lane from its first 16."""
    for place in range(16 * LANES, 80 * LANES):
        value = words[place - 3 * LANES] ^ words[place - 8 * LANES]
        words[place] = rotate(np.uint32(value ^ words[place - 14 * LANES] ^ words[place - 16 * LANES]), 1)


@njit(cache=True, nogil=True)
def turn(a, b, c, d, e, kind, constant, word):
    """One of the 80 turns of sha1: the next a, and the next c."""
    chosen = b ^ c ^ d
    if kind == 0:
        chosen = (b & c) | (~b & d)
    elif kind == 2:
        chosen = (b & c) | (b & d) | (c & d)
    return np.uint32(rotate(a, 5) + np.uint32(chosen) + e + constant + word), rotate(b, 30)


@njit(cache=True, nogil=True)
def turn_20(words, first, kind, constant, state):
    """20 turns on every lane, 5 at a time: then a to e have their old names again."""
    for place in range(first * LANES, (first + 20) * LANES, 5 * LANES):
        for lane in range(LANES):
            a, b, c, d, e = (
                state[lane],
                state[LANES + lane],
                state[2 * LANES + lane],
                state[3 * LANES + lane],
                state[4 * LANES + lane],
            )
            e, b = turn(a, b, c, d, e, kind, constant, words[place + lane])
            d, a = turn(e, a, b, c, d, kind, constant, words[place + LANES + lane])
            c, e = turn(d, e, a, b, c, kind, constant, words[place + 2 * LANES + lane])
            b, d = turn(c, d, e, a, b, kind, constant, words[place + 3 * LANES + lane])
            a, c = turn(b, c, d, e, a, kind, constant, words[place + 4 * LANES + lane])
            state[lane], state[LANES + lane], state[2 * LANES + lane] = a, b, c
            state[3 * LANES + lane], state[4 * LANES + lane] = d, e


@njit(cache=True, nogil=True)
def hash_lanes(words, state, out, first):
    """sha1 of one block per lane; the first four bytes, little-endian, go to out[first:].

    words: uint32, 80 of every lane, the first 16 filled. state: uint32, 5 of every lane.
    """
    for lane in range(LANES):
        for place in range(5):
            state[place * LANES + lane] = START[place]
    schedule(words)
    turn_20(words, 0, 0, np.uint32(0x5A827999), state)
    turn_20(words, 20, 1, np.uint32(0x6ED9EBA1), state)
    turn_20(words, 40, 2, np.uint32(0x8F1BBCDC), state)
    turn_20(words, 60, 3, np.uint32(0xCA62C1D6), state)
    for lane in range(LANES):
        value = np.uint32(state[lane] + START[0])
        swapped = ((value >> np.uint32(24)) & np.uint32(0xFF)) | ((value >> np.uint32(8)) & np.uint32(0xFF00))
        swapped |= ((value << np.uint32(8)) & np.uint32(0xFF0000)) | (value << np.uint32(24))
        out[first + lane] = np.uint32(swapped)


@njit(cache=True, nogil=True, inline="always")
def load_lane(data, start, end, words, lane):
    """Bytes start to end, padded as sha1 pads, as the lane's 16 words."""
    for word in range(WORDS_OF_BLOCK):
        words[word * LANES + lane] = 0
    length = end - start
    for place in range(length):
        words[(place >> 2) * LANES + lane] |= np.uint32(data[start + place]) << np.uint32(24 - 8 * (place & 3))
    words[(length >> 2) * LANES + lane] |= np.uint32(0x80) << np.uint32(24 - 8 * (length & 3))
    words[15 * LANES + lane] = np.uint32(8 * length)


@njit(cache=True, nogil=True)
def skip_characters(data, position, end, count):
    """Where the character begins that stands `count` behind; at most `end`, and then how many were missing."""
    while count and position < end:
        position += 1
        while position < end and data[position] & 0xC0 == 0x80:
            position += 1
        count -= 1
    return position, count


@njit(cache=True, nogil=True)
def hash_shingles(data, start, stop, end, most, words, state, out):
    """Hash shingles from start:stop on, until the last ends at `end` or there are `most`; pads with the last one.

    Returns their number and the start and stop of the next; its stop is beyond `end` where there is none.
    """
    count = 0
    while count < most and stop <= end:
        lanes = 0
        while lanes < LANES and stop <= end:
            load_lane(data, start, stop, words, lanes)
            lanes += 1
            start, _ = skip_characters(data, start, end, 1)
            stop = skip_characters(data, stop, end, 1)[0] if stop < end else end + 1
        for lane in range(lanes, LANES):
            for word in range(WORDS_OF_BLOCK):
                words[word * LANES + lane] = words[word * LANES + lanes - 1]
        hash_lanes(words, state, out, count)
        count += LANES
    return count, start, stop


@njit(cache=True, nogil=True)
def lower_minima(hashes, count, permutations, minima):
    """Take `count` hashes into the least values of all permutations."""
    for number in range(len(minima)):
        factor, addend, least = permutations[0, number], permutations[1, number], np.int64(minima[number])
        for place in range(count):
            value = factor * np.uint64(hashes[place]) + addend  # modulo 2**64: part of the recipe
            value = (value & MERSENNE) + (value >> np.uint64(61))
            # Modulo 2**32 it is one more where 2**61 - 1 has to be taken away.
            value = (value + np.uint64(value >= MERSENNE)) & NO_VALUE
            least = min(least, np.int64(value))
        minima[number] = least


@njit(cache=True, nogil=True)
def sign(data, offsets, permutations, signatures):
    """The loop of sign_texts. A text of fewer characters than a shingle keeps NO_VALUE everywhere."""
    words, state = np.empty(80 * LANES, np.uint32), np.empty(5 * LANES, np.uint32)
    hashes = np.empty(HASHES_AT_ONCE + LANES, np.uint32)
    for document in range(len(offsets) - 1):
        minima = signatures[document]
        minima[:] = NO_VALUE
        start, end = offsets[document], offsets[document + 1]
        stop, missing = skip_characters(data, start, end, SHINGLE_CHARS)
        if missing:
            continue
        while stop <= end:
            count, start, stop = hash_shingles(data, start, stop, end, HASHES_AT_ONCE, words, state, hashes)
            lower_minima(hashes, count, permutations, minima)


@njit(cache=True, nogil=True)
def hash_bands(signatures, keys):
    """A hash of each band's values: the original compares the values themselves, this 64 bits of them."""
    for document in range(len(signatures)):
        for band in range(NUM_BANDS):
            key = np.uint64(band)
            for row in range(BAND_ROWS):
                key = (key ^ signatures[document, band * BAND_ROWS + row]) * np.uint64(0xFF51AFD7ED558CCD)
                key = (key ^ (key >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
                key ^= key >> np.uint64(29)
            keys[document, band] = key
