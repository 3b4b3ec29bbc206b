"""A worker waits for a raw file that is being fetched. Knows nothing of networks: a file that is there is whole."""

from __future__ import annotations

import time
from pathlib import Path

POLL_SECONDS = 0.02


def wait_for_file(path: Path, failure: Path) -> float:
    """Wait until `path` is there; returns for how many seconds.

    failure: a file that appears where the fetching ends badly. Raises ValueError with what it says.
    """
    started = time.monotonic()
    while not path.exists():
        if failure.exists():
            raise ValueError(failure.read_text(encoding="utf-8").rstrip())
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started
