"""Pairs that estimates do not decide -> their similarity by the sets of shingles themselves.

The sets are not kept from ingest: they would take as much disk as the text. The raw files that hold such documents are
read once more, the wanted rows' sets written down, and the pairs compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.document_batch import ROW_BITS, key_rows, text_buffers
from pipeline.estimate import EDGE, find_distinct
from pipeline.ingest import IngestSettings, IngestTask, TaskFile, read_file
from pipeline.minhash import list_shingles
from pipeline.pair_kernels import mark_ranks
from pipeline.ranks import RankMap
from pipeline.set_kernels import gather_sets, measure_overlaps
from pipeline.sketch_file import ROW
from pipeline.storage import open_new, write_array
from pipeline.token_file import open_records
from pipeline.work import FileTask, Stretch

SET = np.dtype([("rank", "<u4"), ("start", "<u8"), ("count", "<u8")])  # start: in the file of sets
PLACE = np.dtype([("file", "<u4"), ("start", "<u8"), ("count", "<u8")])  # file: its number; the rest as in a SET
HASH = np.dtype("<u4")
RANK = np.dtype("<u4")
EDGES_PER_TASK = 1 << 20  # about 100 bytes each; each task reads the index of all sets
SHINGLES_AT_ONCE = 1 << 24  # in memory: 64 MiB


@dataclass(frozen=True)
class WantedTask(FileTask):
    """The documents of all edges to compare. open_path: the EDGE records."""

    name: str
    open_path: str
    num_documents: int
    folder: str
    fingerprint: str

    @property
    def path(self) -> Path:
        """Their ranks, sorted, each once: RANK."""
        return Path(self.folder) / f"{self.name}.ranks.bin"


def run_wanted(task: WantedTask) -> dict[str, int]:
    """Write the ranks; returns how many."""
    edges, bits = open_records(Path(task.open_path), EDGE), np.zeros(task.num_documents // 8 + 1, np.uint8)
    for first in range(0, len(edges), EDGES_PER_TASK):
        part = np.array(edges[first : first + EDGES_PER_TASK])
        mark_ranks(part["later"], bits)
        mark_ranks(part["earlier"], bits)
    with open_new(task.path) as file:
        for first in range(0, len(bits), EDGES_PER_TASK):
            own = np.unpackbits(bits[first : first + EDGES_PER_TASK], bitorder="little")
            file.write((np.flatnonzero(own) + 8 * first).astype(RANK).tobytes())
    return {"documents": int(np.bitwise_count(bits).sum())}


@dataclass(frozen=True)
class SetsTask:
    """The shingles of those documents of one ingest task that are to be compared. wanted_path: of the WantedTask."""

    ingest: IngestTask
    ranks: RankMap  # of the task's documents, or more
    task_number: int
    wanted_path: str
    folder: str
    fingerprint: str

    @property
    def name(self) -> str:
        """The name of the ingest task."""
        return self.ingest.name

    @property
    def subject(self) -> str:
        """Its raw files, for a person."""
        return self.ingest.subject

    def list_outputs(self, _: Any) -> list[Path]:
        """The index and the file of sets."""
        return list(list_set_files(self.folder, self.name))


def list_set_files(folder: str, name: str) -> tuple[Path, Path]:
    """The index of some sets, SET records sorted by rank; and the sets back to back, HASH records, each sorted."""
    return Path(folder) / f"{name}.index.npy", Path(folder) / f"{name}.sets.bin"


def choose_tasks(wanted: np.ndarray, ranks: RankMap) -> set[int]:
    """The ingest tasks that hold documents to be compared, by their numbers in the plan. wanted: sorted ranks."""
    return {stretch.task for stretch, _, _ in ranks.split(wanted) if not stretch.is_held}


def run_sets(task: SetsTask) -> dict[str, int]:
    """Write the sets; returns how many. Raises ValueError where the raw files have no longer these documents."""
    keys, ranks = find_wanted(Path(task.wanted_path), task.ranks, lambda stretch: stretch.task == task.task_number)
    settings = replace(task.ingest.settings, exclude=())  # what is wanted was not excluded
    shingles = read_shingles(task.ingest.files, settings, keys)
    num_found = write_sets(list_set_files(task.folder, task.name), keys, ranks, shingles)
    if num_found != len(keys):
        raise ValueError(f"{task.subject}: {len(keys) - num_found:,} documents are gone: run the command again")
    return {"sets": num_found}


def write_sets(
    paths: tuple[Path, Path], keys: np.ndarray, ranks: np.ndarray, shingles: Iterable[tuple[int, np.ndarray]]
) -> int:
    """Write the sets of those wanted documents that `shingles` gives, by key; returns how many."""
    index, is_found, start = np.zeros(len(keys), SET), np.zeros(len(keys), bool), 0
    index["rank"] = ranks
    index_path, sets_path = paths
    with open_new(sets_path) as file:
        for key, hashes in shingles:
            at = int(np.searchsorted(keys, np.uint64(key)))
            file.write(hashes)
            index["start"][at], index["count"][at], is_found[at] = start, len(hashes), True
            start += len(hashes)
    index = index[is_found]
    write_array(index_path, index[np.argsort(index["rank"])])
    return len(index)


def find_wanted(wanted_path: Path, ranks: RankMap, is_own: Callable[[Stretch], bool]) -> tuple[np.ndarray, np.ndarray]:
    """The documents to read: raw file << ROW_BITS | row, as the stretches' tasks count them, sorted; and their ranks.

    is_own: of a stretch, whether its documents are read.
    """
    keys, of_keys = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
    wanted = open_records(wanted_path, RANK)
    for stretch, where, numbers in ranks.split(wanted):
        if is_own(stretch):
            rows = open_records(Path(stretch.folder) / "rows.bin", ROW)[numbers]
            keys.append(key_rows(rows["raw_file"], rows["row"]))
            of_keys.append(wanted[where])
    joined = np.concatenate(keys)
    order = np.argsort(joined)
    return joined[order], np.concatenate(of_keys)[order]


def read_shingles(
    files: Sequence[TaskFile], settings: IngestSettings, keys: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Each wanted document of some raw files: its key, and its set of shingles. keys: sorted, as find_wanted makes."""
    for file in files:
        base = file.number << ROW_BITS
        first, last = np.searchsorted(keys, np.array([base, base + (1 << ROW_BITS)], np.uint64))
        own = keys[first:last]
        if not len(own):
            continue
        for batch in read_file(file, settings):
            batch_keys = key_rows(file.number, batch.rows)
            data, offsets = text_buffers(batch.texts)
            for place in np.flatnonzero(np.isin(batch_keys, own)).tolist():
                yield int(batch_keys[place]), list_shingles(data, offsets[place], offsets[place + 1])
            if len(batch_keys) and batch_keys[-1] >= own[-1]:
                break


