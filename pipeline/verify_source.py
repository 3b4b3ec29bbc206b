"""One source as dataset.json claims it, and what follows from the claims: where each of its documents belongs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from pipeline.document_batch import ROW_BITS
from pipeline.ingest import choose_splits
from pipeline.manifest import Source, assign_splits, load_source
from pipeline.ranks import PRIORITY
from pipeline.shard import SPLITS

ROW_MASK = (1 << ROW_BITS) - 1
SPLIT_PRIORITY = np.array([PRIORITY[split] for split in SPLITS])


@dataclass(frozen=True)
class ClaimedSource:
    """A source's entry in dataset.json. `number`: in settings.source_order."""

    name: str
    number: int
    entry: Mapping[str, Any]
    settings: Mapping[str, Any]

    @cached_property
    def source(self) -> Source:
        """What the manifests know of it, with the column that its texts were read from."""
        known = load_source(self.name)
        return replace(known, text_field=self.settings["columns"].get(self.name, known.text_field))

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules about the quality signals of its documents."""
        return tuple(self.settings.get("signals", {}).get(self.name, ()))

    @property
    def priority(self) -> int:
        """Where it stands among the sources: of two documents that of the lower stays."""
        return self.settings["dedup_priority"].index(self.name)

    @cached_property
    def shards(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Split and Shard record of every shard, in order: their index is the shard's number."""
        return [(name, shard) for name, split in self.entry["splits"].items() for shard in split["shards"]]

    @cached_property
    def file_splits(self) -> np.ndarray:
        """The split of each raw file, as an index into SPLITS."""
        splits = assign_splits(self.source, self.entry["raw_files"])
        return np.array([SPLITS.index(split) for split in splits], np.uint8)

    @property
    def num_raw_files(self) -> int:
        """How many raw files it has."""
        return len(self.entry["raw_files"])

    @property
    def valid_fraction(self) -> float:
        """The share of train documents that are validation: none where the source has its own validation files."""
        has_own_validation = (self.file_splits == SPLITS.index("validation")).any()
        return 0.0 if has_own_validation else self.settings["valid_fraction"]

    def choose_splits(self, hashes: np.ndarray, raw_files: np.ndarray) -> np.ndarray:
        """The split of documents by content hash and raw file, as an index into SPLITS."""
        return choose_splits(hashes, self.file_splits[raw_files], self.valid_fraction)

    def name_row(self, key: int) -> str:
        """A document or bad row for a person: its raw file and row."""
        raw_file, row = int(key) >> ROW_BITS, int(key) & ROW_MASK
        return f"{self.name}/{self.entry['raw_files'][raw_file]} row {row}"


def claimed_sources(content: Mapping[str, Any]) -> list[ClaimedSource]:
    """The sources in the order of the mix."""
    settings = content["settings"]
    return [
        ClaimedSource(name, number, content["sources"][name], settings)
        for number, name in enumerate(settings["source_order"])
    ]


def held_sources(content: Mapping[str, Any]) -> list[ClaimedSource]:
    """The sources of datasets of --against, by the names that drops/ gives them: their raw files alone are known."""
    return [
        ClaimedSource(f"{label}/{name}", -1, {"raw_files": raw_files}, content["settings"])
        for label, dataset in content.get("against", {}).items()
        for name, raw_files in dataset["raw_files"].items()
    ]


def verify_sums(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """That what the splits of a source hold is the sum over their shards."""
    for split_name, split in entry["splits"].items():
        for what in ("documents", "tokens", "bytes"):
            if split[what] != sum(shard[what] for shard in split["shards"]):
                yield f"{name} {split_name}: {what} is not the sum over its shards"


def find_stray_row(source: ClaimedSource, raw_files: np.ndarray, rows: np.ndarray) -> str | None:
    """The first (raw_file, row) that cannot be the source's, in words; None where all can."""
    stray = np.flatnonzero((raw_files >= source.num_raw_files) | (rows >> np.uint64(ROW_BITS) > 0))
    if not len(stray):
        return None
    return f"raw file {raw_files[stray[0]]} of {source.num_raw_files}, row {rows[stray[0]]:,}"
