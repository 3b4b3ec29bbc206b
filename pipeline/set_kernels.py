"""Compiled loops over sets of shingles: how alike two documents are, and what else they share. Knows no file.

A set is a slice of flat hashes, sorted, each once: data[starts[i]:starts[i + 1]].
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import count_ones, mark_equal, njit


@njit(cache=True, nogil=True)
def gather_sets(hashes, firsts, counts, data, starts):
    """Copy sets, hashes[firsts[i]:firsts[i] + counts[i]], to data[starts[i]:]."""
    for number in range(len(firsts)):
        first, start = np.int64(firsts[number]), starts[number]
        for place in range(np.int64(counts[number])):
            data[start + place] = hashes[first + place]


@njit(cache=True, nogil=True)
def count_shared(first, second):
    """How many values two sets share."""
    i = j = shared = np.uint64(0)
    while i < len(first) and j < len(second):
        a, b = first[i], second[j]
        shared += np.uint64(a == b)
        i += np.uint64(a <= b)
        j += np.uint64(b <= a)
    return np.int64(shared)


@njit(cache=True, nogil=True)
def measure_overlap(first, second):
    """The Jaccard similarity of two sets, sorted arrays: the size of what they share by that of what either has."""
    shared = count_shared(first, second)
    return shared / max(1, len(first) + len(second) - shared)


@njit(cache=True, nogil=True)
def measure_overlaps(data, starts, pairs, out):
    """Write the measure_overlap of each pair of sets to `out`. pairs: the sets' numbers, shape (pairs, 2)."""
    for number in range(len(pairs)):
        one, other = pairs[number]
        out[number] = measure_overlap(data[starts[one] : starts[one + 1]], data[starts[other] : starts[other + 1]])


@njit(cache=True, nogil=True)
def mark_shared(first, other, marks, words, rest):
    """Set the bits of the places of `first` whose value another set has; returns how many of it `first` has not.

    Those go to `rest`. marks: room for a byte of each place, and zeros up to a multiple of 64; words: the bits.
    """
    marks[:] = 0
    i = j = count = np.uint64(0)
    while i < len(first) and j < len(other):
        a, b = first[i], other[j]
        marks[i] = a == b  # what is written last, before i goes on, is true
        rest[count] = b
        count += np.uint64(b < a)
        i += np.uint64(a <= b)
        j += np.uint64(b <= a)
    while j < len(other):
        rest[count] = other[j]
        count += np.uint64(1)
        j += np.uint64(1)
    for number in range(len(words)):
        words[number] = mark_equal(marks, np.uint64(64 * number), np.uint8(1))
    return np.int64(count)


@njit(cache=True, nogil=True, inline="always")
def count_both(words, others):
    """How many bits two rows of words have in common."""
    count = np.uint64(0)
    for number in range(len(words)):
        count += count_ones(words[number] & others[number])
    return np.int64(count)


@njit(cache=True, nogil=True, inline="always")
def count_left(words, others, without):
    """How many bits two rows of words have in common that a third has not."""
    count = np.uint64(0)
    for number in range(len(words)):
        count += count_ones(words[number] & others[number] & ~without[number])
    return np.int64(count)


@njit(cache=True, nogil=True)
def list_holders(data, starts, members):
    """All values of some sets, at most eight, sorted; and which of the sets have each: uint8, a bit for each set."""
    room = 0
    for member in members:
        room += starts[member + 1] - starts[member]
    values, merged = np.empty(room, data.dtype), np.empty(room, data.dtype)
    holders, merged_holders = np.empty(room, np.uint8), np.empty(room, np.uint8)
    num_values = 0
    for number, member in enumerate(members):
        own, bit = data[starts[member] : starts[member + 1]], np.uint8(1 << number)
        i = j = num_merged = 0
        while i < num_values or j < len(own):
            is_old = j == len(own) or (i < num_values and values[i] <= own[j])
            is_own = i == num_values or (j < len(own) and own[j] <= values[i])
            merged[num_merged] = values[i] if is_old else own[j]
            merged_holders[num_merged] = (holders[i] if is_old else np.uint8(0)) | (bit if is_own else np.uint8(0))
            num_merged += 1
            i += is_old
            j += is_own
        values, merged, num_values = merged, values, num_merged
        holders, merged_holders = merged_holders, holders
    return values[:num_values], holders[:num_values]


