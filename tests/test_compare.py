"""How alike two sets are, what is left of it without boilerplate, and the files that sets are read from."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boilerplate import (
    FEWEST_ALIKE,
    FEWEST_OWN,
    LEAST_AGREED,
    LEAST_HELD,
    LEAST_OWN,
    MOST_SHARED,
    list_members,
)
from pipeline.compare import RANK, SET, WantedTask, read_sets, run_wanted, write_sets
from pipeline.estimate import EDGE
from pipeline.minhash import SHINGLE_WORDS
from pipeline.resolve import find_later, read_between
from pipeline.set_kernels import measure_overlap, measure_rests


def flatten(sets):
    starts = np.cumsum([0, *map(len, sets)], dtype=np.int64)
    return np.concatenate([np.array(one, np.uint32) for one in sets]), starts


def measure(first, unlike, alike, seconds, *, fewest=3, fewest_alike=FEWEST_ALIKE, least_agreed=LEAST_AGREED):
    """The similarity of `first` to each of `seconds` without boilerplate."""
    sets = [sorted(one) for one in (first, *unlike, *alike, *seconds)]
    out, members = np.empty(len(seconds), np.float32), np.arange(len(sets), dtype=np.uint32)
    edges, counts = np.array([0, len(sets)]), (np.array([len(unlike)]), np.array([len(alike)]))
    limits = (least_agreed, LEAST_OWN, float(FEWEST_OWN), LEAST_HELD, MOST_SHARED)
    measure_rests(*flatten(sets), members, edges, *counts, fewest, fewest_alike, limits, out)
    return out.tolist()


def rest(sets, fewest=3, least_agreed=LEAST_AGREED):
    return measure(sets[0], sets[2:], [], sets[1:2], fewest=fewest, least_agreed=least_agreed)[0]


def test_what_enough_witnesses_have_is_no_evidence():
    licence, one, other = np.arange(50), np.arange(100, 110), np.arange(105, 115)
    first, second = np.concatenate([licence, one]), np.concatenate([licence, other])
    witnesses = [np.concatenate([licence, np.arange(start, start + 200)]) for start in (1000, 2000, 3000)]
    assert measure_overlap(first, second) == pytest.approx(55 / 65)
    assert rest([first, second, *witnesses]) == pytest.approx(5 / 15)
    assert rest([first, second, *witnesses[:2]]) == pytest.approx(55 / 65)
    assert rest([licence, licence, *witnesses]) == 1.0
    banners = [np.arange(start, start + 200) for start in (100, 100, 100)]  # of others, who agree on `one` and `other`
    assert rest([first, second, *witnesses, *banners]) == 1.0


def test_what_witnesses_have_without_agreeing_is_evidence():
    text = np.arange(100)
    first, second = text[:95], text[5:]
    versions = [text[:70], text[15:85], text[30:]]  # any two have most of what they have in common
    assert rest([first, second, *versions]) == rest([first, second]) == pytest.approx(0.9)
    assert rest([first, second, *versions], least_agreed=0.4) == pytest.approx(50 / 60)


def count(sets):
    """For how many of the others the first two would be apart, which without others they are not."""
    first, second, *others = sets
    assert measure(first, [], [], [second]) != [0.0]
    enough = [
        most for most in range(1, len(others) + 1) if measure(first, [], others, [second], fewest_alike=most)[0] == 0
    ]
    assert enough == [*range(1, len(enough) + 1)]
    return len(enough)


def test_documents_with_one_text_in_common_and_rests_of_their_own_are_counted():
    core = range(1000)
    sets = [{*core, *range(start, start + 80)} for start in range(2000, 12000, 1000)]
    assert count(sets) == 8
    assert count([*sets[:2], *sets[:3]]) == 1  # copies of the two are no others
    assert count([*sets[:2], sets[2], sets[2], sets[2]]) == 1
    assert count([*sets[:2], sets[2], {*sets[2], 1}, *sets[2:]]) == 8
    assert count([*sets[:2], *({*core, *range(start, start + 40)} for start in range(2000, 12000, 1000))]) == 0
    assert count([{*core, *range(2000, 2040)}, *sets]) == 0  # too little of its own: a date, a number
    assert count([{*core}, *sets]) == 0  # cut off
    assert count([{*core, *range(2000, 2080)}, {*core, *range(2010, 2090)}, *sets[3:]]) == 0  # the rests are alike
    assert count([*sets[:2], *({*range(300, 1000), *one} - {*range(300)} for one in sets[2:])]) == 0


def test_one_changed_word_is_no_rest():
    """Sixty pages of one template with a number each are copies; eight words of their own under a short licence not."""
    for num_own, expected in ((SHINGLE_WORDS, 0), (SHINGLE_WORDS + 1, 8)):
        assert count([{*range(60), *range(start, start + num_own)} for start in range(100, 1100, 100)]) == expected


@given(st.integers(0, 10**6))
def test_copies_with_changes_of_their_own_are_not_counted(seed):
    """Each lacks other shingles of the original, and has new ones instead."""
    rng, sets = np.random.default_rng(seed), []
    for number in range(10):
        words = np.arange(204) + np.where(rng.random(204) < 0.01, 1000 * (number + 1), 0)
        sets.append({hash(tuple(words[place : place + 5].tolist())) % 2**32 for place in range(200)})
    assert count(sets) < FEWEST_ALIKE


def draw_set(rng, num_values):
    """A set of about half of some values, all of which are there in large sets only."""
    return {int(value) for value in np.flatnonzero(rng.random(num_values) < 0.6)}


def count_plainly(first, second, others):
    """How many other documents have what two share, and a rest of their own; 0 where the two have none."""
    core, rests = first & second, []
    for number, one in enumerate([first, second, *others]):
        own = one - core
        is_new = len(own) >= max(FEWEST_OWN, LEAST_OWN * len(core)) and len(one & core) >= LEAST_HELD * len(core)
        is_new &= all(len(own & rest) <= MOST_SHARED * max(1, len(own | rest)) for rest in rests)
        if not is_new and number < 2:
            return 0
        rests += [own] if is_new else []
    return len(rests) - 2


@settings(deadline=None)  # a kernel may be compiled first
@given(
    st.integers(0, 10**6),
    st.sampled_from([3, 12, 64, 200]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([0.5, 0.75, 1.0]),
)
def test_the_rest_is_that_of_plain_sets(seed, num_values, fewest, fewest_alike, least_agreed):
    rng = np.random.default_rng(seed)
    core = draw_set(rng, num_values)
    near = [
        core ^ {int(value) for value in rng.integers(0, 2 * num_values, rng.integers(0, 1 + num_values // 3))}
        for _ in range(8)
    ]
    first, seconds, alike = near[0], near[1:4], near[4 : 4 + rng.integers(0, 5)]
    unlike = [draw_set(rng, num_values) for _ in range(rng.integers(0, 6))]
    expected = []
    for second in seconds:
        left = (first | second) - find_common(first | second, unlike, fewest, least_agreed)
        is_apart = len(alike) >= fewest_alike and count_plainly(first, second, alike) >= fewest_alike
        expected.append(0.0 if is_apart else len(first & second & left) / len(left) if left else 1.0)
    how = {"fewest": fewest, "fewest_alike": fewest_alike, "least_agreed": least_agreed}
    assert measure(first, unlike, alike, seconds, **how) == pytest.approx(expected)


def find_common(union, witnesses, fewest, least_agreed):
    """What enough witnesses agree on, by plain sets."""
    common = set()
    for group in itertools.combinations([union & {*witness} for witness in witnesses], fewest):
        of_all, of_any = set.intersection(*group), set.union(*group)
        common |= of_all if len(of_all) >= least_agreed * len(of_any) else set()
    return common


@pytest.mark.parametrize("room", [1, 40, 1 << 20])
def test_sets_are_found_in_any_file_and_read_in_parts(tmp_path, monkeypatch, room):
    monkeypatch.setattr("pipeline.compare.SHINGLES_AT_ONCE", room)
    sets = {rank: np.arange(rank, 2 * rank, dtype=np.uint32) for rank in range(0, 40, 3)}
    files = []
    for number in range(3):
        own = np.array(sorted(sets)[number::3], np.uint32)
        paths = (tmp_path / f"{number}.index.npy", tmp_path / f"{number}.sets.bin")
        keys = own.astype(np.uint64) + np.uint64(100)
        write_sets(paths, keys, own, ((int(rank) + 100, sets[int(rank)]) for rank in own[::-1]))
        assert np.load(paths[0]).dtype == SET
        files.append(tuple(map(str, paths)))
    entries = [[3, 6], [39, 3, 0, 12], [36, 36], [9, 3]]
    wanted, edges = np.array(sum(entries, []), np.uint32), np.cumsum([0, *map(len, entries)])
    found = []
    for chosen, members, data, starts in read_sets(wanted, edges, files):
        assert len(members) == edges[chosen.stop] - edges[chosen.start]
        found += [data[starts[number] : starts[number + 1]].tolist() for number in members]
    assert found == [sets[rank].tolist() for rank in wanted.tolist()]


def test_the_documents_to_read_are_those_of_all_edges(tmp_path):
    edges = np.array([(9, 3, 0.8), (9, 4, 0.8), (30, 9, 0.8)], EDGE)
    edges.tofile(tmp_path / "open.bin")
    task = WantedTask("wanted", str(tmp_path / "open.bin"), 31, str(tmp_path), "")
    assert run_wanted(task) == {"documents": 4}
    assert np.fromfile(task.path, RANK).tolist() == [3, 4, 9, 30]


def test_a_document_in_doubt_stands_before_its_witnesses_and_those_it_is_near_to():
    edges = np.array([(5, 1, 0), (5, 2, 0), (7, 2, 0), (9, 1, 0)], EDGE)
    witnesses = np.array([(5, 10, 0.1), (5, 11, 0.9), (8, 13, 0.9), (9, 12, 0.1)], EDGE)
    members, borders, num_unlike, num_alike = list_members(edges, witnesses)
    found = [members[first:last].tolist() for first, last in zip(borders[:-1], borders[1:], strict=True)]
    assert found == [[5, 10, 11, 1, 2], [7, 2], [9, 12, 1]]
    assert (num_unlike.tolist(), num_alike.tolist()) == ([1, 0, 1], [1, 0, 0])


def test_of_files_of_edges_what_is_between_is_read(tmp_path):
    records = np.array([(rank, number, 0) for rank in range(0, 20, 2) for number in range(2)], EDGE)
    paths = [str(tmp_path / f"{number}.npy") for number in range(3)]
    for path, part in zip(paths, (records[:7], records[7:8], records[8:]), strict=True):
        np.save(path, part)
    for first, last in ((0, 18), (3, 9), (6, 6), (7, 7), (19, 30)):
        own = records[(records["later"] >= first) & (records["later"] <= last)]
        edges = np.array([(first, 0, 0), (last, 0, 0)], EDGE)
        assert read_between(paths, edges).tolist() == own.tolist()
    assert len(read_between(paths, records[:0])) == 0
    assert find_later(records, 9, first=14) == 14
