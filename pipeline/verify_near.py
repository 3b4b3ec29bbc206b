"""That documents dropped as near to one that stays are near to it: their sets of shingles made again and compared."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.compare import HASH, SET, read_shingles
from pipeline.document_batch import key_rows
from pipeline.drops import SCHEMA
from pipeline.estimate import MARGIN
from pipeline.held import HeldDataset
from pipeline.held_sets import list_shards, read_held
from pipeline.ingest import TaskFile
from pipeline.order import derive_key, scramble
from pipeline.set_kernels import measure_overlap
from pipeline.shard import SPLITS
from pipeline.verify_documents import ingest_settings
from pipeline.verify_rows import numbers_of
from pipeline.verify_source import ClaimedSource, claimed_sources, held_sources

CLAIM = np.dtype(
    [("source", "<u2"), ("key", "<u8"), ("partner_source", "<u2"), ("partner_key", "<u8"), ("similarity", "<f4")]
)


def verify_near(
    folder: Path,
    content: Mapping[str, Any],
    *,
    raw: Path,
    fraction: float,
    seed: int,
    held: Mapping[str, HeldDataset],
) -> Iterator[str]:
    """What is wrong with the similarities that drops/ names, one text each.

    raw: the folder with a folder per source. fraction: the share of the near duplicates that are compared, by seed.
    held: the datasets of --against that are at hand; what went for a document of another is not compared.
    """
    own = claimed_sources(content)
    elsewhere = [source for source in held_sources(content) if source.name.partition("/")[0] in held]
    sources = [*own, *(replace(source, number=len(own) + place) for place, source in enumerate(elsewhere))]
    parts = [read_claims(folder / file["path"], source, sources) for source in own for file in source.entry["drops"]]
    claims = np.concatenate([np.empty(0, CLAIM), *parts])
    draws = scramble(claims["key"] ^ np.uint64(derive_key("verify near", seed))) >> np.uint64(11)
    claims = claims[draws < np.uint64(fraction * 2**53)]
    threshold = content["settings"]["dedup_threshold"]
    with tempfile.TemporaryDirectory(prefix="tokenmill-verify-") as temporary:
        sets = [OwnSets(source, claims, Path(temporary)) for source in sources]
        for of_source in sets[: len(own)]:
            of_source.write(read_raw(of_source, raw / of_source.source.name, content))
        for of_source in sets[len(own) :]:
            of_source.write(read_elsewhere(of_source, held))
        for claim in claims:
            first = sets[claim["source"]].read(claim["key"])
            second = sets[claim["partner_source"]].read(claim["partner_key"])
            problem = check_claim(float(claim["similarity"]), first, second, threshold=threshold)
            if problem:
                names = [sources[claim[f"{who}source"]].name_row(claim[f"{who}key"]) for who in ("", "partner_")]
                yield f"{names[0]} is dropped as near to {names[1]}, but {problem}"


def read_claims(path: Path, source: ClaimedSource, sources: list[ClaimedSource]) -> np.ndarray:
    """The near duplicates in one file of drops."""
    table = pq.read_table(path, schema=SCHEMA)
    is_own = pc.is_in(table["partner_source"], pa.array([other.name for other in sources]))
    table = table.filter(pc.and_(pc.equal(table["reason"], "duplicate_near"), is_own))
    claims = np.empty(len(table), CLAIM)
    claims["source"] = source.number
    claims["key"] = key_rows(table["raw_file"].to_numpy(), table["row"].to_numpy())
    claims["partner_source"] = numbers_of(table["partner_source"], [other.name for other in sources])
    claims["partner_key"] = key_rows(table["partner_raw_file"].to_numpy(), table["partner_row"].to_numpy())
    claims["similarity"] = table["similarity"].to_numpy()
    return claims


def check_claim(claimed: float, first: np.ndarray, second: np.ndarray, *, threshold: float) -> str | None:
    """What is wrong with a similarity; None: nothing. One that could be an estimate may be off by MARGIN."""
    measured = measure_overlap(first, second)
    allowed = MARGIN if claimed >= threshold + MARGIN - 1e-6 else 1e-6
    if abs(claimed - measured) > allowed:
        return f"their similarity is {measured:.4f}, drops/ says {claimed:.4f}"
    return None


class OwnSets:
    """The shingles of all documents of one source that are to be compared, in a file; keys: of these, sorted."""

    def __init__(self, source: ClaimedSource, claims: np.ndarray, temporary: Path):
        self.source, self.path = source, temporary / f"{source.number}.sets"
        own = [claims[f"{who}key"][claims[f"{who}source"] == source.number] for who in ("", "partner_")]
        self.keys = np.unique(np.concatenate(own))
        self.index = np.zeros(len(self.keys), SET)

    def write(self, shingles: Iterator[tuple[int, np.ndarray]]) -> None:
        """Take in the documents' sets, by key."""
        start = 0
        with open(self.path, "wb") as file:
            for key, hashes in shingles:
                at = int(np.searchsorted(self.keys, np.uint64(key)))
                self.index["start"][at], self.index["count"][at] = start, len(hashes)
                start += len(hashes)
                file.write(hashes.tobytes())

    def read(self, key: np.uint64) -> np.ndarray:
        """A document's set of shingles."""
        entry = self.index[np.searchsorted(self.keys, key)]
        return np.fromfile(self.path, HASH, int(entry["count"]), offset=int(entry["start"]) * HASH.itemsize)


def read_raw(sets: OwnSets, raw: Path, content: Mapping[str, Any]) -> Iterator[tuple[int, np.ndarray]]:
    """The sets of documents of a source's raw files."""
    source = sets.source
    files = tuple(
        TaskFile(number, str(raw / path), SPLITS[split], None)
        for number, (path, split) in enumerate(zip(source.entry["raw_files"], source.file_splits, strict=True))
    )
    return read_shingles(files, ingest_settings(source, content), sets.keys)


def read_elsewhere(sets: OwnSets, held: Mapping[str, HeldDataset]) -> Iterator[tuple[int, np.ndarray]]:
    """The sets of documents of a source of a dataset of --against, from its shards."""
    label, _, name = sets.source.name.partition("/")
    for split in held[label].content["sources"][name]["splits"]:
        for shard in list_shards(held[label], name, split):
            yield from read_held(shard, sets.keys, Counter())
