"""Fetches the shards of a dataset that lies elsewhere before its reader wants them, in the reader's own order.

A file that another thread, rank or worker process is fetching is left to it, so those of one machine share the work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.reading_order import Located
from pipeline.remote_dataset import bring, is_fetched_later
from pipeline.shard import index_path

FETCHED_AT_ONCE = 4
MOST_AHEAD = 1 << 16
"""Positions. A global shuffle leads to nearly all shards sooner; it bounds what is computed for one read."""
LOCATED_TOGETHER = 256
"""Positions whose shards are fetched in the order of the files."""


class Reader(Protocol):
    """What is asked of a PackedDataset."""

    order: Any

    def locate(self, positions: np.ndarray) -> Located:
        """Where the samples at these positions are."""

    def group(self, located: Located) -> Iterator[tuple[Any, int, np.ndarray]]:
        """The rows of each source and epoch."""


class FetchAhead:
    """Fetches by threads that live while there is something to fetch.

    It looks no further ahead than has been read already: who looks at one sample of a large dataset fetches few shards.
    A failure is left to the reader, who meets it when it wants the file.
    """

    def __init__(self, reader: Reader):
        self.reader = reader
        self.start_anew()

    def start_anew(self) -> None:
        """Forget all threads: a forked process has none."""
        self.process_id, self.lock = os.getpid(), threading.Lock()
        self.queue: deque[Path] = deque()
        self.queued: set[Path] = set()
        self.threads: list[threading.Thread] = []
        self.seen, self.num_read = range(0), 0

    def reach(self, positions: np.ndarray) -> None:
        """Fetch what the reader wants now, at these positions, and what it will want after them."""
        if not positions.size:
            return
        if self.process_id != os.getpid():
            self.start_anew()
        first, last = int(positions.min()), int(positions.max())
        self.num_read += len(positions)
        stop = min(last + 1 + min(self.num_read, MOST_AHEAD), self.reader.order.end)
        if not self.seen.start <= first <= self.seen.stop:
            self.seen = range(first, first)
        unseen = range(self.seen.stop, max(stop, self.seen.stop))
        self.seen = range(self.seen.start, unseen.stop)
        self.add(path for path in self.list_files(unseen) if path not in self.queued and is_fetched_later(path))

    def list_files(self, positions: range) -> Iterator[Path]:
        """What the samples at these positions are read from, in about their order."""
        for start in positions[::LOCATED_TOGETHER]:
            located = self.reader.locate(np.arange(start, min(start + LOCATED_TOGETHER, positions.stop)))
            for source, epoch, rows in self.reader.group(located):
                for shard in source.find_shards(epoch, located.samples[rows]).tolist():
                    yield from (source.paths[shard], index_path(source.paths[shard]))

    def add(self, paths: Iterable[Path]) -> None:
        """Fetch some files after those that wait already."""
        with self.lock:
            for path in paths:
                self.queued.add(path)
                self.queue.append(path)
            for _ in range(min(FETCHED_AT_ONCE - len(self.threads), len(self.queue))):
                thread = threading.Thread(target=self.run, daemon=True)
                self.threads.append(thread)
                thread.start()

    def run(self) -> None:
        """What a thread does: fetch files until the queue is empty."""
        while (path := self.take_next()) is not None:
            try:
                bring(path, waits=False)
            except (ValueError, OSError):  # the reader's own attempt will tell
                with self.lock:
                    self.queued.difference_update(self.queue, [path])
                    self.queue.clear()

    def take_next(self) -> Path | None:
        """The next file to fetch; None: no more, and this thread ends."""
        with self.lock:
            if self.queue:
                return self.queue.popleft()
            self.threads.remove(threading.current_thread())
            return None

    def finish(self) -> None:
        """Wait until all is fetched that was asked for."""
        for thread in list(self.threads):
            thread.join()

    def __getstate__(self) -> dict:
        """Without threads: a worker process starts its own."""
        return {"reader": self.reader}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
