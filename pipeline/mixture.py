"""The maths of the mix: which source each position is drawn from, exact at every position. Knows no files.

A mixture is a list of segments, each with its first position and its weights: when the weights change in mid-run, every
source goes on from the draws that it has had, so nothing is read twice or left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipeline.order import groups

LARGEST_TOTAL_WEIGHT = 3_000_000_000  # its square fits into int64
FINEST_PARTS = 1_000_000_000
WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)(e-?\d\d?)?", re.ASCII)  # 0 or more, as a mix writes it


def integer_weights(weights: Sequence[float]) -> list[int]:
    """The smallest integers in the proportion of decimal `weights`, exact: [0.7, 0.3] -> [7, 3].

    Shares are rounded to one part in 10**9 where the integers would be too large; a weight above 0 stays above 0.

    Raises ValueError for weights that are negative, not finite, or all zero.
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise ValueError(f"weights must be 0 or more, and not all 0: {list(weights)}")
    fractions = [Fraction(str(weight)) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    integers = [int(fraction * denominator) for fraction in fractions]
    divisor = math.gcd(*integers)
    integers = [integer // divisor for integer in integers]
    if sum(integers) <= LARGEST_TOTAL_WEIGHT:
        return integers
    total = sum(fractions)  # finer than one part in a thousand million cannot be told apart
    return [max(round(fraction / total * FINEST_PARTS), int(fraction > 0)) for fraction in fractions]


def apportion(positions: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each position: the index of the source it is drawn from, and how many draws that source had before it.

    Both int64. Nested floors over the sources in descending weight: the counts before any position differ from the
    exact shares by less than 2 for a handful of sources, and every position belongs to exactly one source.
    """
    count = np.array(positions, dtype=np.int64)
    sources = np.full(count.shape, -1, dtype=np.int64)
    draws = np.zeros(count.shape, dtype=np.int64)
    remaining = sum(weights)
    is_open = np.ones(count.shape, dtype=bool)
    for source in descending(weights):
        passed_on = multiply_floor(count, remaining - weights[source], remaining)
        is_mine = is_open & (multiply_floor(count + 1, remaining - weights[source], remaining) == passed_on)
        sources[is_mine] = source
        draws[is_mine] = (count - passed_on)[is_mine]
        is_open &= ~is_mine
        count = passed_on
        remaining -= weights[source]
    return sources, draws


def count_draws(position: int, weights: Sequence[int]) -> list[int]:
    """How many of the first `position` positions each source has, exact for any size."""
    counts = [0] * len(weights)
    remaining = sum(weights)
    for source in descending(weights):
        passed_on = position * (remaining - weights[source]) // remaining
        counts[source] = position - passed_on
        position = passed_on
        remaining -= weights[source]
    return counts


def descending(weights: Sequence[int]) -> list[int]:
    """The indices of the weights above 0, the largest first, equal ones in their order."""
    return sorted((index for index, weight in enumerate(weights) if weight), key=lambda index: -weights[index])


def multiply_floor(values: np.ndarray, numerator: int, denominator: int) -> np.ndarray:
    """floor(values * numerator / denominator) without overflow, for numerator <= denominator <= 3e9."""
    quotient, remainder = np.divmod(values, denominator)
    return quotient * numerator + remainder * numerator // denominator


@dataclass(frozen=True)
class Segment:
    """The weights from one position on."""

    start: int
    mix: dict[str, float]  # as given, for a state
    names: tuple[str, ...]  # sorted, so that how a mix is written changes nothing
    weights: tuple[int, ...]
    draws_before: tuple[int, ...]  # of each source, before `start`


class Mixture:
    """Which source a position is drawn from, and how often that source was drawn before. Never changes: see `then`."""

    def __init__(self, mix: Mapping[str, float]):
        self.segments = (self._segment(0, mix, {}),)

    @staticmethod
    def _segment(start: int, mix: Mapping[str, float], draws: Mapping[str, int]) -> Segment:
        names = tuple(sorted({*mix, *draws}))
        try:
            weights = integer_weights([mix.get(name, 0) for name in names])
        except ValueError as error:
            raise ValueError(f"mix {dict(mix)}: {error}") from None
        return Segment(start, dict(mix), names, tuple(weights), tuple(draws.get(name, 0) for name in names))

    def then(self, start: int, mix: Mapping[str, float]) -> Mixture:
        """This mixture up to position `start`, and other weights from there on.

        Raises ValueError where the weights changed after `start` before.
        """
        last = self.segments[-1]
        if start < last.start:
            raise ValueError(f"the mix cannot change at position {start:,}: it changed at {last.start:,} already")
        changed = Mixture.__new__(Mixture)
        kept = self.segments if start > last.start else self.segments[:-1]
        draws = self.counts(start) if start else {}
        changed.segments = (*kept, self._segment(start, mix, draws))
        return changed

    def describe(self) -> list[list]:
        """The first position and the mix of each segment, for JSON: what `rebuild` takes."""
        return [[segment.start, segment.mix] for segment in self.segments]

    @classmethod
    def rebuild(cls, described: Sequence[Sequence]) -> Mixture:
        """The mixture of a description."""
        (_, first), *others = described
        mixture = cls(first)
        for start, mix in others:
            mixture = mixture.then(start, mix)
        return mixture

    @property
    def names(self) -> tuple[str, ...]:
        """Every source that has a weight, or had one."""
        return self.segments[-1].names

    def counts(self, position: int) -> dict[str, int]:
        """How often each source is drawn in the first `position` positions."""
        segment = next(segment for segment in reversed(self.segments) if segment.start <= position)
        draws = count_draws(position - segment.start, segment.weights)
        counted = zip(segment.names, segment.draws_before, draws, strict=True)
        return {name: before + count for name, before, count in counted}

    def draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position (int64): the index in `names` of its source, and that source's draws before it."""
        starts = np.array([segment.start for segment in self.segments])
        numbers = np.searchsorted(starts, positions, side="right") - 1
        sources, draws = np.empty_like(positions), np.empty_like(positions)
        for number, chosen in groups(numbers):
            segment = self.segments[number]
            index, count = apportion(positions[chosen] - segment.start, segment.weights)
            sources[chosen] = np.array([self.names.index(name) for name in segment.names])[index]
            draws[chosen] = count + np.array(segment.draws_before)[index]
        return sources, draws


def parse_weights(text: str, *, known: Collection[str]) -> dict[str, float]:
    """A mix from "web:0.7,code:0.3", in the order of `known` and without those of weight 0: however it is written, its
    sources have the same numbers. Raises ValueError.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        source, _, weight = (word.strip() for word in part.rpartition(":"))
        if not source or not WEIGHT.fullmatch(weight):
            raise ValueError(
                f"mix {text!r}: {part!r} is not source:weight with a weight of 0 or more; a mix with a name of its own"
                " is known to pipeline/build.py alone, and a dataset's own mix needs to be named nowhere"
            )
        if source in mix:
            raise ValueError(f"mix {text!r}: the source {source!r} is there twice; name each once")
        mix[source] = float(weight)
    if not any(mix.values()):
        raise ValueError(f"mix {text!r}: every weight is 0; at least one source must be drawn")
    # One that is not known stays, so that it is refused.
    left_out = {source for source, weight in mix.items() if source in known and not weight}
    return {source: mix[source] for source in dict.fromkeys([*known, *mix]) if source in mix and source not in left_out}
