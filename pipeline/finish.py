"""The results of all stages -> what dataset.json says, with its counts balanced. Reads and writes no file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pipeline.dedup_stages import Deduplicated
from pipeline.document_batch import BAD_REASONS
from pipeline.limit import Selection
from pipeline.plan import PlannedSource
from pipeline.shard import OUTCOMES, SPLITS
from pipeline.workshop import Ingested

UNTOKENISED = ("excluded", "short", "contaminated")  # and bad: left out before there are tokens


@dataclass(frozen=True)
class Built:
    """One dataset's results: shards by source and split, and the results of each source's drops tasks."""

    selection: Selection
    shards: dict[str, dict[str, list[dict[str, Any]]]]
    drops: dict[str, list[dict[str, Any]]]


def describe_sources(
    sources: tuple[PlannedSource, ...], *, ingested: Ingested, deduplicated: Deduplicated, built: Built
) -> dict[str, Any]:
    """What dataset.json says of the sources, in the order of the mix."""
    return {source.name: describe_source(source, ingested, deduplicated, built) for source in sources}


def describe_source(
    source: PlannedSource, ingested: Ingested, deduplicated: Deduplicated, built: Built
) -> dict[str, Any]:
    """What dataset.json says of one source."""
    shards = built.shards[source.name]
    return {
        "title": source.source.title,
        "licence": source.source.licence,
        "raw_files": [file.path for file in source.files],
        "counts": count_outcomes(source.name, ingested, deduplicated, built),
        "bad_reasons": count_bad_reasons(source.name, ingested),
        "splits": {split: describe_split(shards[split]) for split in SPLITS if split in shards},
        "overlap": add_overlaps(built.drops[source.name]),
        "drops": [result["file"] for result in built.drops[source.name] if result["file"]],
        **count_failed(source, built.drops[source.name]),
    }


def count_failed(source: PlannedSource, results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Among the excluded documents those that fail each rule about quality signals, where there are any rules."""
    if not source.rules:
        return {}
    return {"failed": {rule: sum(result["failed"].get(rule, 0) for result in results) for rule in source.rules}}


def add_overlaps(results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Documents and bytes that went for a document of each source: a row of the overlap matrix."""
    overlap: dict[str, dict[str, int]] = {}
    for result in results:
        for name, counts in result["overlap"].items():
            total = overlap.setdefault(name, {"documents": 0, "bytes": 0})
            for what, count in counts.items():
                total[what] += count
    return dict(sorted(overlap.items()))


def describe_split(shards: list[dict[str, Any]]) -> dict[str, Any]:
    """What dataset.json says of one split."""
    totals = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")}
    return {**totals, "shards": shards}


def count_outcomes(
    name: str, ingested: Ingested, deduplicated: Deduplicated, built: Built
) -> dict[str, dict[str, int]]:
    """Documents, bytes of text and tokens by outcome. What was not kept for its content alone was never tokenised."""
    read = ingested.count(name)
    source, tokenizer = ingested.source_names.index(name), built.selection.tokenizer
    untokenised = {**{reason: (reason,) for reason in UNTOKENISED}, "bad": BAD_REASONS}
    counts = {
        outcome: {**{what: sum(read[what][reason] for reason in reasons) for what in read}, "tokens": 0}
        for outcome, reasons in untokenised.items()
    }
    for outcome in ("kept", "duplicate_exact", "duplicate_near"):
        count = deduplicated.counts[outcome][source]
        counts[outcome] = {**count, "tokens": count["tokens"][tokenizer]}
    counts["beyond_tokens"] = count_beyond(name, counts["kept"], source, built)
    for what in ("documents", "bytes", "tokens"):
        counts["kept"][what] -= counts["beyond_tokens"][what]
    counts["read"] = {**{what: read[what]["read"] for what in read}, "tokens": ingested.num_tokens(name, tokenizer)}
    check_balance(name, counts, built.shards[name])
    return counts


def count_beyond(name: str, kept: dict[str, int], source: int, built: Built) -> dict[str, int]:
    """What the limit of a source leaves out, as its drops list it; raises where the shards do not hold the rest."""
    results = built.drops[name]
    beyond = {what: sum(result["beyond"][what] for result in results) for what in ("documents", "bytes")}
    beyond["tokens"] = kept["tokens"] - int(built.selection.tokens[source].sum())
    inside = int(built.selection.documents[source].sum())
    if kept["documents"] != inside + beyond["documents"]:
        raise RuntimeError(f"source {name}: {kept['documents']:,} documents stay, {inside:,} before its limit")
    return beyond


def check_balance(name: str, counts: dict[str, dict[str, int]], shards: dict[str, list[dict[str, Any]]]) -> None:
    """Raise where a document went missing or appeared: then this program is wrong, and must not finish."""
    for what in ("documents", "tokens"):
        packed = sum(shard[what] for split in shards.values() for shard in split)
        if packed != counts["kept"][what]:
            raise RuntimeError(f"source {name}: {counts['kept'][what]:,} {what} to keep, but {packed:,} in shards")
    for what in ("documents", "bytes", "tokens"):
        total = sum(counts[outcome][what] for outcome in OUTCOMES)
        if counts["read"][what] != total:
            raise RuntimeError(f"source {name}: {counts['read'][what]:,} {what} read, but outcomes add up to {total:,}")


def count_bad_reasons(name: str, ingested: Ingested) -> dict[str, int]:
    """Bad rows by reason, those that occur."""
    documents = ingested.count(name)["documents"]
    return {reason: documents[reason] for reason in BAD_REASONS if documents[reason]}


def hash_content(sources: dict[str, Any]) -> str:
    """The content hash: sha256 over every file of the sources that dataset.json lists, by path and checksum.

    Kept signatures follow from the same recipe and are no content: with or without them it is the same dataset.
    """
    files = [
        [shard["path"], shard["tokens"], shard["xxh3_128"], shard["docs_xxh3_128"]]
        for source in sources.values()
        for split in source["splits"].values()
        for shard in split["shards"]
    ]
    for source in sources.values():
        files += [[file["path"], file["documents"], file["xxh3_128"]] for file in source["drops"]]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()
