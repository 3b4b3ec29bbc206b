"""How fast ingest is: raw bytes -> token file, per core, beside what people do today.

    python benchmarks/ingest.py
    python benchmarks/ingest.py --megabytes 20 --tokenizers gpt2 --corpus my/prose/*.txt --json figures.json

The text is real and never repeated (corpus.py). Our figure is that of one process over all of it, everything included:
unpack, parse, check, hash, tokenise, sort, write; of REPEATS new processes the best, since on a virtual machine memory
and pages of files cost several times as much where the host must find them first. The peers (peers.py) read a part of
the same text in the same run. Everything is warmed up on other text first. Ratios are of CPU time, since another
program on the machine slows the clock for one and not for the other; the clock is printed beside it.
"""

from __future__ import annotations

import cProfile
import io
import json
import multiprocessing
import pstats
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/ingest.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.table import Table

from benchmarks.corpus import Corpus, read_code, read_prose, write_corpus
from benchmarks.peers import PeerSpeed, measure_peers, measure_signatures
from benchmarks.stopwatch import Speed, Stopwatch
from pipeline.ingest import EncodeSettings, IngestSettings, IngestTask, TaskFile, begin_ingest, run_ingest
from pipeline.local_jobs import Workers
from pipeline.progress import format_bytes, make_console
from pipeline.shard import token_dtype
from pipeline.tokenizer import Tokenizer, load_tokenizer

ENOUGH_BYTES = 100_000_000  # less than this is warned about
REPEATS = 5

# Where the time of one ingest task goes: the functions whose own and inner time make each part.
PARTS = {
    "unpack and read": ("read_chunks", "read_blocks"),
    "parse and check": ("parse_lines",),
    "hash": ("hash_documents",),
    "tokenise": ("encode_documents", "encode_and_frame"),
    "frame": ("frame_documents",),
    "sign for near": ("sketch_texts",),
    "sort and write": ("write_run",),
}


@dataclass(frozen=True)
class BenchmarkFlags:
    """Measure ingest on one core and on two, and other systems on the same text."""

    megabytes: float = 100
    """MB of text of each kind, at most."""
    corpus: tuple[Path, ...] = ()
    """Text files to take the prose from, instead of this machine's."""
    tokenizers: tuple[str, ...] = ("gpt2", "llama2")
    """Names or paths."""
    dolma: str | None = None
    """The dolma command, where it is not on the path; its requirements do not fit into one environment with ours."""
    json: Path | None = None
    """Where to write the figures."""


@dataclass(frozen=True)
class Figures:
    """What came of one kind of text with one tokenizer."""

    kind: str
    tokenizer: str
    text_bytes: int
    num_documents: int
    num_batches: int
    num_calls: int  # of functions by Python code, while all documents were ingested
    ingest: Speed
    two_workers_ratio: float
    parts: dict[str, float]
    peers: list[PeerSpeed]


def main() -> None:
    """The command."""
    flags = tyro.cli(BenchmarkFlags)
    console = make_console()
    tokenizers = [load_tokenizer(name, notice=console.print) for name in flags.tokenizers]
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-benchmark-"))
    figures = []
    try:
        for kind, texts in (("prose", read_prose(flags.corpus)), ("code", read_code())):
            corpus = write_corpus(kind, texts, folder / kind, num_bytes=int(flags.megabytes * 1e6))
            console.print(describe_corpus(corpus))
            signatures = measure_signatures(corpus, folder)
            for tokenizer in tokenizers:
                ours = measure_ingest(corpus, tokenizer, folder)
                peers = measure_peers(corpus, tokenizer, signatures, folder, dolma=flags.dolma)
                figures.append(replace(ours, peers=peers))
                console.print(tabulate_parts(ours))
    finally:
        shutil.rmtree(folder)
    console.print(tabulate_speeds(figures))
    if flags.json:
        flags.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


def describe_corpus(corpus: Corpus) -> str:
    """How much text there is, and whether that is enough."""
    size = f"{corpus.kind}: {format_bytes(corpus.num_bytes)} of text, none of it twice"
    little = corpus.num_bytes < ENOUGH_BYTES
    return f"{size}; less than {format_bytes(ENOUGH_BYTES)}, so figures are rough" if little else size


