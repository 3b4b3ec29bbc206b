"""The card of a published dataset, made from its dataset.json: what is in it, from where, and how it is read."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.origins import Origin

CARD = "README.md"
HEADER = """---
license: other
tags: [tokenmill, pretraining]
viewer: false
---
"""


@contextlib.contextmanager
def write_card(content: Mapping[str, Any], origin: Origin) -> Iterator[Path]:
    """The card as a file, while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CARD
        path.write_text(describe_dataset(content, origin), encoding="utf-8")
        yield path


def describe_dataset(content: Mapping[str, Any], origin: Origin) -> str:
    """The card's text, in Markdown. The same dataset has the same card."""
    tokenizer = content["tokenizer"]
    lines = [
        f"{HEADER}# {', '.join(content['sources'])}, packed for {tokenizer['name']}",
        "",
        f"Token shards of tokenmill: little-endian {content['dtype']} ids without a header, {content['document_rule']} "
        f"around each document. Tokenizer {tokenizer['name']}, {tokenizer['vocab_size']:,} ids, sha256 "
        f"`{tokenizer['sha256']}`.",
        "",
        "| source | split | documents | tokens | shards |",
        "|---|---|---|---|---|",
        *list_splits(content),
        "",
        *list_sources(content),
        "```python",
        "from pipeline.dataset import PackedDataset",
        "",
        f"dataset = PackedDataset({str(origin)!r}, seq_len=2048)",
        "```",
        "",
        *describe_origin(content),
    ]
    if content.get("sample"):
        lines.insert(2, "**A sample of text from one computer, not the corpora that it is laid out like.**\n")
    return "\n".join(lines) + "\n"


def list_splits(content: Mapping[str, Any]) -> Iterator[str]:
    """A row of the table for each source and split."""
    for name, source in content["sources"].items():
        for split, one in source["splits"].items():
            yield f"| {name} | {split} | {one['documents']:,} | {one['tokens']:,} | {len(one['shards']):,} |"


def list_sources(content: Mapping[str, Any]) -> Iterator[str]:
    """The table of what became of each source's documents; nothing where the dataset was not built from raw files."""
    if "made_by" in content:
        return
    yield from ("| source | documents read | kept | dropped | licence |", "|---|---|---|---|---|")
    for name, source in content["sources"].items():
        read, kept = (source["counts"][what]["documents"] for what in ("read", "kept"))
        licence = source["licence"].replace("|", "/") or "not known"
        yield f"| {name} | {read:,} | {kept:,} | {read - kept:,} | {licence} |"
    yield ""


def describe_origin(content: Mapping[str, Any]) -> Iterator[str]:
    """By what the dataset can be told, and where its documents are from."""
    if "made_by" in content:
        yield f"Content hash `{content['content_hash']}`, made by {content['made_by']}: nothing is said of raw files."
        return
    yield (
        f"Recipe hash `{content['recipe_hash']}`, content hash `{content['content_hash']}`. Every document kept or "
        "dropped is listed with its raw file and row in the parquet files."
    )
