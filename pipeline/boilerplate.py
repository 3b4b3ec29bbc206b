"""Near duplicates that are alike by boilerplate alone: found, to be judged by the rest of their texts.

A licence or a banner that many documents share is no evidence that two of them are the same. A document is in doubt if
it is near to one before it. Other documents with the same text are its witnesses. They are met by traces: single least
values of MinHash, of which two documents share as many as they are alike. Of two kinds:

- Unlike the one in doubt, and they stay: a longer file with the same licence. What FEWEST_WITNESSES of them have is
  boilerplate, if they agree on it: what all of these have of the two documents is at least LEAST_AGREED of what any of
  them has. Versions of one text, each with another part of it, do not. Two documents are not near where their
  similarity without boilerplate is below the threshold by more than REST_MARGIN.
- Alike, dropped or not: forty files of one licence and eight words each. Two documents are not near where
  FEWEST_ALIKE of them have just what the two share, and each, as the two, a rest of its own: more than one changed
  word, at least LEAST_OWN of the size of what is shared, and hardly anything of it in another's rest. Copies of one
  text, each with changes of its own, are not so: of what one leaves out, the others' rests have the original.

traces (per trace and range of keys) -> witnesses (per range of ranks) -> rest (all edges of the documents found), and
after their sets of shingles were made, a comparison (per some edges).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.candidates import BandTask, read_packed
from pipeline.compare import read_sets
from pipeline.copies import find_marked
from pipeline.estimate import EDGE, estimate_pairs
from pipeline.freed_memory import keep_freed_memory
from pipeline.minhash import SHINGLE_WORDS
from pipeline.pair_kernels import list_witnesses, mark_ranks
from pipeline.ranks import RankMap
from pipeline.resolve import ResolveTask, find_later, read_near_edges
from pipeline.set_kernels import measure_rests
from pipeline.storage import open_new, write_array
from pipeline.token_file import open_records
from pipeline.work import FileTask

FEWEST_WITNESSES = 3
LEAST_AGREED = 0.75  # versions of one text that a signature finds unlike agree on 0.65 of it at most, unless by chance
FEWEST_STAYING = FEWEST_WITNESSES + 1  # with a key: the witnesses, and the one for which a document went
WITNESSES_PER_KEY, WITNESSES = 16, 6  # the most that are tried, and that are taken for a document
FEWEST_ALIKE = 6
ALIKE_PER_KEY, ALIKE = 8, 8  # one may be the document for which the other goes
MOST_ALIKE = 0.7  # an unlike witness and the document in doubt, by their signatures
REST_MARGIN = 0.2
LEAST_OWN, LEAST_HELD, MOST_SHARED = 0.05, 0.9, 0.25  # of what is shared; of it; the similarity of two rests
FEWEST_OWN = SHINGLE_WORDS + 1  # shingles: one word that was changed makes SHINGLE_WORDS of its own


@dataclass(frozen=True)
class TracesTask(FileTask):
    """The keys of one trace. resolve: the first, which says what documents went and what others are in doubt."""

    band: BandTask
    resolve: ResolveTask

    @property
    def name(self) -> str:
        """That of its keys."""
        return self.band.name

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return self.band.subject

    @property
    def fingerprint(self) -> str:
        """Of all raw files."""
        return self.band.fingerprint

    @property
    def path(self) -> Path:
        """Pairs of a document in doubt and one that stays, sorted: uint64."""
        return self.band.list_paths(1)[0]


def run_traces(task: TracesTask) -> dict[str, int]:
    """Write the pairs; returns how many."""
    doubted, faint, dropped = map(
        np.load, (task.resolve.doubted_path, task.resolve.faint_path, task.resolve.marks_path)
    )
    parts, nothing = [], np.zeros_like(dropped)
    for packed in read_packed(task.band):
        keys = packed, task.band.rank_bits
        parts.append(list_pairs(*keys, doubted, dropped, FEWEST_STAYING, WITNESSES_PER_KEY))
        parts.append(list_pairs(*keys, faint, nothing, FEWEST_ALIKE + 2, ALIKE_PER_KEY))
    pairs = np.concatenate(parts)
    pairs.sort()
    write_array(task.path, pairs)
    return {"pairs": len(pairs)}


def list_pairs(packed: np.ndarray, *settings: Any) -> np.ndarray:
    """What list_witnesses finds."""
    pairs = np.empty(list_witnesses(packed, *settings, np.empty(0, np.uint64)), np.uint64)
    if len(pairs):
        list_witnesses(packed, *settings, pairs)
    return pairs


@dataclass(frozen=True)
class WitnessesTask(FileTask):
    """The documents in doubt, of ranks first_rank to last_rank. paths: of all TracesTask. resolve: as theirs."""

    name: str
    ranks: RankMap
    resolve: ResolveTask
    paths: tuple[str, ...]
    first_rank: int
    last_rank: int
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return f"ranks {self.first_rank:,} to {self.last_rank:,}"

    @property
    def path(self) -> Path:
        """EDGE records, sorted by `later`, the document in doubt; `earlier` is a witness, unlike ones come first."""
        return Path(self.folder) / f"{self.name}.witnesses.npy"


def run_witnesses(task: WitnessesTask) -> dict[str, int]:
    """Write the witnesses of documents that have enough; returns how many documents these are."""
    keep_freed_memory()
    faint, dropped = np.load(task.resolve.faint_path), np.load(task.resolve.marks_path)
    parts = estimate_pairs(task.paths, task.first_rank, task.last_rank, ranks=task.ranks, least=0)
    taken = np.concatenate([choose_witnesses(edges, faint, dropped) for edges in parts])
    write_array(task.path, taken)
    return {"documents": len(np.unique(taken["later"]))}


def choose_witnesses(edges: np.ndarray, faint: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Of the edges of documents in doubt to others those to their witnesses."""
    is_alike = edges["similarity"] >= MOST_ALIKE
    is_wanted = np.where(is_alike, find_marked(faint, edges["later"]), ~find_marked(dropped, edges["earlier"]))
    is_wanted &= edges["later"] != edges["earlier"]
    unlike = take_enough(edges[is_wanted & ~is_alike], FEWEST_WITNESSES, WITNESSES)
    alike = take_enough(edges[is_wanted & is_alike], FEWEST_ALIKE, ALIKE)
    taken = np.concatenate([unlike, alike])
    return taken[np.argsort(taken["later"], kind="stable")]


