"""The bins of one source and split: whole documents packed into samples of seq_len inputs. numpy only.

A bin is a list of pieces of documents, by an index over the same shards (see packing.py). A piece of seq_len + 1 tokens
fills its bin: each input has the next token as its target. A shorter piece ends with its document, so its last token
has no target. What no piece fills is padding, at the end. Every target of every document is in one bin, once an epoch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.maps import DiskWatch, OpenFile, OpenFiles
from pipeline.packing_index import BINS, ENTRY, LENGTH_BITS, PIECES, CacheError, Parts, find_index, pack
from pipeline.source_shards import SourceShards, offset_in_document

LENGTH_MASK = (1 << LENGTH_BITS) - 1
IN_MEMORY = (
    "each process packs the documents for itself, and holds about 16 bytes of each in memory. Make room there, or set "
    "XDG_CACHE_HOME to another folder"
)


class Pieces(NamedTuple):
    """The pieces of some bins, bin by bin: int64 arrays with an entry per piece."""

    rows: np.ndarray
    """Which of the bins asked for."""
    columns: np.ndarray
    """Where the piece begins in its bin."""
    starts: np.ndarray
    """Its first token, counted over all shards."""
    lengths: np.ndarray
    """Its tokens: seq_len + 1, or at most seq_len."""


class SourceBins(SourceShards):
    """The bins of one source's split. pad_id fills what no piece fills."""

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Mapping],
        *,
        seq_len: int,
        dtype: np.dtype,
        pad_id: int,
        cache: Path | None = None,
        files: OpenFiles | None = None,
    ):
        super().__init__(folder, shards, dtype=dtype, files=files)
        self.seq_len, self.pad_id = seq_len, pad_id
        self.parts: Path | Parts
        try:
            self.index, self.parts = find_index(self, seq_len=seq_len, cache=cache)
        except CacheError as error:
            warnings.warn(f"{error}: {IN_MEMORY}", stacklevel=2)
            self.index, self.parts = pack(self, seq_len=seq_len)
        self.num_windows = self.index.num_bins

    @property
    def num_unread_tokens(self) -> int:
        """Tokens that are in no bin: of documents of a single token, and last tokens that are targets of a piece."""
        return self.num_tokens - self.index.num_inputs

    def num_draws(self, epochs: int) -> int:
        """How many bins the first `epochs` epochs have together."""
        return epochs * self.num_windows

    def split_draws(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the n-th draws of this source: their epochs, and how many draws of that epoch precede them; int64."""
        return np.divmod(draws, self.num_windows)

    def num_samples(self, epoch: int) -> int:
        """How many bins one epoch has: always as many."""
        return self.num_windows

    def find_shards(self, epoch: int, bins: np.ndarray) -> np.ndarray:
        """The shards that bins are read from, each once: int64."""
        return np.unique(self._locate(self.pieces(bins).starts)[0])

    def view(self, epoch: int, bin_number: int) -> np.ndarray:
        """The tokens of one bin, shape (seq_len + 1,): its pieces, then padding. A copy."""
        out = np.empty((1, self.seq_len + 1), dtype=self.dtype)
        self.will_need(epoch, np.array([bin_number]), in_blocks_of=1)
        self.copy(epoch, np.array([bin_number]), rows=np.array([0]), out=out, watch=DiskWatch(lambda: None))
        return out[0]

    def copy(self, epoch: int, bins: np.ndarray, *, rows: np.ndarray, out: np.ndarray, watch: DiskWatch) -> None:
        """Copy the tokens of bins into rows of `out`, (any, seq_len + 1), in the order of the files."""
        out[rows] = self.pad_id
        pieces = self.pieces(bins)
        located = self._locate(pieces.starts)
        for tokens, entries in self.in_file_order(*located, rows[pieces.rows], pieces.columns, pieces.lengths):
            watch.start()
            for start, row, column, length in entries:
                tokens.read_into(start, out[row, column : column + length])
                watch.tick()

    def will_need(self, epoch: int, bins: np.ndarray, *, in_blocks_of: int) -> None:
        """Ask the system to begin reading the pieces of bins. The pieces of a pool lie near each other: no blocks."""
        pieces = self.pieces(bins)
        for tokens, entries in self.in_file_order(*self._locate(pieces.starts), pieces.lengths):
            for start, length in entries:
                tokens.will_need(start, start + length)

    def pieces(self, bins: np.ndarray) -> Pieces:
        """The pieces of some bins. Raises IndexError for a bin that is not there."""
        if bins.size and not (bins.min() >= 0 and bins.max() < self.num_windows):
            raise IndexError(f"bin {bins.min()} or {bins.max()} of {self.num_windows}")
        first_pieces = self._open(BINS)
        firsts = first_pieces.take(bins).astype(np.int64)
        counts = first_pieces.take(bins + 1).astype(np.int64) - firsts
        rows = np.repeat(np.arange(len(bins)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        packed = self._open(PIECES).take(firsts[rows] + within).astype(np.int64)
        lengths = packed & LENGTH_MASK
        before = np.cumsum(lengths) - lengths
        columns = before - np.repeat(before[np.cumsum(counts) - counts], counts)
        return Pieces(rows, columns, packed >> LENGTH_BITS, lengths)

    def _open(self, name: str) -> OpenFile | np.ndarray:
        """A file of the index; where it is held in memory, as an array."""
        if isinstance(self.parts, Path):
            return self.files.open(self.parts / name, dtype=ENTRY, count=self.index.counts()[name])
        return self.parts[name]

    def _locate(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shards of tokens counted over all shards, and where they stand in them."""
        shards = np.searchsorted(self.first_tokens, starts, side="right") - 1
        return shards, starts - self.first_tokens[shards]

    def document_ends(self, epoch: int, bin_number: int) -> np.ndarray:
        """Where the pieces in a bin's seq_len inputs end, and its padding: int64, increasing, the last is seq_len."""
        pieces = self.pieces(np.array([bin_number]))
        ends = np.minimum(pieces.columns + pieces.lengths, self.seq_len)
        return ends if ends[-1] == self.seq_len else np.append(ends, self.seq_len)

    def piece_starts(self, epoch: int, bin_number: int) -> list[int]:
        """The first token of each piece of a document in a bin, counted over all shards."""
        return self.pieces(np.array([bin_number])).starts.tolist()

    def first_offset(self, epoch: int, bin_number: int) -> int:
        """How many tokens of the bin's first document precede it: more than 0 where a document was cut."""
        shard, start = (int(value[0]) for value in self._locate(self.pieces(np.array([bin_number])).starts[:1]))
        return offset_in_document(self.ends(shard), start)

    def target_masks(self, epoch: int, bins: np.ndarray) -> np.ndarray:
        """For each input of some bins, whether the token after it is its target: bool, shape (len(bins), seq_len)."""
        pieces = self.pieces(bins)
        masks = np.zeros((len(bins), self.seq_len), dtype=bool)
        columns = (pieces.rows, pieces.columns, pieces.lengths)
        for row, column, length in zip(*(values.tolist() for values in columns), strict=True):
            masks[row, column : column + length - 1] = True
        return masks
