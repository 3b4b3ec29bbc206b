"""Compiled loops over edges: pairs -> edges with their similarity -> which documents go. Knows no file.

An edge is a record of `later` and `earlier`, the ranks of a pair (pair_kernels.py), and their `similarity`.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import njit

KEPT, DROPPED, OPEN = 0, 1, 2


@njit(cache=True, nogil=True)
def number_distinct(packed, distinct, where):
    """From sorted value << 32 | place: the distinct values, and at each place the number of its own; how many."""
    count = np.uint32(0)
    for index in range(len(packed)):
        value = np.uint32(packed[index] >> np.uint64(32))
        if index == 0 or value != distinct[count - np.uint32(1)]:
            distinct[count] = value
            count += np.uint32(1)
        where[packed[index] & np.uint64(0xFFFFFFFF)] = count - np.uint32(1)
    return count


@njit(cache=True, nogil=True)
def pack_earlier(pairs, packed):
    """Write each pair's earlier rank << 32 | its place."""
    for place in range(len(pairs)):
        packed[place] = (pairs[place] << np.uint64(32)) | np.uint64(place)


@njit(cache=True, nogil=True)
def number_ranks(pairs, packed, distinct, later, earlier):
    """The distinct ranks of sorted pairs, sorted, and of each pair the numbers of its two among them; how many.

    packed: of pack_earlier, sorted.
    """
    place = other = count = np.uint64(0)
    size, low = np.uint64(len(pairs)), np.uint64(0xFFFFFFFF)
    while place < size or other < size:
        rank = low
        if place < size:
            rank = pairs[place] >> np.uint64(32)
        if other < size:
            rank = min(rank, packed[other] >> np.uint64(32))
        while place < size and pairs[place] >> np.uint64(32) == rank:
            later[place] = count
            place += np.uint64(1)
        while other < size and packed[other] >> np.uint64(32) == rank:
            earlier[packed[other] & low] = count
            other += np.uint64(1)
        distinct[count] = rank
        count += np.uint64(1)
    return np.int64(count)


@njit(cache=True, nogil=True)
def count_equal(signatures, first, second, out):
    """How many values two signatures share, for each pair of rows: uint8."""
    for pair in range(len(first)):
        one, other = signatures[first[pair]], signatures[second[pair]]
        count = np.uint8(0)
        for place in range(len(one)):
            count += np.uint8(one[place] == other[place])
        out[pair] = count


@njit(cache=True, nogil=True)
def list_edges(pairs, equal, similarities, least, edges):
    """Write the edges of those pairs that are similar enough; returns how many.

    equal: how many values of their signatures are; similarities: what so many say.
    """
    count = 0
    for place in range(len(pairs)):
        similarity = similarities[equal[place]]
        if similarity >= least:
            edges[count].later = np.uint32(pairs[place] >> np.uint64(32))
            edges[count].earlier = np.uint32(pairs[place] & np.uint64(0xFFFFFFFF))
            edges[count].similarity = similarity
            count += 1
    return count


@njit(cache=True, nogil=True)
def find_listed(edges, others, out):
    """For each edge, a record with `later` and `earlier`, where it stands among others, or -1; both sorted by these."""
    at = 0
    for place in range(len(edges)):
        later, earlier = edges[place].later, edges[place].earlier
        while at < len(others) and (
            others[at].later < later or (others[at].later == later and others[at].earlier < earlier)
        ):
            at += 1
        is_listed = at < len(others) and others[at].later == later and others[at].earlier == earlier
        out[place] = at if is_listed else -1


@njit(cache=True, nogil=True)
def judge(later, earlier, is_certain, states, is_open):
    """Decide what pairs above doubt decide, in the order of ranks; states of the documents are set in place.

    The pairs stand by `later`, and hold each one's pairs whole; any that are left out are known to be no duplicates.
    A document that has a certain pair with one that stays goes. One whose pairs are all with documents that go stays.
    Between them it is OPEN, and its uncertain pairs with documents that do not go are marked in `is_open`.
    """
    first = 0
    for place in range(1, len(later) + 1):
        if place < len(later) and later[place] == later[first]:
            continue
        state = KEPT
        for pair in range(first, place):
            other = states[earlier[pair]]
            if is_certain[pair] and other == KEPT:
                state = DROPPED
                break
            if other != DROPPED:
                state = OPEN
        states[later[first]] = state
        if state == OPEN:
            for pair in range(first, place):
                is_open[pair] = not is_certain[pair] and states[earlier[pair]] != DROPPED
        first = place


@njit(cache=True, nogil=True)
def resolve(later, earlier, similarities, states, partners):
    """Decide in the order of ranks, from pairs that are all near: a document goes if one that stays is near to it.

    Sets `states`; partners: for each pair that names the partner of a document that goes (the most similar, of several
    the first) True. Pairs stand by `later`.
    """
    first = 0
    for place in range(1, len(later) + 1):
        if place < len(later) and later[place] == later[first]:
            continue
        best = -1
        for pair in range(first, place):
            if states[earlier[pair]] == KEPT and (best < 0 or similarities[pair] > similarities[best]):
                best = pair
        if best >= 0:
            states[later[first]] = DROPPED
            partners[best] = True
        first = place
