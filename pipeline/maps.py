"""Open files of a dataset, a bounded number of them: memory maps where the system gives them, else reads by position.

Knows no format: a file is an array of items of one dtype. Nothing here takes a lock, since a process may be forked
while another thread reads; a file that is put away while someone still uses it stays open until they are done.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.remote_dataset import bring
from pipeline.shard import check_size

MOST_OPEN_FILES = 500
"""Files held open at a time. WekaFS refuses maps beyond about 600; many systems allow 1,024 open files."""

WAIT_SECONDS = 50e-6
"""A read from memory takes a tenth of it, one from a disk more."""
SLOW_READS = 3
"""So many slow reads in a batch mean a disk; fewer may be other programs."""

TOO_MANY = (errno.EMFILE, errno.ENFILE)


class OpenFile:
    """One file of `count` items, open for reading."""

    def __init__(self, path: Path, *, dtype: np.dtype, count: int, is_mapped: bool):
        bring(path)
        # It may have been cut since the dataset was opened, and a map beyond a file's end ends the process.
        check_size(path, count * dtype.itemsize)
        self.path, self.dtype, self.count = path, dtype, count
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - open as long as this object is
        self._map = _map_file(self._file.fileno()) if is_mapped and count else None
        self._items = None if self._map is None else np.frombuffer(self._map, dtype=dtype)
        if self._map is not None:
            self._file.close()

    @property
    def is_mapped(self) -> bool:
        """Whether `view` gives views of the file."""
        return self._items is not None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        """One item, so that bisect can search the file."""
        return int(self.view(index, index + 1)[0])

    def view(self, start: int, stop: int) -> np.ndarray:
        """Items [start, stop): a view of the file where it is mapped, else a copy. Read-only."""
        if self._items is not None:
            return self._items[start:stop]
        copied = np.empty(stop - start, dtype=self.dtype)
        self.read_into(start, copied)
        copied.flags.writeable = False
        return copied

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The items at `indices` (int64), which stand anywhere: a copy."""
        if self._items is not None:
            return self._items[indices]
        return np.array([self[index] for index in indices.tolist()], dtype=self.dtype)

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Copy len(out) items from `start` on into a contiguous array of the same dtype."""
        if self._items is not None:
            out[:] = self._items[start : start + len(out)]
            return
        buffer, offset, done = memoryview(out).cast("B"), start * self.dtype.itemsize, 0
        while done < len(buffer):
            num_read = os.preadv(self._file.fileno(), [buffer[done:]], offset + done)
            if num_read == 0:
                raise ValueError(f"{self.path} was cut while it was read: nothing at byte {offset + done:,}")
            done += num_read

    def will_need(self, start: int, stop: int) -> None:
        """Ask the system to begin reading items [start, stop) from the disk. Returns at once."""
        first, last = start * self.dtype.itemsize, min(stop, self.count) * self.dtype.itemsize
        if self._map is None:
            if hasattr(os, "posix_fadvise"):  # not on macOS
                os.posix_fadvise(self._file.fileno(), first, last - first, os.POSIX_FADV_WILLNEED)
            return
        first -= first % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, last - first)


class DiskWatch:
    """Notices that reads had to wait for the disk, and then asks for all the reads of their batch at once.

    Asking for what is in memory already costs more than reading it, about 3 us a window; so it is not done before.
    """

    def __init__(self, ask: Callable[[], None]):
        self._ask, self._num_slow = ask, 0
        self.start()

    @property
    def has_waited(self) -> bool:
        """Whether some reads were slow; one or two may be the system's doing."""
        return self._num_slow >= SLOW_READS

    def start(self) -> None:
        """What came before was no read."""
        self._before = time.perf_counter()

    def tick(self) -> None:
        """A read is done."""
        now = time.perf_counter()
        if now - self._before > WAIT_SECONDS:
            self._num_slow += 1
            if self._num_slow == SLOW_READS:
                self._ask()
                now = time.perf_counter()
        self._before = now


def _map_file(descriptor: int) -> mmap.mmap | None:
    """A read-only map without the system's own read-ahead; None where the system refuses one more map."""
    try:
        mapped = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    except OSError as error:
        if error.errno in TOO_MANY:
            raise
        return None  # quotas of maps are EPERM on WekaFS, ENOMEM on Linux, ENODEV where there are none
    # Windows stand anywhere, so what follows one is not wanted: by default 41 times as much is read.
    mapped.madvise(mmap.MADV_RANDOM)
    return mapped


class OpenFiles:
    """Files by path, opened on first use; the one opened first is put away when there are too many."""

    def __init__(self, *, most: int = MOST_OPEN_FILES, use_maps: bool = True):
        if most < 1:
            raise ValueError(f"at least 1 file must be open at a time, found {most}")
        self.most, self.use_maps = most, use_maps
        self._files: dict[Path, OpenFile] = {}
        self._opened: deque[Path] = deque()

    def open(self, path: Path, *, dtype: np.dtype, count: int) -> OpenFile:
        """The open file. Raises FileNotFoundError, or ValueError where it has another size."""
        file = self._files.get(path)
        if file is None:
            file = self._open_another(path, dtype=dtype, count=count)
        return file

    def _open_another(self, path: Path, *, dtype: np.dtype, count: int) -> OpenFile:
        while len(self._opened) >= self.most:
            self._put_away(1)
        while True:
            try:
                file = OpenFile(path, dtype=dtype, count=count, is_mapped=self.use_maps)
                break
            except OSError as error:
                if error.errno not in TOO_MANY or not self._opened:
                    raise
                self._put_away(max(1, len(self._opened) // 2))  # the program itself has many files open
        self._files[path] = file
        self._opened.append(path)
        return file

    def _put_away(self, count: int) -> None:
        for _ in range(count):
            if self._opened:
                self._files.pop(self._opened.popleft(), None)

    def __getstate__(self) -> dict:
        """Without the open files: a worker process opens its own."""
        return {"most": self.most, "use_maps": self.use_maps}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
