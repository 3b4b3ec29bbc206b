"""The maths of the reading order: a keyed permutation and an exact mixture. Integers in, integers out; knows no files.

Both answer for any position at once and keep no table: reading can start anywhere, at any world size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

NUM_ROUNDS = 6
LARGEST_TOTAL_WEIGHT = 3_000_000_000  # its square fits into int64
FINEST_PARTS = 1_000_000_000

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: object) -> int:
    """A 64-bit key from readable parts, such as (seed, source, epoch): other parts, unrelated keys."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def scramble(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser of uint64 values (Steele, Lea, Flood 2014): a bijection on 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * MIX_1
    values = (values ^ (values >> np.uint64(27))) * MIX_2
    return values ^ (values >> np.uint64(31))


def permute(indices: np.ndarray, *, size: int, key: int) -> np.ndarray:
    """Where a keyed bijection of range(size) sends `indices`: int64, same shape.

    A mixed-radix Feistel network on rows x columns >= size, with less than one row too many; what lands outside
    walks on. Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
    Raises IndexError for an index outside range(size).
    """
    indices = np.asarray(indices, dtype=np.int64)
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise IndexError(f"index outside range({size})")
    rows = math.isqrt(size)
    columns = -(-size // max(rows, 1))
    result = feistel(indices, rows=rows, columns=columns, key=key)
    outside = result >= size
    while outside.any():
        result[outside] = feistel(result[outside], rows=rows, columns=columns, key=key)
        outside = result >= size
    return result


def feistel(indices: np.ndarray, *, rows: int, columns: int, key: int) -> np.ndarray:
    """One pass of the network over range(rows * columns): each round shifts one half by a hash of the other."""
    row, column = np.divmod(indices, columns)
    row, column = row.astype(np.uint64), column.astype(np.uint64)
    num_rows, num_columns = np.uint64(rows), np.uint64(columns)
    for number in range(NUM_ROUNDS):
        round_key = np.uint64((key + (number + 1) * int(GOLDEN)) % 2**64)
        if number % 2 == 0:
            row = (row + scramble(column ^ round_key) % num_rows) % num_rows
        else:
            column = (column + scramble(row ^ round_key) % num_columns) % num_columns
    return (row * num_columns + column).astype(np.int64)


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
    for source in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        if not weights[source]:
            break
        passed_on = multiply_floor(count, remaining - weights[source], remaining)
        is_mine = is_open & (multiply_floor(count + 1, remaining - weights[source], remaining) == passed_on)
        sources[is_mine] = source
        draws[is_mine] = (count - passed_on)[is_mine]
        is_open &= ~is_mine
        count = passed_on
        remaining -= weights[source]
    return sources, draws


def multiply_floor(values: np.ndarray, numerator: int, denominator: int) -> np.ndarray:
    """floor(values * numerator / denominator) without overflow, for numerator <= denominator <= 3e9."""
    quotient, remainder = np.divmod(values, denominator)
    return quotient * numerator + remainder * numerator // denominator


def count_draws(position: int, weights: Sequence[int]) -> list[int]:
    """How many of the first `position` positions each source has, exact for any size."""
    counts = [0] * len(weights)
    remaining = sum(weights)
    for source in sorted(range(len(weights)), key=lambda index: (-weights[index], index)):
        if not weights[source]:
            break
        passed_on = position * (remaining - weights[source]) // remaining
        counts[source] = position - passed_on
        position = passed_on
        remaining -= weights[source]
    return counts
