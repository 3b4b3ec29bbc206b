"""What became of every row of the raw files: each stands once, in a shard or in drops/; a duplicate's partner stays.

Works on disk: the rows of a source go to a temporary folder in sorted runs, and are read back by ranges of rows. So
memory holds a few times RECORDS_AT_ONCE records, one shard's table and one file of drops, however large the dataset;
the temporary folder takes about 45 bytes per kept and 70 per dropped document ($TMPDIR says where).
"""

from __future__ import annotations

import contextlib
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.document_batch import ROW_BITS, key_rows
from pipeline.drops import SCHEMA
from pipeline.shard import SPLITS
from pipeline.token_file import DROP_REASONS
from pipeline.verify_shard import read_documents_table
from pipeline.verify_source import SPLIT_PRIORITY, ClaimedSource, claimed_sources

RECORDS_AT_ONCE = 1 << 21
EXACT = DROP_REASONS.index("duplicate_exact")
NEAR = DROP_REASONS.index("duplicate_near")
BEYOND = DROP_REASONS.index("beyond_tokens")

# Sorted by key; sizes are multiples of 8 bytes, so that a key can be searched for in the file itself.
KEPT = np.dtype(
    [
        ("key", "<u8"),
        ("content_hash", "<u8", 2),
        ("document", "<u8"),  # in its shard
        ("shard", "<u4"),
        ("num_tokens", "<u4"),
    ]
)
DROPPED = np.dtype([("key", "<u8"), ("num_bytes", "<u8"), ("reason", "<u4"), ("item", "<u4")])  # item: hash_items
PARTNER = np.dtype(  # key: the document that stays
    [("key", "<u8"), ("dropped_key", "<u8"), ("dropped_source", "<u4"), ("is_exact", "<u4")]
)
COPY = np.dtype([("key", "<u8"), ("content_hash", "<u8", 2)])  # a dropped document, and its partner's hash


class SortedRuns:
    """Records on disk in runs that are sorted by key, to be read back by ranges of keys."""

    def __init__(self, path: Path, dtype: np.dtype):
        self.path, self.dtype = path, dtype
        self.edges = [0]  # of the runs, in records
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0
        path.touch()

    def add(self, records: np.ndarray) -> None:
        """Take in records, in any order. Raises OSError where the disk refuses."""
        for first in range(0, len(records), RECORDS_AT_ONCE):
            part = records[first : first + RECORDS_AT_ONCE]
            self._waiting.append(part)
            self._num_waiting += len(part)
            if self._num_waiting >= RECORDS_AT_ONCE:
                self.flush()

    def flush(self) -> None:
        """Write what waits as one run. To be called before reading."""
        if not self._num_waiting:
            return
        run = np.concatenate(self._waiting)
        self._waiting, self._num_waiting = [], 0
        with open(self.path, "ab") as file:
            file.write(sort_by_key(run).data)
        self.edges.append(self.edges[-1] + len(run))

    def find(self, first_key: int, last_key: int) -> list[tuple[int, int]]:
        """The records of each run whose key is in [first_key, last_key), by first and last index."""
        if not self.edges[-1]:
            return []
        records = np.memmap(self.path, dtype=self.dtype, mode="r")  # not kept: what it has touched counts as memory
        found = []
        for start, end in zip(self.edges[:-1], self.edges[1:], strict=True):
            keys = np.array([first_key, last_key], np.uint64)  # of another dtype, the run would be converted
            first, last = np.searchsorted(records["key"][start:end], keys)
            found.append((start + int(first), start + int(last)))
        return found

    def count(self, first_key: int, last_key: int) -> int:
        """How many records have a key in [first_key, last_key)."""
        return sum(last - first for first, last in self.find(first_key, last_key))

    def read(self, first_key: int, last_key: int) -> np.ndarray:
        """The records with a key in [first_key, last_key), sorted by key."""
        parts = [np.empty(0, self.dtype)]
        with open(self.path, "rb") as file:
            for first, last in self.find(first_key, last_key):
                file.seek(first * self.dtype.itemsize)
                parts.append(np.fromfile(file, self.dtype, last - first))
        return sort_by_key(np.concatenate(parts))


def sort_by_key(records: np.ndarray) -> np.ndarray:
    """The records in the order of their keys."""
    return records[np.argsort(records["key"], kind="stable")]


class SourceRows:
    """The rows of one source on disk, and the duplicates of all sources whose partner is one of them."""

    def __init__(self, source: ClaimedSource, folder: Path):
        self.source = source
        self.kept = SortedRuns(folder / f"{source.number}.kept", KEPT)
        self.dropped = SortedRuns(folder / f"{source.number}.dropped", DROPPED)
        self.partners = SortedRuns(folder / f"{source.number}.partners", PARTNER)
        self.copies = SortedRuns(folder / f"{source.number}.copies", COPY)
        self.num_duplicate_tokens = 0
        self.num_without_partner = 0  # duplicates of what lies beyond the limit of --tokens, or elsewhere

    def flush(self) -> None:
        """Make all that was added readable."""
        for runs in (self.kept, self.dropped, self.partners, self.copies):
            runs.flush()


