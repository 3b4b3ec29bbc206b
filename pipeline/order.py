"""The maths of the reading order: keyed permutations of any size. Integers in, integers out; knows no files.

They answer for any index at once and keep no table, so reading can start anywhere, at any world size. What they return
is part of the format: a seed means the same order on every machine and in every version (`tests/test_order.py` holds
known answers).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

NUM_ROUNDS = 6
LARGEST_SIZE = 1 << 62  # both halves of an index then fit into 32 bits
CHUNK = 8192  # indices at a time: the work arrays stay in the processor's cache

BLOCK_SAMPLES = 64
POOL_BLOCKS = 1024

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = np.array(0xBF58476D1CE4E5B9, np.uint64)
MIX_2 = np.array(0x94D049BB133111EB, np.uint64)
HALF = np.array(32, np.uint64)
"""Arrays without a dimension: with a scalar each call of numpy takes half as long again, and a short batch is calls."""


def derive_key(*parts: object) -> int:
    """A 64-bit key from readable parts, such as (seed, source, epoch): other parts, unrelated keys."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def scramble(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser of uint64 values (Steele, Lea, Flood 2014): a bijection on 64 bits."""
    values = values ^ (values >> np.uint64(30))
    values *= MIX_1
    values ^= values >> np.uint64(27)
    values *= MIX_2
    values ^= values >> np.uint64(31)
    return values


