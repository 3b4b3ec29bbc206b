"""Which documents are copies, and in what order those that stay are written, against plain definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.copies import find_copies, find_repeated
from pipeline.dedup import Candidates, sort_kept
from pipeline.dedup_stages import take_up_cut
from pipeline.shard import SPLITS
from pipeline.work import kept_dtype
from pipeline.workshop import Dedup, DedupSettings

SMALL = st.integers(0, 3)


@given(st.lists(st.tuples(SMALL, SMALL), max_size=40), st.randoms())
def test_of_equal_hashes_all_but_the_first_rank_are_copies(hashes, random):
    ranks = random.sample(range(1000), len(hashes))
    first = {}
    for rank, both in sorted(zip(ranks, hashes, strict=True)):
        first.setdefault(both, rank)
    expected = sorted((rank, first[both]) for rank, both in zip(ranks, hashes, strict=True) if first[both] != rank)
    found = find_copies(np.array(ranks, np.int64), np.array(hashes, np.uint64).reshape(-1, 2))
    assert found.tolist() == expected


@given(st.lists(SMALL, max_size=20))
def test_repeated_values_are_those_that_stand_twice(values):
    found = find_repeated(np.array(values, np.uint64))
    assert sorted(found.tolist()) == [at for at, value in enumerate(values) if values.count(value) > 1]


@given(st.lists(st.tuples(SMALL, SMALL, SMALL, st.integers(0, 1), st.integers(0, 5)), unique=True, max_size=40))
def test_what_stays_stands_by_cell_place_hash_raw_file_and_row(rows):
    """With --dedup none many texts may be equal, so that place and hash are."""
    records, cells = np.zeros(len(rows), kept_dtype(1)), np.zeros(len(rows), np.uint16)
    for record, (_, place, second, raw_file, row) in zip(records, rows, strict=True):
        record["place"], record["content_hash"], record["raw_file"], record["row"] = place, (7, second), raw_file, row
    cells[:] = [row[0] * len(SPLITS) for row in rows]
    kept = np.flatnonzero(np.arange(len(rows)) % 5 != 4)
    order = sort_kept(Candidates(records, np.arange(len(rows), dtype=np.uint32), cells), kept)
    assert [rows[at] for at in order.tolist()] == sorted(rows[at] for at in kept.tolist())


@pytest.mark.parametrize(("memory_bytes", "expected"), [(400, (200, 8)), (200, (200, 8)), (100, (100, 2))])
def test_a_build_goes_on_with_the_tasks_of_before_if_they_fit_into_memory(tmp_path, memory_bytes, expected):
    def cut(*of_task):
        work = take_up_cut(Dedup(None, DedupSettings("near", 0.8, *of_task), SimpleNamespace(work=tmp_path), None))
        return work.settings.memory_bytes, work.settings.num_workers

    assert cut(200, 8) == (200, 8)
    assert cut(memory_bytes, 2) == expected
    (tmp_path / "dedup/cut.json").write_text('{"mem')
    assert cut(memory_bytes, 2) == (memory_bytes, 2)
