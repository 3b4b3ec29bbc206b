"""A dataset that was not built from raw files, but imported or interleaved, against what its dataset.json says.

It has no settings, counts, licence or reasons, and none is asked for: sizes, checksums, document boundaries, ids below
the vocabulary, the document rule and the tokenizer's file are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.finish import hash_content
from pipeline.manifest import check_source_name
from pipeline.verify_claims import (
    DATASET,
    SOURCE,
    one_of,
    verify_files,
    verify_mix,
    verify_paths,
    verify_shape,
)
from pipeline.verify_shard import verify_shard
from pipeline.verify_source import ClaimedSource, verify_sums
from pipeline.verify_tokenizer import verify_tokenizer

CLAIMS = ("format", "format_version", "tokenizer", "dtype", "mix", "content_hash")
OF_SOURCE = ("title", "raw_files", "splits", "drops")
ADOPTED = {
    **{name: DATASET[name] for name in CLAIMS},
    "made_by": one_of("import", "interleave"),
    "document_rule": one_of("bos+eos", "eos", "none"),
    "sources": {"*": {name: SOURCE[name] for name in OF_SOURCE}},
}


def verify_adopted(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, one text each; the shards where the claims are of the right shape."""
    problems = list(verify_shape(content, ADOPTED))
    yield from problems
    if problems:
        return
    if hash_content(content["sources"]) != content["content_hash"]:
        yield "dataset.json: content_hash does not follow from sources: it was edited"
    yield from verify_mix(content)
    yield from verify_tokenizer(folder, content)
    yield from verify_files(folder, content)
    for name, entry in content["sources"].items():
        yield from verify_adopted_source(folder, content, name, entry)


def verify_adopted_source(
    folder: Path, content: Mapping[str, Any], name: str, entry: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong with one source: its claims, or where these hold a shard."""
    try:
        check_source_name(name)
    except ValueError as error:
        yield f"dataset.json: sources: {error}"
        return
    problems = [*verify_paths(name, entry), *verify_sums(name, entry)]
    yield from problems
    if problems:
        return
    source = ClaimedSource(name, 0, entry, settings={})
    for _, shard in source.shards:
        yield from verify_shard(folder, shard, source, content)
