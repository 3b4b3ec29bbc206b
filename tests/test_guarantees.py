"""The guarantees G1 to G8 of reading: each is a test with its name, for both packings and both shuffles."""

import json
import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from reader_fixtures import random_documents, split_documents, write_dataset
from torch.utils.data import DataLoader, Dataset

from pipeline.dataset import PackedDataset

SEQ_LEN = 24
WORLD_SIZES = (1, 2, 3, 8, 64)
WORKERS = (0, 1, 4, 16)
BATCH = 192  # samples per global batch: a multiple of every world size
WAYS = [(packing, shuffle) for packing in ("concat", "best-fit") for shuffle in ("global", "block")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sources of several shards, in unequal shares, and a cache for best-fit indexes."""
    folder = tmp_path_factory.mktemp("guarantees") / "packed"
    counts = {"web": (900, 4), "code": (500, 3), "books": (150, 2)}
    sources = {
        name: split_documents(random_documents(documents, seed=number), shards)
        for number, (name, (documents, shards)) in enumerate(counts.items())
    }
    return write_dataset(folder, sources, mix={"web": 0.6, "code": 0.3, "books": 0.1})


@pytest.fixture
def opened(folder):
    def open_dataset(way=WAYS[0], path=folder, **settings):
        packing, shuffle = way
        settings = {"seq_len": SEQ_LEN, "seed": 3, "cache": folder.parent / "cache", **settings}
        return PackedDataset(path, packing=packing, shuffle=shuffle, **settings)

    return open_dataset


def read_as_ranks(dataset, batch, world_size):
    """Global batch number `batch` as so many ranks read it, each a slice of its positions, put together again."""
    positions = np.arange(batch * BATCH, (batch + 1) * BATCH)
    return np.concatenate([dataset.samples(part) for part in np.split(positions, world_size)])


@pytest.mark.parametrize("way", WAYS)
def test_g1_every_epoch_of_a_source_visits_every_sample_once(opened, way):
    dataset = opened(way)
    for name, source in dataset.windows.items():
        last = int(source.num_draws(26) / dataset.weights[dataset.sources.index(name)]) + 20
        located = dataset.locate(np.arange(last))
        mine = located.sources == dataset.sources.index(name)
        for epoch in (0, 1, 23, 24, 25):  # there are 24 phases
            visited = located.samples[mine & (located.epochs == epoch)]
            assert sorted(visited.tolist()) == list(range(source.num_samples(epoch)))


def test_g1_the_windows_of_an_epoch_cover_their_shards(opened):
    dataset = opened()
    for source in dataset.windows.values():
        for epoch in (0, 7):
            phase = source.phase(epoch)
            assert (phase == 0) == (epoch == 0)
            for shard, num_tokens in enumerate(source.num_tokens_of.tolist()):
                first, last = source.first_windows(epoch)[shard : shard + 2].tolist()
                tokens = np.concatenate([source.view(epoch, window)[:-1] for window in range(first, last)])
                assert np.array_equal(tokens, source.tokens(shard).view(phase, phase + len(tokens)))
                assert num_tokens - phase - len(tokens) - 1 < SEQ_LEN
    assert len({dataset.windows["web"].phase(epoch) for epoch in range(SEQ_LEN)}) == SEQ_LEN


def test_g1_every_target_of_every_document_is_in_one_bin(opened):
    dataset = opened(("best-fit", "global"))
    for source in dataset.windows.values():
        found = []
        pieces = source.pieces(np.arange(source.num_windows))
        for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True):
            found += range(start + 1, start + length)
        ends = np.concatenate(
            [source.ends(shard).view(0, len(source.ends(shard))) for shard in range(len(source.shards))]
        )
        offsets = np.repeat(source.first_tokens[:-1], [shard["documents"] for shard in source.shards])
        ends = ends.astype(np.int64) + offsets
        firsts = {0, *ends.tolist()}  # the first token of a document is nobody's target
        assert sorted(found) == [token for token in range(source.num_tokens) if token not in firsts]


@pytest.mark.parametrize("way", WAYS)
def test_g2_a_global_batch_is_the_same_at_every_world_size(opened, way):
    for batch in (0, 1, 17):
        expected = read_as_ranks(opened(way), batch, 1)
        for world_size in WORLD_SIZES:
            assert np.array_equal(read_as_ranks(opened(way), batch, world_size), expected)


class AllWays(Dataset):
    """The datasets of all ways as one, so that the same workers read them all: (way, position) -> sample."""

    def __init__(self, datasets):
        self.datasets = datasets

    def __getitems__(self, indices):
        ((way, _), *_) = indices
        return self.datasets[way].__getitems__([position for _, position in indices])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", WORKERS)
def test_g2_a_global_batch_is_the_same_at_every_world_size_with_any_number_of_workers(opened, num_workers):
    datasets = [opened(way) for way in WAYS]
    positions = np.arange(BATCH, 2 * BATCH)
    parts = [
        [(way, int(position)) for position in part]
        for way in range(len(WAYS))
        for world_size in WORLD_SIZES
        for part in np.split(positions, world_size)
    ]
    read = torch.cat(list(DataLoader(AllWays(datasets), batch_sampler=parts, num_workers=num_workers))).numpy()
    expected = np.concatenate([np.tile(opened(way).samples(positions), (len(WORLD_SIZES), 1)) for way in WAYS])
    assert np.array_equal(read, expected)


@pytest.mark.parametrize("way", WAYS)
def test_g3_resuming_is_one_number_at_any_world_and_batch_size(opened, way):
    whole = opened(way).samples(range(3000))
    first = opened(way)
    first.read(1111)
    state = json.loads(json.dumps(first.state()))
    for batch_size in (1, 7, 64):
        again = opened(way)
        again.restore(state)
        parts = [again.read(batch_size) for _ in range(20)]
        assert np.array_equal(np.concatenate(parts), whole[1111 : 1111 + 20 * batch_size])
    for world_size in WORLD_SIZES:
        rank = opened(way)
        rank.restore(state)
        parts = np.split(rank.position + np.arange(BATCH), world_size)
        assert np.array_equal(np.concatenate([rank.samples(part) for part in parts]), whole[1111 : 1111 + BATCH])


def test_g4_every_source_has_its_share_at_every_position(opened):
    dataset = opened()
    positions = np.arange(5000)
    sources = dataset.source_indices(positions)
    for index, weight in enumerate(dataset.weights):
        counts = np.cumsum(sources == index)
        assert np.abs(counts - weight * (positions + 1)).max() < 2
        per_batch = np.diff(counts[BATCH - 1 :: BATCH])
        assert np.abs(per_batch - weight * BATCH).max() <= 2


def test_g4_two_hundred_sources_keep_their_shares_too():
    from pipeline.mixture import Mixture

    weights = {f"s{number:03}": 1 / (number + 1) for number in range(200)}
    names, _ = Mixture(weights).draws(np.arange(50_000))
    total = sum(weights.values())
    for index, name in enumerate(sorted(weights)):
        counts = np.cumsum(names == index)
        assert np.abs(counts - weights[name] / total * np.arange(1, 50_001)).max() < 4


def test_g5_nothing_grows_with_the_position_and_nothing_is_written(opened, folder):
    before = sorted(folder.rglob("*"))
    dataset = opened(most_open_files=3)
    dataset.samples(range(200))
    small = sys.getsizeof(json.dumps(dataset.state()))
    for position in (10**6, 10**9, 10**12, 10**15):
        dataset.samples(range(position, position + 50))
        assert sys.getsizeof(json.dumps(dataset.state(position))) < small + 16
    assert len(dataset.files._files) <= 3
    phases = sum(len(source._first_windows) for source in dataset.windows.values())
    assert phases <= 64 * len(dataset.windows)
    assert sorted(folder.rglob("*")) == before


def test_g5_a_state_is_below_a_kilobyte(opened):
    dataset = opened()
    for change in range(3):
        dataset.change_mix({"web": 0.2 + change / 10, "code": 0.5, "books": 0.1}, start=1000 * (change + 1))
    assert len(json.dumps(dataset.state(10**15))) < 1024


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_g6_all_ranks_have_the_same_number_of_batches(opened, world_size):
    dataset = opened(max_epochs=2)
    num_batches = len(dataset) // BATCH
    for rank in range(world_size):
        size = BATCH // world_size
        last = (num_batches - 1) * BATCH + rank * size
        assert dataset.samples(range(last, last + size)).shape[0] == size
    endless = opened()
    assert endless.samples(range(10**9, 10**9 + 3)).shape[0] == 3


@pytest.mark.parametrize("way", WAYS)
def test_g7_a_source_is_never_read_more_often_than_max_epochs(opened, way):
    dataset = opened(way, max_epochs={"web": 3, "books": 2})
    end = len(dataset)
    located = dataset.locate(np.arange(end))
    for name, epochs in (("web", 3), ("books", 2)):
        assert located.epochs[located.sources == dataset.sources.index(name)].max() < epochs
    with pytest.raises(
        IndexError, match=rf"position {end:,}: the data ends at position {end:,}, where source '\w+' was"
    ):
        dataset.sample(end)
    with pytest.raises(IndexError, match="Raise that, or change the mix from there on"):
        dataset.samples([end])
    counts, limits = dataset.count_samples(end), dataset.order.max_epochs
    used_up = next(name for name in limits if counts[name] == dataset.windows[name].num_draws(limits[name]))
    mix = {name: float(name != used_up) for name in dataset.sources}
    dataset.change_mix(mix, start=end)
    assert used_up not in {dataset.sources[index] for index in dataset.source_indices(range(end, end + 100))}


def test_g8_changed_data_refuses_to_resume_and_a_moved_folder_does_not(opened, folder, tmp_path):
    state = opened().state(77)
    moved = shutil.copytree(folder, tmp_path / "moved")
    dataset = opened(path=moved)
    dataset.restore(state)
    assert np.array_equal(dataset.read(5), opened().samples(range(77, 82)))
    path = moved / "dataset.json"
    shard = json.loads(path.read_text())["sources"]["code"]["splits"]["train"]["shards"][0]
    path.write_text(path.read_text().replace(shard["xxh3_128"], "0" * 32))
    with pytest.raises(ValueError, match=r"the shards of books, code, web in .* are not those of the state"):
        opened(path=moved).restore(state)


@pytest.mark.parametrize("changed", [{"seed": 4}, {"seq_len": 25}, {"way": ("concat", "block")}, {"way": WAYS[2]}])
def test_g8_a_state_of_other_settings_is_refused(opened, changed):
    state = opened().state()
    with pytest.raises(ValueError, match="the state was saved with .* to go on"):
        opened(**changed).restore(state)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "the state has format 2, this program reads 1"),
        ({"position": None}, "the state lacks position: take one whole"),
        ({"position": -5}, "the state's position is -5: it must be"),
        ({"position": "7"}, "the state's position is '7': it must be"),
        ({"mixes": [[0, {"gone": 1.0}]]}, "has no source 'gone'"),
    ],
)
def test_g8_a_state_that_is_none_is_refused(opened, change, expected):
    state = {name: value for name, value in (opened().state() | change).items() if value is not None}
    with pytest.raises(ValueError, match=expected):
        opened().restore(state)


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_change_in_mid_run_repeat_and_lose_nothing(opened, way):
    dataset = opened(way)
    dataset.change_mix({"web": 0.1, "code": 0.1, "books": 0.8}, start=301)
    dataset.change_mix({"web": 1, "books": 1}, start=340)
    located = dataset.locate(np.arange(1500))
    for index, name in enumerate(dataset.sources):
        mine = located.sources == index
        drawn = list(zip(located.epochs[mine].tolist(), located.samples[mine].tolist(), strict=True))
        assert len(set(drawn)) == len(drawn)
        alone = opened(way, mix={name: 1}).locate(np.arange(len(drawn)))
        assert drawn == list(zip(alone.epochs.tolist(), alone.samples.tolist(), strict=True))
    again = opened(way, mix={"code": 1})
    again.restore(json.loads(json.dumps(dataset.state(330))))
    assert np.array_equal(again.read(100), dataset.samples(range(330, 430)))
    with pytest.raises(ValueError, match="cannot change at position 100: it changed at 340 already"):
        dataset.change_mix({"web": 1}, start=100)


def test_a_source_is_added_without_a_rebuild(opened, folder, tmp_path):
    more = write_dataset(tmp_path / "more", {"notes": split_documents(random_documents(100, seed=9), 2)})
    state = opened().state(50)
    both = opened(path=[folder, more])
    assert both.sources == ("web", "code", "books", "notes")
    tokens = {name: source.num_tokens for name, source in both.windows.items()}
    shares = dict(zip(both.sources, np.array(both.weights) / sum(both.weights), strict=True))
    assert shares["notes"] == pytest.approx(tokens["notes"] / sum(tokens.values()))
    both.restore(state)
    both.change_mix({"web": 0.5, "notes": 0.5}, start=60)
    assert np.array_equal(both.read(10), opened().samples(range(50, 60)))
    after = {both.sources[index] for index in both.source_indices(range(60, 100))}
    assert after == {"web", "notes"}
    notes = next(position for position in range(60, 70) if both.sources[both.source_indices([position])[0]] == "notes")
    alone = PackedDataset(more, seq_len=SEQ_LEN, seed=3)
    assert np.array_equal(both.sample(notes), alone.sample(0))


def test_the_order_is_the_same_in_another_process(opened, folder):
    script = (
        "import sys, zlib; from pipeline.dataset import PackedDataset;"
        f"d = PackedDataset({str(folder)!r}, seq_len={SEQ_LEN}, seed=3);"
        "print(zlib.crc32(d.samples(range(500)).tobytes()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout) == zlib.crc32(opened().samples(range(500)).tobytes())
