"""Which documents share a span of words with evaluation texts (--decontaminate), and with which item of which file.

A document is contaminated where SPAN_WORDS of its words in a row, words as near duplicates know them (word_table.py),
stand so in one text of an evaluation file; as GPT-3 (Brown et al. 2020, appendix C), The Pile and lm-eval do, with 13.
A span never runs from one text into another, so a text of fewer words is looked for nowhere.

The spans lie in a folder of the work files, made once and mapped by every worker:

    first.npy second.npy    the hashes of each span, sorted (span_kernels.py); of equal spans only the first text's
    bits.npy heads.npy      their filter
    items.npy               for each span the number of its text
    items.json              the text's names: FILE:ROW FIELD
    spans.json              what is in them, and their checksums; written last
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.document_batch import text_buffers
from pipeline.evaluation_files import EvaluationFile, EvaluationText, find_evaluation_files, read_texts
from pipeline.folding import fold_documents
from pipeline.plan import hash_recipe
from pipeline.span_kernels import SPAN_WORDS, SpanList, find_spans, list_spans
from pipeline.storage import checksum_file, read_json, write_array, write_json

TEXT_BYTES = 4 << 20  # folded at once
MOST_SPANS = 1 << 26  # of about 400 MB of English
ARRAYS = ("first", "second", "bits", "heads", "items")
ITEM_NAMES, CONTENTS = "items.json", "spans.json"

SPAN = np.dtype([("first", "<u8"), ("second", "<u8"), ("item", "<u4")])


def describe_rule(files: Sequence[EvaluationFile]) -> dict[str, Any] | None:
    """What decides which documents are contaminated, as JSON: no folder is in it. None: nothing is looked for."""
    if not files:
        return None
    return {"span_words": SPAN_WORDS, "files": {file.name: file.sha256 for file in files}}


def keep_spans(
    paths: Sequence[Path], rule: Mapping[str, Any] | None, folder: Path, *, notice: Callable[[str], object]
) -> str | None:
    """Make the spans of some evaluation files in a folder of their own in `folder`, unless they are there; returns it.

    None where there are no files. rule: what describe_rule said of them.
    Raises ValueError where they are others by now, one holds no text, or all are too large to be evaluation files.
    """
    if rule is None:
        return None
    files = find_evaluation_files(paths)
    if describe_rule(files) != rule:
        raise ValueError(
            f"--decontaminate {' '.join(map(str, paths))}: these are not the files of settings.decontaminate"
        )
    own = folder / hash_recipe(rule)[:16]
    if not (own / CONTENTS).is_file():
        write_spans(files, own)
    counts = read_json(own / CONTENTS)["counts"]
    if not counts["spans"]:
        raise ValueError(f"--decontaminate {' '.join(map(str, paths))}: no text in these files has {SPAN_WORDS} words")
    notice(
        f"decontaminate: {counts['spans']:,} spans of {SPAN_WORDS} words from {counts['items']:,} items in "
        f"{len(files):,} files; {counts['without_span']:,} of these items have no text so long, and are not looked for"
    )
    return str(own)


def write_spans(files: Sequence[EvaluationFile], folder: Path) -> None:
    """Read evaluation files, and write their spans into a folder."""
    parts, names, counts = [np.empty(0, SPAN)], [], Counter()
    for file in files:
        num_items = counts["items"]
        for texts in gather_texts(file):
            spans, has_span = hash_texts(texts, first_item=len(names))
            long_texts = [one for one, is_long in zip(texts, has_span, strict=True) if is_long]
            names += [f"{file.name}:{one.row} {one.field}".rstrip() for one in long_texts]
            num_rows = len({one.row for one in texts})
            counts.update(items=num_rows, without_span=num_rows - len({one.row for one in long_texts}), read=len(spans))
            parts.append(spans)
            if counts["read"] > MOST_SPANS:
                raise ValueError(
                    f"--decontaminate: more than {MOST_SPANS:,} words up to {file.path}: these are no evaluation "
                    "files, or too many at once"
                )
        if counts["items"] == num_items:
            raise ValueError(f"--decontaminate {file.path}: it holds no text, so there is nothing to look for")
    spans = np.concatenate(parts)
    parts.clear()  # a hundred MB of evaluation texts have 300 MB of spans
    spans = sort_spans(spans)
    write_table(spans, names, {**counts, "spans": len(spans)}, folder)


def gather_texts(file: EvaluationFile) -> Iterator[list[EvaluationText]]:
    """The texts of a file, about TEXT_BYTES at a time; those of an item stay together."""
    waiting: list[EvaluationText] = []
    num_chars = 0
    for one in read_texts(file):
        if num_chars >= TEXT_BYTES and one.row != waiting[-1].row:
            yield waiting
            waiting, num_chars = [], 0
        waiting.append(one)
        num_chars += len(one.text)
    if waiting:
        yield waiting


def hash_texts(texts: Sequence[EvaluationText], *, first_item: int) -> tuple[np.ndarray, np.ndarray]:
    """SPAN records of some texts, in their order, and which of these texts have any. Only those are numbered."""
    data = pa.array([one.text.encode(errors="replace") for one in texts], pa.binary())  # half a surrogate pair: "?"
    first, second, counts = list_spans(*fold_documents(*text_buffers(data)))
    spans, has_span = np.empty(len(first), SPAN), counts > 0
    spans["first"], spans["second"] = first, second
    spans["item"] = np.repeat(first_item + np.arange(has_span.sum()), counts[has_span])
    return spans, has_span


def sort_spans(spans: np.ndarray) -> np.ndarray:
    """The spans in the order of their hashes, each once: as it stands in the first text that has it."""
    spans = spans[np.lexsort((spans["second"], spans["first"]))]  # which keeps the order of equal ones
    is_new = np.ones(len(spans), bool)
    is_new[1:] = (spans["first"][1:] != spans["first"][:-1]) | (spans["second"][1:] != spans["second"][:-1])
    return spans[is_new]


def write_table(spans: np.ndarray, names: list[str], counts: Mapping[str, int], folder: Path) -> None:
    """Write the files that the top of this file lists."""
    listed = SpanList.of(spans["first"].copy(), spans["second"].copy())
    for name, array in {**vars(listed), "items": spans["item"]}.items():
        write_array(folder / f"{name}.npy", array)
    write_json(folder / ITEM_NAMES, names)
    files = [*(f"{name}.npy" for name in ARRAYS), ITEM_NAMES]
    checksums = {name: checksum_file(folder / name) for name in files}
    write_json(folder / CONTENTS, {"counts": counts, "checksums": checksums})


@dataclass(frozen=True)
class Contamination:
    """Evaluation texts' spans, opened. items: the number of each span's text."""

    spans: SpanList
    items: np.ndarray

    def find(self, texts: pa.Array) -> np.ndarray:
        """For each text 1 + the number of the evaluation text that the first span found in it is of, or 0: uint32."""
        found = find_spans(*fold_documents(*text_buffers(texts)), self.spans)
        numbers = np.zeros(len(found), np.uint32)
        numbers[found >= 0] = self.items[found[found >= 0]] + np.uint32(1)
        return numbers


@functools.cache  # once per process
def open_contamination(folder: str) -> Contamination:
    """The spans in a folder, mapped. Raises ValueError where a file is not as it was written."""
    for name, checksum in read_json(Path(folder) / CONTENTS)["checksums"].items():
        if checksum_file(Path(folder) / name) != checksum:
            raise ValueError(f"{Path(folder) / name} is damaged: start over with --replace")
    arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    items = arrays.pop("items")
    return Contamination(SpanList(**{name: np.asarray(array) for name, array in arrays.items()}), items)


def find_contaminated(texts: pa.Array, folder: str | None) -> np.ndarray:
    """Contamination.find by the spans in a folder; None: nothing is looked for."""
    if folder is None or not len(texts):
        return np.zeros(len(texts), np.uint32)
    return open_contamination(folder).find(texts)


@functools.cache
def read_names(folder: str) -> pa.Array:
    """The names of evaluation texts by 1 + their number, as in a DROP record; null for 0."""
    return pa.array([None, *read_json(Path(folder) / ITEM_NAMES)], pa.string())
