"""Which sample stands at which position: the mixture over the sources, and each source's permutation. Reads no file.

An object of it holds a few numbers per source: nothing grows with the size of the data or the position.
"""

from __future__ import annotations

import bisect
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.mixture import Mixture
from pipeline.order import BLOCK_SAMPLES, derive_key, groups, permute, permute_blocks

STATE_FORMAT = 1
PACKINGS = ("concat", "best-fit")
STATE_KEYS = ("shards", "position", "mixes")
SHUFFLES = {"global": permute, "block": permute_blocks}
LAST_POSITION = 1 << 61
BLOCK_SIZES = {"global": 1, "block": BLOCK_SAMPLES}


class Samples(Protocol):
    """What the order asks of a source: how many samples its epochs have."""

    num_windows: int

    def num_draws(self, epochs: int) -> int:
        """How many samples the first `epochs` epochs have together."""

    def num_samples(self, epoch: int) -> int:
        """How many samples one epoch has."""

    def split_draws(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the n-th draws: their epochs, and how many draws of that epoch precede them."""


class Located(NamedTuple):
    """Where the samples at some positions are: int64 arrays with an entry per position."""

    sources: np.ndarray
    """Index in `PackedDataset.sources`."""
    epochs: np.ndarray
    """Epoch of that source, from 0."""
    samples: np.ndarray
    """Number of the window, or bin, within the epoch: in the order of the files."""


class ReadingOrder:
    """The order of one seed over some sources, which may be added to; max_epochs as PackedDataset takes it."""

    def __init__(
        self,
        sources: dict[str, Samples],
        mix: Mapping[str, float],
        *,
        seed: int,
        shuffle: str,
        max_epochs: int | str | Mapping[str, int] | None,
    ):
        self.sources, self.seed, self.shuffle = sources, seed, shuffle
        self._max_epochs = parse_epochs(max_epochs) if isinstance(max_epochs, str) else max_epochs
        self.set_mixture(Mixture(mix))

    @staticmethod
    def refuse_settings(mix: Any, seq_len: int, seed: int, *, packing: str, shuffle: str) -> None:
        """Raises ValueError for a setting without a meaning."""
        if not isinstance(seq_len, int | np.integer) or seq_len < 1:
            raise ValueError(f"seq_len must be a whole number, 1 or more, found {seq_len!r}")
        if not isinstance(seed, int | np.integer):
            raise ValueError(f"seed must be a whole number, found {seed!r}")
        if not (mix is None or isinstance(mix, str) or (isinstance(mix, Mapping) and mix)):
            raise ValueError(f"mix must name sources and their weights, {{source: weight}}, found {mix!r}")
        for name, value, known in (("packing", packing, PACKINGS), ("shuffle", shuffle, tuple(BLOCK_SIZES))):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, found {value!r}")

    def set_mixture(self, mixture: Mixture) -> None:
        """Draw by this mixture of `sources` from now on."""
        self.mixture = mixture
        self.max_epochs = _epochs_by_source(self._max_epochs, self.sources)
        self.end = self.find_end(self.max_epochs)
        self.__dict__.pop("length", None)  # of the mixture before

    @cached_property
    def length(self) -> int:
        """The end that max_epochs sets; where it sets none, the first position that begins a second epoch."""
        return self.end if self.max_epochs else self.find_end(dict.fromkeys(self.sources, 1))

    def locate(self, positions: np.ndarray) -> Located:
        """Where the samples at `positions` (int64) are. Raises IndexError below 0, and where max_epochs ends them."""
        if positions.size:
            self._refuse_outside(int(positions.min()), int(positions.max()))
        mixture, listed = self.mixture, list(self.sources)
        names, draws = mixture.draws(positions)
        sources, epochs, samples = (np.empty_like(positions) for _ in range(3))
        for index, name in enumerate(mixture.names):
            chosen = np.flatnonzero(names == index)
            if len(chosen):
                sources[chosen] = listed.index(name)
                epochs[chosen], samples[chosen] = self._permute(name, draws[chosen])
        return Located(sources, epochs, samples)

    def _permute(self, name: str, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epoch and sample of a source's n-th draws. Each epoch has its own permutation."""
        source = self.sources[name]
        epochs, offsets = source.split_draws(draws)
        samples = np.empty_like(offsets)
        for epoch, chosen in groups(epochs):
            size, key = source.num_samples(epoch), derive_key(self.seed, name, epoch)
            samples[chosen] = SHUFFLES[self.shuffle](offsets[chosen], size=size, key=key)
        return epochs, samples

    def _refuse_outside(self, first: int, last: int) -> None:
        if first < 0:
            raise IndexError(f"positions count from 0, found {first}")
        if last >= self.end and not self.max_epochs:
            raise IndexError(f"position {last:,} is beyond any that can be read")
        if last >= self.end:
            name = next(name for name in self.max_epochs if self._is_used_up(name, self.end + 1, self.max_epochs))
            raise IndexError(
                f"position {last:,}: the data ends at position {self.end:,}, where source {name!r} was read "
                f"{self.max_epochs[name]} times, its max_epochs. Raise that, or change the mix from there on"
            )

    def find_end(self, max_epochs: Mapping[str, int]) -> int:
        """The first position at which a source would be read once more than `max_epochs` allows it.

        sys.maxsize where no source with a limit is drawn without end.
        """
        mixture = self.mixture
        last = mixture.segments[-1]
        weights = {name: weight for name, weight in zip(last.names, last.weights, strict=True) if weight}
        # Its count is at most one per source below its share, so by then one with a limit is used up.
        bounds = [
            (self.sources[name].num_draws(epochs) + len(weights) + 1) * sum(last.weights) // weights[name] + 1
            for name, epochs in max_epochs.items()
            if name in weights
        ]
        upper = min(last.start + min(bounds, default=0), LAST_POSITION)

        def is_over(position: int) -> bool:
            return any(self._is_used_up(name, position, max_epochs) for name in max_epochs)

        first_over = bisect.bisect_left(range(upper + 1), True, key=is_over)
        return sys.maxsize if first_over > upper else first_over - 1

    def _is_used_up(self, name: str, position: int, max_epochs: Mapping[str, int]) -> bool:
        """Whether the positions before this one read a source more often than it may be."""
        return self.mixture.counts(position).get(name, 0) > self.sources[name].num_draws(max_epochs[name])


def as_positions(positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Positions as int64. Raises TypeError for what is not whole numbers."""
    array = np.asarray(positions)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"positions are whole numbers, found {array.dtype}: {positions!r}")
    return array.astype(np.int64, copy=False)


def refuse_state(state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a reader's state is of another version, or was saved with other settings than these."""
    if state.get("format") != STATE_FORMAT:
        raise ValueError(f"the state has format {state.get('format')}, this program reads {STATE_FORMAT}: update it")
    if missing := [name for name in (*settings, *STATE_KEYS) if name not in state]:
        raise ValueError(f"the state lacks {', '.join(missing)}: take one whole, as PackedDataset.state() gives it")
    if not isinstance(state["position"], int) or state["position"] < 0:
        raise ValueError(f"the state's position is {state['position']!r}: it must be a whole number, 0 or more")
    for name, value in settings.items():
        if state[name] != value:
            raise ValueError(
                f"the state was saved with {name} {state[name]!r}, the dataset is open with {value!r}: "
                f"open it with {state[name]!r} to go on"
            )


def parse_epochs(text: str) -> int | dict[str, int]:
    """max_epochs from "2", or by source from "web:1,code:4". Raises ValueError."""
    parts = [part.strip().rpartition(":") for part in text.split(",")]
    is_for_all = len(parts) == 1 and not parts[0][1]
    if not all(number.isdecimal() and (source or is_for_all) for source, _, number in parts):
        raise ValueError(f"max_epochs {text!r} must be a number, or source:number for each source that has a limit")
    by_source = {source: int(number) for source, _, number in parts}
    if len(by_source) < len(parts):
        raise ValueError(f"max_epochs {text!r} names a source twice")
    return by_source[""] if is_for_all else by_source


def _epochs_by_source(max_epochs: int | Mapping[str, int] | None, sources: Mapping[str, Samples]) -> dict[str, int]:
    """max_epochs for each source that has one. Raises ValueError for one below 1 or of a source that is not there."""
    is_by_source = isinstance(max_epochs, Mapping) or max_epochs is None
    by_source = dict(max_epochs or {}) if is_by_source else dict.fromkeys(sources, max_epochs)
    for name, epochs in by_source.items():
        if name not in sources:
            raise ValueError(f"max_epochs names {name!r}, which is not in the mix: it has {', '.join(sources)}")
        if not isinstance(epochs, int | np.integer) or epochs < 1:
            raise ValueError(
                f"max_epochs of {name!r} must be a whole number, 1 or more, found {epochs!r}; weight 0 leaves it out"
            )
    return {name: int(epochs) for name, epochs in by_source.items()}
