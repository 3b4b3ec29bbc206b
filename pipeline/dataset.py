"""Read a finished dataset: windows over its shards, in a seeded order and an exact mix. numpy only, no torch.

    >>> dataset = PackedDataset("data/packed", seq_len=2048)
    >>> dataset.samples([0, 1, 2, 3]).shape
    (4, 2049)

What stands at a position is a pure function of (dataset, seq_len, mix, seed, split, position): the same for any world
size, batch size and number of workers. A position can be asked for at any time, so resuming is one number.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.order import apportion, count_draws, derive_key, integer_weights, permute
from pipeline.shard import open_document_ends, open_tokens, read_dataset_json

__all__ = ["PackedDataset", "SourceWindows", "read_dataset_json"]


class SourceWindows:
    """The windows of one source's split: window j of a shard is its tokens [j * seq_len, (j + 1) * seq_len + 1).

    Neighbours share one token, so that each token but a shard's first is a target once. The tail of a shard that is
    shorter than a window is not read: `num_unread_tokens` counts it.
    """

    def __init__(self, folder: Path, shards: Sequence[Mapping], *, seq_len: int, dtype: np.dtype):
        self.folder, self.shards, self.seq_len, self.dtype = folder, shards, seq_len, dtype
        windows_per_shard = [max(0, (shard["tokens"] - 1) // seq_len) for shard in shards]
        self.first_windows = np.concatenate([[0], np.cumsum(windows_per_shard, dtype=np.int64)])
        self.num_windows = int(self.first_windows[-1])
        self.num_tokens = sum(shard["tokens"] for shard in shards)
        self.num_unread_tokens = sum(
            shard["tokens"] - (windows * seq_len + 1 if windows else 0)
            for shard, windows in zip(shards, windows_per_shard, strict=True)
        )
        self._tokens: dict[int, np.ndarray] = {}
        self._ends: dict[int, np.ndarray] = {}

    def locate(self, window: int) -> tuple[int, int]:
        """The number of the shard that holds a window, and the window's first token in it."""
        if not 0 <= window < self.num_windows:
            raise IndexError(f"window {window} of {self.num_windows}")
        shard = int(np.searchsorted(self.first_windows, window, side="right")) - 1
        return shard, (window - int(self.first_windows[shard])) * self.seq_len

    def window(self, window: int) -> np.ndarray:
        """The tokens of one window: the dataset's dtype, shape (seq_len + 1,). No copy: a view of the file."""
        shard, start = self.locate(window)
        return self.shard_tokens(shard)[start : start + self.seq_len + 1]

    def document_ends(self, window: int) -> np.ndarray:
        """Where the pieces of documents in a window's seq_len inputs end: int64, increasing, the last is seq_len."""
        shard, start = self.locate(window)
        ends = self.shard_ends(shard)
        borders = np.array([start, start + self.seq_len], ends.dtype)  # of another dtype, all of `ends` is converted
        first, last = np.searchsorted(ends, borders, side="right")
        inside = ends[first:last].astype(np.int64) - start
        if len(inside) and inside[-1] == self.seq_len:
            return inside
        return np.append(inside, self.seq_len)

    def shard_tokens(self, shard: int) -> np.ndarray:
        """The map of one shard's ids, opened on first use."""
        if shard not in self._tokens:
            entry = self.shards[shard]
            self._tokens[shard] = open_tokens(self.folder / entry["path"], dtype=self.dtype, num_tokens=entry["tokens"])
        return self._tokens[shard]

    def shard_ends(self, shard: int) -> np.ndarray:
        """The map of one shard's document ends, opened on first use."""
        if shard not in self._ends:
            entry = self.shards[shard]
            self._ends[shard] = open_document_ends(self.folder / entry["path"], num_documents=entry["documents"])
        return self._ends[shard]

    def __getstate__(self) -> dict:
        """Without the open maps: a worker process opens its own."""
        return {**self.__dict__, "_tokens": {}, "_ends": {}}


