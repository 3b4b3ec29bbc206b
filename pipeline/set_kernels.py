"""Compiled loops over sets of shingles: how alike two documents are, and what else they share. Knows no file.

A set is a slice of flat hashes, sorted, each once: data[starts[i]:starts[i + 1]].
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import njit


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
def measure_rest(data, starts, members, fewest, least_agreed):
    """As measure_overlap of the first two sets, without what `fewest` of the others agree on; 1 if no more is left.

    members: the numbers of all these sets. Some of the others agree where what all of them have of the two is at least
    `least_agreed` of what any of them has: of a licence each has the same, of a text that they changed each another
    part.
    """
    tallies = tally_holders(data, starts, members)
    is_left_out = find_agreed(tallies[0], len(members) - 2, fewest, least_agreed)
    num_all = shared = 0
    for holders in range(len(is_left_out)):
        if not is_left_out[holders]:
            num_all += tallies[0, holders]
            shared += tallies[1, holders]
    return shared / num_all if num_all else 1.0


@njit(cache=True, nogil=True)
def tally_holders(data, starts, members):
    """How many values of the first two sets which of the others have: of either, and of both.

    Shape (2, 2**others): the bits of the second index say which others.
    """
    first = data[starts[members[0]] : starts[members[0] + 1]]
    second = data[starts[members[1]] : starts[members[1] + 1]]
    tallies, places = np.zeros((2, 1 << (len(members) - 2)), np.int64), starts[members]
    i = j = 0
    while i < len(first) or j < len(second):
        is_first = j == len(second) or (i < len(first) and first[i] <= second[j])
        value = first[i] if is_first else second[j]
        is_shared = is_first and j < len(second) and second[j] == value
        holders = 0
        for member in range(2, len(members)):
            end = starts[members[member] + 1]
            while places[member] < end and data[places[member]] < value:
                places[member] += 1
            holders |= (places[member] < end and data[places[member]] == value) << (member - 2)
        tallies[0, holders] += 1
        tallies[1, holders] += is_shared
        i += is_first
        j += is_shared or not is_first
    return tallies


@njit(cache=True, nogil=True)
def find_agreed(tallies, num_others, fewest, least_agreed):
    """Which of the indexes of tally_holders contain `fewest` others that agree: bool."""
    is_agreed = np.zeros(len(tallies), np.bool_)
    for group in range(len(tallies)):
        num_members = of_all = of_any = 0
        for other in range(num_others):
            num_members += (group >> other) & 1
        for holders in range(len(tallies) if num_members == fewest else 0):
            of_all += tallies[holders] if holders & group == group else 0
            of_any += tallies[holders] if holders & group else 0
        if of_all and of_all >= least_agreed * of_any:
            for holders in range(len(tallies)):
                is_agreed[holders] |= holders & group == group
    return is_agreed


@njit(cache=True, nogil=True)
def subtract(one, other, out):
    """Write the values of a sorted array that another does not have to `out`; returns how many."""
    j = count = 0
    for value in one:
        while j < len(other) and other[j] < value:
            j += 1
        out[count] = value
        count += j == len(other) or other[j] != value
    return count


@njit(cache=True, nogil=True, inline="always")
def is_apart(one, other, most_shared):
    return measure_overlap(one, other) <= most_shared


@njit(cache=True, nogil=True)
def count_others(data, starts, members, least_own, least_held, most_shared):
    """How many other documents have what the first two sets share, and a rest that is like that of none of these.

    0 where the rests of the two are alike. A rest has at least `least_own` of the size of what is shared, a document
    has at least `least_held` of it, and the similarity of two rests is at most `most_shared`.
    """
    first = data[starts[members[0]] : starts[members[0] + 1]]
    second = data[starts[members[1]] : starts[members[1] + 1]]
    rest, core = np.empty(len(first), data.dtype), np.empty(len(first), data.dtype)
    num_rest = subtract(first, second, rest)
    num_core = subtract(first, rest[:num_rest], core)
    room = 0
    for number in members:
        room += starts[number + 1] - starts[number]
    rests, ends = np.empty(room, data.dtype), np.zeros(len(members) + 1, np.int64)
    count = 0
    for place in range(len(members)):
        own = data[starts[members[place]] : starts[members[place] + 1]]
        start = ends[count]
        end = start + subtract(own, core[:num_core], rests[start:])
        num_held = len(own) - (end - start)
        is_new = end - start >= least_own * num_core and num_held >= least_held * num_core
        for before in range(count if is_new else 0):
            is_new &= is_apart(rests[start:end], rests[ends[before] : ends[before + 1]], most_shared)
        if not is_new and place < 2:
            return 0
        if is_new:
            count += 1
            ends[count] = end
    return count - 2


@njit(cache=True, nogil=True)
def measure_rests(data, starts, members, edges, num_unlike, fewest, fewest_alike, limits, out):
    """The similarity without boilerplate of several entries, each members[edges[i]:edges[i + 1]]; for each one number.

    num_unlike: how many witnesses, behind the two, are unlike the first: measure_rest goes by these. Those behind are
    alike; where `fewest_alike` of them have the same text in common with the two and another rest, it is 0. limits: the
    last argument of measure_rest, and those of count_others.
    """
    for entry in range(len(out)):
        own = members[edges[entry] : edges[entry + 1]]
        num_plain = 2 + num_unlike[entry]
        out[entry] = measure_rest(data, starts, own[:num_plain], fewest, limits[0])
        if len(own) - num_plain >= fewest_alike:
            alike = np.concatenate((own[:2], own[num_plain:]))
            if count_others(data, starts, alike, limits[1], limits[2], limits[3]) >= fewest_alike:
                out[entry] = 0.0
