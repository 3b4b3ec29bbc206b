"""Reading: every window once per epoch, an order that depends on the seed alone, exact shares, honest boundaries."""

import pickle
import shutil

import numpy as np
import pytest
from conftest import write_rows
from reader_fixtures import write_dataset

from pipeline.dataset import PackedDataset

SEQ_LEN = 32


@pytest.fixture(scope="session")
def packed(tmp_path_factory, sample_model):
    """A dataset of two sources in several shards each, built by the build's own code."""
    from rich.console import Console

    from pipeline.build import BuildArguments, build

    folder = tmp_path_factory.mktemp("packed")
    rng = np.random.default_rng(1)
    for source, num_documents in (("web", 300), ("code", 120)):
        rows = [{"text": " ".join(rng.choice(["a", "bc", "def", "\n"], 50))} for _ in range(num_documents)]
        write_rows(folder / f"raw/{source}/a.jsonl", rows)
    arguments = BuildArguments(
        mix="web:0.7,code:0.3", raw=folder / "raw", out=folder / "out", tokenizer=str(sample_model),
        shard_tokens=3000, valid_fraction=0.05, workers=1,
    )  # fmt: skip
    build(arguments, Console(quiet=True))
    return folder / "out"


@pytest.fixture
def dataset(packed):
    return PackedDataset(packed, seq_len=SEQ_LEN)


def test_epochs_have_different_orders(dataset):
    located = dataset.locate(np.arange(20 * len(dataset)))
    mine = located.sources == dataset.sources.index("code")
    first, second = (located.samples[mine & (located.epochs == epoch)].tolist() for epoch in (0, 1))
    assert first[:20] != second[:20] != list(range(20))
    assert sum(len(windows.shards) for windows in dataset.windows.values()) > 5


def test_windows_of_a_shard_cover_it_and_share_one_token(dataset):
    for source in dataset.sources:
        windows = dataset.windows[source]
        for shard in range(len(windows.shards)):
            tokens = windows.tokens(shard).view(0, int(windows.num_tokens_of[shard]))
            numbers = range(*windows.first_windows(epoch=0)[shard : shard + 2].tolist())
            inputs = np.concatenate([dataset.window(source, number)[:-1] for number in numbers])
            assert np.array_equal(inputs, tokens[: len(inputs)])
            assert dataset.window(source, numbers[-1])[-1] == tokens[len(inputs)]
            assert len(tokens) - len(inputs) - 1 < SEQ_LEN
        read = windows.num_windows * SEQ_LEN + len(windows.shards)
        assert windows.num_unread_tokens == windows.num_tokens - read


def test_samples_equal_sample_and_the_view_is_not_a_copy(dataset):
    positions = [5, 0, 5, len(dataset) + 7, 10**12]
    batch = dataset.samples(positions)
    assert batch.dtype == np.uint16
    assert batch.shape == (5, SEQ_LEN + 1)
    for row, position in zip(batch, positions, strict=True):
        assert np.array_equal(row, dataset.sample(position))
    assert not dataset[3].flags.owndata and not dataset[3].flags.writeable
    out = np.zeros((2, SEQ_LEN + 1), np.uint16)
    assert dataset.samples([1, 2], out=out) is out
    assert np.array_equal(out[0], dataset[1])


def test_the_order_depends_on_seed_and_nothing_else(packed, dataset):
    positions = np.arange(50)
    same = PackedDataset(packed, seq_len=SEQ_LEN).samples(positions)
    assert np.array_equal(dataset.samples(positions), same)
    one_by_one = np.stack([dataset.sample(int(position)) for position in positions[::-1]])[::-1]
    assert np.array_equal(one_by_one, same)
    assert not np.array_equal(PackedDataset(packed, seq_len=SEQ_LEN, seed=1).samples(positions), same)


def test_shares_are_exact_at_every_position(dataset):
    sources = dataset.source_indices(np.arange(2000))
    for index, weight in enumerate(dataset.weights):
        counts = np.cumsum(sources == index)
        assert np.abs(counts - weight * np.arange(1, 2001)).max() < 2
    assert dict(zip(dataset.sources, dataset.weights, strict=True)) == {"web": 0.7, "code": 0.3}


def test_another_mix_changes_shares_without_a_rebuild(packed):
    dataset = PackedDataset(packed, seq_len=SEQ_LEN, mix={"code": 1.0, "web": 0.0})
    assert {dataset.sources[index] for index in dataset.source_indices(np.arange(100))} == {"code"}


def test_document_ends_are_where_end_of_text_stands(dataset):
    for position in range(200):
        inputs = dataset.sample(position)[:-1]
        ends = np.flatnonzero(inputs == dataset.eos_id) + 1
        expected = sorted({*ends.tolist(), SEQ_LEN})
        assert dataset.document_ends(position).tolist() == expected


def test_the_length_is_the_first_epoch_of_the_first_source_to_end(dataset):
    draws = np.bincount(dataset.source_indices(np.arange(len(dataset))), minlength=2)
    windows = [dataset.num_windows(source) for source in dataset.sources]
    assert all(draw <= number for draw, number in zip(draws, windows, strict=True))
    after = np.bincount(dataset.source_indices(np.arange(len(dataset) + 1)), minlength=2)
    assert any(draw > number for draw, number in zip(after, windows, strict=True))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_it_travels_to_worker_processes_and_to_other_folders(packed, dataset, tmp_path):
    dataset.sample(0)
    again = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(again.sample(7), dataset.sample(7))
    shutil.copytree(packed, tmp_path / "moved")
    moved = PackedDataset(tmp_path / "moved", seq_len=SEQ_LEN)
    assert moved.fingerprint == dataset.fingerprint
    assert np.array_equal(moved.sample(7), dataset.sample(7))


