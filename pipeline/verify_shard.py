"""The shards of a split: their four files, their ids, and that each document is in its split and at its place.

Holds one shard's document index and table in memory (about 100 bytes per document of the shard) and a piece of its ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.document_batch import key_rows
from pipeline.ingest import find_places
from pipeline.pack import plan_shards
from pipeline.shard import (
    SPLITS,
    check_size,
    documents_path,
    megatron_index,
    megatron_path,
    open_document_ends,
    open_tokens,
)
from pipeline.storage import checksum_file
from pipeline.verify_source import ClaimedSource, find_stray_row
from pipeline.work import NUM_BUCKETS, buckets_of

TOKENS_AT_ONCE = 1 << 24
DOCUMENTS_SCHEMA = pa.schema(
    [("raw_file", pa.uint32()), ("row", pa.uint64()), ("num_tokens", pa.uint32()), ("content_hash", pa.binary(16))]
)
DOCUMENT_ROW = np.dtype([("content_hash", "<u8", 2), ("key", "<u8"), ("num_tokens", "<u4"), ("raw_file", "<u4")])


def verify_split(folder: Path, source: ClaimedSource, split: str, content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the shards of one split, one text each."""
    shards = source.entry["splits"][split]["shards"]
    tokens, num_documents = np.zeros((2, NUM_BUCKETS), np.int64)
    edges: list[tuple[Path, int, int]] = []  # a shard's first and last bucket of places
    before = np.empty(0, DOCUMENT_ROW)
    for shard in shards:
        problems = list(verify_shard(folder, shard, source, content))
        yield from problems
        if problems:
            continue
        bin_path = folder / shard["path"]
        documents = read_documents_table(bin_path)
        yield from verify_places(bin_path, documents, before, source)
        yield from verify_documents_split(bin_path, documents, split, source)
        before = documents[-1:]
        buckets = buckets_of(places_of(documents, source))
        np.add.at(tokens, buckets, documents["num_tokens"].astype(np.int64))
        num_documents += np.bincount(buckets, minlength=NUM_BUCKETS)
        edges.append((bin_path, int(buckets.min()), int(buckets.max())))
    if len(edges) == len(shards):
        yield from verify_borders(folder / source.name / split, edges, tokens, num_documents, source)


def verify_shard(
    folder: Path, shard: Mapping[str, Any], source: ClaimedSource, content: Mapping[str, Any]
) -> Iterator[str]:
    """The four files of a shard, against dataset.json and each other."""
    bin_path = folder / shard["path"]
    dtype = np.dtype(content["dtype"]).newbyteorder("<")
    if not shard["documents"] or not shard["tokens"]:
        yield f"{bin_path}: dataset.json says that it is empty, but no such shard is ever written"
        return
    try:
        check_size(bin_path, shard["bytes"])
        tokens = open_tokens(bin_path, dtype=dtype, num_tokens=shard["tokens"])
        ends = np.array(open_document_ends(bin_path, num_documents=shard["documents"]))
    except (ValueError, OSError) as error:
        yield str(error)
        return
    for path, checksum in ((bin_path, "xxh3_128"), (documents_path(bin_path), "docs_xxh3_128")):
        found = checksum_file(path) if path.is_file() else "no file"
        if found != shard[checksum]:
            yield f"{path}: xxh3-128 is {found}, dataset.json says {shard[checksum]}"
            return
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (lengths <= 0).any() or int(ends[-1]) != shard["tokens"]:
        yield f"{bin_path}.index: document ends do not rise to {shard['tokens']:,} tokens"
        return
    if not holds(megatron_path(bin_path), b"".join(megatron_index(ends, dtype))):
        yield f"{megatron_path(bin_path)}: does not agree with {bin_path.name}.index"
    yield from verify_documents_table(bin_path, lengths, source)
    yield from verify_ids(bin_path, tokens, ends, shard, content)


def holds(path: Path, expected: bytes) -> bool:
    """Whether a file exists and holds exactly these bytes."""
    return path.is_file() and path.stat().st_size == len(expected) and path.read_bytes() == expected


def verify_documents_table(bin_path: Path, lengths: np.ndarray, source: ClaimedSource) -> Iterator[str]:
    """That a shard's table has its columns, a row per document, and only rows that the source can have."""
    path = documents_path(bin_path)
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        yield f"{path}: not a readable parquet file: {str(error).splitlines()[0]}"
        return
    if not table.schema.equals(DOCUMENTS_SCHEMA) or any(column.null_count for column in table.columns):
        yield f"{path}: its columns are not {', '.join(DOCUMENTS_SCHEMA.names)} as they should be, without nulls"
    elif not np.array_equal(table["num_tokens"].to_numpy(), lengths):
        yield f"{path}: num_tokens does not agree with {bin_path.name}.index"
    elif stray := find_stray_row(source, table["raw_file"].to_numpy(), table["row"].to_numpy()):
        yield f"{path}: a document comes from {stray}"


def read_documents_table(bin_path: Path) -> np.ndarray:
    """A shard's documents as DOCUMENT_ROW records, in the order of the shard."""
    return as_document_rows(pq.read_table(documents_path(bin_path)))


