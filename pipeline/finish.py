"""The results of all stages -> what dataset.json says, with its counts balanced. Reads and writes no file."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.document_batch import BAD_REASONS
from pipeline.plan import PlannedSource
from pipeline.shard import SPLITS
from pipeline.stages import Deduplicated, Ingested

# read = the sum of the others, in documents, bytes and tokens.
OUTCOMES = ("kept", "excluded", "short", "duplicate_exact", "bad")


def describe_sources(
    sources: tuple[PlannedSource, ...],
    *,
    ingested: Ingested,
    deduplicated: Deduplicated,
    shards: dict[str, dict[str, list[dict[str, Any]]]],
    drops: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """What dataset.json says of the sources, in the order of the mix."""
    return {
        source.name: describe_source(
            source,
            number,
            ingested=ingested,
            deduplicated=deduplicated,
            shards=shards[source.name],
            drops=drops[source.name],
        )
        for number, source in enumerate(sources)
    }


def describe_source(
    source: PlannedSource,
    number: int,
    *,
    ingested: Ingested,
    deduplicated: Deduplicated,
    shards: dict[str, list[dict[str, Any]]],
    drops: list[dict[str, Any]],
) -> dict[str, Any]:
    """What dataset.json says of one source."""
    return {
        "title": source.source.title,
        "licence": source.source.licence,
        "raw_files": [file.path for file in source.files],
        "counts": count_outcomes(source.name, number, ingested, deduplicated),
        "bad_reasons": count_bad_reasons(source.name, ingested),
        "splits": {split: describe_split(shards[split]) for split in SPLITS if split in shards},
        "drops": drops,
    }


def describe_split(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """What dataset.json says of one split."""
    totals = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")}
    return {**totals, "shards": shards}


def count_outcomes(name: str, number: int, ingested: Ingested, deduplicated: Deduplicated) -> dict[str, dict[str, int]]:
    """Documents, bytes of text and tokens by outcome. What was not kept for its content alone was never tokenised."""
    read = ingested.count(name)
    untokenised = {"excluded": ("excluded",), "short": ("short",), "bad": BAD_REASONS}
    counts = {
        outcome: {**{what: sum(read[what][reason] for reason in reasons) for what in read}, "tokens": 0}
        for outcome, reasons in untokenised.items()
    }
    counts["kept"] = dict(deduplicated.counts["kept"][number])
    counts["duplicate_exact"] = dict(deduplicated.counts["duplicate_exact"][number])
    counts["read"] = {**{what: read[what]["read"] for what in read}, "tokens": ingested.num_tokens(name)}
    check_balance(name, counts)
    return counts


def check_balance(name: str, counts: dict[str, dict[str, int]]) -> None:
    """Raise where a document went missing or appeared: then this program is wrong, and must not finish."""
    for what in ("documents", "bytes", "tokens"):
        total = sum(counts[outcome][what] for outcome in OUTCOMES)
        if counts["read"][what] != total:
            raise RuntimeError(f"source {name}: {counts['read'][what]:,} {what} read, but outcomes add up to {total:,}")


def count_bad_reasons(name: str, ingested: Ingested) -> dict[str, int]:
    """Bad rows by reason, those that occur."""
    documents = ingested.count(name)["documents"]
    return {reason: documents[reason] for reason in BAD_REASONS if documents[reason]}


def hash_content(sources: dict[str, Any]) -> str:
    """The content hash: sha256 over every file that dataset.json lists, by path and checksum."""
    files = [
        [shard["path"], shard["tokens"], shard["xxh3_128"], shard["docs_xxh3_128"]]
        for source in sources.values()
        for split in source["splits"].values()
        for shard in split["shards"]
    ]
    for source in sources.values():
        files += [[file["path"], file["documents"], file["xxh3_128"]] for file in source["drops"]]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()
