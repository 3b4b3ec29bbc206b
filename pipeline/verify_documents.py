"""What a document of a raw file is by a dataset's settings: its hash, its size, and why it would be dropped, if so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contamination import find_contaminated, read_names
from pipeline.document_batch import DocumentBatch, text_buffers
from pipeline.ingest import IngestSettings, find_excluded, find_failed, find_short
from pipeline.kernels import HASH_SEEDS, hash_documents
from pipeline.markers import STARCODER
from pipeline.token_file import DROP_REASONS
from pipeline.verify_rows import hash_items
from pipeline.verify_source import ClaimedSource

NO_REASON = DROP_REASONS.index("duplicate_exact")  # nothing in a document itself is a reason to drop it


@dataclass(frozen=True)
class Documents:
    """What a batch's texts are, an entry each. reasons: why each would be dropped, or NO_REASON; items: hash_items."""

    hashes: np.ndarray
    num_bytes: np.ndarray
    num_chars: np.ndarray
    reasons: np.ndarray
    items: np.ndarray


def describe_documents(batch: DocumentBatch, settings: IngestSettings) -> Documents:
    """The Documents of a batch."""
    data, offsets = text_buffers(batch.texts)
    num_chars = pc.utf8_length(batch.texts).to_numpy(zero_copy_only=False)
    reasons = np.full(len(batch.rows), NO_REASON)
    items = find_contaminated(batch.texts, settings.contamination)
    reasons[items > 0] = DROP_REASONS.index("contaminated")
    reasons[find_short(batch.texts, settings)] = DROP_REASONS.index("short")
    failed = find_failed(batch)
    reasons[failed > 0] = len(DROP_REASONS) - 1 + failed[failed > 0]
    reasons[find_excluded(batch, settings.exclude)] = DROP_REASONS.index("excluded")
    names = pa.nulls(len(items), pa.string()) if settings.contamination is None else read_names(settings.contamination)
    hashes = hash_documents(data, offsets, np.array(HASH_SEEDS))
    return Documents(hashes, np.diff(offsets), num_chars, reasons, hash_items(names.take(pa.array(items))))


def ingest_settings(source: ClaimedSource, content: Mapping[str, Any]) -> IngestSettings:
    """The settings with which the source's raw files are read as its build read them."""
    settings = content["settings"]
    return IngestSettings(
        text_field=source.source.text_field,
        subset_field=source.source.subset_field,
        exclude=tuple(settings["exclude"][source.name]),
        min_chars=settings["min_chars"],
        valid_fraction=source.valid_fraction,
        seed=settings["seed"],
        dedup=settings["dedup"],
        encode=(),
        strip_markers=settings["strip_markers"] and source.name == STARCODER,
        rules=source.rules,
    )