@dataclass(frozen=True)
class CompareTask(FileTask):
    """Edges first to last of those to compare. sets: the files of a SetsTask each, index and sets."""

    name: str
    open_path: str
    first: int
    last: int
    sets: tuple[tuple[str, str], ...]
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return f"pairs {self.first:,} to {self.last:,}"

    @property
    def path(self) -> Path:
        """The EDGE records with the similarity measured, in their order."""
        return Path(self.folder) / f"{self.name}.compared.npy"


def plan_comparisons(
    open_path: Path, sets: Sequence[tuple[Path, Path]], *, num_edges: int, folder: Path, fingerprint: str
) -> list[CompareTask]:
    """The tasks of EDGES_PER_TASK edges each, in order."""
    paths = tuple((str(index), str(hashes)) for index, hashes in sets)
    return [
        CompareTask(
            name=f"pairs-{number:05d}",
            open_path=str(open_path),
            first=first,
            last=last,
            sets=paths,
            folder=str(folder),
            fingerprint=fingerprint,
        )
        for number, (first, last) in enumerate(split_edges(num_edges))
    ]


def split_edges(num_edges: int) -> list[tuple[int, int]]:
    """The first and last edge of each task."""
    return [(first, min(first + EDGES_PER_TASK, num_edges)) for first in range(0, num_edges, EDGES_PER_TASK)]


def run_compare(task: CompareTask) -> None:
    """Write the edges with what was measured."""
    edges = np.array(open_records(Path(task.open_path), EDGE)[task.first : task.last])
    wanted = np.stack([edges["later"], edges["earlier"]], axis=1).reshape(-1)
    similarities = np.empty(len(edges), np.float32)
    for entries, members, data, starts in read_sets(wanted, np.arange(0, len(wanted) + 1, 2), task.sets):
        measure_overlaps(data, starts, members.reshape(-1, 2), similarities[entries])
    edges["similarity"] = similarities
    write_array(task.path, edges)


def read_sets(
    wanted: np.ndarray, edges: np.ndarray, files: Sequence[tuple[str, str]]
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """The sets of some entries, each the ranks wanted[edges[i]:edges[i + 1]], for as many at once as there is room for.

    Which entries; the number of each of their sets; the sets as in set_kernels.py: flat hashes, and where each begins.
    """
    ranks, numbers = find_distinct(wanted)
    places = find_sets(ranks, files)
    sizes = np.concatenate([[0], np.cumsum(places["count"][numbers], dtype=np.int64)])[edges]
    first = 0
    while first < len(edges) - 1:
        room = np.searchsorted(sizes, sizes[first] + SHINGLES_AT_ONCE, "right")
        last = max(first + 1, int(room) - 1)
        chosen, members = find_distinct(numbers[edges[first] : edges[last]])
        yield slice(first, last), members, *load_sets(places[chosen], files)
        first = last


def load_sets(places: np.ndarray, files: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """The sets at some PLACE records, back to back, and where each begins, and the last ends."""
    starts = np.zeros(len(places) + 1, np.int64)
    np.cumsum(places["count"], out=starts[1:])
    data = np.empty(starts[-1], HASH)
    for number in np.unique(places["file"]).tolist():
        own = np.flatnonzero(places["file"] == number)
        hashes = open_records(Path(files[number][1]), HASH)  # one file at a time is mapped
        gather_sets(
            hashes, *(np.ascontiguousarray(places[name][own]) for name in ("start", "count")), data, starts[own]
        )
    return data, starts


def find_sets(ranks: np.ndarray, files: Sequence[tuple[str, str]]) -> np.ndarray:
    """The PLACE records of sorted ranks."""
    places, num_found = np.zeros(len(ranks), PLACE), 0
    for number, (index_path, _) in enumerate(files):
        index = np.load(index_path)
        own = np.ascontiguousarray(index["rank"])
        at = np.minimum(np.searchsorted(own, ranks), max(0, len(own) - 1))
        is_here = own[at] == ranks if len(own) else np.zeros(len(ranks), bool)
        places["file"][is_here] = number
        for name in ("start", "count"):
            places[name][is_here] = index[name][at[is_here]]
        num_found += int(is_here.sum())
    assert num_found == len(ranks)
    return places
