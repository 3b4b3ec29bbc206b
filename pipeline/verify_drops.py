"""The lists of what was not kept, against dataset.json: one file of drops in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.document_batch import BAD_REASONS
from pipeline.drops import SCHEMA, count_overlap
from pipeline.shard import OUTCOMES
from pipeline.storage import checksum_file
from pipeline.token_file import DROP_REASONS
from pipeline.verify_source import ClaimedSource, find_stray_row

PARTNER_COLUMNS = ("partner_source", "partner_raw_file", "partner_row", "similarity")


def verify_drops(folder: Path, source: ClaimedSource, sources: Mapping[str, ClaimedSource]) -> Iterator[str]:
    """What is wrong with the files of drops of a source, or with the counts that follow from them, one text each."""
    documents: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    overlap: dict[str, Counter[str]] = {}
    for file in source.entry["drops"]:
        path = folder / file["path"]
        found = checksum_file(path) if path.is_file() else "no file"
        if found != file["xxh3_128"]:
            yield f"{path}: xxh3-128 is {found}, dataset.json says {file['xxh3_128']}"
            continue
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            yield f"{path}: not a readable parquet file: {str(error).splitlines()[0]}"
            continue
        problems = list(verify_table(path, table, source, sources))
        yield from problems
        if len(table) != file["documents"]:
            yield f"{path}: has {len(table):,} documents, dataset.json says {file['documents']:,}"
        if not problems:
            totals = table.group_by("reason").aggregate([("num_bytes", "sum"), ("num_bytes", "count")]).to_pylist()
            documents.update({total["reason"]: total["num_bytes_count"] for total in totals})
            num_bytes.update({total["reason"]: total["num_bytes_sum"] for total in totals})
            for name, counts in count_overlap(table).items():
                overlap.setdefault(name, Counter()).update(counts)
    yield from verify_totals(source, documents, num_bytes)
    if {name: dict(counts) for name, counts in overlap.items()} != source.entry["overlap"]:
        yield f"{source.name}: overlap is not what drops/ lists"


def verify_table(
    path: Path, table: pa.Table, source: ClaimedSource, sources: Mapping[str, ClaimedSource]
) -> Iterator[str]:
    """That a file of drops has its columns, known reasons, a partner for each duplicate alone, an item as it should."""
    if not table.schema.equals(SCHEMA) or any(table[name].null_count for name in SCHEMA.names[:4]):
        yield f"{path}: its columns are not {', '.join(SCHEMA.names)} as they should be"
        return
    if stray := find_stray_row(source, table["raw_file"].to_numpy(), table["row"].to_numpy()):
        yield f"{path}: a row comes from {stray}"
    for reason in set(table["reason"].unique().to_pylist()) - set(DROP_REASONS) - set(source.rules):
        yield f"{path}: {reason!r} is no reason to drop a document"
    is_near = pc.equal(table["reason"], "duplicate_near")
    is_exact = pc.equal(table["reason"], "duplicate_exact")
    is_duplicate = pc.or_(is_near, is_exact)
    is_known = is_duplicate if source.settings["dedup"] != "slimpajama" else is_exact  # nothing was compared there
    for column in PARTNER_COLUMNS:
        has_one = is_known if column == "similarity" else is_duplicate
        if pc.any(pc.not_equal(pc.is_valid(table[column]), has_one)).as_py():
            yield f"{path}: a duplicate has no {column}, or another document has one"
            return
    if pc.any(pc.not_equal(table["similarity"].filter(is_exact), 1)).as_py():
        yield f"{path}: an exact duplicate has a similarity other than 1"
    is_contaminated = pc.equal(table["reason"], "contaminated")
    if pc.any(pc.not_equal(pc.is_valid(table["item"]), is_contaminated)).as_py():
        yield f"{path}: a contaminated document has no item, or another document has one"
    files = (source.settings["decontaminate"] or {"files": {}})["files"]
    for item in table["item"].unique().drop_null().to_pylist():
        if not any(item.startswith(f"{name}:") for name in files):
            yield f"{path}: item {item!r} is of no file in settings.decontaminate"
    threshold = source.settings["dedup_threshold"]
    near = table["similarity"].filter(is_near)
    if threshold is not None and pc.any(pc.or_(pc.less(near, np.float32(threshold)), pc.greater(near, 1))).as_py():
        yield f"{path}: a near duplicate has a similarity that is not from {threshold} to 1"
    for name in table["partner_source"].unique().drop_null().to_pylist():
        if name not in sources:
            yield f"{path}: a duplicate's partner is of {name!r}, which is no source"
            continue
        partners = table.filter(pc.equal(table["partner_source"], name))
        raw_files, rows = partners["partner_raw_file"].to_numpy(), partners["partner_row"].to_numpy()
        if stray := find_stray_row(sources[name], raw_files, rows):
            yield f"{path}: a duplicate's partner is of {name}, {stray}"


def verify_totals(source: ClaimedSource, documents: Counter[str], num_bytes: Counter[str]) -> Iterator[str]:
    """That what the files of drops list adds up to the counts in dataset.json."""
    counts = source.entry["counts"]
    for outcome in OUTCOMES[1:]:
        reasons = {"bad": BAD_REASONS, "excluded": ("excluded", *source.rules)}.get(outcome, (outcome,))
        found = {
            "documents": sum(documents[name] for name in reasons),
            "bytes": sum(num_bytes[name] for name in reasons),
        }
        if found["documents"] != counts[outcome]["documents"]:
            claimed = counts[outcome]["documents"]
            yield f"{source.name}: drops/ lists {found['documents']:,} {outcome} documents, counts says {claimed:,}"
        if found["bytes"] != counts[outcome]["bytes"]:
            claimed = counts[outcome]["bytes"]
            yield f"{source.name}: drops/ lists {found['bytes']:,} bytes {outcome}, counts says {claimed:,}"
    for reason in BAD_REASONS:
        claimed = source.entry["bad_reasons"].get(reason, 0)
        if documents[reason] != claimed:
            yield f"{source.name}: drops/ lists {documents[reason]:,} {reason}, bad_reasons says {claimed:,}"
    if source.entry.get("failed") != ({rule: documents[rule] for rule in source.rules} if source.rules else None):
        yield f"{source.name}: failed is not what drops/ lists, rule by rule"
    method = source.settings["dedup"]
    for reason, methods in (("duplicate_exact", ("none",)), ("duplicate_near", ("none", "exact"))):
        if method in methods and documents[reason]:
            found = documents[reason]
            yield f"{source.name}: settings.dedup is {method}, but {found:,} documents are dropped as {reason}"
