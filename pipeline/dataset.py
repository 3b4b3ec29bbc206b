"""Read finished datasets: samples over their shards, in a seeded order and an exact mix. numpy only, no torch.

    >>> dataset = PackedDataset("data/packed", seq_len=2048)
    >>> dataset.samples([0, 1, 2, 3]).shape
    (4, 2049)

What stands at a position is a pure function of (shards, seq_len, mix, seed, split, packing, shuffle, position): the
same for any world size, batch size and number of workers. Any position can be asked for, so resuming is one number.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bins import SourceBins
from pipeline.catalogue import Catalogue
from pipeline.fetch_ahead import FetchAhead
from pipeline.maps import MOST_OPEN_FILES, DiskWatch, OpenFiles
from pipeline.mixture import Mixture, parse_weights
from pipeline.order import derive_key, groups
from pipeline.reading_order import BLOCK_SIZES, STATE_FORMAT, Located, ReadingOrder, as_positions, refuse_state
from pipeline.shard import read_dataset_json
from pipeline.windows import Documents, SourceWindows, count_positions

__all__ = ["Catalogue", "Documents", "Located", "PackedDataset", "SourceWindows", "read_dataset_json"]

SAME_SETTINGS = ("seq_len", "seed", "split", "packing", "shuffle")
CHUNK_POSITIONS = 256
"""Positions that are located together where they are asked for one by one."""


class PackedDataset(Catalogue):
    """A seeded stream of samples from the sources of one or several datasets, in the proportion of the mix.

    path: a folder with dataset.json, its address elsewhere, or several of one tokenizer. seq_len: inputs per sample.
    mix: source -> weight (a share of the tokens drawn), or "web:0.7,code:0.3"; by default the dataset's own.
    split: train, validation, test. packing: "concat" cuts every shard into windows; "best-fit" puts whole documents
    together (see bins.py). shuffle: "global", or "block" where random reads are dear (see order.permute_blocks).
    max_epochs: how often a source may be read, 2 for all, or by source ("web:1,code:4" too); positions end there, else
    nowhere, and len() counts those before any source begins its second epoch. use_maps: False reads files unmapped,
    where mapped pages count as a program's memory. cache: the folder of best-fit indexes, by default the user's.

    Raises FileNotFoundError or ValueError where the dataset is not finished, a shard is cut, or a source, split or
    window asked for is not there.
    """

    def __init__(
        self,
        path: Path | str | Sequence[Path | str],
        *,
        seq_len: int,
        mix: Mapping[str, float] | str | None = None,
        seed: int = 0,
        split: str = "train",
        packing: str = "concat",
        shuffle: str = "global",
        max_epochs: int | str | Mapping[str, int] | None = None,
        use_maps: bool = True,
        most_open_files: int = MOST_OPEN_FILES,
        cache: Path | None = None,
    ):
        ReadingOrder.refuse_settings(mix, seq_len, seed, packing=packing, shuffle=shuffle)
        super().__init__(path)
        mix = parse_weights(mix, known=self.content["mix"]) if isinstance(mix, str) else mix
        self.seq_len, self.seed, self.split, self.packing = int(seq_len), int(seed), split, packing
        self.shuffle, self.cache = shuffle, cache
        self.files = OpenFiles(most=most_open_files, use_maps=use_maps)
        self.windows: dict[str, SourceWindows | SourceBins] = {}
        chosen = self.content["mix"] if mix is None else mix
        self._open_sources(chosen, may_lack=mix is None and split != "train")
        chosen = {source: weight for source, weight in chosen.items() if source in self.windows}
        self.order = ReadingOrder(self.windows, chosen, seed=self.seed, shuffle=shuffle, max_epochs=max_epochs)
        self.position = 0
        self.has_waited = False  # whether the last `samples` had to wait for the disk
        self._chunk: tuple[int, Located] | None = None
        self.ahead = FetchAhead(self) if self.is_fetched else None

    def _open_sources(self, mix: Mapping[str, float], *, may_lack: bool) -> None:
        """Open the sources of a mix that can be drawn from. may_lack: some may have too little."""
        if self.split not in self.splits:
            raise ValueError(f"{self.name} has no split {self.split!r}: it has {', '.join(self.splits)}")
        for source, weight in mix.items():
            opened = self.windows.get(source) or self._open_source(source)
            if opened.num_windows:
                self.windows[source] = opened
            elif weight and not may_lack:
                raise ValueError(
                    f"source {source!r} has {opened.num_tokens:,} tokens in split {self.split!r} of {self.name}, and no"
                    f" shard of it holds a window of seq_len {self.seq_len:,}: lower seq_len, or leave the source out"
                )
        if not self.windows:
            raise ValueError(f"split {self.split!r} of {self.name} has no window of seq_len {self.seq_len}")

    def _open_source(self, source: str) -> SourceWindows | SourceBins:
        shards = self.shards(source, self.split)
        opening = {"seq_len": self.seq_len, "dtype": self.dtype, "files": self.files}
        if self.packing == "best-fit":
            opened = SourceBins(self.path, shards, pad_id=self.eos_id, cache=self.cache, **opening)
        else:
            opened = SourceWindows(self.path, shards, phase_key=derive_key(self.seed, source, "phase"), **opening)
        opened.check_files()
        return opened

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of the mix, in its order; what a later mix added comes last."""
        return tuple(self.windows)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each of `sources`: the newest, where they changed."""
        mix = self.order.mixture.segments[-1].mix
        return tuple(mix.get(source, 0.0) for source in self.sources)

    def num_windows(self, source: str) -> int:
        """How many samples the first epoch of a source has in this split."""
        return self.windows[source].num_windows if source in self.windows else 0

    def window(self, source: str, index: int) -> np.ndarray:
        """One sample of a source's first epoch in the order of the files, shape (seq_len + 1,)."""
        return self.windows[source].view(0, index)

    def __len__(self) -> int:
        """The positions that there are with max_epochs; without, those before any source begins its second epoch."""
        return self.order.length

    def __getitem__(self, position: int) -> np.ndarray:
        """The sample at a position below len(self), as `sample` gives it. Raises IndexError for another."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        return self.sample(position)

    def __getitems__(self, positions: Sequence[int]) -> list[np.ndarray]:
        """The samples at several positions below len(self): how torch's DataLoader asks for a batch."""
        if len(positions) and max(positions) >= len(self):
            raise IndexError(f"position {max(positions)} of {len(self)}")
        return list(self.samples(positions))

    def sample(self, position: int) -> np.ndarray:
        """The sample at any position: the dataset's dtype, shape (seq_len + 1,).

        No copy where the sample is a window: a read-only view of the file. Raises IndexError past the end.
        """
        source, epoch, sample = self._locate_one(position)
        if self.ahead:
            self.ahead.reach(np.array([position]))
        return self.windows[source].view(epoch, sample)

    def samples(self, positions: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """The samples at `positions`, shape (len(positions), seq_len + 1), copied into `out` where it is given.

        Where the disk has to be waited for, the system is asked for all of them at once. Raises ValueError for an `out`
        of another shape or dtype.
        """
        positions = as_positions(positions)
        located = self.order.locate(positions)
        shape = (len(located.sources), self.seq_len + 1)
        out = np.empty(shape, dtype=self.dtype) if out is None else out
        if out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, expected a contiguous {self.dtype} {shape}")
        if self.ahead:
            self.ahead.reach(positions)
        watch = DiskWatch(lambda: self._will_need(located))
        for source, epoch, rows in self.group(located):
            source.copy(epoch, located.samples[rows], rows=rows, out=out, watch=watch)
        self.has_waited = watch.has_waited
        return out

    def read(self, count: int, out: np.ndarray | None = None) -> np.ndarray:
        """The next `count` samples from `position` on, which moves on by as many.

        Where the disk had to be waited for, the system is asked for as many after them, while these are used.
        """
        samples = self.samples(range(self.position, self.position + count), out)
        self.position += operator.index(count)
        if self.has_waited:
            self.read_ahead(range(self.position, self.position + count))
        return samples

    def read_ahead(self, positions: Sequence[int] | np.ndarray) -> None:
        """Ask the system to begin reading the samples at `positions`, and return at once. Changes no result.

        With shuffle="block" whole blocks are asked for; of a dataset elsewhere, that its shards be fetched. Worth it
        where `has_waited`; none is read past the end.
        """
        positions = as_positions(positions)
        wanted = positions[positions < self.order.end]
        self.ahead.reach(wanted) if self.ahead else self._will_need(self.locate(wanted))

    def _will_need(self, located: Located) -> None:
        for source, epoch, rows in self.group(located):
            source.will_need(epoch, located.samples[rows], in_blocks_of=BLOCK_SIZES[self.shuffle])

    def group(self, located: Located) -> Iterator[tuple[SourceWindows | SourceBins, int, np.ndarray]]:
        """The rows of each source and epoch."""
        opened, all_rows = list(self.windows.values()), np.arange(len(located.sources))
        for kind, chosen in groups(located.epochs * len(opened) + located.sources):
            epoch, source = divmod(kind, len(opened))
            yield opened[source], epoch, all_rows[chosen]

    def samples_with_ends(self, positions: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The samples at `positions`, as samples gives them, and each one's document_ends."""
        located = zip(*(column.tolist() for column in self.locate(positions)), strict=True)
        ends = [self.windows[self.sources[source]].document_ends(epoch, sample) for source, epoch, sample in located]
        return self.samples(positions), ends

    def document_ends(self, position: int) -> np.ndarray:
        """Where the pieces of documents in a sample's seq_len inputs end: int64, increasing, the last is seq_len."""
        source, epoch, sample = self._locate_one(position)
        return self.windows[source].document_ends(epoch, sample)

    def target_masks(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """For each input of the samples at `positions`, whether the token after it is to be predicted.

        bool, shape (len(positions), seq_len). All are with packing="concat"; with "best-fit" not padding, nor the last
        token of a document, which another document follows.
        """
        masks = np.ones((len(positions), self.seq_len), dtype=bool)
        if self.packing == "best-fit":
            located = self.locate(positions)
            for source, epoch, rows in self.group(located):
                masks[rows] = source.target_masks(epoch, located.samples[rows])
        return masks

    def documents(self, position: int) -> Documents:
        """The boundaries of the documents in a sample, and where its tokens stand in them."""
        source, epoch, sample = self._locate_one(position)
        ends = self.windows[source].document_ends(epoch, sample)
        offset = self.windows[source].first_offset(epoch, sample)
        return Documents(ends, count_positions(ends), self.target_masks([position])[0], offset)

    def source_indices(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Which of `sources` each position is drawn from: int64."""
        return self.locate(positions).sources

    def locate(self, positions: Sequence[int] | np.ndarray) -> Located:
        """For each position its source, that source's epoch, and the sample in it."""
        return self.order.locate(as_positions(positions))

    def _locate_one(self, position: int) -> tuple[str, int, int]:
        """The source, epoch and sample of one position; its neighbours are located with it, and kept."""
        number, row = divmod(int(position), CHUNK_POSITIONS)
        chunk = self._chunk  # another thread may put another chunk there at any time
        if chunk is None or chunk[0] != number or row >= len(chunk[1].sources):
            first = number * CHUNK_POSITIONS
            self.locate([position])  # raises for a position that is not there
            chunk = (number, self.locate(range(first, min(first + CHUNK_POSITIONS, self.order.end))))
            self._chunk = chunk
        source, epoch, sample = (int(column[row]) for column in chunk[1])
        return self.sources[source], epoch, sample

    def change_mix(self, mix: Mapping[str, float], *, start: int | None = None) -> None:
        """Draw by other weights from position `start` on, by default the present one. It may name new sources.

        Each source goes on where it was: nothing is read twice or left out. Raises ValueError where the mix changed
        after `start` before.
        """
        start = self.position if start is None else start
        self._open_sources(mix, may_lack=False)
        self.order.set_mixture(self.order.mixture.then(start, mix))
        self._chunk = None

    def count_samples(self, position: int) -> dict[str, int]:
        """How many samples of each source the positions before this one hold."""
        counts = self.order.mixture.counts(position)
        return {source: counts.get(source, 0) for source in self.sources}

    def state(self, position: int | None = None) -> dict[str, Any]:
        """All that `restore` needs to go on from a position, by default the present one: for JSON, below 1 KB.

        It refers to the shards by their checksums, so the dataset may be moved, and folders with other sources added.
        """
        return {
            "format": STATE_FORMAT,
            **{name: getattr(self, name) for name in SAME_SETTINGS},
            "shards": self.hash_shards(self.order.mixture.names, self.split),
            "position": self.position if position is None else operator.index(position),
            "mixes": self.order.mixture.describe(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: its position, and its mix with all its changes, whatever mix was opened.

        Raises ValueError where the state is of other data or settings, or of a newer version.
        """
        refuse_state(state, {name: getattr(self, name) for name in SAME_SETTINGS})
        mixture = Mixture.rebuild(state["mixes"])
        if (found := self.hash_shards(mixture.names, self.split)) != state["shards"]:
            raise ValueError(
                f"the shards of {', '.join(mixture.names)} in {self.name} are not those of the state ({found}, not "
                f"{state['shards']}): the data changed. Read the data of the state, or begin anew"
            )
        self._open_sources(dict.fromkeys(mixture.names, 1), may_lack=self.split != "train")
        self.order.set_mixture(mixture)
        self.position, self._chunk = state["position"], None
