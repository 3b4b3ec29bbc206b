"""Compiled loops for spans of words: which SPAN_WORDS words in a row occur in evaluation texts. Knows no file.

Works on folded documents as fold_documents of folding.py makes them: words with zeros between them. A span has two
hashes of 64 bits that share no multiplier. The first is a polynomial over hashes of its words that rolls from word to
word: it is looked for in a blocked Bloom filter (Putze, Sanders and Singler, "Cache-, Hash- and Space-Efficient
Bloom Filters", 2007) and then in a sorted list; the second, over the bytes of the span, is made only of what passes the
filter. Both agree by chance for about one of 2**128 pairs of spans: with 10**7 spans to look for and 10**12 words of
text, 3 * 10**-20.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.compiled import BYTE_MASKS, compiled, load_word

SPAN_WORDS = 13
FILTER_BITS = 16  # of a span, or up to twice as many: of other spans 1 in 100 or less pass
SMALLEST_FILTER = 1 << 10  # words of 64 bits
CHUNK_BYTES = 4096  # worked on at once, and a word that begins in them
ROOM = CHUNK_BYTES // 2 + SPAN_WORDS + 2  # words of a chunk, behind the SPAN_WORDS before it

M1, M2, M3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
M4, M5 = np.uint64(0xD6E8FEB86659FD93), np.uint64(0xFF51AFD7ED558CCD)
SECOND_START = np.uint64(0xA0761D6478BD642F)
OUT = np.uint64(pow(int(M4), SPAN_WORDS, 1 << 64))  # the factor with which a word leaves the polynomial
ONE, EIGHT, SPAN, BIT = np.uint64(1), np.uint64(8), np.uint64(SPAN_WORDS), np.uint64(63)
S6, S12, S29, S31, S32 = np.uint64(6), np.uint64(12), np.uint64(29), np.uint64(31), np.uint64(32)
EDGES, WORDS, SPANS, PASSED = range(4)  # rows of the room that a chunk is worked on in


def list_spans(folded: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The spans of some folded documents, in their order: both hashes of each (uint64), and how many each has."""
    most = len(folded) // 2  # a word and the zero behind it
    first, second = np.empty(most, np.uint64), np.empty(most, np.uint64)
    counts = np.zeros(len(starts) - 1, np.int64)
    total = hash_spans(folded, starts, BYTE_MASKS, make_room(), first, second, counts)
    return first[:total], second[:total], counts


