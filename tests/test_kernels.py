"""The compiled loops against the libraries and plain Python."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compiled import compiled, copy_vector, mark_at_least, mark_equal
from pipeline.kernels import HASH_SEEDS, frame_documents, hash_documents, scatter_documents

SEEDS = np.array(HASH_SEEDS)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.binary(max_size=100), max_size=5), skipped=st.integers(0, 9))
def test_content_hashes_are_xxh64_with_two_seeds(texts, skipped):
    data = np.frombuffer(b"x" * skipped + b"".join(texts), np.uint8)
    offsets = np.cumsum([skipped, *map(len, texts)])
    hashes = hash_documents(data, offsets, SEEDS)
    expected = [[xxhash.xxh64_intdigest(text, int(seed)) for seed in SEEDS] for text in texts]
    assert hashes.tolist() == expected


def frame(documents, bos, eos, dtype=np.uint16):
    ids = np.array([token for document in documents for token in document], np.uint32)
    offsets = np.cumsum([0, *map(len, documents)])
    out = np.zeros(len(ids) + len(documents) * (1 + (bos >= 0)), dtype)
    return *frame_documents(ids, offsets, bos, eos, out), out.tolist()


def test_documents_are_framed_by_the_rule():
    assert frame([[5, 6], [], [7]], 1, 2) == (-1, 7, [1, 5, 6, 2, 1, 2, 1, 7, 2])
    assert frame([[5, 6], [], [7]], -1, 2) == (-1, 7, [5, 6, 2, 2, 7, 2])
    assert frame([[70_000]], -1, 2, np.uint32) == (-1, 70_000, [70_000, 2])


def test_a_document_that_holds_a_control_id_is_found():
    assert frame([[5], [6, 2], [2]], -1, 2)[0] == 1
    assert frame([[5], [6], [1]], 1, 2)[0] == 2


def test_documents_are_scattered_to_their_targets():
    out = np.zeros(6, np.uint16)
    tokens = np.array([9, 1, 2, 3, 4, 5, 9], np.uint16)
    scatter_documents(tokens, np.array([1, 4]), np.array([3, 2], np.uint32), np.array([3, 0]), out)
    assert out.tolist() == [4, 5, 0, 1, 2, 3]


@pytest.mark.parametrize(("start", "target"), [(5, 0), (-1, 0), (0, 5), (0, -1)])
def test_documents_outside_of_their_tokens_are_refused(start, target):
    tokens, out = np.zeros(7, np.uint16), np.zeros(7, np.uint16)
    with pytest.raises(ValueError, match=r"documents from -?\d to \d of 7 tokens"):
        scatter_documents(tokens, np.array([start]), np.array([3]), np.array([target]), out)


@settings(max_examples=200, deadline=None)
@given(
    data=st.binary(min_size=64, max_size=200), byte=st.sampled_from([0, 10, 34, 127, 128, 255]), at=st.integers(0, 9)
)
def test_sixty_four_bytes_are_marked_and_copied_at_once(data, byte, at):
    array, position = np.frombuffer(bytearray(data), np.uint8), len(data) - 64
    out = np.zeros(64 + 9, np.uint8)
    equal, at_least = mark_and_copy(array, position, byte, out, at)
    window = data[position:]
    assert [bool(equal >> bit & 1) for bit in range(64)] == [found == byte for found in window]
    assert [bool(at_least >> bit & 1) for bit in range(64)] == [found >= byte for found in window]
    assert out.tobytes() == bytes(at) + window + bytes(9 - at)


@compiled
def mark_and_copy(data, position, byte, out, place):
    copy_vector(data, position, out, place)
    return mark_equal(data, position, byte), mark_at_least(data, position, byte)