@contextlib.contextmanager
def open_rows(folder: Path, content: Mapping[str, Any]) -> Iterator[list[SourceRows]]:
    """The rows of every source, in the order of the mix. The dataset's tables must have been found readable."""
    with tempfile.TemporaryDirectory(prefix="tokenmill-verify-") as temporary:
        rows = [SourceRows(source, Path(temporary)) for source in claimed_sources(content)]
        for of_source in rows:
            for number, (_, shard) in enumerate(of_source.source.shards):
                of_source.kept.add(read_kept(folder / shard["path"], number))
            for file in of_source.source.entry["drops"]:
                add_drops(folder / file["path"], of_source, rows)
        for of_source in rows:
            of_source.flush()
        yield rows


def read_kept(bin_path: Path, shard: int) -> np.ndarray:
    """The documents of a shard as KEPT records."""
    documents = read_documents_table(bin_path)
    kept = np.empty(len(documents), KEPT)
    for name in ("key", "content_hash", "num_tokens"):
        kept[name] = documents[name]
    kept["document"], kept["shard"] = np.arange(len(documents)), shard
    return kept


def add_drops(path: Path, of_source: SourceRows, rows: Sequence[SourceRows]) -> None:
    """Read one file of drops."""
    table = pq.read_table(path, schema=SCHEMA)
    dropped = np.empty(len(table), DROPPED)
    dropped["key"] = key_rows(table["raw_file"].to_numpy(), table["row"].to_numpy())
    dropped["num_bytes"] = table["num_bytes"].to_numpy()
    dropped["reason"] = numbers_of(table["reason"], (*DROP_REASONS, *of_source.source.rules))
    dropped["item"] = hash_items(table["item"].combine_chunks())
    of_source.dropped.add(dropped)
    partner_sources = numbers_of(table["partner_source"], [other.source.name for other in rows])
    # What stays in a dataset of --against is not read here (verify_held.py), and its tokens are not known.
    of_source.num_without_partner += int(((partner_sources < 0) & np.isin(dropped["reason"], (EXACT, NEAR))).sum())
    partner_files = table["partner_raw_file"].fill_null(0).to_numpy()
    partner_keys = key_rows(partner_files, table["partner_row"].fill_null(0).to_numpy())
    for number, other in enumerate(rows):
        is_of = partner_sources == number
        partners = np.empty(int(is_of.sum()), PARTNER)
        partners["key"], partners["dropped_key"] = partner_keys[is_of], dropped["key"][is_of]
        partners["dropped_source"] = of_source.source.number
        partners["is_exact"] = dropped["reason"][is_of] == EXACT
        other.partners.add(partners)


def numbers_of(words: Any, known: Sequence[str]) -> np.ndarray:
    """The index in `known` of each word of an Arrow column, -1 for null and for any other: int64."""
    encoded = words.combine_chunks().dictionary_encode()
    numbers = [known.index(word) if word in known else -1 for word in encoded.dictionary.to_pylist()]
    indices = encoded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
    return np.array([*numbers, -1], np.int64)[indices]


def hash_items(names: pa.Array) -> np.ndarray:
    """The crc32 of each name of an evaluation text, 0 for null: uint32."""
    encoded = names.dictionary_encode()
    hashes = [zlib.crc32(name.encode()) for name in encoded.dictionary.to_pylist()]
    return np.array([*hashes, 0], np.uint32)[encoded.indices.fill_null(len(hashes)).to_numpy(zero_copy_only=False)]


def verify_rows(rows: Sequence[SourceRows]) -> Iterator[str]:
    """What is wrong with the rows of all sources. Afterwards each one's `copies` can be read."""
    for of_source in rows:
        for first, last in split_keys(of_source):
            kept = of_source.kept.read(first, last)
            dropped, partners = of_source.dropped.read(first, last), of_source.partners.read(first, last)
            yield from verify_once(of_source, kept["key"], dropped["key"])
            # Beyond the limit of --tokens a document and its copies go together: there the partner is no longer kept.
            is_beyond = np.isin(partners["key"], dropped["key"][dropped["reason"] == BEYOND])
            for number, count in enumerate(np.bincount(partners["dropped_source"][is_beyond], minlength=len(rows))):
                rows[number].num_without_partner += int(count)
            yield from verify_partners(of_source, kept, partners[~is_beyond], rows)
    for of_source in rows:
        of_source.flush()
        claimed = of_source.source.entry["counts"]["duplicate_exact"]["tokens"]
        if claimed != of_source.num_duplicate_tokens and not of_source.num_without_partner:
            found = of_source.num_duplicate_tokens
            yield f"{of_source.source.name}: {claimed:,} tokens duplicate_exact, but what stays for them has {found:,}"