def permute(indices: np.ndarray, *, size: int, key: int, inverse: bool = False) -> np.ndarray:
    """Where a keyed bijection of range(size) sends `indices`, or whence they came: int64, same shape.

    A mixed-radix Feistel network on rows x columns >= size, with less than one row too many; what lands outside
    walks on. Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
    Raises IndexError for an index outside range(size), ValueError for a size over 2**62.
    """
    indices = np.asarray(indices, dtype=np.int64)
    if size > LARGEST_SIZE:
        raise ValueError(f"cannot permute {size:,} indices, at most {LARGEST_SIZE:,}")
    _refuse_outside(indices, size)
    if not indices.size:
        return indices.copy()
    rows = math.isqrt(size)
    shape = (rows, -(-size // rows))
    result = _walk(indices.reshape(-1), shape=shape, key=key, inverse=inverse)
    outside = np.flatnonzero(result >= size) if result.max() >= size else ()
    while len(outside):
        result[outside] = _walk(result[outside], shape=shape, key=key, inverse=inverse)
        outside = outside[result[outside] >= size]
    return result.reshape(indices.shape)


def _refuse_outside(indices: np.ndarray, size: int) -> None:
    """Raises IndexError for an index (int64) outside range(size); as uint64 a negative one is huge."""
    if indices.size and indices.view(np.uint64).max() >= size:
        raise IndexError(f"index outside range({size})")


def _walk(indices: np.ndarray, *, shape: tuple[int, int], key: int, inverse: bool) -> np.ndarray:
    """One pass of the network over range(rows * columns) for a flat array of indices."""
    if len(indices) <= CHUNK:
        return _feistel(indices, shape=shape, key=key, inverse=inverse)
    result = np.empty(len(indices), dtype=np.int64)
    for start in range(0, len(indices), CHUNK):
        chunk = slice(start, start + CHUNK)
        result[chunk] = _feistel(indices[chunk], shape=shape, key=key, inverse=inverse)
    return result


def _feistel(indices: np.ndarray, *, shape: tuple[int, int], key: int, inverse: bool) -> np.ndarray:
    """Each round shifts one half by a hash of the other; backwards, the rounds are undone in turn."""
    sizes = [np.array(size, dtype=np.uint64) for size in shape]
    row = indices.view(np.uint64) // sizes[1]
    column = indices.view(np.uint64) - row * sizes[1]
    halves, shift, keys = (row, column), np.empty_like(row), _round_keys(key)
    move, wrap = (np.subtract, np.add) if inverse else (np.add, np.subtract)
    rounds = range(NUM_ROUNDS)
    for number in reversed(rounds) if inverse else rounds:
        moved, size = halves[number % 2], sizes[number % 2]
        _hash_half(halves[1 - number % 2], keys[number], out=shift)
        shift *= size  # the hash times the size, over 2**32: within range(size), and no division
        shift >>= HALF
        move(moved, shift, out=moved)
        # Past either end of range(size) uint64 wraps to something huge, or the other of the two is larger.
        np.minimum(moved, wrap(moved, size, out=shift), out=moved)
    row *= sizes[1]
    row += column
    return row.view(np.int64)


@lru_cache(maxsize=64)
def _round_keys(key: int) -> list[np.ndarray]:
    """The keys of the rounds, each an array without a dimension."""
    return [np.array((key + (number + 1) * GOLDEN) % 2**64, dtype=np.uint64) for number in range(NUM_ROUNDS)]


def _hash_half(half: np.ndarray, round_key: np.ndarray, *, out: np.ndarray) -> None:
    """32 bits of hash, as uint64, for values below 2**32: the two multiplications of splitmix64."""
    np.bitwise_xor(half, round_key, out=out)
    out *= MIX_1
    out ^= out >> HALF
    out *= MIX_2
    out >>= HALF


def permute_blocks(indices: np.ndarray, *, size: int, key: int, inverse: bool = False) -> np.ndarray:
    """As permute, but neighbours stay near: for storage where a random read costs more than a long one.

    Blocks of 64 neighbours are permuted; each 1,024 blocks in the new order are a pool, and within a pool all
    samples are permuted. So the 65,536 samples of a pool are 1,024 contiguous reads. What fills no block comes last.
    """
    indices = np.asarray(indices, dtype=np.int64)
    _refuse_outside(indices, size)
    num_blocks = size // BLOCK_SAMPLES
    first_rest = num_blocks * BLOCK_SAMPLES
    in_blocks = indices < first_rest
    result = np.empty_like(indices)
    steps = [_permute_in_pools, _permute_whole_blocks]
    inside = indices[in_blocks]
    for step in reversed(steps) if inverse else steps:
        inside = step(inside, num_blocks=num_blocks, key=key, inverse=inverse)
    result[in_blocks] = inside
    if len(inside) < indices.size:
        rest, tail_key = indices[~in_blocks] - first_rest, derive_key(key, "tail")
        result[~in_blocks] = first_rest + permute(rest, size=size - first_rest, key=tail_key, inverse=inverse)
    return result


def _permute_whole_blocks(indices: np.ndarray, *, num_blocks: int, key: int, inverse: bool) -> np.ndarray:
    block = indices // BLOCK_SAMPLES
    moved = permute(block, size=num_blocks, key=derive_key(key, "blocks"), inverse=inverse)
    return indices + (moved - block) * BLOCK_SAMPLES


def _permute_in_pools(indices: np.ndarray, *, num_blocks: int, key: int, inverse: bool) -> np.ndarray:
    pool_samples = POOL_BLOCKS * BLOCK_SAMPLES
    pools = indices // pool_samples
    result = np.empty_like(indices)
    for pool, chosen in groups(pools):
        first = pool * pool_samples
        size = min(pool_samples, num_blocks * BLOCK_SAMPLES - first)
        pool_key = derive_key(key, "pool", pool)
        result[chosen] = first + permute(indices[chosen] - first, size=size, key=pool_key, inverse=inverse)
    return result


def groups(values: np.ndarray) -> Iterator[tuple[int, slice | np.ndarray]]:
    """Each value of a flat integer array, ascending, and where it stands; at once where all are equal, as they mostly
    are."""
    if len(values) and (values == values[0]).all():
        yield int(values[0]), slice(None)
        return
    for value in np.unique(values).tolist():
        yield value, np.flatnonzero(values == value)
