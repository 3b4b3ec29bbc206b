"""Open files: few at a time, maps or reads with the same result, and clear refusals."""

import errno
import mmap
import os
import pickle

import numpy as np
import pytest

from pipeline.maps import SLOW_READS, WAIT_SECONDS, DiskWatch, OpenFile, OpenFiles

DTYPE = np.dtype("<u2")


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{number}.bin" for number in range(8)]
    for number, path in enumerate(paths):
        np.arange(number, number + 5000, dtype=DTYPE).tofile(path)
    return paths


@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_map_and_reads_give_the_same_items(paths, is_mapped):
    file = OpenFile(paths[3], dtype=DTYPE, count=5000, is_mapped=is_mapped)
    assert file.is_mapped == is_mapped and len(file) == 5000
    assert file.view(10, 13).tolist() == [13, 14, 15]
    assert (file[0], file[4999]) == (3, 5002)
    assert file.take(np.array([4999, 0])).tolist() == [5002, 3]
    out = np.zeros(4, DTYPE)
    file.read_into(4996, out)
    assert out.tolist() == [4999, 5000, 5001, 5002]
    with pytest.raises(ValueError, match="read-only"):
        file.view(0, 2)[0] = 1
    file.will_need(0, 9999)


def test_no_more_files_are_open_than_allowed_and_views_outlive_them(paths):
    files = OpenFiles(most=3)
    before = len(os.listdir("/proc/self/fd"))
    views = [files.open(path, dtype=DTYPE, count=5000).view(0, 3) for path in paths * 3]
    assert len(files._files) == 3
    assert [int(view[0]) for view in views] == list(range(8)) * 3
    views.clear()
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_where_maps_are_refused_files_are_read(paths, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", refuse)
    file = OpenFiles().open(paths[2], dtype=DTYPE, count=5000)
    assert not file.is_mapped
    assert file.view(0, 2).tolist() == [2, 3]


def test_where_too_many_files_are_open_some_are_put_away(paths, monkeypatch):
    files = OpenFiles()
    for path in paths[:4]:
        files.open(path, dtype=DTYPE, count=5000)
    real, refusals = open, iter([True, False])

    def refuse_once(path, *arguments, **settings):
        if path == paths[5] and next(refusals):
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *arguments, **settings)

    monkeypatch.setattr("builtins.open", refuse_once)
    assert files.open(paths[5], dtype=DTYPE, count=5000)[0] == 5
    assert len(files._files) == 3


def test_a_file_that_was_cut_is_refused_before_it_is_mapped_and_while_it_is_read(paths):
    os.truncate(paths[0], 9998)
    with pytest.raises(ValueError, match="has 9,998 bytes, dataset.json says 10,000"):
        OpenFiles().open(paths[0], dtype=DTYPE, count=5000)
    file = OpenFile(paths[1], dtype=DTYPE, count=5000, is_mapped=False)
    os.truncate(paths[1], 100)
    with pytest.raises(ValueError, match="was cut while it was read"):
        file.view(0, 100)


def test_a_copy_for_another_process_opens_its_own_files(paths):
    files = OpenFiles(most=5, use_maps=False)
    files.open(paths[0], dtype=DTYPE, count=5000)
    again = pickle.loads(pickle.dumps(files))
    assert (again.most, again.use_maps, again._files) == (5, False, {})
    with pytest.raises(ValueError, match="at least 1 file"):
        OpenFiles(most=0)


def test_a_disk_is_noticed_after_some_slow_reads_and_asked_once(monkeypatch):
    times, asked = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: times[0])
    watch = DiskWatch(lambda: asked.append(times[0]))
    for seconds in [WAIT_SECONDS / 2] * 50 + [WAIT_SECONDS * 2] * (SLOW_READS - 1):
        times[0] += seconds
        watch.tick()
    times[0] += 1  # opening a file is no read
    watch.start()
    assert not watch.has_waited and asked == []
    for _ in range(5):
        times[0] += WAIT_SECONDS * 2
        watch.tick()
    assert watch.has_waited and len(asked) == 1