def measure_ingest(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> Figures:
    """Our own figures, without the peers'."""
    runs = [in_new_process(measure_once, corpus, str(tokenizer.path), folder) for _ in range(REPEATS)]
    best = max(runs, key=lambda figures: figures.ingest.mb_cpu_s)
    return replace(best, tokenizer=tokenizer.name, two_workers_ratio=measure_two_workers(corpus, tokenizer, folder))


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_once(corpus: Corpus, tokenizer_path: str, folder: Path) -> Figures:
    """The figures of one worker."""
    tokenizer = load_tokenizer(tokenizer_path)
    run_ingest(make_task("warm", (corpus.warm,), tokenizer, folder))
    whole = make_task("whole", corpus.parts, tokenizer, folder)
    speed, profile, record = time_profiled(lambda: run_ingest(whole), num_bytes=corpus.num_bytes)
    total = max(figures[3] for figures in profile.stats.values())
    return Figures(
        kind=corpus.kind,
        tokenizer=tokenizer.name,
        text_bytes=corpus.num_bytes,
        num_documents=record["documents"]["read"],
        num_batches=num_calls_of(profile, "encode_texts"),
        num_calls=profile.total_calls,
        ingest=speed,
        two_workers_ratio=0.0,
        parts={part: share_of(profile, names) / total for part, names in PARTS.items()},
        peers=[],
    )


def make_task(name: str, paths: tuple[Path, ...], tokenizer: Tokenizer, folder: Path) -> IngestTask:
    """An ingest task as a build makes it, over some files of the corpus."""
    settings = IngestSettings(
        text_field="text",
        subset_field=None,
        exclude=(),
        min_chars=1,
        valid_fraction=0.005,
        seed=0,
        dedup="near",
        encode=(
            EncodeSettings(
                tokenizer=str(tokenizer.path),
                sha256=tokenizer.sha256,
                engine="fast",
                document_rule=tokenizer.document_rule,
                dtype=token_dtype(tokenizer.vocab_size).str,
            ),
        ),
    )
    files = tuple(TaskFile(number, str(path), "train", None) for number, path in enumerate(paths))
    return IngestTask(name, "benchmark", files, 0, settings, str(folder / "ingest" / name), "")


def time_profiled(run: Callable[[], Any], *, num_bytes: int) -> tuple[Speed, pstats.Stats, Any]:
    """The speed of one run, where its time went, and its result. A few thousand calls: the profile costs nothing."""
    profile = cProfile.Profile()
    watch = Stopwatch()
    result = profile.runcall(run)
    return watch.speed(num_bytes), pstats.Stats(profile, stream=io.StringIO()), result


def share_of(profile: pstats.Stats, names: tuple[str, ...]) -> float:
    """Seconds spent in the functions of these names and all that they call."""
    return max((figures[3] for (_, _, name), figures in profile.stats.items() if name in names), default=0.0)


def num_calls_of(profile: pstats.Stats, function: str) -> int:
    """How often the functions of this name were called, whichever was called most."""
    return max(figures[1] for (_, _, name), figures in profile.stats.items() if name == function)


def measure_two_workers(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> float:
    """How many times the speed of one worker two have, start-up left out. Of REPEATS the best, taken in turns.

    All are new each time, and then have met all the text once: an encoder that remembers words is faster from then on.
    """
    given = corpus, str(tokenizer.path), folder
    rounds = [[in_new_process(time_new_workers, number, *given) for number in (1, 2)] for _ in range(REPEATS)]
    seconds_of_one, seconds_of_two = map(min, zip(*rounds, strict=True))
    return seconds_of_one / seconds_of_two


def time_new_workers(num_workers: int, corpus: Corpus, tokenizer_path: str, folder: Path) -> float:
    """Seconds that so many workers take, once they are warm."""
    tokenizer = load_tokenizer(tokenizer_path)
    with Workers(num_workers, notice=print) as workers:
        for_each = [part for part in (corpus.warm, *corpus.parts) for _ in range(num_workers)]  # they take turns
        time_workers(workers, for_each, tokenizer, folder)
        return time_workers(workers, corpus.parts, tokenizer, folder)


def time_workers(workers: Workers, paths: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> float:
    """Seconds that workers take for a task of each file."""
    place = Path(tempfile.mkdtemp(dir=folder))
    tasks = [make_task(f"part-{number}", (path,), tokenizer, place) for number, path in enumerate(paths)]
    watch = Stopwatch()
    list(workers.run(begin_ingest, tasks, records=place / "records"))
    seconds, _ = watch.read()
    shutil.rmtree(place)
    return seconds


def tabulate_parts(figures: Figures) -> Table:
    """Where the time of one ingest went."""
    num_calls = figures.num_calls // figures.num_batches  # with gigatoken most are awkward's, around one call of it
    caption = f"{figures.num_documents:,} documents in {figures.num_batches} batches; {num_calls:,} calls a batch"
    table = Table(title=f"{figures.kind}, {figures.tokenizer}: where the time goes", caption=caption)
    table.add_column("part")
    table.add_column("share", justify="right")
    for part, share in figures.parts.items():
        table.add_row(part, f"{share:.1%}")
    table.add_row("the rest", f"{1 - sum(figures.parts.values()):.1%}")
    return table


def tabulate_speeds(figures: list[Figures]) -> Table:
    """Our speeds and the peers', and how many times a peer's speed ours is."""
    table = Table(title="MB of text per second, one process each")
    for column in ("text", "tokenizer", "system", "by the clock", "by CPU time", "ours is"):
        table.add_column(column, justify="left" if column in ("text", "tokenizer", "system") else "right")
    for each in figures:
        ours = (f"{each.ingest.mb_s:.1f}", f"{each.ingest.mb_cpu_s:.1f}", "")
        table.add_row(each.kind, each.tokenizer, "tokenmill ingest", *ours)
        table.add_row("", "", "  two workers", "", "", f"{each.two_workers_ratio:.2f}x one")
        for peer in each.peers:
            table.add_row("", "", peer.name, *describe_peer(peer, each.ingest))
        table.add_section()
    return table


def describe_peer(peer: PeerSpeed, ours: Speed) -> tuple[str, ...]:
    """The last cells of a peer's row."""
    if peer.speed is None:
        return "", "", peer.note
    return f"{peer.speed.mb_s:.2f}", f"{peer.speed.mb_cpu_s:.2f}", f"{ours.times(peer.speed):.1f}x"


if __name__ == "__main__":
    main()
