"""Compiled loops over ranks: documents with one key -> pairs; what chains of pairs connect. Knows no file.

A rank is a document's number in the order of priority: of two near documents the one of the lower rank stays. A pair is
one uint64, later rank << 32 | earlier rank, so that sorted pairs stand by the document that may go.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import fetch_ahead, njit

PAIR_BITS = 32
LARGEST_FULL_GROUP = 8  # of so many documents with one key all pairs are taken; of more, those named below
MOST_PAIRS = 4  # of a document with those before it in a large group; in a full one it is fewer on average
LOOKAHEAD = 32  # keys: while these are worked on, memory is fetched
NO_PARTNER = 0xFFFFFFFF


@njit(cache=True, nogil=True, inline="always")
def is_set(bits, rank):
    """Whether a rank's bit is set: 1 or 0."""
    return (bits[rank >> 3] >> np.uint8(rank & 7)) & 1


@njit(cache=True, nogil=True)
def pack_keys(records, number_bits, first_key, edges, bases, rank_bits, is_left_out, out):
    """Sorted keys with numbers of one run -> (key - first_key) << rank_bits | rank; returns how many.

    edges, bases: the first numbers of the run's stretches, and the rank minus the number in each. is_left_out: bits by
    rank, uint8; where it is empty, all are taken. `out` may be `records`.
    """
    mask = (np.uint64(1) << np.uint64(number_bits)) - np.uint64(1)
    count = 0
    for place in range(len(records)):
        record = records[place]
        number = np.int64(record & mask)
        stretch = 0
        while stretch + 1 < len(edges) and number >= edges[stretch + 1]:
            stretch += 1
        rank = number + bases[stretch]
        out[count] = (((record >> np.uint64(number_bits)) - first_key) << np.uint64(rank_bits)) | np.uint64(rank)
        count += 1 - is_set(is_left_out, rank) if len(is_left_out) else 1
    return count


@njit(cache=True, nogil=True)
def take_up_to(packed, places, ends, last, out):
    """Copy what is not above `last` of several sorted stretches to `out`, one behind the other; returns how many.

    places, ends: where in `packed` what is left of each stretch begins, which is moved on, and where it ends: uint64.
    """
    count = np.uint64(0)
    for number in range(len(places)):
        place, end = places[number], ends[number]
        while place < end and packed[place] <= last:
            out[count] = packed[place]
            count += np.uint64(1)
            place += np.uint64(1)
        places[number] = place
    return count


@njit(cache=True, nogil=True)
def leave_out_held(packed, rank_bits, held):
    """Move sorted packed keys to the front, but for those that only held documents have; returns how many.

    held: the first and last rank of each range of theirs: int64, shape (ranges, 2).
    """
    mask = (np.uint64(1) << np.uint64(rank_bits)) - np.uint64(1)
    first = count = 0
    for place in range(1, len(packed) + 1):
        if place < len(packed) and packed[place] >> np.uint64(rank_bits) == packed[first] >> np.uint64(rank_bits):
            continue
        num_held = 0
        for member in range(first, place):
            rank = np.int64(packed[member] & mask)
            for number in range(len(held)):
                num_held += held[number, 0] <= rank < held[number, 1]
        if num_held < place - first:
            for member in range(first, place):
                packed[count] = packed[member]
                count += 1
        first = place
    return count


@njit(cache=True, nogil=True, inline="always")
def num_partners(member, size):
    """With how many of those before it in a group of documents with one key one is paired."""
    return member if size <= LARGEST_FULL_GROUP else min(member, MOST_PAIRS)


@njit(cache=True, nogil=True)
def keep_repeated(packed, rank_bits):
    """Move sorted packed keys to the front, but for those that one document alone has; returns how many."""
    bits = np.uint64(rank_bits)
    count, before = np.uint64(0), False
    for place in range(np.uint64(len(packed))):
        own = packed[place]
        behind = place + np.uint64(1) < len(packed) and packed[place + np.uint64(1)] >> bits == own >> bits
        packed[count] = own
        count += np.uint64(before | behind)
        before = behind
    return count