def take_enough(edges: np.ndarray, fewest: int, most: int) -> np.ndarray:
    """The first `most` edges of each document that has `fewest`."""
    _, first, counts = np.unique(edges["later"], return_index=True, return_counts=True)
    place = np.arange(len(edges)) - np.repeat(first, counts)
    return edges[(np.repeat(counts, counts) >= fewest) & (place < most)]


@dataclass(frozen=True)
class RestTask(FileTask):
    """What is to be judged again: the edges of the documents that have witnesses. paths: of all WitnessesTask."""

    name: str
    resolve: ResolveTask
    paths: tuple[str, ...]
    folder: str
    fingerprint: str

    @property
    def path(self) -> Path:
        """EDGE records: the near edges of these documents, in their order, then their edges to witnesses."""
        return Path(self.folder) / f"{self.name}.bin"


def run_rest(task: RestTask) -> dict[str, int]:
    """Write the edges; returns how many are near."""
    doubted = np.zeros(task.resolve.num_documents // 8 + 1, np.uint8)
    for path in task.paths:
        mark_ranks(np.load(path)["later"], doubted)
    num_near = 0
    with open_new(task.path) as file:
        for edges in read_near_edges(task.resolve):
            own = edges[find_marked(doubted, edges["later"])]
            file.write(own.tobytes())
            num_near += len(own)
        for path in task.paths:
            file.write(np.load(path).tobytes())
    return {"near": num_near}


@dataclass(frozen=True)
class CompareRestTask(FileTask):
    """Edges first to last of a RestTask, of whose edges num_near are near. sets: files of index and sets."""

    name: str
    rest_path: str
    num_near: int
    first: int
    last: int
    sets: tuple[tuple[str, str], ...]
    least: float
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """Its range, for a person."""
        return f"pairs {self.first:,} to {self.last:,}"

    @property
    def path(self) -> Path:
        """The EDGE records of the pairs that are not near but for boilerplate; the similarity is that of the rest."""
        return Path(self.folder) / f"{self.name}.apart.npy"


def run_compare_rest(task: CompareRestTask) -> dict[str, int]:
    """Write the edges that are not near; returns how many."""
    records = open_records(Path(task.rest_path), EDGE)
    edges = np.array(records[task.first : task.last])
    witnesses = read_witnesses(records, task.num_near, int(edges["later"].min()), int(edges["later"].max()))
    wanted, borders, num_unlike, num_alike = list_members(edges, witnesses)
    edge_borders = np.concatenate([[0], np.cumsum(np.diff(borders) - 1 - num_unlike - num_alike)])
    similarities = np.empty(len(edges), np.float32)
    limits = (LEAST_AGREED, LEAST_OWN, float(FEWEST_OWN), LEAST_HELD, MOST_SHARED)
    for entries, members, data, starts in read_sets(wanted, borders, task.sets):
        own = borders[entries.start : entries.stop + 1] - borders[entries.start]
        how = num_unlike[entries], num_alike[entries], FEWEST_WITNESSES, FEWEST_ALIKE, limits
        first, last = edge_borders[[entries.start, entries.stop]]
        measure_rests(data, starts, members, own, *how, similarities[first:last])
    edges["similarity"] = similarities
    apart = edges[edges["similarity"] < task.least]
    write_array(task.path, apart)
    return {"apart": len(apart)}


def list_members(edges: np.ndarray, witnesses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The ranks of each document in doubt: its own, those of its witnesses, and of those that it has edges to.

    Where each one's begin, and how many of its witnesses are of the first kind and of the second.
    """
    later, counts = np.unique(edges["later"], return_counts=True)
    first, last = (np.searchsorted(witnesses["later"], later, side) for side in ("left", "right"))
    borders = np.concatenate([[0], np.cumsum(1 + last - first + counts)])
    members = np.empty(borders[-1], np.uint32)
    members[borders[:-1]] = later
    copy_slices(members, witnesses["earlier"], places=borders[:-1] + 1, firsts=first, counts=last - first)
    firsts = np.cumsum(counts) - counts
    copy_slices(members, edges["earlier"], places=borders[1:] - counts, firsts=firsts, counts=counts)
    unlike = np.concatenate([[0], np.cumsum(witnesses["similarity"] < MOST_ALIKE)])
    num_unlike = unlike[last] - unlike[first]
    return members, borders, num_unlike, last - first - num_unlike


def copy_slices(
    out: np.ndarray, values: np.ndarray, *, places: np.ndarray, firsts: np.ndarray, counts: np.ndarray
) -> None:
    """Write values[firsts[i]:firsts[i] + counts[i]] to out[places[i]:], for each i."""
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    out[np.repeat(places, counts) + number] = values[np.repeat(firsts, counts) + number]


def read_witnesses(records: np.ndarray, num_near: int, first_rank: int, last_rank: int) -> np.ndarray:
    """The edges to witnesses, behind the near ones of a RestTask, of documents of the ranks first to last."""
    first, last = (find_later(records, rank, first=num_near) for rank in (first_rank, last_rank + 1))
    return np.ascontiguousarray(records[first:last])