class PackedDataset:
    """An endless seeded stream of windows from a dataset's sources, in the proportion of the mix.

    path: a folder with dataset.json. seq_len: inputs per window. mix: source -> weight (a share of the tokens drawn);
    None takes the mix that the dataset was built with. split: "train", "validation" or "test".
    Raises FileNotFoundError where there is no finished dataset, ValueError for what cannot be read as asked.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        seq_len: int,
        mix: Mapping[str, float] | None = None,
        seed: int = 0,
        split: str = "train",
    ):
        if seq_len < 1:
            raise ValueError(f"seq_len must be 1 or more, found {seq_len}")
        self.path, self.seq_len, self.seed, self.split = Path(path), seq_len, seed, split
        self.content = read_dataset_json(path)
        self.windows = self._open_sources(mix)
        self.sources = tuple(self.windows)
        self.weights = tuple(self._choose_mix(mix)[source] for source in self.sources)
        self._integer_weights = integer_weights(self.weights)

    def _choose_mix(self, mix: Mapping[str, float] | None) -> Mapping[str, float]:
        return self.content["mix"] if mix is None else mix

    def _open_sources(self, mix: Mapping[str, float] | None) -> dict[str, SourceWindows]:
        """The sources of the mix that can be drawn from. Only the default mix, outside train, may lack some."""
        if self.split not in self.splits:
            raise ValueError(f"{self.path} has no split {self.split!r}: it has {', '.join(self.splits)}")
        opened = {}
        for source, weight in self._choose_mix(mix).items():
            windows = self._open_source(source)
            if windows.num_windows:
                opened[source] = windows
            elif weight and (mix is not None or self.split == "train"):
                raise ValueError(
                    f"source {source!r} has {windows.num_tokens:,} tokens in split {self.split!r} of {self.path}, too "
                    f"few for a window of seq_len {self.seq_len}: lower --seq-len, or leave the source out of the mix"
                )
        if not opened:
            raise ValueError(f"split {self.split!r} of {self.path} has no window of seq_len {self.seq_len}")
        return opened

    def _open_source(self, source: str) -> SourceWindows:
        if source not in self.content["sources"]:
            raise ValueError(f"{self.path} has no source {source!r}: it has {', '.join(self.content['sources'])}")
        split = self.content["sources"][source]["splits"].get(self.split, {"shards": []})
        return SourceWindows(self.path, split["shards"], seq_len=self.seq_len, dtype=self.dtype)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in which some source has documents."""
        return tuple(dict.fromkeys(split for source in self.content["sources"].values() for split in source["splits"]))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the ids, little-endian: uint16, or uint32 for a vocabulary over 65,536."""
        return np.dtype(self.content["dtype"]).newbyteorder("<")

    @property
    def tokenizer(self) -> dict:
        """The tokenizer's name, sha256, and file (relative to the dataset's folder)."""
        return self.content["tokenizer"]

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer has; every id is smaller."""
        return self.tokenizer["vocab_size"]

    @property
    def bos_id(self) -> int | None:
        """The id before every document where the rule is bos+eos."""
        return self.tokenizer["bos_id"]

    @property
    def eos_id(self) -> int:
        """The id that ends every document."""
        return self.tokenizer["eos_id"]

    @property
    def document_rule(self) -> str:
        """What frames each document: "bos+eos" or "eos"."""
        return self.content["document_rule"]

    @property
    def fingerprint(self) -> str:
        """Changes when any shard changes; a moved folder keeps it."""
        return self.content["content_hash"]

    def num_windows(self, source: str) -> int:
        """How many windows one epoch of a source has in this split."""
        return self.windows[source].num_windows if source in self.windows else 0

    def window(self, source: str, index: int) -> np.ndarray:
        """One window in file order, shape (seq_len + 1,). No copy: a view of the file."""
        return self.windows[source].window(index)

    @cached_property
    def _length(self) -> int:
        """The largest position before which no source has begun its second epoch."""

        def is_first_epoch(position: int) -> bool:
            draws = count_draws(position, self._integer_weights)
            return all(count <= self.num_windows(source) for count, source in zip(draws, self.sources, strict=True))

        upper = sum(windows.num_windows for windows in self.windows.values()) + 1
        return bisect.bisect_left(range(upper + 1), True, key=lambda position: not is_first_epoch(position)) - 1

    def __len__(self) -> int:
        """Positions before any source begins its second epoch. The stream itself goes on: see samples."""
        return self._length

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at a position below len(self). No copy: a view of the file."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        return self.sample(position)

    def sample(self, position: int) -> np.ndarray:
        """The sample at any position: the dataset's dtype, shape (seq_len + 1,). No copy: a view of the file."""
        source, window = self.locate([position])
        return self.windows[self.sources[source[0]]].window(int(window[0]))

    def samples(self, positions: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples at `positions`, shape (len(positions), seq_len + 1), copied into `out` where it is given."""
        sources, windows = self.locate(positions)
        if out is None:
            out = np.empty((len(sources), self.seq_len + 1), dtype=self.dtype)
        for row, (source, window) in enumerate(zip(sources.tolist(), windows.tolist(), strict=True)):
            out[row] = self.windows[self.sources[source]].window(window)
        return out

    def samples_with_ends(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The samples at `positions`, as samples gives them, and each one's document_ends."""
        sources, windows = self.locate(positions)
        tokens = np.empty((len(sources), self.seq_len + 1), dtype=self.dtype)
        ends = []
        for row, (source, window) in enumerate(zip(sources.tolist(), windows.tolist(), strict=True)):
            tokens[row] = self.windows[self.sources[source]].window(window)
            ends.append(self.windows[self.sources[source]].document_ends(window))
        return tokens, ends

    def source_indices(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which of `sources` each position is drawn from: int64."""
        return apportion(np.asarray(positions, dtype=np.int64), self._integer_weights)[0]

    def document_ends(self, position: int) -> np.ndarray:
        """Where the pieces of documents in a sample's seq_len inputs end: int64, increasing, the last is seq_len."""
        source, window = self.locate([position])
        return self.windows[self.sources[source[0]]].document_ends(int(window[0]))

    def locate(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each position: its source's index, and the window of that source. Each epoch has its own permutation."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.size and positions.min() < 0:
            raise IndexError(f"positions count from 0, found {positions.min()}")
        sources, draws = apportion(positions, self._integer_weights)
        windows = np.empty_like(draws)
        for index, source in enumerate(self.sources):
            num_windows = self.windows[source].num_windows
            epochs = draws // num_windows
            for epoch in np.unique(epochs[sources == index]):
                chosen = (sources == index) & (epochs == epoch)
                key = derive_key(self.seed, source, int(epoch))
                windows[chosen] = permute(draws[chosen] % num_windows, size=num_windows, key=key)
        return sources, windows
