"""Best-fit packing: no document is cut needlessly, no target lost, little padding; the index is made once."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_fixtures import EOS, random_documents, split_documents, write_dataset

from pipeline.best_fit import assign_bins, first_room
from pipeline.dataset import PackedDataset
from pipeline.packing_index import pack_pool

LENGTHS = st.lists(st.integers(1, 100), max_size=80)


def assign_slowly(lengths, seq_len):
    """Best-fit decreasing as a book has it: the longest first, into the fullest bin that has room."""
    rooms, bins = [], [None] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [room for room in rooms if room >= lengths[index]]
        if fitting:
            chosen = rooms.index(min(fitting))
        else:
            chosen = len(rooms)
            rooms.append(seq_len)
        rooms[chosen] -= lengths[index]
        bins[index] = chosen
    return sorted(rooms)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(100, 300))
def test_bins_are_as_full_as_by_the_definition(lengths, seq_len):
    bins, num_bins = assign_bins(np.array(lengths, np.int64), seq_len)
    filled = np.bincount(bins, weights=lengths, minlength=num_bins) if lengths else np.empty(0)
    assert sorted((seq_len - filled).tolist()) == assign_slowly(lengths, seq_len)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seq_len=st.integers(1, 130), key=st.integers(0, 2**64 - 1))
def test_every_target_is_in_one_piece_and_no_document_is_cut_needlessly(lengths, seq_len, key):
    pool = pack_pool(np.array(lengths, np.int64), 1000, seq_len=seq_len, key=key)
    ends = 1000 + np.cumsum([0, *lengths])
    targets = []
    for start, length in zip(pool["starts"].tolist(), pool["lengths"].tolist(), strict=True):
        targets += range(start + 1, start + length)
        document = int(np.searchsorted(ends, start, side="right")) - 1
        assert length == min(seq_len + 1, ends[document + 1] - start)
        assert (start - ends[document]) % seq_len == 0
    assert sorted(targets) == [token for start, end in pairwise(ends.tolist()) for token in range(start + 1, end)]
    edges = np.cumsum([0, *pool["counts"].tolist()])
    for first, last in pairwise(edges.tolist()):
        assert last > first and np.minimum(pool["lengths"][first:last], seq_len).sum() <= seq_len


def test_room_is_found_in_any_word():
    words = np.zeros(40, np.uint64)
    for room in (0, 63, 64, 1000, 2559):
        words[room >> 6] |= np.uint64(1) << np.uint64(room & 63)
    found = {length: first_room(words, length) for length in (0, 1, 63, 64, 65, 1001, 2559)}
    assert found == {0: 0, 1: 63, 63: 63, 64: 64, 65: 1000, 1001: 2559, 2559: 2559}
    assert first_room(np.zeros(3, np.uint64), 5) == -1


@pytest.mark.parametrize(("mean", "sigma"), [(1060, 1.2), (1500, 1.4), (500, 1.0)])
def test_a_pool_of_web_like_or_code_like_documents_has_hardly_any_padding(mean, sigma):
    lengths = np.random.default_rng(0).lognormal(np.log(mean) - sigma**2 / 2, sigma, 100_000).astype(np.int64) + 2
    pool = pack_pool(lengths, 0, seq_len=2048, key=1)
    real = np.minimum(pool["lengths"], 2048).sum() / (len(pool["counts"]) * 2048)
    assert real >= 0.999


def test_a_sample_is_whole_documents_then_padding(tmp_path):
    documents = random_documents(300, seed=1, longest=70)
    folder = write_dataset(tmp_path / "packed", {"web": split_documents(documents, 3)})
    dataset = PackedDataset(folder, seq_len=32, packing="best-fit", cache=tmp_path / "cache")
    framed = {(*document, EOS) for document in documents}
    whole = 0
    for position in range(len(dataset)):
        tokens, parts = dataset.sample(position), dataset.documents(position)
        assert parts.ends[-1] == 32 and (np.diff(parts.ends) > 0).all()
        for start, end in pairwise([0, *parts.ends.tolist()]):
            has_target = parts.has_target[start:end]
            assert parts.positions[start:end].tolist() == list(range(end - start))
            if not has_target.any():
                assert (tokens[start:] == EOS).all() and end == 32  # padding
            elif not has_target.all():
                assert has_target.tolist() == [True] * (end - start - 1) + [False] and tokens[end - 1] == EOS
                whole += tuple(tokens[start:end].tolist()) in framed
            else:
                assert (start, end) == (0, 32)
    assert whole == sum(len(document) + 1 <= 32 for document in documents)
    batch, ends = dataset.samples_with_ends(range(40))
    masks = dataset.target_masks(range(40))
    assert all(np.array_equal(ends[row], dataset.document_ends(row)) for row in range(40))
    assert all(np.array_equal(masks[row], dataset.documents(row).has_target) for row in range(40))
    assert np.array_equal(batch[7], dataset.sample(7))


def test_pools_do_not_depend_on_how_documents_are_spread_over_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.packing_index.POOL_DOCUMENTS", 40)
    documents = random_documents(230, seed=2)
    read = []
    for number in (1, 5):
        shards = [documents[first : first + 230 // number] for first in range(0, 230, 230 // number)]
        folder = write_dataset(tmp_path / str(number), {"web": shards})
        dataset = PackedDataset(folder, seq_len=50, packing="best-fit", cache=tmp_path / "cache")
        read.append(dataset.samples(range(len(dataset))))
    assert np.array_equal(*read)


def test_an_index_that_is_not_whole_is_made_again(tmp_path):
    folder = write_dataset(tmp_path / "packed", {"web": [random_documents(100, seed=3)]})
    settings = {"seq_len": 16, "packing": "best-fit", "cache": tmp_path / "cache"}
    expected = PackedDataset(folder, **settings).samples(range(20))
    (index,) = (tmp_path / "cache").glob("*/index.json")
    index.unlink()
    (index.parent / "bins.u64").write_bytes(b"half")
    assert np.array_equal(PackedDataset(folder, **settings).samples(range(20)), expected)
    (index.parent / "bins.u64").write_bytes(b"half")
    assert np.array_equal(PackedDataset(folder, **settings).samples(range(20)), expected)
    with pytest.raises(ValueError, match="seq_len 1,048,575 is too long for best-fit packing"):
        PackedDataset(folder, **{**settings, "seq_len": 1_048_575})


def test_the_command_says_what_packing_does_and_where_it_wastes(tmp_path):
    folder = write_dataset(tmp_path / "packed", {"web": [[[5] * 19] * 50]})
    command = [sys.executable, str(REPOSITORY / "pipeline/packing.py"), str(folder), "--cache", str(tmp_path / "cache")]
    result = subprocess.run([*command, "--seq-len", "32"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "62.5000%" in result.stdout and "600 of 1,600 inputs are padding" in result.stdout
    (index,) = (tmp_path / "cache").glob("*/index.json")
    assert json.loads(index.read_text())["num_bins"] == 50
    result = subprocess.run([*command, "--seq-len", "32", "--split", "test"], capture_output=True, text=True)
    assert result.returncode == 1 and "has no split 'test': it has train" in result.stderr
