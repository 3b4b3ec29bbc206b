"""The windows of one source and split: which tokens of which shard each one is, in each epoch. numpy only.

Window j of a shard is its tokens [phase + j * seq_len, phase + (j + 1) * seq_len + 1). Neighbours share one token, so
that each token but the first is a target once; what a shard has before its first and after its last window is not read.
The phase is 0 in the first epoch. Later ones take the other multiples of seq_len / 64 in a keyed order, and after 64
epochs all over again: so texts are cut elsewhere each time, and how many windows any number of epochs have is known
from 64 counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.maps import DiskWatch, OpenFiles
from pipeline.order import permute
from pipeline.source_shards import SourceShards, ends_between, offset_in_document

NUM_PHASES = 64


class Documents(NamedTuple):
    """The documents in one sample's seq_len inputs."""

    ends: np.ndarray
    """Where each piece of a document ends: int64, increasing, the last is seq_len. Padding is a piece of its own."""
    positions: np.ndarray
    """For each input its place in its piece, from 0: int64, shape (seq_len,)."""
    has_target: np.ndarray
    """For each input whether the token after it is to be predicted: bool, shape (seq_len,). All, unless best-fit."""
    first_offset: int
    """How many tokens of the first piece's document precede the sample."""


class SourceWindows(SourceShards):
    """The windows of one source's split. phase_key decides the order of the phases of later epochs."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Mapping],
        *,
        seq_len: int,
        dtype: np.dtype,
        phase_key: int = 0,
        files: OpenFiles | None = None,
    ):
        super().__init__(folder, shards, dtype=dtype, files=files)
        self.seq_len, self.phase_key = seq_len, phase_key
        self.num_phases = min(NUM_PHASES, seq_len)
        self._first_windows: dict[int, np.ndarray] = {}
        self.num_windows = int(self.first_windows(epoch=0)[-1])

    @property
    def num_unread_tokens(self) -> int:
        """Tokens that the first epoch does not read: the tails of shards that are shorter than a window."""
        windows = np.diff(self.first_windows(epoch=0))
        return int((self.num_tokens_of - np.where(windows, windows * self.seq_len + 1, 0)).sum())

    def phase(self, epoch: int) -> int:
        """How many tokens of each shard precede its first window in an epoch."""
        return int(self._phases[epoch % self.num_phases])

    @cached_property
    def _phases(self) -> np.ndarray:
        """The phase of each epoch of a cycle: int64, 0 first, the others in a keyed order."""
        others = permute(np.arange(self.num_phases - 1), size=self.num_phases - 1, key=self.phase_key)
        return np.concatenate([[0], 1 + others]) * self.seq_len // self.num_phases

    def first_windows(self, epoch: int) -> np.ndarray:
        """The number of each shard's first window in an epoch, and of all windows: int64, one more than shards."""
        phase = self.phase(epoch)
        if phase not in self._first_windows:
            windows = np.maximum(0, (self.num_tokens_of - 1 - phase) // self.seq_len)
            self._first_windows[phase] = np.concatenate([[0], np.cumsum(windows)])
        return self._first_windows[phase]

    @cached_property
    def _draws_before(self) -> np.ndarray:
        """How many windows the epochs before each of a cycle's epochs have: int64, num_phases + 1 entries."""
        return np.concatenate([[0], np.cumsum([self.first_windows(epoch)[-1] for epoch in range(self.num_phases)])])

    def num_draws(self, epochs: int) -> int:
        """How many windows the first `epochs` epochs have together."""
        cycles, rest = divmod(epochs, self.num_phases)
        if cycles == 0 and rest < 2:
            return rest * self.num_windows
        return cycles * int(self._draws_before[-1]) + int(self._draws_before[rest])

    def split_draws(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the n-th draws of this source: their epochs, and how many draws of that epoch precede them; int64."""
        if not draws.size or draws.max() < self.num_windows:
            return np.zeros_like(draws), draws
        cycles, rest = np.divmod(draws, self._draws_before[-1])
        # From the right: an epoch without windows, where shards are short, has the same entry as the next.
        in_cycle = np.searchsorted(self._draws_before, rest, side="right") - 1
        return cycles * self.num_phases + in_cycle, rest - self._draws_before[in_cycle]

    def num_samples(self, epoch: int) -> int:
        """How many windows one epoch has."""
        return int(self.first_windows(epoch)[-1])

    def locate(self, epoch: int, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard of each window of an epoch, and the window's first token in it: int64.

        Raises IndexError for a window that the epoch does not have.
        """
        first_windows = self.first_windows(epoch)
        if windows.size and not (windows.min() >= 0 and windows.max() < first_windows[-1]):
            raise IndexError(f"window {windows.min()} or {windows.max()} of {first_windows[-1]}")
        shards = np.searchsorted(first_windows, windows, side="right") - 1
        return shards, (windows - first_windows[shards]) * self.seq_len + self.phase(epoch)

    def find_shards(self, epoch: int, windows: np.ndarray) -> np.ndarray:
        """The shards that windows of an epoch are read from, each once: int64."""
        return np.unique(self.locate(epoch, windows)[0])

    def view(self, epoch: int, window: int) -> np.ndarray:
        """The tokens of one window, shape (seq_len + 1,): a view of the file, or a copy where it is not mapped."""
        shard, start = self._locate_one(epoch, window)
        tokens = self.tokens(shard)
        tokens.will_need(start, start + self.seq_len + 1)  # or each of its pages would be waited for in turn
        return tokens.view(start, start + self.seq_len + 1)

    def copy(self, epoch: int, windows: np.ndarray, *, rows: np.ndarray, out: np.ndarray, watch: DiskWatch) -> None:
        """Copy the tokens of windows into rows of `out`, (any, seq_len + 1), in the order of the files."""
        shards, starts = self.locate(epoch, windows)
        for tokens, entries in self.in_file_order(shards, starts, rows):
            watch.start()
            for start, row in entries:
                tokens.read_into(start, out[row])
                watch.tick()

    def will_need(self, epoch: int, windows: np.ndarray, *, in_blocks_of: int) -> None:
        """Ask the system to begin reading the windows, each with its whole block where blocks have more than one."""
        first_windows = self.first_windows(epoch)
        blocks = np.unique(windows // in_blocks_of)
        first, last = blocks * in_blocks_of, np.minimum((blocks + 1) * in_blocks_of, first_windows[-1]) - 1
        shards, starts = self.locate(epoch, first)
        last_shards, last_starts = self.locate(epoch, last)
        # A block that begins at the end of one shard and goes on in the next is asked for up to that end.
        stops = np.where(shards == last_shards, last_starts + self.seq_len + 1, self.num_tokens_of[shards])
        for tokens, entries in self.in_file_order(shards, starts, stops):
            for start, stop in entries:
                tokens.will_need(start, stop)

    def document_ends(self, epoch: int, window: int) -> np.ndarray:
        """Where the pieces of documents in a window's seq_len inputs end: int64, increasing, the last is seq_len."""
        shard, start = self._locate_one(epoch, window)
        return ends_between(self.ends(shard), start, start + self.seq_len)

    def piece_starts(self, epoch: int, window: int) -> list[int]:
        """The first token of each piece of a document in a window's inputs, counted over all shards."""
        shard, start = self._locate_one(epoch, window)
        first = int(self.first_tokens[shard]) + start
        return [first, *(first + self.document_ends(epoch, window)[:-1]).tolist()]

    def first_offset(self, epoch: int, window: int) -> int:
        """How many tokens of the window's first document precede the window."""
        shard, start = self._locate_one(epoch, window)
        return offset_in_document(self.ends(shard), start)

    def _locate_one(self, epoch: int, window: int) -> tuple[int, int]:
        shards, starts = self.locate(epoch, np.array([window], dtype=np.int64))
        return int(shards[0]), int(starts[0])


def count_positions(ends: np.ndarray) -> np.ndarray:
    """For each token its place in its piece, from 0: int64, as many as the last of the pieces' ends."""
    starts = np.concatenate([[0], ends[:-1]])
    return np.arange(ends[-1]) - np.repeat(starts, ends - starts)