@dataclass(frozen=True)
class SpanList:
    """Spans to look for. first, second: their hashes, uint64, in the order of the first.

    bits: the filter, a power of 2 long: the top bits of a span's first hash choose a word, its lowest three bits in it.
    heads: for each word of the filter where its spans begin in the list, and the end: uint32.
    """

    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    heads: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> SpanList:
        """The list with its filter."""
        num_words = max(SMALLEST_FILTER, 1 << (len(first) * FILTER_BITS // 64).bit_length())
        bits, heads = np.zeros(num_words, np.uint64), np.zeros(num_words + 1, np.uint32)
        fill_filter(first, bits, find_shift(bits))
        heads[1:] = np.cumsum(np.bincount(first >> find_shift(bits), minlength=num_words))
        return cls(first, second, bits, heads)


def find_spans(folded: np.ndarray, starts: np.ndarray, spans: SpanList) -> np.ndarray:
    """For each folded document the index of the first of its spans that is in the list, or -1: int64."""
    found = np.empty(len(starts) - 1, np.int64)
    shift = find_shift(spans.bits)
    search(folded, starts, BYTE_MASKS, make_room(), spans.bits, shift, spans.heads, spans.first, spans.second, found)
    return found


def make_room() -> np.ndarray:
    """What a chunk is worked on in."""
    return np.empty((4, 2 * ROOM), np.uint64)


def find_shift(bits: np.ndarray) -> np.uint64:
    """How far a hash is shifted to be an index of a filter."""
    return np.uint64(64 - (len(bits).bit_length() - 1))


@compiled
def find_chunk_end(folded, position, end):
    """Behind CHUNK_BYTES, the word there and a 0."""
    if end - position <= CHUNK_BYTES:
        return end
    position += np.uint64(CHUNK_BYTES)
    while folded[position]:
        position += ONE
    return position + ONE


@compiled
def find_edges(folded, start, end, edges):
    """Where the words of folded[start:end] begin and end, in turns, behind those of the SPAN_WORDS that came before.

    Returns the number of words. The last byte must be a 0.
    """
    count, before = SPAN + SPAN, np.uint8(0)
    for place in range(start, end):
        position = np.uint64(place)
        is_word = np.uint8(folded[position] != 0)
        edges[count] = position  # written over where it is none: no branch to foretell
        count += np.uint64(is_word ^ before)
        before = is_word
    return (count >> ONE) - SPAN


@compiled
def hash_words(folded, edges, count, masks, words):
    """A hash of each word, behind those of the SPAN_WORDS that came before. Of short words no two have the same."""
    for word in range(SPAN_WORDS, count + SPAN):
        at = np.uint64(word)
        start = edges[at + at]
        length = edges[at + at + ONE] - start
        value = (load_word(folded, start) & masks[min(length, EIGHT)]) * M5
        value = (value ^ (value >> S32)) * M1
        while length > EIGHT:
            start += EIGHT
            length -= EIGHT
            value = (value ^ (load_word(folded, start) & masks[min(length, EIGHT)])) * M5
            value = (value ^ (value >> S32)) * M1
        words[at] = value ^ (value >> S29)


@compiled
def roll(words, count, rolled, spans):
    """The first hash of the span that ends with each word; returns the polynomial, to go on with."""
    for word in range(count):
        at = np.uint64(word)
        rolled = rolled * M4 + words[SPAN + at] - words[at] * OUT
        value = (rolled ^ (rolled >> S32)) * M5
        spans[at] = value ^ (value >> S29)
    return rolled


@compiled
def hash_again(folded, edges, masks, word):
    """The second hash of the span that ends with a word of the chunk, from its bytes."""
    value = SECOND_START
    for place in range(SPAN_WORDS):
        at = word + ONE + np.uint64(place)
        start, end = edges[at + at], edges[at + at + ONE]
        while start < end:
            piece = load_word(folded, start) & masks[min(end - start, EIGHT)]
            value = (value ^ piece) * M2
            value = (value ^ (value >> S31)) * M3
            start += EIGHT
        value = (value ^ (value >> S32)) + M3  # so that "ab c" is not "a bc"
    return value


@compiled
def open_document(room):
    """Before a document's first word there are none."""
    for place in range(SPAN_WORDS):
        room[WORDS, place] = np.uint64(0)


@compiled
def read_chunk(folded, start, end, masks, room, rolled):
    """The hashes of a chunk's words and spans, in the room; returns the number of words, and the polynomial."""
    count = find_edges(folded, start, end, room[EDGES])
    hash_words(folded, room[EDGES], count, masks, room[WORDS])
    return count, roll(room[WORDS], count, rolled, room[SPANS])


@compiled
def close_chunk(room, count):
    """The last words are those before the next chunk's."""
    for place in range(SPAN_WORDS):
        at = np.uint64(place)
        room[WORDS, at] = room[WORDS, count + at]
        room[EDGES, at + at], room[EDGES, at + at + ONE] = (
            room[EDGES, count + count + at + at],
            room[EDGES, count + count + at + at + ONE],
        )


@compiled
def hash_spans(folded, starts, masks, room, first, second, counts):
    """The loop of list_spans; returns how many spans there are."""
    total = np.uint64(0)
    for document in range(len(counts)):
        position, end = np.uint64(starts[document]), np.uint64(starts[document + 1])
        rolled = number = np.uint64(0)
        open_document(room)
        while position < end:
            stop = find_chunk_end(folded, position, end)
            count, rolled = read_chunk(folded, position, stop, masks, room, rolled)
            for word in range(max(0, SPAN_WORDS - 1 - np.int64(number)), count):
                at = np.uint64(word)
                first[total], second[total] = room[SPANS, at], hash_again(folded, room[EDGES], masks, at)
                total += ONE
            close_chunk(room, count)
            number += count
            position = stop
        counts[document] = max(0, np.int64(number) - SPAN_WORDS + 1)
    return total


@compiled
def choose_bits(value):
    """The three bits of a word of the filter that a hash sets."""
    return (ONE << (value & BIT)) | (ONE << ((value >> S6) & BIT)) | (ONE << ((value >> S12) & BIT))


@compiled
def fill_filter(hashes, bits, shift):
    """Set the bits of all hashes in the filter."""
    for value in hashes:
        bits[value >> shift] |= choose_bits(value)


@compiled
def pass_filter(spans, begin, count, bits, shift, passed):
    """Which spans of a chunk, from the `begin`-th on, the filter lets pass; returns how many."""
    num_passed = np.uint64(0)
    for word in range(begin, count):
        value = spans[np.uint64(word)]
        wanted = choose_bits(value)
        passed[num_passed] = word  # as in find_edges
        num_passed += np.uint64(bits[value >> shift] & wanted == wanted)
    return num_passed


@compiled
def find_span(first, second, begin, end, value, other):
    """The index in list[begin:end] of the span with these hashes, or -1."""
    for at in range(begin, end):
        if first[at] == value and second[at] == other:
            return at
    return -1


@compiled
def search(folded, starts, masks, room, bits, shift, heads, first, second, found):
    """The loop of find_spans."""
    for document in range(len(found)):
        position, end = np.uint64(starts[document]), np.uint64(starts[document + 1])
        rolled = number = np.uint64(0)
        found[document] = -1
        open_document(room)
        while position < end and found[document] < 0:
            stop = find_chunk_end(folded, position, end)
            count, rolled = read_chunk(folded, position, stop, masks, room, rolled)
            whole = max(0, SPAN_WORDS - 1 - np.int64(number))  # the words before have no span
            num_passed = pass_filter(room[SPANS], whole, count, bits, shift, room[PASSED])
            for candidate in range(num_passed):
                word = room[PASSED, np.uint64(candidate)]
                value, other = room[SPANS, word], hash_again(folded, room[EDGES], masks, word)
                begin, behind = heads[value >> shift], heads[(value >> shift) + ONE]
                found[document] = find_span(first, second, begin, behind, value, other)
                if found[document] >= 0:
                    break
            close_chunk(room, count)
            number += count
            position = stop