def split_keys(of_source: SourceRows) -> Iterator[tuple[int, int]]:
    """The keys of a source in ranges of RECORDS_AT_ONCE records at most, except where one document has more copies."""
    runs = (of_source.kept, of_source.dropped, of_source.partners)

    def split(first: int, last: int) -> Iterator[tuple[int, int]]:
        if last - first <= 1 or sum(part.count(first, last) for part in runs) <= RECORDS_AT_ONCE:
            yield first, last
        else:
            yield from split(first, (first + last) // 2)
            yield from split((first + last) // 2, last)

    yield from split(0, of_source.source.num_raw_files << ROW_BITS)


def verify_once(of_source: SourceRows, kept_keys: np.ndarray, dropped_keys: np.ndarray) -> Iterator[str]:
    """That no row is there twice."""
    keys = np.sort(np.concatenate([kept_keys, dropped_keys]))
    twice = np.unique(keys[1:][keys[1:] == keys[:-1]])
    if len(twice):
        others = f", and {len(twice) - 1:,} more" if len(twice) > 1 else ""
        yield f"{of_source.source.name_row(twice[0])} is there twice, in shards or drops/{others}"


def verify_partners(
    of_source: SourceRows, kept: np.ndarray, partners: np.ndarray, rows: Sequence[SourceRows]
) -> Iterator[str]:
    """That what stays in place of a dropped document does stay, and is the copy to stay; notes the copies' hashes."""
    at = np.minimum(np.searchsorted(kept["key"], partners["key"]), max(len(kept) - 1, 0))
    is_kept = kept["key"][at] == partners["key"] if len(kept) else np.zeros(len(partners), bool)
    for partner in partners[~is_kept][:1]:
        dropped = rows[int(partner["dropped_source"])].source.name_row(partner["dropped_key"])
        yield (
            f"{dropped} is dropped as a duplicate of {of_source.source.name_row(partner['key'])}, which is not kept "
            f"({int((~is_kept).sum()):,} such partners)"
        )
    stays, partners = kept[at[is_kept]] if len(kept) else kept, partners[is_kept]
    shard_splits = np.array([SPLITS.index(split) for split, _ in of_source.source.shards], np.int64)
    for number in np.unique(partners["dropped_source"]).tolist():
        is_of = partners["dropped_source"] == number
        copies = np.empty(int(is_of.sum()), COPY)
        copies["key"], copies["content_hash"] = partners["dropped_key"][is_of], stays["content_hash"][is_of]
        rows[number].copies.add(copies)
        is_exact = is_of & (partners["is_exact"] == 1)
        rows[number].num_duplicate_tokens += int(stays["num_tokens"][is_exact].sum(dtype=np.int64))
        priorities = SPLIT_PRIORITY[shard_splits[stays["shard"][is_of]]]
        is_copy = partners["is_exact"][is_of] == 1
        yield from verify_priority(of_source, stays["key"][is_of], priorities, is_copy, copies, rows[number].source)


def verify_priority(
    of_source: SourceRows,
    keys: np.ndarray,
    priorities: np.ndarray,
    is_exact: np.ndarray,
    copies: np.ndarray,
    dropped: ClaimedSource,
) -> Iterator[str]:
    """That of each pair the first stays: by split, then source by settings.dedup_priority, raw file and row.

    priorities: of the splits of those that stay. A dropped document's split follows from its text: it is known here
    where that is its partner's, and where its raw file is of validation or test; else it is taken for train's.
    """
    raw_files = (copies["key"] >> np.uint64(ROW_BITS)).astype(np.int64)
    own = dropped.choose_splits(copies["content_hash"], raw_files)
    dropped_priorities = SPLIT_PRIORITY[np.where(is_exact, own, dropped.file_splits[raw_files])]
    source = of_source.source
    is_earlier = source.priority < dropped.priority
    is_before = keys < copies["key"] if source.number == dropped.number else np.full(len(keys), is_earlier)
    is_first = (priorities < dropped_priorities) | ((priorities == dropped_priorities) & is_before)
    for wrong in np.flatnonzero(~is_first)[:1]:
        yield (
            f"{dropped.name_row(copies['key'][wrong])} is dropped as a duplicate of "
            f"{of_source.source.name_row(keys[wrong])}, which comes after it ({int((~is_first).sum()):,} such pairs)"
        )


def look_up(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted key stands in sorted keys, and whether it does."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted
