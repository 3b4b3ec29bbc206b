"""Arrays written past the cache hold the same bytes, wherever they stand and whatever the file system allows."""

import errno
import fcntl
import os

import numpy as np
import pytest

from pipeline.direct import BLOCK_BYTES, PIECE_BYTES, Room, write_large
from pipeline.storage import open_new, open_together

SIZES = [0, 1, 2, BLOCK_BYTES // 2 - 1, BLOCK_BYTES // 2, BLOCK_BYTES, 3 * BLOCK_BYTES + 7, PIECE_BYTES // 2 + 5]


def write(path, array):
    with open_new(path) as file:
        write_large(file.raw, array)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("shift", [0, 1])  # an address that is no border of blocks, too
def test_all_bytes_arrive(tmp_path, count, shift):
    array = Room().take(count + shift, np.dtype("<u2"))[shift:]
    array[:] = np.random.default_rng(count).integers(0, 1 << 16, count)
    write(tmp_path / "a.bin", array)
    assert (tmp_path / "a.bin").read_bytes() == array.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_room_stands_on_a_border_and_is_the_same_memory_again():
    first = Room().take(100_000, np.dtype("<u4"))
    second = Room().take(90_000, np.dtype("<u2"))
    assert first.ctypes.data % BLOCK_BYTES == 0
    assert first.ctypes.data == second.ctypes.data
    assert (len(second), second.dtype) == (90_000, np.dtype("<u2"))


@pytest.mark.parametrize("allowed", [0, BLOCK_BYTES, 2 * BLOCK_BYTES])
def test_what_a_file_system_does_not_take_past_the_cache_goes_through_it(tmp_path, allowed):
    class Picky:
        """A file that takes so many bytes past the cache, then refuses as file systems do."""

        def __init__(self, file):
            self.file, self.fileno, self.tell = file, file.fileno, file.tell

        def write(self, buffer):
            if fcntl.fcntl(self.file, fcntl.F_GETFL) & os.O_DIRECT:
                if self.tell() >= allowed:
                    raise OSError(errno.EINVAL, "Invalid argument")
                buffer = buffer[:allowed]
            return self.file.write(buffer)

    array = Room().take(5 * BLOCK_BYTES, np.dtype("u1"))
    array[:] = np.arange(len(array)) % 251
    with open(tmp_path / "a.bin", "wb", buffering=0) as file:
        write_large(Picky(file), array)
        assert not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
    assert (tmp_path / "a.bin").read_bytes() == array.tobytes()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    array = Room().take(BLOCK_BYTES, np.dtype("u1"))
    with (
        pytest.raises(OSError, match="No space left") as error,
        open_new(tmp_path / "a.bin"),
        open("/dev/full", "wb", 0) as full,
    ):
        write_large(full, array)
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_files_that_are_opened_together_appear_together(tmp_path):
    paths = [tmp_path / "new" / name for name in "abc"]
    with open_together(paths) as files:
        for number, file in enumerate(files):
            file.write(b"x" * number)
        assert not any(path.exists() for path in paths)
    assert [path.read_bytes() for path in paths] == [b"", b"x", b"xx"]
    with pytest.raises(ValueError, match="broke"), open_together([path.with_suffix(".2") for path in paths]) as files:
        files[0].write(b"x")
        raise ValueError("broke")
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["a", "b", "c"]
