"""One stream of whole documents in the order of the mix, for readers that cannot mix: a dataset of one source.

A document's time is how many tokens precede it in its source, divided by the source's share; documents follow each
other by their times. So after any number of tokens each source has had its share, but for a document. The stream ends
where the first source does, or after about `num_tokens`; no document is in it twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalogue import Catalogue
from pipeline.finish import describe_split, hash_content
from pipeline.kernels import scatter_documents
from pipeline.shard import shard_name, write_dataset_json, write_shard
from pipeline.source_shards import SourceShards
from pipeline.storage import write_file
from pipeline.token_file import starts_of

SHARD_TOKENS = 1 << 26
"""Tokens of a shard of the stream; one is held in memory at a time."""
STREAM = "interleaved"
"""The name of its source."""


def interleave(
    catalogue: Catalogue, out: Path, *, mix: Mapping[str, float], splits: Sequence[str], num_tokens: int | None
) -> Catalogue:
    """Write the streams of some splits as a dataset of one source in `out`, and open it.

    num_tokens: about how many train tokens; by default as far as the sources go. Outside train a source may be missing.
    Raises ValueError for more tokens than there are, or a source of the mix without train documents.
    """
    names = [name for name, weight in mix.items() if weight]
    raw_files, first_raw_files = [], {}
    for name in names:
        first_raw_files[name] = len(raw_files)
        catalogue.shards(name, "train")  # raises where there is no such source
        raw_files += [f"{name}/{file}" for file in catalogue.content["sources"][name].get("raw_files", [])]
    written = {}
    for split in splits:
        sources = {
            name: SourceShards(catalogue.path, catalogue.shards(name, split), dtype=catalogue.dtype) for name in names
        }
        streams = choose_streams(sources, mix, may_lack=split != "train", first_raw_files=first_raw_files)
        end = find_end(streams, num_tokens=num_tokens if split == "train" else None)
        written[split] = [
            write_stretch(out, shard_name(STREAM, split, number), [read_piece(stream, times) for stream in streams])
            for number, times in enumerate(cut_times(end))
        ]
    write_stream(catalogue, out, raw_files=raw_files, shards=written)
    return Catalogue(out)


@dataclass(frozen=True)
class Stream:
    """One source of the stream."""

    name: str
    source: SourceShards
    share: float
    first_raw_file: int
    """How its raw file 0 counts in the stream."""


def choose_streams(
    sources: Mapping[str, SourceShards], mix: Mapping[str, float], *, may_lack: bool, first_raw_files: Mapping[str, int]
) -> list[Stream]:
    """The sources that have documents, with their shares. Raises ValueError where one has none and must have some."""
    empty = [name for name, source in sources.items() if not source.num_tokens]
    if empty and not may_lack:
        raise ValueError(f"source {empty[0]!r} has no documents to interleave: leave it out of the mix")
    total = math.fsum(mix[name] for name in sources if name not in empty)
    return [
        Stream(name, source, mix[name] / total, first_raw_files[name])
        for name, source in sources.items()
        if name not in empty
    ]


def find_end(streams: Sequence[Stream], *, num_tokens: int | None) -> float:
    """The time at which the stream ends: about its tokens."""
    ends = {stream.name: stream.source.num_tokens / stream.share for stream in streams}
    shortest = min(ends, key=lambda name: ends[name])
    if num_tokens and num_tokens > ends[shortest]:
        raise ValueError(
            f"--tokens {num_tokens:,}: with this mix source {shortest!r} ends after {int(ends[shortest]):,}; "
            "lower it, or the source's weight"
        )
    return float(num_tokens or ends[shortest])


def cut_times(end: float) -> Iterator[tuple[float, float]]:
    """The stretches of time that are a shard each."""
    num_shards = max(1, round(end / SHARD_TOKENS))
    for number in range(num_shards):
        yield end * number / num_shards, end * (number + 1) / num_shards


@dataclass(frozen=True)
class Piece:
    """The documents of one source that begin within a stretch of time."""

    times: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    columns: dict[str, np.ndarray]


def read_piece(stream: Stream, times: tuple[float, float]) -> Piece:
    """One source's documents of a stretch."""
    source = stream.source
    first, last = (source.find_document(math.ceil(time * stream.share)) for time in times)
    lengths = source.document_lengths(first, last)
    start = source.document_start(first)
    ids = source.read_tokens(start, start + int(lengths.sum()))
    columns = source.document_columns(first, last)
    columns["raw_file"] = columns["raw_file"] + np.uint32(stream.first_raw_file)
    return Piece((start + starts_of(lengths)) / stream.share, lengths, ids, columns)


def write_stretch(out: Path, name: str, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Write the documents of a stretch by their times, those of the same time by source. Returns the shard's entry."""
    times = np.concatenate([piece.times for piece in pieces])
    lengths = np.concatenate([piece.lengths for piece in pieces])
    ids = np.concatenate([piece.ids for piece in pieces])
    order = np.argsort(times, kind="stable")
    targets = np.empty_like(lengths)
    targets[order] = starts_of(lengths[order])
    stream = np.empty_like(ids)
    scatter_documents(ids, starts_of(lengths), lengths, targets, stream)
    columns = {
        column: np.concatenate([piece.columns[column] for piece in pieces])[order]
        for column in ("raw_file", "row", "content_hash")
    }
    return asdict(write_shard(out, name, ids=stream, lengths=lengths[order], documents=columns))


def write_stream(
    catalogue: Catalogue, out: Path, *, raw_files: list[str], shards: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Finish the dataset: the tokenizer beside it, and dataset.json."""
    for file in catalogue.tokenizer_path.parent.iterdir():
        write_file(out / Path(catalogue.tokenizer["file"]).parent / file.name, [file.read_bytes()])
    splits = {split: describe_split(of_split) for split, of_split in shards.items()}
    listed = {STREAM: {"title": STREAM, "raw_files": raw_files, "splits": splits, "drops": []}}
    same = {name: catalogue.content[name] for name in ("tokenizer", "dtype", "document_rule")}
    identity = {"made_by": "interleave", "content_hash": hash_content(listed), "mix": {STREAM: 1.0}}
    write_dataset_json(out, {**same, **identity, "sources": listed})
