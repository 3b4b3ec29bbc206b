"""The permutation is a bijection and the mixture is exact, for any size and any position."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import apportion, count_draws, derive_key, integer_weights, multiply_floor, permute

KEYS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("size", [*range(1, 70), 100, 255, 256, 257, 4095, 4097, 65_536, 65_537, 99_991, 262_145])
def test_the_permutation_is_a_bijection(size):
    assert np.array_equal(np.sort(permute(np.arange(size), size=size, key=size)), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 2**40), key=KEYS, data=st.data())
def test_the_permutation_stays_in_range_and_keeps_indices_apart(size, key, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50))
    sent = permute(np.array(indices, np.int64), size=size, key=key)
    assert len(set(sent.tolist())) == len(indices)
    assert all(0 <= index < size for index in sent)


def test_the_permutation_mixes_and_depends_on_its_key():
    first, second = (permute(np.arange(10_000), size=10_000, key=key) for key in (1, 2))
    assert (first == second).mean() < 0.002
    assert abs(np.corrcoef(np.arange(10_000), first)[0, 1]) < 0.05
    differences = np.bincount(np.diff(first) % 10_000)
    assert differences.max() <= 10  # of 9,999 random differences, one occurs 7 or 8 times


def test_an_index_outside_the_range_is_refused():
    for index in (-1, 5):
        with pytest.raises(IndexError):
            permute(np.array([index]), size=5, key=0)


def test_keys_of_neighbouring_seeds_and_epochs_differ():
    assert len({derive_key(seed, "a", epoch) for seed in range(30) for epoch in range(30)}) == 900


def test_weights_become_exact_integers():
    assert integer_weights([0.7, 0.3]) == [7, 3]
    assert integer_weights([0.693584, 0.306416]) == [43349, 19151]
    assert integer_weights([1, 0, 3]) == [1, 0, 3]
    assert integer_weights([1 / 3, 2 / 3]) == [1, 2]


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
def test_weights_without_a_meaning_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 0 or more"):
        integer_weights(weights)


WEIGHTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any)


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, start=st.integers(0, 2**41))
def test_every_position_belongs_to_one_source_and_counts_rise_by_one(weights, start):
    positions = np.arange(start, start + 200)
    sources, draws = apportion(positions, weights)
    for position, source, draw in zip(positions.tolist(), sources.tolist(), draws.tolist(), strict=True):
        before, after = count_draws(position, weights), count_draws(position + 1, weights)
        assert before[source] == draw
        assert [b - a for a, b in zip(before, after, strict=True)] == [int(i == source) for i in range(len(weights))]


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, position=st.integers(0, 10**12))
def test_counts_follow_the_weights(weights, position):
    total = sum(weights)
    for count, weight in zip(count_draws(position, weights), weights, strict=True):
        assert abs(count - Fraction(position * weight, total)) < 4


@given(value=st.integers(0, 2**62), denominator=st.integers(1, 3_000_000_000), share=st.floats(0, 1, allow_nan=False))
def test_multiply_floor_does_not_overflow(value, denominator, share):
    numerator = int(share * denominator)
    assert multiply_floor(np.array([value]), numerator, denominator)[0] == value * numerator // denominator
