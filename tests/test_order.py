"""The permutations are bijections of any size, mix well, and never change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import BLOCK_SAMPLES, POOL_BLOCKS, derive_key, permute, permute_blocks

KEYS = st.integers(0, 2**64 - 1)
PERMUTATIONS = (permute, permute_blocks)
AROUND_POWERS = [2**power + more for power in range(1, 41) for more in (-1, 0, 1)]


def is_bijection(permutation, size):
    indices = np.arange(size)
    sent = permutation(indices, size=size, key=size)
    return np.array_equal(np.sort(sent), indices) and np.array_equal(
        permutation(sent, size=size, key=size, inverse=True), indices
    )


@pytest.mark.parametrize("permutation", PERMUTATIONS)
@pytest.mark.parametrize("size", [*range(1, 70), 100, 255, 256, 257, 4095, 4097, 65_536, 65_537, 99_991, 262_145])
def test_the_permutation_is_a_bijection(permutation, size):
    assert is_bijection(permutation, size)


@pytest.mark.long
@pytest.mark.parametrize("permutation", PERMUTATIONS)
def test_the_permutation_is_a_bijection_at_every_size_up_to_5000(permutation):
    assert [size for size in range(1, 5001) if not is_bijection(permutation, size)] == []


@pytest.mark.parametrize(("permutation", "count"), [(permute, 200), (permute_blocks, 8)])
def test_the_permutation_goes_back_around_every_power_of_two(permutation, count):
    for size in AROUND_POWERS:
        indices = np.unique([0, size - 1, size // 2, *np.random.default_rng(size).integers(0, size, count)])
        sent = permutation(indices, size=size, key=size)
        assert sent.min() >= 0 and sent.max() < size
        assert np.array_equal(permutation(sent, size=size, key=size, inverse=True), indices)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 2**40), key=KEYS, data=st.data())
def test_the_permutation_stays_in_range_and_keeps_indices_apart(size, key, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=20))
    for permutation in PERMUTATIONS:
        sent = permutation(np.array(indices, np.int64), size=size, key=key)
        assert len(set(sent.tolist())) == len(indices)
        assert all(0 <= index < size for index in sent)


def test_the_order_of_a_seed_never_changes():
    assert permute(np.arange(10), size=10, key=1).tolist() == [5, 8, 6, 7, 0, 3, 9, 2, 4, 1]
    assert permute(np.array([0, 1, 2, 10**6 - 1]), size=10**6, key=42).tolist() == [254496, 474198, 108492, 132656]
    assert permute(np.array([0, 1, 2**40]), size=2**40 + 1, key=2**63).tolist() == [
        291807211241,
        65706804694,
        820192368246,
    ]
    assert permute_blocks(np.array([0, 1, 2, 99_999]), size=100_000, key=7).tolist() == [25168, 22950, 68829, 99982]
    assert derive_key(0, "web", 1) == 6122404313484654150


def test_a_pool_of_the_block_order_is_whole_blocks():
    pool = BLOCK_SAMPLES * POOL_BLOCKS
    size = 5 * pool + 1000
    for first in range(0, 5 * pool, pool):
        sent = permute_blocks(np.arange(first, first + pool), size=size, key=3)
        blocks, counts = np.unique(sent // BLOCK_SAMPLES, return_counts=True)
        assert len(blocks) == POOL_BLOCKS and (counts == BLOCK_SAMPLES).all()
        assert np.diff(blocks).max() > 10  # they come from everywhere
        assert (np.diff(sent) == 1).mean() < 0.01


@pytest.mark.parametrize("size", [10_000, 99_991, 262_145, 1_000_003])
def test_differences_of_neighbours_are_as_frequent_as_by_chance(size):
    differences = np.bincount(np.diff(permute(np.arange(size), size=size, key=size)) % size, minlength=size)
    assert differences.max() <= 11  # by chance one occurs 7 to 9 times
    assert abs((differences == 0).mean() - np.exp(-1)) < 0.006


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
