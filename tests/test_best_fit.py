"""Best-fit packing: no document is cut needlessly, no target lost, little padding; the index is made once."""

import fcntl
import json
import pickle
import resource
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_fixtures import EOS, random_documents, split_documents, write_dataset

from pipeline import packing_index
from pipeline.best_fit import assign_bins, first_room
from pipeline.dataset import PackedDataset
from pipeline.packing import PackingArguments, make_indexes
from pipeline.packing_index import pack_pool, write_index

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


@pytest.fixture
def packed(tmp_path):
    """A dataset, and how it is opened."""
    folder = write_dataset(tmp_path / "packed", {"web": [random_documents(100, seed=3)]})
    return lambda cache: PackedDataset(folder, seq_len=16, packing="best-fit", cache=cache)


def test_of_several_that_want_an_index_one_makes_it(packed, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        packing_index, "write_index", lambda *args, **more: made.append(args) or write_index(*args, **more)
    )
    start = threading.Barrier(8)

    def open_it(_):
        start.wait()
        return packed(tmp_path / "cache").samples(range(20))

    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(open_it, range(8)))
    assert len(made) == 1 and all(np.array_equal(each, read[0]) for each in read)


def test_a_builder_that_is_killed_leaves_its_work_to_who_waits(packed, tmp_path):
    packed(tmp_path / "cache")
    (index,) = (tmp_path / "cache").glob("*/index.json")
    index.unlink()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from pipeline.storage import locked;"
        "lock = locked(Path(sys.argv[2])); lock.__enter__(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY), str(index.parent)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as builder,
        ThreadPoolExecutor(1) as pool,
    ):
        assert builder.stdout.readline() == b"held\n"
        with open(index.parent.with_name(f".{index.parent.name}.lock")) as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiting = pool.submit(packed, tmp_path / "cache")
        builder.kill()
        assert waiting.result(timeout=30).samples(range(20)).shape == (20, 17)


def test_without_a_cache_the_index_is_held_in_memory_and_that_is_said(packed, tmp_path):
    expected = packed(tmp_path / "cache").samples(range(40))
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"file/cache/.*: Not a directory, so no best-fit index .* holds about 16 bytes"
    ):
        dataset = packed(tmp_path / "file/cache")
    assert np.array_equal(pickle.loads(pickle.dumps(dataset)).samples(range(40)), expected)


def test_a_full_disk_leaves_no_half_an_index(packed, tmp_path):
    expected = packed(tmp_path / "cache").samples(range(40))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"u64: File too large, so no best-fit index can be kept there"):
            dataset = packed(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert np.array_equal(dataset.samples(range(40)), expected)
    assert not [path for path in (tmp_path / "full").rglob("*") if path.is_file() and path.stat().st_size]


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
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"file/.*: Not a directory, so no best-fit index can be kept there"):
        make_indexes(PackingArguments(folder, seq_len=32, cache=tmp_path / "file"))
