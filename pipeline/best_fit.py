"""Best-fit packing, compiled: documents into pieces, and pieces into bins of seq_len inputs. Integers only.

A document that is longer than seq_len is cut into pieces of seq_len inputs, each with its next token as the last
target; what remains, and every other document, is put whole into the fullest bin that has room for it, the longest
first. Ding et al., "Fewer Truncations Improve Language Modeling", 2024. The room left in bins is searched in a bitset
over 0..seq_len, so a document costs about as much in a full pool as in an empty one.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import count_trailing_zeros, njit


@njit(cache=True, nogil=True)
def first_room(words, length):
    """The smallest room of at least `length` that some bin has; -1: none."""
    number = length >> 6
    word = words[number] & (~np.uint64(0) << np.uint64(length & 63))
    while word == 0:
        number += 1
        if number == len(words):
            return -1
        word = words[number]
    return number * 64 + np.int64(count_trailing_zeros(word))


@njit(cache=True, nogil=True)
def sort_longest_first(lengths, seq_len):
    """The order of the lengths (1..seq_len) from the longest to the shortest, equal ones as they stand."""
    starts = np.zeros(seq_len + 2, dtype=np.int64)
    for length in lengths:
        starts[seq_len - length + 1] += 1
    starts = np.cumsum(starts)
    order = np.empty(len(lengths), dtype=np.int64)
    for index, length in enumerate(lengths):
        order[starts[seq_len - length]] = index
        starts[seq_len - length] += 1
    return order


@njit(cache=True, nogil=True)
def assign_bins(lengths, seq_len):
    """For each length (1..seq_len) the bin it goes into, and how many bins there are."""
    bins = np.empty(len(lengths), dtype=np.int64)
    words = np.zeros((seq_len >> 6) + 1, dtype=np.uint64)
    newest = np.full(seq_len + 1, -1, dtype=np.int64)  # by room: the bin that got it last
    before = np.empty(len(lengths), dtype=np.int64)  # by bin: the one that had the same room before it
    num_bins = 0
    for index in sort_longest_first(lengths, seq_len):
        room = first_room(words, lengths[index])
        if room < 0:
            chosen, room = num_bins, seq_len
            num_bins += 1
        else:
            chosen = newest[room]
            newest[room] = before[chosen]
            if newest[room] < 0:
                words[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
        bins[index] = chosen
        left = room - lengths[index]
        if left > 0:
            before[chosen] = newest[left]
            newest[left] = chosen
            words[left >> 6] |= np.uint64(1) << np.uint64(left & 63)
    return bins, num_bins


@njit(cache=True, nogil=True)
def cut_documents(lengths, first_token, seq_len):
    """Full pieces (their first tokens), and the other pieces: first tokens and lengths, 2..seq_len tokens.

    lengths: tokens per document, one after the other from first_token on. What has no target is left out: a document
    of one token, and a last token that is a target of the piece before it.
    """
    num_full = 0
    for length in lengths:
        num_full += max(0, length - 1) // seq_len
    full_starts = np.empty(num_full, dtype=np.int64)
    starts = np.empty(len(lengths), dtype=np.int64)
    rests = np.empty(len(lengths), dtype=np.int64)
    full, kept, start = 0, 0, first_token
    for length in lengths:
        end = start + length
        for _ in range(max(0, length - 1) // seq_len):
            full_starts[full] = start
            full += 1
            start += seq_len
        if end - start >= 2:
            starts[kept], rests[kept] = start, end - start
            kept += 1
        start = end
    return full_starts, starts[:kept], rests[:kept]


@njit(cache=True, nogil=True)
def lay_out(full_starts, starts, lengths, bins, places, seq_len):
    """The pieces of a pool, bin by bin: first tokens, tokens; and how many pieces each bin has. All int64.

    places: where each bin stands: first the bins of packed pieces, as `bins` counts them, then those of full pieces.
    """
    num_packed = len(places) - len(full_starts)
    counts = np.zeros(len(places), dtype=np.int64)
    for index in range(len(bins)):
        counts[places[bins[index]]] += 1
    for index in range(len(full_starts)):
        counts[places[num_packed + index]] += 1
    nexts = np.cumsum(counts) - counts
    piece_starts = np.empty(len(bins) + len(full_starts), dtype=np.int64)
    piece_lengths = np.empty_like(piece_starts)
    for index in range(len(bins)):
        at = nexts[places[bins[index]]]
        piece_starts[at], piece_lengths[at] = starts[index], lengths[index]
        nexts[places[bins[index]]] += 1
    for index in range(len(full_starts)):
        at = nexts[places[num_packed + index]]
        piece_starts[at], piece_lengths[at] = full_starts[index], seq_len + 1
    return piece_starts, piece_lengths, counts
