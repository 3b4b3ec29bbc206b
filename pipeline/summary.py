"""The tables of a finished dataset: what came in, what went out, what was dropped and why.

python pipeline/summary.py data/packed
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):  # started as `python pipeline/summary.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.flags import read_flags
from pipeline.folders import BUILD_LOG
from pipeline.progress import format_bytes, make_console
from pipeline.shard import OUTCOMES, read_dataset_json

COLUMNS = ("read", *OUTCOMES)  # so that a row adds up
ALWAYS_SHOWN = ("read", "kept", "short", "duplicate_exact", "duplicate_near", "bad")


@dataclass(frozen=True)
class SummaryArguments:
    """Print what a finished dataset holds, and what was dropped on the way."""

    dataset: Annotated[Path, tyro.conf.Positional]
    """The dataset's folder."""


def main() -> None:
    """The command."""
    arguments = read_flags(SummaryArguments)
    try:
        content = read_dataset_json(arguments.dataset)
        seconds = read_build_seconds(arguments.dataset)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print_summary(make_console(), arguments.dataset, content, seconds=seconds)


def read_build_seconds(out: Path) -> float | None:
    """How long the build took, by its log; None where the log is gone or damaged, or the build was stopped."""
    path = out / BUILD_LOG
    try:
        events = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (FileNotFoundError, ValueError):
        return None
    last = next((event for event in reversed(events) if event["event"] == "finished"), None)
    return None if last is None or last.get("is_continued") else last["seconds"]


def print_summary(console: Console, out: Path, content: Mapping[str, Any], *, seconds: float | None) -> None:
    """Print a dataset's counts, and the speed of its build where its seconds are known.

    One that was imported or interleaved has tokens alone: it says nothing of raw files.
    """
    is_built = "made_by" not in content
    if is_built:
        console.print(documents_table(content["sources"]))
    console.print(tokens_table(content))
    if is_built:
        print_drops(console, out, content["sources"])
    tokenizer = content["tokenizer"]
    console.print(
        f"tokenizer {tokenizer['name']} ({tokenizer['vocab_size']:,} ids), documents framed by "
        f"{content['document_rule']}, {content['dtype']}, content hash {content['content_hash'][:16]}",
    )
    if seconds is not None:
        num_tokens = sum(source["counts"]["read"]["tokens"] for source in content["sources"].values())
        num_bytes = sum(source["counts"]["read"]["bytes"] for source in content["sources"].values())
        console.print(
            f"built at {num_tokens / seconds:,.0f} tokens/s ({format_bytes(num_bytes / seconds)}/s of text) "
            f"in {seconds:.1f} s, all stages together"
        )
    if content.get("sample"):
        console.print("This is a sample made from text on this computer, not the real corpora.")
    if not is_built:
        console.print(f"made by {content['made_by']}: nothing is said of raw files")
    console.print(f"dataset: {out}")


def print_drops(console: Console, out: Path, sources: Mapping[str, Any]) -> None:
    """Print what was dropped, and where it is listed."""
    for name, source in sources.items():
        if count := source["counts"]["contaminated"]["documents"]:
            console.print(
                f"{name}: {count:,} documents contaminated by evaluation texts, listed in {out / name / 'drops'}"
            )
        for rule, count in source.get("failed", {}).items():
            console.print(f"{name}: {count:,} documents fail {rule}, among those excluded")
    if any(source["overlap"] for source in sources.values()):
        console.print(overlap_table(sources))
    for name, source in sources.items():
        for reason, number in source["bad_reasons"].items():
            console.print(f"{name}: {number:,} rows {reason}, listed in {out / name / 'drops'}")


def documents_table(sources: Mapping[str, Any]) -> Table:
    """Documents by outcome, a row per source; outcomes that only some builds have are shown where there are any."""
    columns = [
        column
        for column in COLUMNS
        if column in ALWAYS_SHOWN or any(source["counts"][column]["documents"] for source in sources.values())
    ]
    table = Table(title="documents")
    table.add_column("source")
    for column in ("raw files", "text", *columns):
        table.add_column(column.replace("_", " "), justify="right")
    for name, source in sources.items():
        counts = source["counts"]
        table.add_row(
            name,
            f"{len(source['raw_files']):,}",
            format_bytes(counts["read"]["bytes"]),
            *(f"{counts[column]['documents']:,}" for column in columns),
        )
    return table


def overlap_table(sources: Mapping[str, Any]) -> Table:
    """Duplicates that went from the source of a row for a document of the source of a column."""
    table = Table(title="duplicates, by the source of what stays")
    table.add_column("went from")
    found = {other for source in sources.values() for other in source["overlap"]}
    others = [*sources, *sorted(found - set(sources))]  # those of datasets of --against behind
    for name in others:
        table.add_column(name, justify="right")
    for name, source in sources.items():
        cells = []
        for other in others:
            counts = source["overlap"].get(other)
            cells.append(f"{counts['documents']:,} ({format_bytes(counts['bytes'])})" if counts else "")
        table.add_row(name, *cells)
    return table


def tokens_table(content: Mapping[str, Any]) -> Table:
    """Tokens and shards, a row per source and split."""
    table = Table(title="tokens")
    table.add_column("source")
    for column in ("split", "documents", "tokens", "shards", "on disk", "weight"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, source in content["sources"].items():
        for split, totals in source["splits"].items():
            weight = f"{content['mix'][name]:.4g}" if split == "train" else ""
            numbers = (f"{totals['documents']:,}", f"{totals['tokens']:,}", f"{len(totals['shards']):,}")
            table.add_row(name, split, *numbers, format_bytes(totals["bytes"]), weight)
    return table


if __name__ == "__main__":
    main()