@njit(cache=True, nogil=True)
def list_pairs(packed, rank_bits, recent, out):
    """Pairs of documents with one key, from sorted packed keys; returns how many: below MOST_PAIRS for each document.

    Of each group all pairs; of a large one each document with the first two and the two before it. recent: what each
    document was last paired with, plus 1: uint32, MOST_PAIRS for each, zeros at first, set in place. A pair that stands
    there is left out: two documents that are near share most of their keys. Where it is empty, none is.
    """
    mask = (np.uint64(1) << np.uint64(rank_bits)) - np.uint64(1)
    first = count = 0
    for place in range(1, len(packed) + 1):
        if len(recent) and place + LOOKAHEAD < len(packed):
            fetch_ahead(recent, (packed[place + LOOKAHEAD] & mask) * np.uint64(MOST_PAIRS))
        if place < len(packed) and packed[place] >> np.uint64(rank_bits) == packed[first] >> np.uint64(rank_bits):
            continue
        for member in range(1, place - first):
            later = packed[first + member] & mask
            partners = num_partners(member, place - first)
            for number in range(partners):
                other = number if partners == member or number < 2 else member - (number - 1)
                earlier = packed[first + other] & mask
                out[count] = (later << np.uint64(PAIR_BITS)) | earlier
                is_new = True
                if number < MOST_PAIRS and len(recent):
                    slot = later * np.uint64(MOST_PAIRS) + np.uint64(number)
                    is_new = recent[slot] != np.uint32(earlier + np.uint64(1))
                    recent[slot] = np.uint32(earlier + np.uint64(1))
                count += is_new
        first = place
    return count


@njit(cache=True, nogil=True)
def list_witnesses(packed, rank_bits, is_doubted, is_dropped, fewest, most, out):
    """For each document in doubt, documents that stay with the same key, from sorted packed keys; returns how many.

    Of a group with `fewest` that stay or more, `most` of them, from all over it. is_doubted, is_dropped: bits, uint8.
    Pairs as uint64, the document in doubt << 32 | the other; where `out` is empty, they are only counted.
    """
    mask = (np.uint64(1) << np.uint64(rank_bits)) - np.uint64(1)
    first = count = 0
    witnesses = np.empty(most, np.uint64)
    for place in range(1, len(packed) + 1):
        if place < len(packed) and packed[place] >> np.uint64(rank_bits) == packed[first] >> np.uint64(rank_bits):
            continue
        num_staying = num_witnesses = 0
        for member in range(first, place):
            num_staying += 1 - is_set(is_dropped, np.int64(packed[member] & mask))
        number = 0
        for member in range(first, place if num_staying >= fewest else first):
            rank = packed[member] & mask
            if not is_set(is_dropped, np.int64(rank)):
                if number * most // num_staying == num_witnesses or num_staying <= most:
                    witnesses[num_witnesses] = rank
                    num_witnesses += 1
                number += 1
        if num_staying >= fewest:
            for member in range(first, place):
                rank = packed[member] & mask
                if is_set(is_doubted, np.int64(rank)):
                    for number in range(num_witnesses):
                        if len(out):
                            out[count] = (rank << np.uint64(PAIR_BITS)) | witnesses[number]
                        count += 1
        first = place
    return count


@njit(cache=True, nogil=True)
def keep_first_of_equal(values):
    """Move the distinct of sorted values to the front; returns how many."""
    count = min(1, len(values))
    last = values[0] if len(values) else np.uint64(0)
    for place in range(1, len(values)):
        value = values[place]
        values[count] = value
        count += value != last
        last = value
    return count


@njit(cache=True, nogil=True)
def mark_ranks(ranks, bits):
    """Set each rank's bit, in place: uint8, lowest bit first."""
    for place in range(len(ranks)):
        rank = np.uint64(ranks[place])
        bits[rank >> np.uint64(3)] |= np.uint8(1) << np.uint8(rank & np.uint64(7))


@njit(cache=True, nogil=True)
def link_equal(keys, ranks, order, out):
    """Pairs that connect the documents with one key; `order` sorts the keys. Returns how many."""
    count = 0
    for place in range(1, len(order)):
        one, other = np.uint64(ranks[order[place - 1]]), np.uint64(ranks[order[place]])
        out[count] = (max(one, other) << np.uint64(PAIR_BITS)) | min(one, other)
        count += keys[order[place]] == keys[order[place - 1]]
    return count


@njit(cache=True, nogil=True, inline="always")
def find_root(parents, rank):
    """The root of a rank's component; paths to it are halved on the way."""
    while parents[rank] != rank:
        parents[rank] = parents[parents[rank]]
        rank = parents[rank]
    return rank


@njit(cache=True, nogil=True)
def unite(pairs, parents):
    """Join the components of each pair, in place. A component's root is its lowest rank."""
    for place in range(len(pairs)):
        one = find_root(parents, np.int64(pairs[place] >> np.uint64(PAIR_BITS)))
        other = find_root(parents, np.int64(pairs[place] & np.uint64(0xFFFFFFFF)))
        if one < other:
            parents[other] = one
        elif other < one:
            parents[one] = other


@njit(cache=True, nogil=True)
def flatten(parents):
    """Let every rank point to its component's lowest, in place."""
    for rank in range(len(parents)):
        parents[rank] = parents[parents[rank]]
