"""The mixture is exact at every position, for any weights and any position, and goes on when weights change."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.mixture import Mixture, apportion, count_draws, integer_weights, multiply_floor, parse_weights


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


MIXES = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 50), min_size=1).filter(lambda mix: any(mix.values()))


@settings(max_examples=60, deadline=None)
@given(mixes=st.lists(MIXES, min_size=1, max_size=4), steps=st.lists(st.integers(0, 40), min_size=4, max_size=4))
def test_every_source_goes_on_where_it_was_when_weights_change(mixes, steps):
    mixture = Mixture(mixes[0])
    start = 0
    for mix, step in zip(mixes[1:], steps, strict=False):
        start += step
        mixture = mixture.then(start, mix)
    positions = np.arange(start + 60)
    sources, draws = mixture.draws(positions)
    for index, name in enumerate(mixture.names):
        assert draws[sources == index].tolist() == list(range((sources == index).sum()))
        assert mixture.counts(len(positions))[name] == (sources == index).sum()
    again = Mixture.rebuild(mixture.describe())
    assert np.array_equal(again.draws(positions), (sources, draws))


def test_how_a_mix_is_written_changes_nothing():
    first, second = Mixture({"b": 0.5, "a": 0.5}), Mixture({"a": 1, "b": 1})
    assert np.array_equal(first.draws(np.arange(100)), second.draws(np.arange(100)))


def test_a_mix_is_read_in_the_order_of_the_dataset_without_what_weighs_nothing():
    assert list(parse_weights("b:0.7, a:0.3,c:0,new:0", known=["a", "b", "c"]).items()) == [
        ("a", 0.3),
        ("b", 0.7),
        ("new", 0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slimpajama:0.7,starcoder", "'starcoder' is not source:weight"),
        ("tinyllama", "a mix with a name of its own is known to pipeline/build.py alone"),
        ("", "'' is not source:weight"),
        (":1", "':1' is not source:weight"),
        ("prose:1,", "'' is not source:weight"),
        ("prose:nan", "'prose:nan' is not source:weight"),
        ("prose:inf", "'prose:inf' is not source:weight"),
        ("prose:-1,code:2", "'prose:-1' is not source:weight"),
        ("prose:1_0", "'prose:1_0' is not source:weight"),
        ("prose:1,prose:2", "the source 'prose' is there twice"),
        ("prose:0", "every weight is 0"),
    ],
)
def test_a_bad_mix_is_refused_with_its_part(text, message):
    with pytest.raises(ValueError, match=message):
        parse_weights(text, known=["prose", "code"])
