"""Compiled loops over sets of shingles: how alike two documents are, and what else they share. Knows no file.

A set is a slice of flat hashes, sorted, each once: data[starts[i]:starts[i + 1]].
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def gather_sets(hashes, firsts, counts, data, starts):
    """Copy sets, hashes[firsts[i]:firsts[i] + counts[i]], to data[starts[i]:]."""
    for number in range(len(firsts)):
        first, start = np.int64(firsts[number]), starts[number]
        for place in range(np.int64(counts[number])):
            data[start + place] = hashes[first + place]


@njit(cache=True, nogil=True)
def measure_overlap(first, second):
    """The Jaccard similarity of two sets, sorted arrays: the size of what they share by that of what either has."""
    i = j = shared = 0
    while i < len(first) and j < len(second):
        a, b = first[i], second[j]
        shared += a == b
        i += a <= b
        j += b <= a
    return shared / max(1, len(first) + len(second) - shared)


@njit(cache=True, nogil=True)
def measure_overlaps(data, starts, pairs, out):
    """measure_overlap of pairs of sets, given by their numbers: shape (pairs, 2)."""
    for number in range(len(pairs)):
        one, other = pairs[number]
        out[number] = measure_overlap(data[starts[one] : starts[one + 1]], data[starts[other] : starts[other + 1]])


@njit(cache=True, nogil=True)
def measure_rest(data, starts, members, fewest):
    """As measure_overlap of the first two sets, without what `fewest` of the others have, too; 1 if no more is left.

    members: the numbers of all these sets.
    """
    first = data[starts[members[0]] : starts[members[0] + 1]]
    second = data[starts[members[1]] : starts[members[1] + 1]]
    places = starts[members]
    i = j = shared = common = 0
    while i < len(first) and j < len(second):
        a, b = first[i], second[j]
        if a == b:
            shared += 1
            count = 0
            for member in range(2, len(members)):
                end = starts[members[member] + 1]
                while places[member] < end and data[places[member]] < a:
                    places[member] += 1
                count += places[member] < end and data[places[member]] == a
            common += count >= fewest
        i += a <= b
        j += b <= a
    num_all = len(first) + len(second) - shared - common
    return (shared - common) / num_all if num_all else 1.0


@njit(cache=True, nogil=True)
def measure_rests(data, starts, members, edges, fewest, out):
    """measure_rest of several entries, each members[edges[i]:edges[i + 1]]."""
    for number in range(len(out)):
        out[number] = measure_rest(data, starts, members[edges[number] : edges[number + 1]], fewest)
