"""How fast ingest is: raw bytes -> token file, per core, beside what people do today.

    python benchmarks/ingest.py --megabytes 100 --tokenizers gpt2 llama2
    python benchmarks/ingest.py --corpus my/prose/*.txt

The text is real and never repeated: what this Python installation carries, or the files given. Each figure is MB of
text per second of one process, everything included: unpack, parse, check, hash, tokenise, sort, write. The peer reads
the same file in TinyLlama's way: zstandard + json + the tokenizer's own library, document by document. Warm: each was
run on a part of the text before. Prints tables and writes the figures as JSON with --json.
"""

from __future__ import annotations

import cProfile
import io
import json
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/ingest.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
import zstandard
from rich.table import Table

from pipeline.ingest import IngestSettings, IngestTask, TaskFile, run_ingest
from pipeline.jobs import Workers
from pipeline.progress import format_bytes, make_console
from pipeline.sample_text import Reader, list_places, this_installation
from pipeline.shard import token_dtype
from pipeline.tokenizer import Tokenizer, load_tokenizer

PEER_BYTES = 20_000_000  # the peers are slow; a part is enough
NUM_PARTS = 4

# Where the time of one ingest task goes: the functions whose own and inner time make each part.
PARTS = {
    "unpack and read": ("read_chunks", "read_blocks"),
    "parse and check": ("parse_lines",),
    "hash": ("hash_documents",),
    "tokenise": ("encode_documents",),
    "frame": ("frame_documents",),
    "sort and write": ("_write_run", "_finish"),
}


@dataclass(frozen=True)
class BenchmarkFlags:
    """Measure ingest on one core and on two."""

    megabytes: float = 100
    """MB of text of each kind, at most."""
    corpus: tuple[Path, ...] = ()
    """Text files to take the prose from, instead of this installation's."""
    tokenizers: tuple[str, ...] = ("gpt2", "llama2")
    """Names or paths."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    flags = tyro.cli(BenchmarkFlags)
    console = make_console()
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-benchmark-"))
    figures = []
    try:
        for kind, texts in (("prose", prose_texts(flags)), ("code", code_texts())):
            paths, num_bytes = write_corpus(texts, folder / kind, megabytes=flags.megabytes)
            console.print(f"{kind}: {format_bytes(num_bytes)} of text, none of it twice")
            for name in flags.tokenizers:
                figures.append(measure(kind, paths, num_bytes, load_tokenizer(name), folder))
                console.print(where_time_goes(figures[-1]))
    finally:
        shutil.rmtree(folder)
    console.print(speeds(figures))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")


def prose_texts(flags: BenchmarkFlags) -> Iterator[str]:
    """The files given, cut at blank lines into documents; or the prose of this installation."""
    if flags.corpus:
        for path in flags.corpus:
            yield from path.read_text(encoding="utf-8").split("\n\n\n")
    else:
        yield from (text.text for text in Reader().read_all(list_places(this_installation())[0]))


def code_texts() -> Iterator[str]:
    """The code of this installation."""
    yield from (text.text for text in Reader().read_all(list_places(this_installation())[1]))


def write_corpus(texts: Iterator[str], folder: Path, *, megabytes: float) -> tuple[list[Path], int]:
    """JSON lines, packed with zstd as SlimPajama's are, in NUM_PARTS files; and the bytes of text in them."""
    folder.mkdir()
    paths = [folder / f"part-{number}.jsonl.zst" for number in range(NUM_PARTS)]
    left = megabytes * 1_000_000
    files = [zstandard.ZstdCompressor(level=3).stream_writer(path.open("wb")) for path in paths]
    for number, text in enumerate(texts):
        size = len(text.encode())
        if size > left:
            break
        left -= size
        files[number % NUM_PARTS].write(json.dumps({"text": text}).encode() + b"\n")
    for file in files:
        file.close()
    return paths, int(megabytes * 1_000_000 - left)


