"""The stages that find documents near to others: by near's estimates and comparisons, or by slimpajama's chains.

bands (per range of keys) -> estimate (per range of ranks) -> judge -> wanted -> sets (per ingest task; per shard of a
dataset of --against) -> compare (per some pairs) -> resolve; then traces, witnesses, rest, wanted, sets, compare and
resolve again for what boilerplate alone makes near (boilerplate.py). slimpajama has bands and resolve alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.boilerplate import (
    REST_MARGIN,
    CompareRestTask,
    RestTask,
    TracesTask,
    WitnessesTask,
    run_compare_rest,
    run_rest,
    run_traces,
    run_witnesses,
)
from pipeline.candidates import plan_bands, plan_parts, run_band
from pipeline.compare import (
    RANK,
    SetsTask,
    WantedTask,
    choose_tasks,
    list_set_files,
    plan_comparisons,
    run_compare,
    run_sets,
    run_wanted,
    split_edges,
)
from pipeline.copies import CopiesTask, MarksTask, run_marks
from pipeline.estimate import EDGE, plan_estimates, run_estimate, split_ranks
from pipeline.held_sets import make_held_sets
from pipeline.minhash import find_probability
from pipeline.resolve import NEAR, ResolveTask, run_components, run_judge, run_resolve
from pipeline.sketch_file import RECIPES
from pipeline.token_file import open_records
from pipeline.workshop import Dedup

TRACE_FACTOR = 4  # a key of a trace may need so many times the memory that one of a band needs
LEAST_FOUND = 0.85  # of the pairs at the threshold; with fewer, that is said


def find_near(work: Dedup, copies: Sequence[CopiesTask]) -> ResolveTask:
    """Find documents near to others; the task says where they are written."""
    if (found := find_probability(work.settings.threshold)) < LEAST_FOUND:
        what = f"of pairs with a similarity of {work.settings.threshold:g} about {found:.0%} are found"
        work.shop.console.print(f"note: {what}: the bands of near are made for 0.8 and more")
    copy_marks = mark_copies(work, copies)
    paths = find_pairs(work, copy_marks)
    estimates = plan_estimates(
        paths,
        work.ranks,
        threshold=work.settings.threshold,
        memory_bytes=work.settings.memory_bytes,
        folder=work.folder,
        fingerprint=work.fingerprint,
    )
    work.run("similar", run_estimate, estimates, unit="ranges", kept="edges", dropped="")
    judge = ResolveTask(
        name="open",
        paths=tuple(str(task.path) for task in estimates),
        compared=(),
        apart=(),
        marks=None,
        num_documents=work.ranks.num_documents,
        num_short=0,
        held=work.ranks.held,
        threshold=work.settings.threshold,
        folder=str(work.folder),
        fingerprint=work.fingerprint,
    )
    work.run("judge", run_judge, [judge], unit="runs", kept="", dropped="")
    compared = compare(work, judge.path)
    resolve = replace(judge, name="near", compared=tuple(map(str, compared)))
    work.run("resolve", run_resolve, [resolve], unit="runs", kept="", dropped="dropped")
    return judge_again(replace(work, is_second=True), resolve, copy_marks)


def judge_again(work: Dedup, resolve: ResolveTask, copy_marks: Path) -> ResolveTask:
    """Resolve once more without the pairs that boilerplate makes near, where there are any (boilerplate.py)."""
    if not open_records(resolve.path, NEAR).size:
        return resolve
    witnesses = find_witnesses(work, resolve, copy_marks)
    if not witnesses:
        return resolve
    rest = RestTask("rest", resolve, witnesses, str(work.folder), work.fingerprint)
    (counts,) = work.run("rest", run_rest, [rest], unit="runs", kept="", dropped="").values()
    sets = tuple((str(index), str(sets)) for index, sets in make_sets(work, rest.path))
    tasks = [
        CompareRestTask(
            name=f"pairs-{number:05d}",
            rest_path=str(rest.path),
            num_near=counts["near"],
            first=first,
            last=last,
            sets=sets,
            least=work.settings.threshold - REST_MARGIN,
            folder=str(work.folder),
            fingerprint=work.fingerprint,
        )
        for number, (first, last) in enumerate(split_edges(counts["near"]))
    ]
    work.run("compare", run_compare_rest, tasks, unit="parts", kept="", dropped="")
    again = replace(resolve, apart=tuple(str(task.path) for task in tasks), folder=str(work.folder))
    work.run("resolve", run_resolve, [again], unit="runs", kept="", dropped="dropped")
    return again


def find_witnesses(work: Dedup, resolve: ResolveTask, copy_marks: Path) -> tuple[str, ...]:
    """The files of the documents in doubt and others that share text with them; none where no document has any."""
    recipe = RECIPES[work.settings.method]
    places = {"ranks": work.ranks, "folder": str(work.folder), "fingerprint": work.fingerprint}
    traces = [
        TracesTask(band, resolve)
        for trace in range(recipe.num_bands, recipe.num_keys)
        for band in plan_parts(
            work.ingested.runs,
            (trace,),
            recipe=recipe,
            marks=copy_marks,
            memory_bytes=work.settings.memory_bytes // TRACE_FACTOR,
            **places,
        )
    ]
    work.run("traces", run_traces, traces, unit="parts", kept="pairs", dropped="")
    paths = [task.path for task in traces]
    tasks = [
        WitnessesTask(
            name=f"ranks-{first}-{last}",
            resolve=resolve,
            paths=tuple(map(str, paths)),
            first_rank=first,
            last_rank=last,
            **places,
        )
        for first, last in split_ranks(paths, work.ranks.num_documents, memory_bytes=work.settings.memory_bytes)
    ]
    results = work.run("witnesses", run_witnesses, tasks, unit="ranges", kept="documents", dropped="")
    return tuple(str(task.path) for task in tasks if results[task.name]["documents"])


def find_components(work: Dedup, copies: Sequence[CopiesTask]) -> ResolveTask:
    """Find what any chain of equal band keys connects, as SlimPajama did; the task says where it is written."""
    resolve = ResolveTask(
        name="near",
        paths=tuple(map(str, find_pairs(work, None))),
        compared=(),
        apart=(),
        marks=str(mark_copies(work, copies)),
        num_documents=work.ranks.num_documents,
        num_short=work.ingested.num_short,
        held=work.ranks.held,
        threshold=0.0,
        folder=str(work.folder),
        fingerprint=work.fingerprint,
    )
    work.run("resolve", run_components, [resolve], unit="runs", kept="", dropped="dropped")
    return resolve


def mark_copies(work: Dedup, copies: Sequence[CopiesTask]) -> Path:
    """One array of bits that says which documents are copies."""
    paths = tuple(str(task.path) for task in copies)
    task = MarksTask("copies", paths, work.ranks.num_documents, str(work.folder), work.fingerprint)
    work.run("marks", run_marks, [task], unit="runs", kept="", dropped="")
    return task.path


def find_pairs(work: Dedup, marks: Path | None) -> list[Path]:
    """The files of pairs that may be near. marks: bits of the documents that take no part."""
    tasks = plan_bands(
        work.ingested.runs,
        recipe=RECIPES[work.settings.method],
        ranks=work.ranks,
        marks=marks,
        memory_bytes=work.settings.memory_bytes,
        num_workers=work.settings.num_workers,
        folder=work.folder,
        fingerprint=work.fingerprint,
    )
    results = work.run("bands", run_band, tasks, unit="parts", kept="pairs", dropped="")
    return [path for task in tasks for path in task.list_outputs(results[task.name])]


def compare(work: Dedup, open_path: Path) -> list[Path]:
    """Compare the edges that estimates do not decide; returns the files that say how similar they are."""
    edges = open_records(open_path, EDGE)
    if not len(edges):
        return []
    files = make_sets(work, open_path)
    tasks = plan_comparisons(open_path, files, num_edges=len(edges), folder=work.folder, fingerprint=work.fingerprint)
    work.run("compare", run_compare, tasks, unit="parts", kept="", dropped="")
    return [task.path for task in tasks]


def make_sets(work: Dedup, open_path: Path) -> list[tuple[Path, Path]]:
    """Write the sets of shingles of all documents of some EDGE records; the files of index and sets."""
    task = WantedTask("wanted", str(open_path), work.ranks.num_documents, str(work.folder), work.fingerprint)
    work.run("wanted", run_wanted, [task], unit="runs", kept="documents", dropped="")
    places = {"folder": str(work.folder), "fingerprint": work.fingerprint}
    sets = [
        SetsTask(work.ingested.tasks[number], work.ranks, number, str(task.path), **places)
        for number in sorted(choose_tasks(open_records(task.path, RANK), work.ranks))
    ]
    work.run("sets", run_sets, sets, unit="tasks", kept="sets", dropped="")
    return [list_set_files(one.folder, one.name) for one in (*sets, *make_held_sets(work, task.path))]
