"""Kept signatures against the documents that they are of; and what went for a document of a dataset of --against.

Such a dataset may lie elsewhere by now, or be gone: its documents are looked up where --against says where it is.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.document_batch import key_rows
from pipeline.drops import SCHEMA
from pipeline.held import HASH, LABEL_DIGITS, HeldDataset
from pipeline.order import scramble
from pipeline.shard import check_size, list_signatures, read_dataset_json
from pipeline.sketch_file import ROW
from pipeline.storage import checksum_file
from pipeline.token_file import open_records
from pipeline.verify_rows import PARTNER, SourceRows, read_kept, split_keys
from pipeline.verify_source import claimed_sources


def verify_held_claims(content: Mapping[str, Any]) -> Iterator[str]:
    """That signatures are there as settings say, and the datasets of --against are called by their content hashes."""
    settings, signatures, against = content["settings"], content.get("signatures"), content.get("against", {})
    if (signatures is not None) != settings.get("keep_signatures", False):
        yield f"dataset.json: settings.keep_signatures, but signatures {'are' if signatures else 'are not'} listed"
    for what, setting in (("method", "dedup"), ("threshold", "dedup_threshold")):
        if signatures is not None and signatures[what] != settings[setting]:
            yield f"dataset.json: signatures.{what} is {signatures[what]}, settings.{setting} {settings[setting]}"
    if [dataset["content_hash"] for dataset in against.values()] != settings.get("against", []):
        yield "dataset.json: against is not what settings.against names"
    for label, dataset in against.items():
        if label != dataset["content_hash"][:LABEL_DIGITS]:
            yield f"dataset.json: against calls the dataset {dataset['content_hash']} {label}"


def verify_signatures(folder: Path, content: Mapping[str, Any], rows: Sequence[SourceRows]) -> Iterator[str]:
    """What is wrong with the files of signatures/, and that they are of the documents in the shards, one text each."""
    if "signatures" not in content:
        return
    problems = list(verify_files(folder, content))
    yield from problems
    if problems:
        return
    for of_source in rows:
        parts = [part for part in content["signatures"]["parts"] if part["source"] == of_source.source.name]
        found: Counter[str] = Counter()
        for part in parts:
            found.update(part["splits"])
        claimed = {split: entry["documents"] for split, entry in of_source.source.entry["splits"].items()}
        if dict(found) != claimed:
            yield f"{of_source.source.name}: signatures are of {dict(found)} documents, its shards hold {claimed}"
        elif sum_parts(folder, parts) != sum_kept(of_source):
            yield f"{of_source.source.name}: signatures are not of the documents that its shards hold"


def verify_files(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """That the files of signatures/ are those that dataset.json lists."""
    for path, file in list_signatures(folder, content):
        try:
            check_size(path, file["bytes"])
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        found = checksum_file(path)
        if found != file["xxh3_128"]:
            yield f"{path}: xxh3-128 is {found}, dataset.json says {file['xxh3_128']}"


def sum_parts(folder: Path, parts: Sequence[Mapping[str, Any]]) -> int:
    """A digest of the documents of some parts, in any order."""
    total = 0
    for part in parts:
        rows = open_records(folder / part["path"] / "rows.bin", ROW)
        hashes = open_records(folder / part["path"] / "hashes.bin", HASH)
        total += sum_documents(key_rows(rows["raw_file"], rows["row"]), hashes)
    return total % 2**64


def sum_kept(of_source: SourceRows) -> int:
    """The digest that sum_parts gives, of the documents in a source's shards."""
    ranges = (of_source.kept.read(first, last) for first, last in split_keys(of_source))
    return sum(sum_documents(kept["key"], kept["content_hash"]) for kept in ranges) % 2**64


def sum_documents(keys: np.ndarray, hashes: np.ndarray) -> int:
    """The sum of a digest of each document, of its row and content hash."""
    mixed = scramble(scramble(scramble(keys) ^ hashes[:, 0]) ^ hashes[:, 1])
    return int(mixed.sum(dtype=np.uint64))


def open_reachable(given: str | None, content: Mapping[str, Any]) -> dict[str, HeldDataset]:
    """The datasets of verify's --against by label. Raises ValueError for one that the build was not against."""
    found = {}
    for path in given.split(",") if given else []:
        dataset = HeldDataset(Path(path), read_dataset_json(path))
        if dataset.content_hash not in content.get("settings", {}).get("against", []):
            raise ValueError(f"--against {path}: the build was not against it, or it has changed since")
        found[dataset.label] = dataset
    return found


def verify_partners_elsewhere(
    folder: Path, content: Mapping[str, Any], held: Mapping[str, HeldDataset]
) -> Iterator[str]:
    """That the documents of these datasets for which others went are there, one text for each source with one not."""
    for label, dataset in held.items():
        with tempfile.TemporaryDirectory(prefix="tokenmill-verify-") as temporary:
            for source in claimed_sources(dataset.content):
                rows = SourceRows(source, Path(temporary))
                for number, (_, shard) in enumerate(source.shards):
                    rows.kept.add(read_kept(dataset.folder / shard["path"], number))
                for path in (folder / file["path"] for one in content["sources"].values() for file in one["drops"]):
                    rows.partners.add(read_partners(path, f"{label}/{source.name}"))
                rows.flush()
                yield from find_missing(rows, dataset)


def read_partners(path: Path, name: str) -> np.ndarray:
    """The rows of a source of a held dataset that stay for others, from one file of drops, as PARTNER records."""
    table = pq.read_table(path, schema=SCHEMA)
    table = table.filter(pc.equal(table["partner_source"], name))
    partners = np.zeros(len(table), PARTNER)
    partners["key"] = key_rows(table["partner_raw_file"].to_numpy(), table["partner_row"].to_numpy())
    return partners


def find_missing(rows: SourceRows, dataset: HeldDataset) -> Iterator[str]:
    """The first document for which others went that its dataset does not hold, in words."""
    num_missing, first_missing = 0, None
    for first, last in split_keys(rows):
        keys = rows.partners.read(first, last)["key"]
        missing = keys[~np.isin(keys, rows.kept.read(first, last)["key"])]
        num_missing += len(missing)
        first_missing = missing[0] if first_missing is None and len(missing) else first_missing
    if first_missing is not None:
        name = rows.source.name_row(first_missing)
        yield f"{name} of {dataset.folder} stays by drops/, but is not kept there ({num_missing:,} such partners)"
