"""The index of best-fit packing: which pieces of documents each bin holds. Made once, in a cache, from document ends.

A folder per set of shards and seq_len, named by a hash of both, in tokenmill/best-fit of the user's cache:

    bins.u64      for each bin its first piece, and one more entry: the number of pieces
    pieces.u64    first token, counted over all shards of the source's split << 20 | number of tokens
    index.json    the counts of PackingIndex; written last

Pools of 100,000 documents or more, in the order of the shards, are packed each for itself, never across sources. Within
a pool the bins stand in a keyed random order, for best-fit makes the fullest first. Little-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.order import derive_key, permute
from pipeline.source_shards import SourceShards
from pipeline.storage import locked, open_new, read_json, user_cache, write_json

POOL_DOCUMENTS = 100_000
LENGTH_BITS = 20
LARGEST_SEQ_LEN = (1 << LENGTH_BITS) - 2
INDEX_VERSION = 1  # of the packing: another one makes other bins of the same documents
BINS, PIECES = "bins.u64", "pieces.u64"
ENTRY = np.dtype("<u8")

Parts = Mapping[str, np.ndarray]
"""The files of an index by name, as arrays."""
Write = Callable[[bytes], object]


class CacheError(OSError):
    """The cache cannot be written to, or read."""


@dataclass(frozen=True)
class PackingIndex:
    """A finished index."""

    seq_len: int
    num_bins: int
    num_pieces: int
    num_documents: int
    num_cut: int
    """Documents of more than seq_len + 1 tokens, which no single sample can hold."""
    num_left_out: int
    """Documents of a single token: they have no target."""
    num_inputs: int
    """Tokens that are inputs, of the num_bins * seq_len that there are; the others are padding."""

    def counts(self) -> dict[str, int]:
        """How many entries each file of the index has."""
        return {BINS: self.num_bins + 1, PIECES: self.num_pieces}

    @property
    def real_fraction(self) -> float:
        """The share of the inputs that is not padding."""
        return self.num_inputs / max(1, self.num_bins * self.seq_len)


def index_folder(source: SourceShards, *, seq_len: int, cache: Path | None) -> Path:
    """Where the index of these shards and this seq_len is, or will be."""
    entries = [(shard["tokens"], shard["documents"], shard["xxh3_128"]) for shard in source.shards]
    name = f"{derive_key(INDEX_VERSION, POOL_DOCUMENTS, seq_len, entries):016x}-{seq_len}"
    return (user_cache("best-fit") if cache is None else cache) / name


def find_index(source: SourceShards, *, seq_len: int, cache: Path | None = None) -> tuple[PackingIndex, Path]:
    """The index of a source's shards, and its folder; it is made where it is not there yet.

    Of several processes of this machine that want it, one makes it and the others wait.
    Raises ValueError for a seq_len over 1,048,574, or shards that hold 17 million million tokens or more, and
    CacheError.
    """
    if seq_len > LARGEST_SEQ_LEN:
        raise ValueError(f"seq_len {seq_len:,} is too long for best-fit packing: at most {LARGEST_SEQ_LEN:,}")
    if source.num_tokens >= 1 << (64 - LENGTH_BITS):
        raise ValueError(f"{source.num_tokens:,} tokens in one source are too many for best-fit packing: use concat")
    folder = index_folder(source, seq_len=seq_len, cache=cache)
    try:
        index = read_index(folder)
        if index is None:
            with locked(folder):  # another process may have made it meanwhile
                index = read_index(folder) or write_index(source, folder, seq_len=seq_len)
    except OSError as error:
        place = Path(error.filename or folder.anchor)
        if place in folder.parents or folder.parent in place.parents:
            raise CacheError(f"{place}: {error.strerror}, so no best-fit index can be kept there") from error
        raise  # a shard could not be read
    return index, folder


def read_index(folder: Path) -> PackingIndex | None:
    """The index of a folder; None where it is not finished, or its files are not whole."""
    try:
        index = PackingIndex(**read_json(folder / "index.json"))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    for name, count in index.counts().items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != 8 * count:
            return None
    return index


def write_index(source: SourceShards, folder: Path, *, seq_len: int) -> PackingIndex:
    """Write the bins and pieces of all pools; index.json comes last."""
    with open_new(folder / BINS) as bins_file, open_new(folder / PIECES) as pieces_file:
        index = pack_pools(source, seq_len=seq_len, bins=bins_file.write, pieces=pieces_file.write)
    write_json(folder / "index.json", asdict(index))
    return index


def pack(source: SourceShards, *, seq_len: int) -> tuple[PackingIndex, Parts]:
    """The bins and pieces of all pools, in memory."""
    buffers = {BINS: bytearray(), PIECES: bytearray()}
    index = pack_pools(source, seq_len=seq_len, bins=buffers[BINS].extend, pieces=buffers[PIECES].extend)
    return index, {name: np.frombuffer(buffer, dtype=ENTRY) for name, buffer in buffers.items()}


def pack_pools(source: SourceShards, *, seq_len: int, bins: Write, pieces: Write) -> PackingIndex:
    """Pack all pools, one after the other; what goes into the files of the index is given to `bins` and `pieces`."""
    totals = dict.fromkeys(("num_bins", "num_pieces", "num_documents", "num_cut", "num_left_out", "num_inputs"), 0)
    for number, (first_token, lengths) in enumerate(read_pools(source)):
        pool = pack_pool(lengths, first_token, seq_len=seq_len, key=derive_key("best-fit", number))
        first_pieces = totals["num_pieces"] + np.cumsum(pool["counts"]) - pool["counts"]
        bins(first_pieces.astype(ENTRY).tobytes())
        pieces(((pool["starts"].astype(ENTRY) << np.uint64(LENGTH_BITS)) | pool["lengths"].astype(ENTRY)).tobytes())
        for name, count in count_pool(lengths, pool, seq_len=seq_len).items():
            totals[name] += count
    bins(np.array([totals["num_pieces"]], dtype=ENTRY).tobytes())
    return PackingIndex(seq_len=seq_len, **totals)


def read_pools(source: SourceShards) -> Iterator[tuple[int, np.ndarray]]:
    """The documents of a source in pools: the first one's first token over all shards, and their lengths, int64."""
    num_documents = int(source.first_documents[-1])
    num_pools = max(1, num_documents // POOL_DOCUMENTS)
    borders = [num_documents * number // num_pools for number in range(num_pools + 1)]
    first_token = 0
    for first, last in pairwise(borders):
        lengths = source.document_lengths(first, last)
        yield first_token, lengths
        first_token += int(lengths.sum())


def pack_pool(lengths: np.ndarray, first_token: int, *, seq_len: int, key: int) -> dict[str, np.ndarray]:
    """The bins of one pool, in a random order: the starts and lengths of their pieces, and the counts per bin."""
    from pipeline.best_fit import assign_bins, cut_documents, lay_out  # numba: only who makes an index needs it

    full_starts, starts, rests = cut_documents(lengths, first_token, seq_len)
    bins, num_packed = assign_bins(rests, seq_len)
    num_bins = num_packed + len(full_starts)
    places = permute(np.arange(num_bins), size=num_bins, key=key) if num_bins else np.empty(0, np.int64)
    piece_starts, piece_lengths, counts = lay_out(full_starts, starts, rests, bins, places, seq_len)
    return {"starts": piece_starts, "lengths": piece_lengths, "counts": counts}


def count_pool(lengths: np.ndarray, pool: dict[str, Any], *, seq_len: int) -> dict[str, int]:
    """What a pool adds to the counts of its index."""
    return {
        "num_bins": len(pool["counts"]),
        "num_pieces": len(pool["lengths"]),
        "num_documents": len(lengths),
        "num_cut": int((lengths > seq_len + 1).sum()),
        "num_left_out": int((lengths == 1).sum()),
        "num_inputs": int(np.minimum(pool["lengths"], seq_len).sum()),
    }