def measure(kind: str, paths: list[Path], num_bytes: int, tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """The figures of one kind of text with one tokenizer."""
    settings = IngestSettings(
        text_field="text",
        subset_field=None,
        exclude=(),
        min_chars=1,
        valid_fraction=0.005,
        seed=0,
        tokenizer=str(tokenizer.path),
        tokenizer_sha256=tokenizer.sha256,
        engine="fast",
        document_rule=tokenizer.document_rule,
        dtype=token_dtype(tokenizer.vocab_size).str,
    )
    tasks = [
        IngestTask(
            f"part-{number}", kind, (TaskFile(number, str(path), "train", None),), 0, settings, str(folder / "w"), ""
        )
        for number, path in enumerate(paths)
    ]
    whole = IngestTask("whole", kind, tuple(task.files[0] for task in tasks), 0, settings, str(folder / "whole"), "")
    run_ingest(tasks[0])
    seconds, profile = time_profiled(lambda: run_ingest(whole))
    per_document = peer_speed(paths, tokenizer)
    ours = num_bytes / seconds / 1e6
    return {
        "kind": kind,
        "tokenizer": tokenizer.name,
        "text_bytes": num_bytes,
        "ingest_mb_s": ours,
        "library_per_document_mb_s": per_document,
        "ratio": ours / per_document,
        "two_workers_ratio": two_workers_ratio(tasks, folder),
        "parts": {part: share_of(profile, names) / seconds for part, names in PARTS.items()},
    }


def time_profiled(run: Callable[[], Any]) -> tuple[float, pstats.Stats]:
    """Seconds of one run, and where they went. A few thousand calls: the profile costs nothing here."""
    profile = cProfile.Profile()
    started = time.perf_counter()
    profile.runcall(run)
    return time.perf_counter() - started, pstats.Stats(profile, stream=io.StringIO())


def share_of(profile: pstats.Stats, names: tuple[str, ...]) -> float:
    """Seconds spent in the functions of these names and all that they call."""
    return max(figures[3] for (_, _, name), figures in profile.stats.items() if name in names)


def two_workers_ratio(tasks: list[IngestTask], folder: Path) -> float:
    """How many times the speed of one worker two have, start-up left out."""
    seconds = []
    for number in (1, 2):
        with Workers(number, notice=print) as workers:
            warm = [change_folder(task, folder / f"warm-{number}-{task.name}") for task in tasks[:number]]
            list(workers.run(run_ingest, warm, records=folder / f"records-warm-{number}"))
            moved = [change_folder(task, folder / f"run-{number}-{task.name}") for task in tasks]
            started = time.perf_counter()
            list(workers.run(run_ingest, moved, records=folder / f"records-{number}"))
            seconds.append(time.perf_counter() - started)
    return seconds[0] / seconds[1]


def change_folder(task: IngestTask, folder: Path) -> IngestTask:
    """The same task, writing elsewhere."""
    return IngestTask(task.name, task.source, task.files, task.size_bytes, task.settings, str(folder), "")


def peer_speed(paths: list[Path], tokenizer: Tokenizer) -> float:
    """MB/s of the way most scripts go: json and the tokenizer's own library, one document after the other."""
    reference = load_tokenizer(tokenizer.path, engine="reference", sha256=tokenizer.sha256)
    num_bytes = 0
    started = time.perf_counter()
    with zstandard.open(paths[0], "rt", encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            reference.encode(text)
            num_bytes += len(text.encode())
            if num_bytes > PEER_BYTES:
                break
    return num_bytes / (time.perf_counter() - started) / 1e6


def where_time_goes(figure: dict[str, Any]) -> Table:
    """The parts of one ingest."""
    table = Table(title=f"{figure['kind']}, {figure['tokenizer']}: where the time goes")
    table.add_column("part")
    table.add_column("share", justify="right")
    for part, share in figure["parts"].items():
        table.add_row(part, f"{share:.1%}")
    table.add_row("the rest", f"{1 - sum(figure['parts'].values()):.1%}")
    return table


def speeds(figures: list[dict[str, Any]]) -> Table:
    """All figures."""
    table = Table(title="MB of text per second, one process")
    for column in ("text", "tokenizer", "ingest", "its library, per document", "ratio", "two workers"):
        table.add_column(column, justify="left" if column in ("text", "tokenizer") else "right")
    for figure in figures:
        table.add_row(
            figure["kind"],
            figure["tokenizer"],
            f"{figure['ingest_mb_s']:.1f}",
            f"{figure['library_per_document_mb_s']:.2f}",
            f"{figure['ratio']:.1f}x",
            f"{figure['two_workers_ratio']:.2f}x",
        )
    return table


if __name__ == "__main__":
    main()
