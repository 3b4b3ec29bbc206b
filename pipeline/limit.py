"""--tokens N: where each source ends, so that it gives its share of N tokens. Whole documents, in the order of places.

The order is random in content, so what is taken is a fair draw of the source, and a larger N takes the same documents
and more. Training tokens are counted; of validation documents drawn from train files the same share stays, and files
that a source has for validation or test stay whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.plan import DatasetPlan, PlannedSource
from pipeline.shard import SPLITS
from pipeline.work import BUCKET_SHIFT, KeptDocuments

TRAIN, VALIDATION = SPLITS.index("train"), SPLITS.index("validation")


@dataclass(frozen=True)
class Limit:
    """The end of a source: documents of `splits` (indices into SPLITS) whose place is `place` or behind stay out."""

    place: int
    splits: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """What one dataset takes of the documents that stay: all, or those before each source's limit.

    tokenizer: the dataset's number. folder: its name in OUT, "" for a single one. limits: per source. documents,
    tokens: what it takes by its own tokenizer, int64, shape (sources, splits, buckets).
    """

    tokenizer: int
    folder: str
    out: Path
    limits: list[Limit | None]
    documents: np.ndarray
    tokens: np.ndarray


def select(
    dataset: DatasetPlan,
    number: int,
    sources: tuple[PlannedSource, ...],
    *,
    kept: KeptDocuments,
    tokens: np.ndarray,
    out: Path,
    notice: Callable[[str], None],
) -> Selection:
    """What the dataset, the build's `number`, takes; says what is left, or lacking.

    tokens: of all documents that stay, by its tokenizer: int64, shape (sources, splits, buckets). Raises ValueError
    where nothing would be left of any source.
    """
    documents, tokens = kept.counts.copy(), tokens.copy()
    limits: list[Limit | None] = [None] * len(sources)
    for index, source in enumerate(sources):
        share = (dataset.described["tokens"] or {}).get(source.name)
        if share is None:
            continue
        total = int(tokens[index, TRAIN].sum())
        own = source.has_own_validation
        limits[index] = find_limit(kept, tokens[index], index, number, share=share, has_own_validation=own)
        if limits[index]:
            apply_limit(limits[index], kept, documents[index], tokens[index], index, number)
        taken = int(tokens[index, TRAIN].sum())
        name = f"{dataset.name}: {source.name}" if dataset.name else source.name
        notice(describe_share(name, share=share, taken=taken, total=total))
    if dataset.described["tokens"] and not tokens[:, TRAIN].any():
        raise ValueError("--tokens: not even the first document of any source fits into its share: ask for more")
    return Selection(number, dataset.name, out, limits, documents, tokens)


def describe_share(name: str, *, share: int, taken: int, total: int) -> str:
    """What a source gave of what it was asked for, for a person."""
    if taken == total:
        return f"{name} has {total:,} training tokens, fewer than its share of {share:,}: all are taken"
    if share and not taken:
        return (
            f"{name}: none of {total:,} training tokens taken: its share of {share:,} is less than its first document"
        )
    return f"{name}: {taken:,} of {total:,} training tokens taken (its share is {share:,}), {total - taken:,} left out"


def find_limit(
    kept: KeptDocuments, tokens: np.ndarray, source: int, tokenizer: int, *, share: int, has_own_validation: bool
) -> Limit | None:
    """Where a source has given `share` training tokens or as near below as whole documents allow; None: all of it.

    tokens: of the source's kept documents by one tokenizer, int64, shape (splits, buckets).
    """
    ends = np.cumsum(tokens[TRAIN])
    if ends[-1] <= share:
        return None
    bucket = int(np.searchsorted(ends, share, side="right"))
    left = share - int(ends[bucket] - tokens[TRAIN, bucket])
    documents = read_bucket(kept, source, TRAIN, bucket)
    num_fitting = int(np.searchsorted(np.cumsum(documents["num_tokens"][:, tokenizer].astype(np.int64)), left, "right"))
    splits = (TRAIN,) if has_own_validation else (TRAIN, VALIDATION)
    return Limit(int(documents["place"][num_fitting]), splits)


def read_bucket(kept: KeptDocuments, source: int, split: int, bucket: int) -> np.ndarray:
    """The KEPT records of one bucket."""
    (piece,) = kept.find(source, split, bucket, bucket + 1, counts=kept.counts[source, split])
    return piece.read(kept.num_tokenizers)


def apply_limit(
    limit: Limit, kept: KeptDocuments, documents: np.ndarray, tokens: np.ndarray, source: int, tokenizer: int
) -> None:
    """Take what lies beyond the limit out of a source's counts, in place: int64, shape (splits, buckets) each."""
    bucket = limit.place >> BUCKET_SHIFT
    for split in limit.splits:
        if documents[split, bucket]:
            in_bucket = read_bucket(kept, source, split, bucket)
            inside = in_bucket[in_bucket["place"] < np.uint64(limit.place)]
            documents[split, bucket] = len(inside)
            tokens[split, bucket] = inside["num_tokens"][:, tokenizer].sum(dtype=np.int64)
        documents[split, bucket + 1 :] = 0
        tokens[split, bucket + 1 :] = 0
