"""The sets of shingles of documents of datasets of --against, from the tokens in their shards: no raw file is needed.

Decoding gives the very text where encoding loses nothing; the content hash tells. Where a tokenizer changes texts (it
normalises them, or has no id for a character), what it decodes to is compared, and counted as inexact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compare import RANK, find_wanted, list_set_files, write_sets
from pipeline.document_batch import key_rows
from pipeline.held import HeldDataset, check_listed
from pipeline.ingest import open_tokenizer
from pipeline.kernels import HASH_SEEDS, hash_documents
from pipeline.minhash import list_shingles
from pipeline.ranks import RankMap
from pipeline.shard import documents_path, index_path, open_document_ends, open_tokens, read_documents
from pipeline.token_file import open_records
from pipeline.tokenizer import Tokenizer
from pipeline.workshop import Dedup


@dataclass(frozen=True)
class HeldShard:
    """A shard of a held dataset, and how its ids are read."""

    bin_path: str
    checksum: str
    table_checksum: str
    num_tokens: int
    num_documents: int
    dtype: str
    tokenizer: str
    tokenizer_sha256: str


@dataclass(frozen=True)
class HeldSetsTask:
    """The shingles of those documents of one shard that are to be compared. source: its number."""

    name: str
    shard: HeldShard
    source: int
    split: str
    ranks: RankMap
    wanted_path: str
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """The shard, for a person."""
        return self.shard.bin_path

    def list_outputs(self, _: Any) -> list[Path]:
        """Both files of sets."""
        return list(list_set_files(self.folder, self.name))


def plan_held_sets(
    held: Sequence[HeldDataset],
    chosen: set[tuple[int, str]],
    *,
    source_names: Sequence[str],
    ranks: RankMap,
    wanted_path: Path,
    folder: Path,
    fingerprint: str,
) -> list[HeldSetsTask]:
    """A task for each shard of the sources and splits chosen. source_names: of all sources by their numbers."""
    return [
        HeldSetsTask(
            name=f"held-{source:03d}-{split}-{number:05d}",
            shard=shard,
            source=source,
            split=split,
            ranks=ranks,
            wanted_path=str(wanted_path),
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for dataset in held
        for name, entry in dataset.content["sources"].items()
        for source in [source_names.index(f"{dataset.label}/{name}")]
        for split in entry["splits"]
        if (source, split) in chosen
        for number, shard in enumerate(list_shards(dataset, name, split))
    ]


def list_shards(dataset: HeldDataset, source: str, split: str) -> list[HeldShard]:
    """The shards of a source and split of a dataset."""
    tokenizer = dataset.content["tokenizer"]
    how = (np.dtype(dataset.content["dtype"]).newbyteorder("<").str, str(dataset.folder / tokenizer["file"]))
    return [
        HeldShard(
            str(dataset.folder / shard["path"]),
            *(shard[name] for name in ("xxh3_128", "docs_xxh3_128", "tokens", "documents")),
            *how,
            tokenizer["sha256"],
        )
        for shard in dataset.content["sources"][source]["splits"][split]["shards"]
    ]


def run_held_sets(task: HeldSetsTask) -> dict[str, int]:
    """Write the sets; returns how many, and of how many documents the text is not exactly what was encoded."""
    cell, counts = (task.source, task.split), {"sets": 0, "inexact": 0}
    keys, ranks = find_wanted(
        Path(task.wanted_path), task.ranks, lambda one: one.is_held and (one.source, one.split) == cell
    )
    counts["sets"] = write_sets(
        list_set_files(task.folder, task.name), keys, ranks, read_held(task.shard, keys, counts)
    )
    return counts


def read_held(shard: HeldShard, keys: np.ndarray, counts: dict[str, int]) -> Iterator[tuple[int, np.ndarray]]:
    """Each wanted document of a shard: its key and its set of shingles. keys: sorted. Counts those that are inexact.

    Raises ValueError where the shard is damaged. Its ids are only checked where a text is not what was encoded.
    """
    bin_path, num_inexact = Path(shard.bin_path), 0
    check_listed(documents_path(bin_path), shard.table_checksum)
    columns = read_documents(bin_path)
    own_keys = key_rows(columns["raw_file"], columns["row"])
    wanted = np.flatnonzero(np.isin(own_keys, keys))
    if not len(wanted):
        return
    tokenizer = open_tokenizer(shard.tokenizer, shard.tokenizer_sha256, "fast")
    tokens = open_tokens(bin_path, dtype=np.dtype(shard.dtype), num_tokens=shard.num_tokens)
    ends = open_document_ends(bin_path, num_documents=shard.num_documents)
    if not np.array_equal(ends, np.cumsum(columns["num_tokens"], dtype=np.uint64)):
        raise ValueError(f"{index_path(bin_path)} does not fit the shard's documents: copy or build that dataset again")
    for document in wanted.tolist():
        start = int(ends[document - 1]) if document else 0
        try:
            data, offsets = decode(tokenizer, np.array(tokens[start : int(ends[document])]))
        except ValueError:  # an id that there is not
            check_listed(bin_path, shard.checksum)
            raise
        (found,) = hash_documents(data, offsets, np.array(HASH_SEEDS))
        num_inexact += bool((found != columns["content_hash"][document]).any())
        yield int(own_keys[document]), list_shingles(data, offsets[0], offsets[1])
    if num_inexact:
        check_listed(bin_path, shard.checksum)
    counts["inexact"] += num_inexact


def decode(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The text of a document with the ids that frame it: its bytes, uint8, and where it begins and ends."""
    first = int(tokenizer.bos_id is not None and len(ids) > 0 and ids[0] == tokenizer.bos_id)
    return tokenizer.decode_documents(ids[first:-1], np.array([0, len(ids) - 1 - first], np.int64))


def count_chosen(ranks: RankMap, wanted: np.ndarray) -> dict[tuple[int, str], int]:
    """Of sorted ranks, how many are of each source and split of held datasets."""
    chosen: dict[tuple[int, str], int] = {}
    for stretch, _, numbers in ranks.split(wanted):
        if stretch.is_held:
            cell = stretch.source, stretch.split
            chosen[cell] = chosen.get(cell, 0) + len(numbers)
    return chosen


def make_held_sets(work: Dedup, wanted_path: Path) -> list[HeldSetsTask]:
    """Write the sets of documents of --against; the tasks say where. wanted_path: the sorted ranks to compare."""
    chosen = count_chosen(work.ranks, open_records(wanted_path, RANK))
    tasks = plan_held_sets(
        work.ingested.held,
        set(chosen),
        source_names=work.ingested.all_names,
        ranks=work.ranks,
        wanted_path=wanted_path,
        folder=work.folder,
        fingerprint=work.fingerprint,
    )
    if not tasks:
        return []
    results = work.run("decode", run_held_sets, tasks, unit="shards", kept="sets", dropped="").values()
    num_found, num_inexact = (sum(result[what] for result in results) for what in ("sets", "inexact"))
    if num_found != sum(chosen.values()):
        raise ValueError(f"datasets of --against lack {sum(chosen.values()) - num_found:,} documents: verify them")
    if num_inexact:
        work.shop.console.print(f"note: {num_inexact:,} documents of --against are compared as their ids spell them")
    return tasks
