"""Large arrays in memory that is used again, written past the system's page cache. Knows no format.

What is written once and read much later gains nothing from the cache: the system finds a page for each 4 KB, copies
them, and puts out of memory what is read again. On a virtual machine new pages cost most of the time, of the cache as
of a new array: benchmarks/pack.py.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
from typing import BinaryIO

import numpy as np

from pipeline.storage import view_bytes, write_all

BLOCK_BYTES = 4096  # addresses, places in a file and lengths are multiples, open(2)
PIECE_BYTES = 8 << 20  # written at once
PAST_CACHE = getattr(os, "O_DIRECT", 0)


@functools.cache  # one in a process
class Room:
    """A process's memory for large arrays, one after the other: it grows to the largest, and is never given back."""

    def __init__(self) -> None:
        self.memory = np.empty(0, np.uint8)

    def take(self, count: int, dtype: np.dtype) -> np.ndarray:
        """An array of `count` entries, not initialised, whose address is a multiple of BLOCK_BYTES.

        It takes the memory of the array before it, which must no longer be used.
        """
        num_bytes = count * dtype.itemsize
        if len(self.memory) < num_bytes + BLOCK_BYTES:
            self.memory = np.empty(0, np.uint8)  # gone before the larger one comes
            self.memory = np.empty(num_bytes + BLOCK_BYTES, np.uint8)
        start = -self.memory.ctypes.data % BLOCK_BYTES
        return self.memory[start : start + num_bytes].view(dtype)


def write_large(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array's bytes to a new file, past the cache where the file system and the array's address allow it."""
    buffer = memoryview(view_bytes(array))
    flags = fcntl.fcntl(file, fcntl.F_GETFL)
    end = len(buffer) - len(buffer) % BLOCK_BYTES
    try:
        fcntl.fcntl(file, fcntl.F_SETFL, flags | PAST_CACHE)
        for start in range(0, end, PIECE_BYTES):
            write_all(file, buffer[start : min(end, start + PIECE_BYTES)])
    except OSError as error:
        if error.errno != errno.EINVAL:  # as open(2) says of what cannot be done so
            raise
    fcntl.fcntl(file, fcntl.F_SETFL, flags)
    write_all(file, buffer[file.tell() :])
