"""The raw files of a sample: rows, file names and formats as the sources themselves have them.

slimpajama   train/chunk1/example_train_0.jsonl.zst ..., validation and test with example_holdout_0
starcoder    <language>/train-00000-of-000NN.parquet, five columns, markers in about half of the rows
redpajama    one folder per subset, each with its own columns; only common_crawl is compressed
any other    train.jsonl with a text column

What only the originals know (stars, scores, addresses, times) is empty, null or 0. Which subset a text stands in for is
decided by its kind: nothing here comes from arXiv or Wikipedia. Knows nothing of where text comes from.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.sample_text import Text, name_language
from pipeline.storage import open_new

Row = dict[str, Any]

FILE_BYTES = 2_000_000  # of text; small, so that a small sample too is work for several processes
HOLDOUT_EVERY = 100  # rows: one for validation and one for test, about 1 % each

SUBSETS = {  # the name in slimpajama -> the folder in redpajama; books are withdrawn there
    "RedPajamaArXiv": "arxiv",
    "RedPajamaBook": "wikipedia",
    "RedPajamaC4": "c4",
    "RedPajamaCommonCrawl": "common_crawl",
    "RedPajamaGithub": "github",
    "RedPajamaStackExchange": "stackexchange",
    "RedPajamaWikipedia": "wikipedia",
}
SUBSET_OF_KIND = {
    "code": "RedPajamaGithub",
    "description": "RedPajamaCommonCrawl",
    "file": "RedPajamaWikipedia",
    "topic": "RedPajamaBook",
}
SUBSETS_OF_DOCSTRINGS = ("RedPajamaWikipedia", *["RedPajamaC4"] * 2, *["RedPajamaCommonCrawl"] * 5)
COMMON_CRAWL_PART = "2023-06/en_head_0000.json.gz"
UNSCORED = {"question_score": "0"}
STARCODER_COLUMNS = pa.schema(
    [
        ("max_stars_repo_path", pa.string()),
        ("max_stars_repo_name", pa.string()),
        ("max_stars_count", pa.int64()),
        ("id", pa.string()),
        ("content", pa.string()),
    ]
)


def lay_out(source: str, texts: list[Text]) -> dict[str, list[Row]]:
    """The rows of every raw file of `source`, by path within its folder."""
    layouts: dict[str, Callable[[list[Text]], dict[str, list[Row]]]] = {
        "slimpajama": lay_out_slimpajama,
        "starcoder": lay_out_starcoder,
        "redpajama": lay_out_redpajama,
    }
    if source in layouts:
        return layouts[source](texts)
    return {"train.jsonl": [{"text": text.text} for text in texts]}


def name_subset(text: Text) -> str:
    """The subset of slimpajama that a text stands in for."""
    if text.place.kind != "docstrings":
        return SUBSET_OF_KIND[text.place.kind]
    if ".. math::" in text.text or "\\frac" in text.text:
        return "RedPajamaArXiv"
    if ">>> " in text.text:
        return "RedPajamaStackExchange"
    return SUBSETS_OF_DOCSTRINGS[text.place.order[-1] % len(SUBSETS_OF_DOCSTRINGS)]


def lay_out_slimpajama(texts: list[Text]) -> dict[str, list[Row]]:
    """Several training files and a small file of each holdout."""
    rows = [{"text": text.text, "meta": {"redpajama_set_name": name_subset(text)}} for text in texts]
    train = [row for index, row in enumerate(rows) if index % HOLDOUT_EVERY not in (1, 2)]
    num_files = max(4, count_files(texts))
    files = {f"train/chunk1/example_train_{number}.jsonl.zst": train[number::num_files] for number in range(num_files)}
    files["validation/chunk1/example_holdout_0.jsonl.zst"] = rows[1::HOLDOUT_EVERY]
    files["test/chunk1/example_holdout_0.jsonl.zst"] = rows[2::HOLDOUT_EVERY]
    return {path: rows for path, rows in files.items() if rows}


def lay_out_starcoder(texts: list[Text]) -> dict[str, list[Row]]:
    """A folder per language, each of one or more parquet files."""
    files: dict[str, list[Row]] = {}
    for language, of_language in group(texts, by=name_language).items():
        rows = [
            {
                "max_stars_repo_path": text.place.path,
                "max_stars_repo_name": text.place.repository,
                "max_stars_count": None,
                "id": str(number),
                "content": add_markers(text),
            }
            for number, text in enumerate(of_language)
        ]
        num_files = count_files(of_language)
        for number in range(num_files):
            files[f"{language}/train-{number:05d}-of-{num_files:05d}.parquet"] = rows[number::num_files]
    return files


def add_markers(text: Text) -> str:
    """The text with starcoder's markers before it: each with a chance of 1 in 5, so that half of the rows have one."""
    markers = (f"<reponame>{text.place.repository}", f"<filename>{text.place.path}", "<gh_stars>0")
    chances = text.place.order[-3:]  # the last bytes: a small sample has only texts whose first bytes are low
    chosen = [marker for marker, chance in zip(markers, chances, strict=True) if chance < 51]
    return "".join([*chosen, "\n", text.text]) if chosen else text.text