@njit(cache=True, nogil=True)
def find_holders(own, values, holders, out):
    """The holders of each value of a set, to `out`: 0 where list_holders has none."""
    j = 0
    for place in range(len(own)):
        while j < len(values) and values[j] < own[place]:
            j += 1
        out[place] = holders[j] if j < len(values) and values[j] == own[place] else np.uint8(0)


@njit(cache=True, nogil=True)
def find_agreed(tallies, num_sets, fewest, least_agreed):
    """Which holders contain `fewest` sets that agree: bool, by the bits of the sets.

    tallies: how many values each of the holders have. Sets agree where what all of them have is at least `least_agreed`
    of what any of them has: of a licence each has the same, of a text that they changed each another part.
    """
    is_agreed = np.zeros(len(tallies), np.bool_)
    for group in range(len(tallies)):
        num_members = of_all = of_any = 0
        for number in range(num_sets):
            num_members += (group >> number) & 1
        for holders in range(len(tallies) if num_members == fewest else 0):
            of_all += tallies[holders] if holders & group == group else 0
            of_any += tallies[holders] if holders & group else 0
        if of_all and of_all >= least_agreed * of_any:
            for holders in range(len(tallies)):
                is_agreed[holders] |= holders & group == group
    return is_agreed


@njit(cache=True, nogil=True)
def mark_members(data, starts, first, members):
    """Of each of some sets: which places of `first` it has too, as bits; what else it has, and where that begins."""
    words = np.zeros((len(members), (len(first) + 63) // 64), np.uint64)
    marks, edges = np.empty(64 * words.shape[1], np.uint8), np.zeros(len(members) + 1, np.int64)
    room = 0
    for member in members:
        room += starts[member + 1] - starts[member]
    rests = np.empty(room, data.dtype)
    for number, member in enumerate(members):
        own = data[starts[member] : starts[member + 1]]
        edges[number + 1] = edges[number] + mark_shared(first, own, marks, words[number], rests[edges[number] :])
    return words, rests, edges


@njit(cache=True, nogil=True, inline="always")
def is_apart(shared, one, other, most_shared):
    """Whether two sets of these sizes that share so many values have a similarity of `most_shared` at most."""
    return shared / max(1, one + other - shared) <= most_shared


@njit(cache=True, nogil=True)
def count_others(num_first, core, rest, words, rests, edges, shared_rests, fewest, limits):
    """How many other documents have what two share, and a rest that is like that of none of these; `fewest` at most.

    0 where the rests of the two are too small. core: which places of the first document's set, of num_first values, the
    second has, too; rest: what else that has. words, rests, edges: the same of the others (mark_members); shared_rests:
    how many of these values each has in common with each. limits: a rest has at least the first of the size of what is
    shared and so many values as the second, a document has at least the third of it, and the similarity of two rests is
    at most the fourth.
    """
    least_share, fewest_values, least_held, most_shared = limits
    num_core = count_both(core, core)
    least_own = max(least_share * num_core, fewest_values)
    if num_first - num_core < least_own or len(rest) < least_own:
        return 0
    count, chosen, sizes = 0, np.empty(len(words), np.int64), np.empty(len(words), np.int64)
    for place in range(len(words)):
        if count + len(words) - place < fewest or count == fewest:
            break
        own = rests[edges[place] : edges[place + 1]]
        num_held, num_both = count_both(core, words[place]), count_both(words[place], words[place])
        size = num_both - num_held + len(own)
        is_new = size >= least_own and num_held >= least_held * num_core
        is_new = is_new and is_apart(num_both - num_held, num_first - num_core, size, most_shared)
        is_new = is_new and is_apart(count_shared(rest, own), len(rest), size, most_shared)
        before = 0
        while is_new and before < count:
            other = chosen[before]
            shared = count_left(words[place], words[other], core) + shared_rests[place, other]
            is_new = is_apart(shared, sizes[before], size, most_shared)
            before += 1
        chosen[count], sizes[count] = place, size
        count += is_new
    return count


@njit(cache=True, nogil=True)
def measure_rest(core, rest, first_holders, values, holders, fewest, least_agreed, num_sets):
    """The overlap of two sets without what `fewest` of others, the holders, agree on; 1 if no more is left.

    core: which places of the first set the second has, too; rest: what else that has. first_holders: of the first set's
    values; values, holders: of list_holders.
    """
    all_tallies, shared_tallies = np.zeros(1 << num_sets, np.int64), np.zeros(1 << num_sets, np.int64)
    rest_holders = np.empty(len(rest), np.uint8)
    find_holders(rest, values, holders, rest_holders)
    for place in range(len(first_holders)):
        shared = np.int64((core[place >> 6] >> np.uint64(place & 63)) & np.uint64(1))
        all_tallies[first_holders[place]] += 1
        shared_tallies[first_holders[place]] += shared
    for place in range(len(rest)):
        all_tallies[rest_holders[place]] += 1
    is_left_out = find_agreed(all_tallies, num_sets, fewest, least_agreed)
    num_all = num_shared = 0
    for number in range(len(is_left_out)):
        if not is_left_out[number]:
            num_all += all_tallies[number]
            num_shared += shared_tallies[number]
    return num_shared / num_all if num_all else 1.0


@njit(cache=True, nogil=True)
def measure_group(data, starts, members, num_unlike, num_alike, fewest, fewest_alike, limits, out):
    """What measure_rests does, for one document in doubt."""
    first = data[starts[members[0]] : starts[members[0] + 1]]
    unlike, others = members[1 : 1 + num_unlike], members[1 + num_unlike : 1 + num_unlike + num_alike]
    seconds = members[1 + num_unlike + num_alike :]
    others = others if num_alike >= fewest_alike else others[:0]
    words, rests, edges = mark_members(data, starts, first, others)
    shared_rests = np.empty((len(others), len(others)), np.int64)
    for one in range(len(others)):
        for other in range(one):
            of_one, of_other = rests[edges[one] : edges[one + 1]], rests[edges[other] : edges[other + 1]]
            shared_rests[one, other] = count_shared(of_one, of_other)
    values, holders = np.empty(0, data.dtype), np.empty(0, np.uint8)
    first_holders, has_holders = np.empty(len(first), np.uint8), False
    cores, second_rests, borders = mark_members(data, starts, first, seconds)
    for number in range(len(seconds)):
        core, rest = cores[number], second_rests[borders[number] : borders[number + 1]]
        if len(others):
            own = limits[1:]
            found = count_others(len(first), core, rest, words, rests, edges, shared_rests, fewest_alike, own)
            if found >= fewest_alike:
                out[number] = 0.0
                continue
        if not has_holders:  # those alike often decide without
            values, holders = list_holders(data, starts, unlike)
            find_holders(first, values, holders, first_holders)
            has_holders = True
        out[number] = measure_rest(core, rest, first_holders, values, holders, fewest, limits[0], num_unlike)


@njit(cache=True, nogil=True)
def measure_rests(data, starts, members, edges, num_unlike, num_alike, fewest, fewest_alike, limits, out):
    """The similarity without boilerplate of the edges of several documents in doubt, one number for each edge.

    Of each document members[edges[i]:edges[i + 1]]: itself; its witnesses, num_unlike that are unlike it, at most
    eight, then num_alike that are alike; and those to which its edges lead. What two documents share is measured as by
    measure_overlap, without what `fewest` of the unlike witnesses agree on (find_agreed). Where `fewest_alike` of those
    alike have the same text in common with the two and another rest (count_others), it is 0. limits: least_agreed, and
    those of count_others.
    """
    count = 0
    for number in range(len(num_unlike)):
        own = members[edges[number] : edges[number + 1]]
        num_edges = len(own) - 1 - num_unlike[number] - num_alike[number]
        part = out[count : count + num_edges]
        measure_group(data, starts, own, num_unlike[number], num_alike[number], fewest, fewest_alike, limits, part)
        count += num_edges