def test_validation_is_read_like_train(packed):
    dataset = PackedDataset(packed, seq_len=SEQ_LEN, split="validation")
    assert set(dataset.splits) == {"train", "validation"}
    assert all(dataset.num_windows(source) > 0 for source in dataset.sources)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"split": "test"}, "has no split 'test'"),
        ({"mix": {"books": 1.0}}, "has no source 'books': it has web, code"),
        ({"mix": {"web": -1.0}}, "mix {'web': -1.0}: weights must be 0 or more"),
        ({"mix": {"web": 0.0}}, "weights must be 0 or more"),
        ({"seq_len": 10**6}, "no shard of it holds a window of seq_len 1,000,000: lower seq_len"),
        ({"seq_len": 32.0}, "seq_len must be a whole number, 1 or more, found 32.0"),
        ({"seq_len": 0}, "seq_len must be a whole number, 1 or more"),
        ({"packing": "first-fit"}, "packing must be concat or best-fit, found 'first-fit'"),
        ({"shuffle": "none"}, "shuffle must be global or block, found 'none'"),
        ({"max_epochs": 0}, "max_epochs of 'web' must be a whole number, 1 or more, found 0"),
        ({"max_epochs": 1.5}, "max_epochs of 'web' must be a whole number, 1 or more, found 1.5"),
        ({"max_epochs": "web:"}, "max_epochs 'web:' must be a number, or source:number"),
        ({"max_epochs": {"books": 2}}, "max_epochs names 'books', which is not in the mix"),
    ],
)
def test_what_cannot_be_read_as_asked_is_refused(packed, wrong, expected):
    with pytest.raises(ValueError, match=expected):
        PackedDataset(packed, **{"seq_len": SEQ_LEN, **wrong})


def test_a_missing_dataset_and_a_cut_shard_are_named(packed, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished dataset"):
        PackedDataset(tmp_path, seq_len=SEQ_LEN)
    shutil.copytree(packed, tmp_path / "cut")
    path = tmp_path / "cut/web/train/shard-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"shard-00000\.bin has .* bytes, dataset\.json says"):
        PackedDataset(tmp_path / "cut", seq_len=SEQ_LEN).samples(range(200))
    with pytest.raises(IndexError):
        PackedDataset(packed, seq_len=SEQ_LEN).samples([-1])


def test_positions_are_whole_numbers_that_are_there(dataset):
    with pytest.raises(TypeError, match="positions are whole numbers, found float64"):
        dataset.samples([0.5])
    with pytest.raises(IndexError, match="positions count from 0, found -3"):
        dataset.samples([4, -3])
    assert dataset.samples([]).shape == (0, SEQ_LEN + 1)
    for wrong in (
        np.empty((2, SEQ_LEN), np.uint16),
        np.empty((2, SEQ_LEN + 1), np.int64),
        np.empty((4, SEQ_LEN + 1), np.uint16)[::2],
    ):
        with pytest.raises(ValueError, match="out is"):
            dataset.samples([0, 1], out=wrong)


def test_a_source_too_small_for_one_batch_is_read_over_and_over(tmp_path):
    tiny, other = [[[5] * 40]], [[[number % 60 + 3] * 30 for number in range(200)]]
    folder = write_dataset(tmp_path, {"tiny": tiny, "other": other}, mix={"tiny": 0.5, "other": 0.5})
    dataset = PackedDataset(folder, seq_len=SEQ_LEN)
    assert dataset.num_windows("tiny") == 1
    located = dataset.locate(range(64))
    assert sorted(located.epochs[located.sources == 0].tolist()) == sorted(
        set(located.epochs[located.sources == 0].tolist())
    )
    assert dataset.samples(range(64)).shape == (64, SEQ_LEN + 1)
    assert len(PackedDataset(folder, seq_len=SEQ_LEN, max_epochs={"tiny": 1})) <= 3


def test_reading_without_maps_or_with_few_open_files_gives_the_same(packed, dataset):
    expected = dataset.samples(range(100))
    for settings in ({"use_maps": False}, {"most_open_files": 1}, {"use_maps": False, "most_open_files": 1}):
        other = PackedDataset(packed, seq_len=SEQ_LEN, **settings)
        assert np.array_equal(other.samples(range(100)), expected)
        assert np.array_equal(other.sample(7), expected[7])
        assert np.array_equal(other.document_ends(7), dataset.document_ends(7))


def test_reading_ahead_changes_nothing(packed, dataset):
    for shuffle in ("global", "block"):
        ahead = PackedDataset(packed, seq_len=SEQ_LEN, shuffle=shuffle)
        ahead.read_ahead(range(300))
        again = PackedDataset(packed, seq_len=SEQ_LEN, shuffle=shuffle)
        assert np.array_equal(np.concatenate([ahead.read(70), ahead.read(30)]), again.samples(range(100)))


def test_datasets_that_do_not_go_together_are_refused(tmp_path):
    first = write_dataset(tmp_path / "first", {"web": [[[5] * 100]]})
    for name, settings, expected in (
        ("other", {"sha256": "cd" * 32}, "cannot be read as one: tokenizer sha256 is 'cdcd"),
        ("same", {}, "both have a source 'web'"),
    ):
        second = write_dataset(tmp_path / name, {"web": [[[5] * 100]]}, **settings)
        with pytest.raises(ValueError, match=expected):
            PackedDataset([first, second], seq_len=8)
    with pytest.raises(ValueError, match="no dataset folder is named"):
        PackedDataset([], seq_len=8)
