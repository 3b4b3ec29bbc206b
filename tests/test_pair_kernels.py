"""Pairs from keys, and what is decided by pairs, against plain definitions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.edge_kernels import DROPPED, KEPT, find_listed, judge, list_edges, number_ranks, pack_earlier, resolve
from pipeline.estimate import EDGE, find_distinct
from pipeline.pair_kernels import (
    LARGEST_FULL_GROUP,
    MOST_PAIRS,
    flatten,
    keep_first_of_equal,
    keep_repeated,
    list_pairs,
    list_witnesses,
    mark_ranks,
    take_up_to,
    unite,
)

RANK_BITS = 24
NOTHING = np.empty(0, np.uint32)


def pairs_of(groups):
    """The pairs of groups of ranks with one key each, as (later, earlier)."""
    packed = np.array(
        sorted((key << RANK_BITS) | rank for key, ranks in enumerate(groups) for rank in ranks), np.uint64
    )
    out = np.empty(MOST_PAIRS * len(packed), np.uint64)
    out = out[: list_pairs(packed, RANK_BITS, NOTHING, out)]
    return [(int(pair) >> 32, int(pair) & 0xFFFFFFFF) for pair in out]


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.sets(st.integers(0, 50), max_size=LARGEST_FULL_GROUP), max_size=6))
def test_of_a_small_group_all_pairs_are_taken(groups):
    expected = sorted((b, a) for ranks in groups for a, b in itertools.combinations(sorted(ranks), 2))
    assert sorted(pairs_of(groups)) == expected


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.sets(st.integers(0, 200), min_size=1, max_size=60), max_size=4))
def test_of_any_group_each_document_is_paired_with_the_first(groups):
    pairs = set(pairs_of(groups))
    assert all(later > earlier for later, earlier in pairs)
    for ranks in groups:
        assert {(rank, min(ranks)) for rank in ranks if rank != min(ranks)} <= pairs


def test_a_million_documents_with_one_key_make_four_million_pairs():
    packed = np.arange(1_000_000, dtype=np.uint64)
    out = np.empty(MOST_PAIRS * len(packed), np.uint64)
    out = out[: list_pairs(packed, RANK_BITS, NOTHING, out)]
    assert 3_900_000 < len(out) < 4_000_000
    out.sort()
    assert keep_first_of_equal(out) == len(out)


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.lists(st.integers(0, 5), min_size=40, max_size=40), min_size=2, max_size=4))
def test_what_a_document_was_last_paired_with_is_left_out_and_nothing_else(bands):
    """bands: of each of forty documents its key."""
    recent, expected, found = np.zeros(MOST_PAIRS * 40, np.uint32), [], []
    for keys in bands:
        packed = np.sort(np.array(keys, np.uint64) << np.uint64(RANK_BITS) | np.arange(40, dtype=np.uint64))
        for pairs, seen in ((expected, NOTHING), (found, recent)):
            out = np.empty(MOST_PAIRS * 40, np.uint64)
            pairs += out[: list_pairs(packed, RANK_BITS, seen, out)].tolist()
    assert set(found) == set(expected)
    assert len(found) <= len(expected)


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.integers(0, 20), max_size=40))
def test_keys_of_several_documents_are_kept(keys):
    packed = np.array([(key << RANK_BITS) | rank for rank, key in enumerate(sorted(keys))], np.uint64)
    expected = [value for value in packed.tolist() if keys.count(value >> RANK_BITS) > 1]
    assert packed[: keep_repeated(packed, RANK_BITS)].tolist() == expected


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.lists(st.integers(0, 30)).map(sorted), min_size=1, max_size=5), st.integers(0, 31))
def test_pieces_of_sorted_stretches_hold_all_once(stretches, middle):
    packed = np.array(sum(stretches, []), np.uint64)
    ends = np.cumsum([len(one) for one in stretches]).astype(np.uint64)
    places = ends - np.array([len(one) for one in stretches], np.uint64)
    out, pieces = np.empty_like(packed), []
    for last in (middle, 31):
        pieces.append(out[: take_up_to(packed, places, ends, np.uint64(last), out)].tolist())
    assert pieces == [
        [value for one in stretches for value in one if value <= middle],
        [value for one in stretches for value in one if value > middle],
    ]


@settings(deadline=None)  # a kernel may be compiled first
@given(*[st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20).map(sorted)] * 2)
def test_edges_are_found_among_others(edges, others):
    out = np.empty(len(edges), np.int32)
    find_listed(*(np.array([(*edge, 0) for edge in one], EDGE) for one in (edges, others)), out)
    assert out.tolist() == [others.index(edge) if edge in others else -1 for edge in edges]


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.integers(1, 40), max_size=8))
def test_no_group_makes_more_pairs_than_there_is_room_for(sizes):
    pairs = pairs_of([set(range(size)) for size in sizes])
    assert len(pairs) <= MOST_PAIRS * sum(sizes)


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.integers(0, 2**32 - 1), max_size=60))
def test_distinct_values_are_those_of_numpy(values):
    values = np.array(values + values[::3], np.uint32)
    distinct, where = find_distinct(values)
    expected, expected_where = np.unique(values, return_inverse=True)
    assert distinct.tolist() == expected.tolist() and where.tolist() == expected_where.tolist()


@settings(deadline=None)  # a kernel may be compiled first
@given(st.sets(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=40).map(sorted))
def test_the_ranks_of_pairs_are_numbered_in_their_order(edges):
    pairs = np.array([later << 32 | earlier for later, earlier in edges], np.uint64)
    packed, distinct = np.empty_like(pairs), np.empty(2 * len(pairs), np.uint32)
    later, earlier = np.empty((2, len(pairs)), np.uint32)
    pack_earlier(pairs, packed)
    packed.sort()
    distinct = distinct[: number_ranks(pairs, packed, distinct, later, earlier)]
    assert distinct.tolist() == sorted({rank for edge in edges for rank in edge})
    assert list(zip(distinct[later].tolist(), distinct[earlier].tolist(), strict=True)) == edges


def test_edges_are_the_pairs_of_the_least_similarity_and_more():
    pairs, edges = np.array([3 << 32 | 1, 4 << 32 | 0, 7 << 32 | 3], np.uint64), np.empty(3, EDGE)
    similarities = np.array([0, 0.25, 0.5], np.float32)
    count = list_edges(pairs, np.array([2, 0, 1], np.uint8), similarities, np.float32(0.25), edges)
    assert edges[:count].tolist() == [(3, 1, 0.5), (7, 3, 0.25)]


EDGES = st.dictionaries(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda pair: pair[0] > pair[1]),
    st.tuples(st.sampled_from([0.75, 0.8, 0.85, 0.95]), st.booleans()),
    max_size=40,
)


def as_arrays(edges):
    pairs = np.array(sorted(edges), np.uint32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy(), np.array([edges[pair][0] for pair in sorted(edges)], np.float32)


def run_resolve(edges):
    later, earlier, similarities = as_arrays(edges)
    states, partners = np.zeros(13, np.uint8), np.zeros(len(later), bool)
    resolve(later, earlier, similarities, states, partners)
    return states, list(zip(later[partners].tolist(), earlier[partners].tolist(), strict=True))


@settings(deadline=None)  # a kernel may be compiled first
@given(EDGES)
def test_a_document_goes_if_and_only_if_one_that_stays_is_near(edges):
    states, partners = run_resolve(edges)
    for rank in range(13):
        kept = [earlier for later, earlier in edges if later == rank and states[earlier] == KEPT]
        assert (states[rank] == DROPPED) == bool(kept)
    assert sorted(rank for rank, _ in partners) == np.flatnonzero(states == DROPPED).tolist()
    for rank, partner in partners:
        assert states[partner] == KEPT
        of_kept = [edges[pair][0] for pair in edges if pair[0] == rank and states[pair[1]] == KEPT]
        assert edges[rank, partner][0] == max(of_kept)


@settings(deadline=None)  # a kernel may be compiled first
@given(EDGES)
def test_what_estimates_leave_open_is_all_that_must_be_compared(edges):
    """Certain edges are near; of the others only those marked open are asked, and the outcome is that of asking all."""
    truth = {pair: (value, near) for pair, (value, near) in edges.items() if value > 0.9 or near}
    expected, _ = run_resolve(truth)
    later, earlier, similarities = as_arrays(edges)
    states, is_open = np.zeros(13, np.uint8), np.zeros(len(later), bool)
    judge(later, earlier, similarities > 0.9, states, is_open)
    asked = {
        pair: edges[pair]
        for pair, opened in zip(sorted(edges), is_open, strict=True)
        if edges[pair][0] > 0.9 or (opened and edges[pair][1])
    }
    found, _ = run_resolve(asked)
    assert np.array_equal(found, expected)


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_components_are_named_by_their_lowest_rank(edges):
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph([(rank, rank) for rank in range(31)] + edges)
    parents = np.arange(31, dtype=np.uint32)
    unite(np.array([max(pair) << 32 | min(pair) for pair in edges], np.uint64), parents)
    flatten(parents)
    for component in networkx.connected_components(graph):
        assert {int(parents[rank]) for rank in component} == {min(component)}


@settings(deadline=None)  # a kernel may be compiled first
@given(st.lists(st.integers(0, 9), max_size=30))
def test_equal_values_are_kept_once(values):
    array = np.sort(np.array(values, np.uint64))
    assert array[: keep_first_of_equal(array)].tolist() == sorted(set(values))


def test_witnesses_are_of_those_that_stay_where_there_are_enough():
    packed = np.array([key << 8 | rank for key, ranks in ((1, range(6)), (2, (6, 7, 8))) for rank in ranks], np.uint64)
    is_doubted, is_dropped = np.zeros(2, np.uint8), np.zeros(2, np.uint8)
    mark_ranks(np.array([1, 5, 7], np.uint32), is_doubted)
    mark_ranks(np.array([5, 7], np.uint32), is_dropped)
    found = np.zeros(20, np.uint64)
    count = list_witnesses(packed, 8, is_doubted, is_dropped, 4, 3, found)
    assert count == list_witnesses(packed, 8, is_doubted, is_dropped, 4, 3, np.empty(0, np.uint64))
    pairs = [(int(pair) >> 32, int(pair) & 0xFFFFFFFF) for pair in found[:count]]
    assert [later for later, _ in pairs] == [1, 1, 1, 5, 5, 5]  # key 2 has two that stay: too few
    assert len(set(pairs)) == 6
    assert {witness for _, witness in pairs} <= {0, 1, 2, 3, 4}
