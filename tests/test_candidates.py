"""Pairs of documents with a key in common, from files of keys, against a plain definition of them."""

import contextlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.candidates import plan_bands, run_band, split_bands
from pipeline.minhash import KEY_BITS, NUM_BANDS
from pipeline.pair_kernels import LARGEST_FULL_GROUP, mark_ranks
from pipeline.ranks import SketchRun
from pipeline.sketch_file import RECIPES, Sketches, write_sketches
from pipeline.storage import write_array

RECIPE = RECIPES["near"]
RUNS = [70, 1, 300, 129]


def draw_keys(rng):
    """Of each document and band a key that a few others have too, and of some documents one that many have."""
    pool = rng.integers(0, 1 << KEY_BITS, 150, np.uint64)
    pool[:2] = 0, (1 << KEY_BITS) - 1
    keys = pool[rng.integers(0, len(pool), (sum(RUNS), RECIPE.num_keys))]
    keys[::9] = pool[7]
    keys[1::9] = keys[2::9][: len(keys[1::9])]  # alike in all bands
    return keys


def write_runs(folder, keys, sizes=RUNS):
    """The runs of one ingest task. Each has two stretches, of which the second comes first in the order of ranks."""
    paths, runs, start, first_rank = [folder / name for name in ("rows.bin", "signatures.bin", "bands.bin")], [], 0, 0
    for size in sizes:
        own, rows = keys[first_rank : first_rank + size], np.zeros(size, np.uint8)
        sketches = Sketches(np.zeros((size, 1), np.uint8), own, np.ones(size, bool))
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "ab", buffering=0)) for path in paths]
            write_sketches(files, rows, sketches, own[:0], recipe=RECIPE)
        cut = size // 3
        runs.append(SketchRun(str(folder), start, size, (0, cut, size), (first_rank + size - cut, first_rank - cut, 0)))
        start, first_rank = start + size * RECIPE.num_keys, first_rank + size
    return runs


def rank_keys(keys, sizes=RUNS):
    """The keys in the order of the ranks that write_runs gives."""
    parts, first = [], 0
    for size in sizes:
        own = keys[first : first + size]
        parts += [own[size // 3 :], own[: size // 3]]
        first += size
    return np.concatenate(parts)


def pair_plainly(keys, left_out, held):
    """All pairs of the groups, as uint64, sorted: of a large group each with the first two and the two before it."""
    pairs = set()
    for band in range(NUM_BANDS):
        groups = {}
        for rank, key in enumerate(keys[:, band].tolist()):
            if rank not in left_out:
                groups.setdefault(key, []).append(rank)
        for ranks in groups.values():
            if len(ranks) <= LARGEST_FULL_GROUP:
                pairs.update((later, earlier) for earlier, later in itertools.combinations(ranks, 2))
            elif not held.issuperset(ranks):
                for number, later in enumerate(ranks):
                    pairs.update((later, earlier) for earlier in {*ranks[:2], *ranks[max(0, number - 2) : number]})
    return sorted((later << 32) | earlier for later, earlier in pairs if later > earlier and later not in held)


def plan_tasks(folder, runs, *, memory_bytes, marks=None, held=()):
    """The tasks of all bands of some runs."""
    ranks = SimpleNamespace(num_documents=sum(run.num_signed for run in runs), held=held)
    places = {"folder": folder, "fingerprint": ""}
    return plan_bands(runs, recipe=RECIPE, ranks=ranks, marks=marks, memory_bytes=memory_bytes, num_workers=1, **places)


@pytest.mark.parametrize(
    ("few_keys", "memory_bytes"), [(1 << 17, 1 << 30), (0, 1 << 30), (0, 20_000), (0, 60_000), (0, 10_000)]
)
def test_the_pairs_are_those_of_plain_groups_however_they_are_cut(tmp_path, monkeypatch, few_keys, memory_bytes):
    monkeypatch.setattr("pipeline.candidates.FEW_KEYS", few_keys)
    monkeypatch.setattr("pipeline.candidates.PIECE_BITS", 6)
    keys, left_out, held = draw_keys(np.random.default_rng(0)), [3, 40, 41, 499], (100, 160)
    runs, marks = write_runs(tmp_path, keys), np.zeros(63, np.uint8)
    mark_ranks(np.array(left_out, np.uint32), marks)
    write_array(tmp_path / "marks.npy", marks)
    tasks = plan_tasks(tmp_path, runs, memory_bytes=memory_bytes, marks=tmp_path / "marks.npy", held=(held,))
    counts = [run_band(task) for task in tasks]
    pairs = [np.load(path) for task, count in zip(tasks, counts, strict=True) for path in task.list_outputs(count)]
    assert sum(count["keys"] for count in counts) == NUM_BANDS * (len(keys) - len(left_out))
    assert all((own[1:] > own[:-1]).all() for own in pairs)
    assert np.unique(np.concatenate(pairs)).tolist() == pair_plainly(rank_keys(keys), left_out, {*range(*held)})


def test_pairs_that_memory_has_no_room_for_are_written_in_several_files(tmp_path):
    """Each of 300 documents is in a group of three in each band, with others each time: it has many partners."""
    rng, runs = np.random.default_rng(0), [300]
    keys = np.stack([rng.permutation(300) // 3 for _ in range(RECIPE.num_keys)], axis=1).astype(np.uint64)
    keys *= np.uint64(1 << KEY_BITS) // np.uint64(100)
    tasks = plan_tasks(tmp_path, write_runs(tmp_path, keys, runs), memory_bytes=16_000)
    counts = [run_band(task) for task in tasks]
    files = [np.load(path) for task, count in zip(tasks, counts, strict=True) for path in task.list_outputs(count)]
    assert len(tasks) == 1 and len(files) > 3
    assert max(map(len, files)) <= tasks[0].room == 500
    assert np.unique(np.concatenate(files)).tolist() == pair_plainly(rank_keys(keys, runs), [], set())


def test_bands_make_few_tasks_where_memory_allows():
    sizes = {
        num_keys: [len(bands) for bands in split_bands(RECIPE, num_keys, memory_bytes=3 << 30, num_workers=1)]
        for num_keys in (1000, 5_000_000, 50_000_000, 100_000_000, 10**9)
    }
    assert sizes == {1000: [14], 5_000_000: [7, 7], 50_000_000: [7, 7], 100_000_000: [7, 7], 10**9: [1] * 14}


def test_each_worker_has_bands_where_there_are_many_keys():
    assert [
        [len(bands) for bands in split_bands(RECIPE, 5_000_000, memory_bytes=1 << 30, num_workers=num_workers)]
        for num_workers in (2, 3, 8, 64)
    ] == [[7, 7], [4, 5, 5], [1, 2, 2, 2, 1, 2, 2, 2], [1] * 14]
    for_slimpajama = split_bands(RECIPES["slimpajama"], 5_000_000, memory_bytes=3 << 30, num_workers=1)
    assert for_slimpajama == [(band,) for band in range(9)]