def lay_out_redpajama(texts: list[Text]) -> dict[str, list[Row]]:
    """A file per subset, with that subset's own columns."""
    paths = {
        "arxiv": f"arxiv/arxiv_{uuid.uuid5(uuid.NAMESPACE_URL, 'tokenmill sample')}.jsonl",
        "c4": "c4/c4-train.00000-of-01024.jsonl",
        "common_crawl": f"common_crawl/{COMMON_CRAWL_PART}.dedup.classifier.jsonl.zst",
        "github": f"github/filtered_{hashlib.md5(b'tokenmill sample').hexdigest()}.sampled.jsonl",
        "stackexchange": "stackexchange/stackexchange.jsonl",
        "wikipedia": "wikipedia/wiki.jsonl",
    }
    folders = group(texts, by=lambda text: SUBSETS[name_subset(text)])
    return {
        paths[folder]: [redpajama_row(folder, text, line=line) for line, text in enumerate(folders[folder])]
        for folder in sorted(folders)
    }


def redpajama_row(folder: str, text: Text, *, line: int) -> Row:
    """One row; a subset's meta has the keys of the original, a row of common_crawl has no meta."""
    address = f"{text.place.repository}/{text.place.path}"
    if folder == "common_crawl":
        judged = {"pred_label": "__label__wiki", "pred_label_prob": 0.0, "wiki_prob": 0.0}
        return {**judged, "text": text.text, "source": f"cc/{COMMON_CRAWL_PART}/line{line}"}
    meta = {
        "arxiv": {"timestamp": "", "yymm": "", "arxiv_id": "", "language": "en", "url": address, "source": "arxiv"},
        "c4": {"timestamp": "", "url": address, "language": "en", "source": "c4"},
        "github": {"content_hash": "", "timestamp": "", "source": "github", **describe_code(text)},
        "stackexchange": {"language": "en", "url": address, "timestamp": "", "source": "stackexchange", **UNSCORED},
        "wikipedia": {"title": text.place.path, "url": address, "language": "en", "timestamp": ""},
    }
    return {"text": text.text, "meta": meta[folder]}


def describe_code(text: Text) -> Row:
    """What redpajama's github rows say of a file."""
    lengths = [len(line) for line in text.text.split("\n")]
    return {
        "line_count": len(lengths),
        "max_line_length": max(lengths),
        "avg_line_length": sum(lengths) / len(lengths),
        "alnum_prop": sum(map(str.isalnum, text.text)) / len(text.text),
        "repo_name": text.place.repository,
        "id": text.place.order.hex(),
        "size": str(len(text.text.encode())),
        "binary": False,
        "copies": "1",
        "ref": "",
        "path": text.place.path,
        "mode": "33188",
        "license": "",
        "language": [],
    }


def group(texts: Iterable[Text], *, by: Callable[[Text], str]) -> dict[str, list[Text]]:
    """The texts by what `by` says of each, the names sorted, the order of texts kept."""
    groups: dict[str, list[Text]] = {}
    for text in texts:
        groups.setdefault(by(text), []).append(text)
    return dict(sorted(groups.items()))


def count_files(texts: Iterable[Text]) -> int:
    """How many files of about FILE_BYTES of text these are; at least one."""
    return max(1, round(sum(len(text.text.encode()) for text in texts) / FILE_BYTES))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write one raw file, in the format that its ending names; the same rows give the same bytes."""
    with open_new(path) as file:
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema=STARCODER_COLUMNS), file, row_group_size=1000)
            return
        lines = (json.dumps(row).encode() + b"\n" for row in rows)
        if path.suffix != ".zst":
            file.writelines(lines)
            return
        with zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) as packed:  # one frame, as original
            for line in lines:
                packed.write(line)
