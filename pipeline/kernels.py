"""Compiled loops over documents in flat buffers: hash them, frame them, move them. Integers only; knows no files.

A document is a slice of a flat array: bytes data[offsets[i]:offsets[i + 1]], or as many ids. Every function here is
compiled by numba on first use and kept in its cache beside this file (or in the user's cache folder, where this one is
read-only). Content hashes are XXH64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) with two seeds.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled, load_word, njit

# Two 64-bit hashes make the 128 bits by which documents are told apart: one is not enough for 10**9 documents.
HASH_SEEDS = (np.uint64(0), np.uint64(0x746F6B656E6D696C))

P1, P2, P3 = np.uint64(0x9E3779B185EBCA87), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
P4, P5 = np.uint64(0x85EBCA77C2B2AE63), np.uint64(0x27D4EB2F165667C5)


@njit(cache=True, nogil=True, inline="always")
def rotate_left(value, count):
    """A uint64 with its bits moved up, those that fall out coming in below."""
    return (value << np.uint64(count)) | (value >> np.uint64(64 - count))


@njit(cache=True, nogil=True, inline="always")
def read_u32(data, start):
    """Four bytes from data[start], the lowest first, as uint64."""
    value = np.uint64(0)
    for byte in range(4):
        value |= np.uint64(data[np.uint64(start + byte)]) << np.uint64(8 * byte)
    return value


@njit(cache=True, nogil=True, inline="always")
def mix_lane(lane, word):
    """XXH64's round: a lane with 8 more bytes."""
    return rotate_left(lane + word * P2, 31) * P1


@njit(cache=True, nogil=True, inline="always")
def merge_lane(value, lane):
    """XXH64's merge of a lane into the hash."""
    return (value ^ mix_lane(np.uint64(0), lane)) * P1 + P4


@njit(cache=True, nogil=True)
def xxh64(data, start, end, seed):
    """XXH64 of data[start:end], uint8, as uint64."""
    position = start
    if end - start >= 32:
        lane1, lane2, lane3, lane4 = seed + P1 + P2, seed + P2, seed, seed - P1
        while position + 32 <= end:
            lane1 = mix_lane(lane1, load_word(data, position))
            lane2 = mix_lane(lane2, load_word(data, position + 8))
            lane3 = mix_lane(lane3, load_word(data, position + 16))
            lane4 = mix_lane(lane4, load_word(data, position + 24))
            position += 32
        value = rotate_left(lane1, 1) + rotate_left(lane2, 7) + rotate_left(lane3, 12) + rotate_left(lane4, 18)
        value = merge_lane(merge_lane(merge_lane(merge_lane(value, lane1), lane2), lane3), lane4)
    else:
        value = seed + P5
    value += np.uint64(end - start)
    while position + 8 <= end:
        value = rotate_left(value ^ mix_lane(np.uint64(0), load_word(data, position)), 27) * P1 + P4
        position += 8
    if position + 4 <= end:
        value = rotate_left(value ^ (read_u32(data, position) * P1), 23) * P2 + P3
        position += 4
    while position < end:
        value = rotate_left(value ^ (np.uint64(data[position]) * P5), 11) * P1
        position += 1
    value = (value ^ (value >> np.uint64(33))) * P2
    value = (value ^ (value >> np.uint64(29))) * P3
    return value ^ (value >> np.uint64(32))


@njit(cache=True, nogil=True)
def hash_documents(data, offsets, seeds):
    """The content hash of each document: uint64, shape (documents, 2), one column per seed."""
    hashes = np.empty((len(offsets) - 1, 2), np.uint64)
    for document in range(len(offsets) - 1):
        for column in range(2):
            hashes[document, column] = xxh64(data, offsets[document], offsets[document + 1], seeds[column])
    return hashes


@compiled
def frame_documents(ids, offsets, bos, eos, out):
    """Copy documents of ids (uint32) into `out`, with `bos` before (none if it is negative) and `eos` after each.

    Returns the index of the first document that holds `bos` or `eos` itself, or -1, and the largest id. Such a document
    must not be kept, nor an id that does not fit into `out`.
    """
    place, one, first_bad, largest = np.uint64(0), np.uint64(1), -1, np.uint32(0)
    end_id, start_id = np.uint32(eos), np.uint32(bos if bos >= 0 else eos)
    for document in range(len(offsets) - 1):
        start = np.uint64(offsets[document])
        length = np.uint64(offsets[document + 1]) - start
        if bos >= 0:
            out[place] = bos
            place += one
        holds_control = np.uint32(0)
        # No branch and no signed index inside, which would have to be looked at for a sign: vector instructions.
        for position in range(length):
            token = ids[start + position]
            holds_control |= np.uint32(token == end_id) | np.uint32(token == start_id)
            largest = max(largest, token)
            out[place + position] = token
        if holds_control and first_bad < 0:
            first_bad = document
        place += length
        out[place] = eos
        place += one
    return first_bad, largest


def scatter_documents(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray, targets: np.ndarray, out: np.ndarray
) -> None:
    """Copy each document tokens[starts[i]:starts[i] + lengths[i]] to out[targets[i]:]; reads in the order given.

    Raises ValueError where one is not wholly inside of both.
    """
    for places, array in ((starts, tokens), (targets, out)):
        if len(places) and not 0 <= places.min() <= (places + lengths).max() <= len(array):
            raise ValueError(
                f"documents from {places.min():,} to {(places + lengths).max():,} of {len(array):,} tokens"
            )
    copy_documents(tokens, starts, lengths, targets, out)


@compiled
def copy_documents(tokens, starts, lengths, targets, out):
    """The loop of scatter_documents, which checks that nothing lies outside."""
    for document in range(len(starts)):
        start, target = np.uint64(starts[document]), np.uint64(targets[document])
        for position in range(np.uint64(lengths[document])):
            out[target + position] = tokens[start + position]
