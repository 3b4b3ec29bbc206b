"""--write-text: the surviving texts as JSON lines in SlimPajama's own layout, for use elsewhere.

    DIR/<split>/chunk<1 to 10>/example_<split>_<number>.jsonl.zst    {"text": ..., "meta": {"redpajama_set_name": ...}}

A file for each ingest task and split, its lines in the order of the raw files; nothing is shuffled. The raw files are
read once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard

from pipeline.document_batch import key_rows
from pipeline.drops import Duplicates, find_ranks, open_lists
from pipeline.ingest import IngestTask, read_file
from pipeline.shard import SPLITS
from pipeline.sketch_file import ROW
from pipeline.storage import open_new
from pipeline.token_file import open_records
from pipeline.work import Stretch

NUM_CHUNKS = 10
ZSTD_LEVEL = 3  # as SlimPajama's files
SET_NAMES = {
    "arxiv": "RedPajamaArXiv",
    "book": "RedPajamaBook",
    "c4": "RedPajamaC4",
    "common_crawl": "RedPajamaCommonCrawl",
    "github": "RedPajamaGithub",
    "stackexchange": "RedPajamaStackExchange",
    "wikipedia": "RedPajamaWikipedia",
}


@dataclass(frozen=True)
class TextTask:
    """The texts of one ingest task that stay. number: the task's in the plan."""

    ingest: IngestTask
    number: int
    stretches: tuple[Stretch, ...]
    duplicates: Duplicates
    out: str
    fingerprint: str

    @property
    def name(self) -> str:
        """The name of the ingest task."""
        return self.ingest.name

    @property
    def subject(self) -> str:
        """Its raw files, for a person."""
        return self.ingest.subject

    def name_file(self, split: str) -> Path:
        """The file of a split."""
        chunk = f"chunk{1 + self.number % NUM_CHUNKS}"
        return Path(self.out) / split / chunk / f"example_{split}_{self.number}.jsonl.zst"

    def list_outputs(self, result: dict[str, int]) -> list[Path]:
        """A file for each split that has texts."""
        return [self.name_file(split) for split in SPLITS if result.get(split)]


def run_text(task: TextTask) -> dict[str, int]:
    """Write the task's files; returns how many texts each split has."""
    counts = {}
    for split in SPLITS:
        keys = list_kept(task, split)
        if len(keys):
            counts[split] = write_split(task, split, keys)
    return counts


def list_kept(task: TextTask, split: str) -> np.ndarray:
    """The documents of a split that stay: raw file << ROW_BITS | row as the task counts it, sorted."""
    keys = [np.empty(0, np.uint64)]
    for stretch in task.stretches:
        if stretch.split != split:
            continue
        stays = np.ones(stretch.last - stretch.first, bool)
        for records in open_lists(task.duplicates):
            stays[find_ranks(records, stretch)["rank"].astype(np.int64) - stretch.first_rank] = False
        rows = open_records(Path(stretch.folder) / "rows.bin", ROW)[stretch.first : stretch.last][stays]
        keys.append(key_rows(rows["raw_file"], rows["row"]))
    return np.sort(np.concatenate(keys))


def write_split(task: TextTask, split: str, keys: np.ndarray) -> int:
    """Write the texts of some documents; returns how many."""
    count = 0
    with (
        open_new(task.name_file(split)) as file,
        zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(file, closefd=False) as packed,
    ):
        for text, set_name in read_texts(task.ingest, keys):
            line = {"text": text, "meta": {"redpajama_set_name": set_name}}
            packed.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            count += 1
    if count != len(keys):
        raise ValueError(f"{task.subject}: {len(keys) - count:,} documents are gone: run the command again")
    return count


def read_texts(ingest: IngestTask, keys: np.ndarray) -> Iterator[tuple[str, str]]:
    """Each wanted document's text as it is kept, and the name of its subset, else its source."""
    for file in ingest.files:
        set_name = SET_NAMES.get(file.subset or "", file.subset or ingest.source)
        for batch in read_file(file, ingest.settings):
            is_wanted = np.isin(key_rows(file.number, batch.rows), keys)
            for place in np.flatnonzero(is_wanted).tolist():
                yield batch.texts[place].as_py(), set_name