def as_document_rows(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Rows of a .docs.parquet as DOCUMENT_ROW records."""
    documents = np.empty(len(table), DOCUMENT_ROW)
    documents["raw_file"], documents["num_tokens"] = table["raw_file"].to_numpy(), table["num_tokens"].to_numpy()
    documents["key"] = key_rows(documents["raw_file"], table["row"].to_numpy())
    hashes = table["content_hash"]
    if isinstance(hashes, pa.ChunkedArray):
        hashes = hashes.combine_chunks()
    flat = np.frombuffer(hashes.buffers()[1], "<u8").reshape(-1, 2)
    documents["content_hash"] = flat[hashes.offset : hashes.offset + len(hashes)]
    return documents


def places_of(documents: np.ndarray, source: ClaimedSource) -> np.ndarray:
    """The place of each document, from its content hash and the seed."""
    return find_places(documents["content_hash"], seed=source.settings["seed"])


def verify_places(bin_path: Path, documents: np.ndarray, before: np.ndarray, source: ClaimedSource) -> Iterator[str]:
    """That documents stand in the order of their places; `before` is the last document of the shard before."""
    joined = np.concatenate([before, documents])
    first, second = joined["content_hash"][:, 0], joined["content_hash"][:, 1]
    wrong = find_disorder(places_of(joined, source), first, second, joined["key"])
    if len(wrong):
        number = int(wrong[0]) + 1 - len(before)
        yield (
            f"{bin_path}: document {number:,} ({source.name_row(documents['key'][number])}) should not stand after the "
            f"one before it, and {len(wrong) - 1:,} more should not: settings.seed or the order is wrong"
        )


def find_disorder(*columns: np.ndarray) -> np.ndarray:
    """The indices of records that are not smaller than the next one; the first column counts most."""
    is_greater = np.zeros(max(len(columns[0]) - 1, 0), bool)
    is_equal = ~is_greater
    for column in columns:
        is_greater |= is_equal & (column[1:] > column[:-1])
        is_equal &= column[1:] == column[:-1]
    return np.flatnonzero(~is_greater)


def verify_documents_split(bin_path: Path, documents: np.ndarray, split: str, source: ClaimedSource) -> Iterator[str]:
    """That each document belongs to the split in which it is."""
    expected = source.choose_splits(documents["content_hash"], documents["raw_file"])
    wrong = np.flatnonzero(expected != SPLITS.index(split))
    if len(wrong):
        yield (
            f"{bin_path}: document {wrong[0]:,} ({source.name_row(documents['key'][wrong[0]])}) belongs to "
            f"{SPLITS[expected[wrong[0]]]}; {len(wrong) - 1:,} more of its documents are in the wrong split"
        )


def verify_borders(
    where: Path,
    edges: list[tuple[Path, int, int]],
    tokens: np.ndarray,
    num_documents: np.ndarray,
    source: ClaimedSource,
) -> Iterator[str]:
    """That the shards begin and end where settings.shard_tokens puts their borders. Counts are by bucket."""
    if not tokens.any():
        return
    shard_tokens = source.settings["shard_tokens"]
    borders = plan_shards(tokens, num_documents, shard_tokens=shard_tokens)
    if len(borders) != len(edges):
        yield f"{where}: {len(edges):,} shards, but settings.shard_tokens {shard_tokens:,} makes {len(borders):,}"
        return
    for (path, lowest, highest), (first, last) in zip(edges, borders, strict=True):
        if not first <= lowest <= highest < last:
            yield f"{path}: does not begin and end where settings.shard_tokens {shard_tokens:,} puts its borders"


def verify_ids(
    bin_path: Path, tokens: np.ndarray, ends: np.ndarray, shard: Mapping[str, Any], content: Mapping[str, Any]
) -> Iterator[str]:
    """The ids of a shard: in range, and control ids where the document rule puts them, nowhere else.

    Documents that were not built may have some within them too, and where the rule is "none" anywhere.
    """
    tokenizer, is_built = content["tokenizer"], "settings" in content
    rule = content["document_rule"]
    differ = np.setxor1d if is_built else np.setdiff1d
    expected = {} if rule == "none" else control_positions(ends.astype(np.int64), tokenizer, rule)
    largest_id = 0
    for first in range(0, len(tokens), TOKENS_AT_ONCE):
        chunk = np.array(tokens[first : first + TOKENS_AT_ONCE])
        largest_id = max(largest_id, int(chunk.max()))
        for token, positions in expected.items():
            found = np.flatnonzero(chunk == token) + first
            low, high = np.searchsorted(positions, [first, first + len(chunk)])
            placed = positions[low:high]
            if not np.array_equal(found, placed) and len(wrong := differ(placed, found)):
                yield (
                    f"{bin_path}: id {token} stands at token {wrong[0]:,} where it should not, or is missing there "
                    f"({len(wrong):,} such places from token {first:,})"
                )
    if largest_id != shard["largest_id"]:
        yield f"{bin_path}: the largest id is {largest_id}, dataset.json says {shard['largest_id']}"
    if largest_id >= tokenizer["vocab_size"]:
        yield f"{bin_path}: id {largest_id} is beyond the vocabulary of {tokenizer['vocab_size']:,}"


def control_positions(ends: np.ndarray, tokenizer: Mapping[str, Any], rule: str) -> dict[int, np.ndarray]:
    """Where each control id stands, sorted: int64."""
    starts = np.concatenate([[0], ends[:-1]]) if rule == "bos+eos" else ends[:0]
    if tokenizer["bos_id"] == tokenizer["eos_id"]:  # one id for both, as in GPT-NeoX
        return {tokenizer["eos_id"]: np.union1d(starts, ends - 1)}
    positions = {tokenizer["eos_id"]: ends - 1}
    if tokenizer["bos_id"] is not None:
        positions[tokenizer["bos_id"]] = starts
    return positions
