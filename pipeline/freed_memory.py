"""How much memory that was freed a worker keeps for itself. Knows nothing of what it is for."""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3), of glibc
KEPT_BYTES = 64 << 20
LARGE_BYTES = 32 << 20  # the most that glibc takes


@functools.cache  # once in a process
def keep_freed_memory() -> None:
    """Let this process keep up to KEPT_BYTES that it frees, where its C library can be told so.

    Every batch of documents needs the same few blocks of some MB. glibc gives such blocks back to the system and asks
    for them again, and the system fills each page with zeros: 20,000 page faults in 100 MB of prose, 6 % of the time of
    ingest. What is larger than LARGE_BYTES still goes back at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
