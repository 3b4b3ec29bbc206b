"""How fast duplicates are found, and in how much memory: signatures beside other libraries', and all stages at size.

    python benchmarks/dedup.py --speed
    python benchmarks/dedup.py --millions 5 10 20 50 --memory 4 --folder /a/large/disk
    python benchmarks/dedup.py --millions 10 --against

Speeds are in MB of text per second of CPU time, each system on the same texts in the same run, the best of seven;
those of --decontaminate with as many spans as eight common evaluation sets hold (arc, boolq, mmlu, piqa and others).
At size: so many million synthetic documents (dedup_documents.py), 30 % of them near duplicates, a million of one; 3 %
are altered copies that must be compared by text, and 6 % have a licence. Then the stages of a build, with one worker,
in a process of its own, whose peak of memory is read; the seconds of each are of CPU time. "LSH to resolution" are the
stages bands, similar, judge and resolve. The last size gives the prediction for RedPajama's 931 million documents; to
it comes that its raw files are read once more for the texts to compare, while here nearly all of their lines are blank.
With --against the first half of the documents is a dataset with kept signatures, and the second half is built against
it.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/dedup.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow as pa
import tyro
from rich.table import Table

from benchmarks.corpus import read_prose, take
from benchmarks.dedup_documents import make_ingested
from benchmarks.dedup_speed import REPEATS, count_bytes, measure_speeds, time_cpu
from benchmarks.stopwatch import Stopwatch
from pipeline.compare import read_shingles
from pipeline.dedup_stages import DedupSettings, dedup
from pipeline.drops import DropsTask
from pipeline.estimate import EDGE
from pipeline.held import HeldDataset
from pipeline.ingest import IngestSettings, TaskFile
from pipeline.limit import Selection
from pipeline.local_jobs import Workers
from pipeline.plan import BuildSettings
from pipeline.progress import BuildLog, make_console
from pipeline.stages import describe_ingests, keep_signatures
from pipeline.token_file import open_records
from pipeline.workshop import Ingested, Workshop

REDPAJAMA = 931_361_530  # documents
REDPAJAMA_BYTES = 2.567e12 / 0.504  # SlimPajama's text, which is 50.4 % of it
LSH_STAGES = ("bands", "similar", "judge", "resolve")
WARM_DOCUMENTS = 20_000
KEEPING = BuildSettings(
    dedup="near", dedup_threshold=0.8, dedup_priority=("random",), keep_signatures=True, against=(), min_chars=1,
    strip_markers=False, decontaminate=None, valid_fraction=0.0, shard_tokens=1, seed=0,
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkFlags:
    """Measure signatures, and the stages of dedup at size."""

    speed: bool = False
    """Signatures, beside datasketch and rensa where they are installed; spans of --decontaminate."""
    megabytes: float = 10
    """MB of prose for it."""
    corpus: tuple[Path, ...] = ()
    """Text files to take the prose from, instead of this machine's."""
    millions: tuple[float, ...] = ()
    """Sizes to run all stages at."""
    memory: float = 4
    """GiB that the stages may take."""
    folder: Path | None = None
    """Where the synthetic work files go: about 700 bytes a document."""
    against: bool = False
    """Build the second half of the documents against the first: figures are of the second, beside what is said."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    flags = tyro.cli(BenchmarkFlags)
    if flags.folder:
        flags.folder.mkdir(parents=True, exist_ok=True)
    console = make_console()
    figures: dict[str, Any] = {}
    if flags.speed:
        texts = read_texts(flags)
        with tempfile.TemporaryDirectory(prefix="tokenmill-benchmark-", dir=flags.folder) as folder:
            figures["speed"] = measure_speeds(texts, read_foreign(flags), Path(folder))
        console.print(tabulate("signatures and spans, one core", figures["speed"]))
    rows = []
    for millions in flags.millions:
        rows.append(measure_stages(int(millions * 1e6), flags))
        console.print(tabulate_sizes("all stages, one worker", rows))
    if rows:
        figures["stages"] = rows
    if rows and not flags.against:
        with tempfile.TemporaryDirectory(prefix="tokenmill-benchmark-", dir=flags.folder) as folder:
            speed = measure_reading(read_texts(flags), Path(folder))
        figures["redpajama"] = predict(rows[-1], reading_mb_s=speed)
        console.print(tabulate_sizes("predicted from the last size: RedPajama, one core", [figures["redpajama"]]))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")


def read_texts(flags: BenchmarkFlags) -> pa.Array:
    """The prose."""
    return pa.array(take(read_prose(flags.corpus), num_bytes=flags.megabytes * 1e6))


def read_foreign(flags: BenchmarkFlags) -> pa.Array:
    """Of the prose those texts that are not ASCII alone: curly quotes, dashes, letters of other languages."""
    texts = (text for text in read_prose(flags.corpus) if not text.isascii())
    return pa.array(take(texts, num_bytes=flags.megabytes * 1e6))


def tabulate_sizes(title: str, rows: list[dict[str, Any]]) -> Table:
    """A column of figures for each size."""
    table = Table(title=title, show_header=False)
    for name in rows[-1]:
        table.add_row(name, *(f"{row.get(name, 0):,.4g}" for row in rows))
    return table


def tabulate(title: str, rows: list[dict[str, Any]]) -> Table:
    """Rows of figures as a table."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "system" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.3g}" for value in row.values()))
    return table


def measure_stages(num_documents: int, flags: BenchmarkFlags) -> dict[str, Any]:
    """Seconds, memory and disk of the stages over so many synthetic documents."""
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-benchmark-", dir=flags.folder))
    try:
        ingested = make_ingested(folder, num_documents)
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=run_stages, args=(ingested, folder, flags.memory, flags.against, sender))
        process.start()
        sender.close()  # so that its end is noticed
        figures = receiver.recv()
        process.join()
        sizes = {part: sum(path.stat().st_size for path in (folder / part).rglob("*")) for part in ("in", "dedup")}
    finally:
        shutil.rmtree(folder)
    return {
        "documents": num_documents,
        **figures,
        "work files GB": sizes["in"] / 1e9,
        "dedup files GB": sizes["dedup"] / 1e9,
    }


@dataclass(frozen=True)
class TimedWorkshop(Workshop):
    """A workshop that knows the CPU seconds of each stage's last run."""

    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, *arguments: Any, **more: Any) -> dict[str, Any]:
        """Run a stage."""
        watch = Stopwatch()
        results = super().run(stage, *arguments, **more)
        self.cpu_seconds[stage] = watch.read()[1]
        return results


def run_stages(ingested: Ingested, folder: Path, memory: float, against: bool, sender: Any) -> None:
    """Run the stages in this process and send what they took."""
    settings = DedupSettings("near", 0.8, int(memory * (1 << 30) * 0.75), num_workers=1)
    with Workers(1, notice=print) as workers:
        shop = TimedWorkshop(folder, workers, make_console(), BuildLog(folder / "log.jsonl"))
        warm = replace(shop, work=folder / "warm")
        dedup(make_ingested(warm.work, WARM_DOCUMENTS), settings=settings, shop=warm)  # compiled
        if against:
            ingested = hold_half(ingested, settings, replace(shop, work=folder / "held"))
        watch = Stopwatch()
        deduplicated = dedup(ingested, settings=settings, shop=shop)
        seconds, cpu_seconds = watch.read()
    documents = sum(count["documents"] for of_sources in deduplicated.counts.values() for count in of_sources)
    sender.send(
        {
            "dropped": documents - sum(count["documents"] for count in deduplicated.counts["kept"]),
            "pairs compared": len(open_records(folder / "dedup/open.bin", EDGE)),
            "pairs judged again": len(open_records(folder / "dedup/again/rest.bin", EDGE)),
            "seconds": seconds,
            "CPU seconds": cpu_seconds,
            "documents/CPU s": documents / cpu_seconds,
            "LSH to resolution, documents/CPU s": documents / sum(shop.cpu_seconds[stage] for stage in LSH_STAGES),
            "peak RSS GB": read_peak() / 1e9,
            **shop.cpu_seconds,
        }
    )


def read_peak() -> int:
    """The most memory that this process has had resident, in bytes. Not ru_maxrss, which counts the parent's, too."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def hold_half(ingested: Ingested, settings: DedupSettings, shop: Workshop) -> Ingested:
    """The second half of the tasks, against a dataset of the first half."""
    half = len(ingested.tasks) // 2
    names, out = ingested.source_names, shop.work / "out"
    old = Ingested(names, names, ingested.tasks[:half], ingested.records[:half])
    done = dedup(old, settings=settings, shop=shop)
    whole = Selection(0, "", out, [None], done.kept.counts, done.tokens[0])
    drops = [
        DropsTask(
            name=task.name, source="random", first_file=0, last_file=1, ingests=(ingest,), num_tokenizers=1,
            duplicates=done.duplicates, source_names=("random",), out=str(out), table_name="", fingerprint="",
        )
        for task, ingest in zip(old.tasks, describe_ingests(old, whole), strict=True)
    ]  # fmt: skip
    kept = keep_signatures(KEEPING, drops, folder="", shop=shop)
    content = {"content_hash": "0" * 64, "sources": {"random": {"raw_files": [], "splits": {}}}, **kept}
    return Ingested(names, names, ingested.tasks[half:], ingested.records[half:], (HeldDataset(out, content),))


def predict(row: dict[str, Any], *, reading_mb_s: float) -> dict[str, Any]:
    """RedPajama's documents at the rate of a row; states: what the resolution holds for every rank."""
    factor = REDPAJAMA / row["documents"]
    return {
        "documents": REDPAJAMA,
        "hours of the stages": row["CPU seconds"] * factor / 3600,
        "reading again, MB/s": reading_mb_s,
        "hours of reading again": REDPAJAMA_BYTES / 1e6 / reading_mb_s / 3600,
        "work files GB": row["work files GB"] * factor,
        "dedup files GB": row["dedup files GB"] * factor,
        "states GB": REDPAJAMA * (1 + 3 / 8) / 1e9,
    }


def measure_reading(texts: pa.Array, folder: Path) -> float:
    """MB of text per second of CPU time that are read from a raw file, with sets of shingles of one text in 50."""
    path = folder / "read.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.to_pylist()))
    files, settings = (TaskFile(0, str(path), "train", None),), IngestSettings("text", None, (), 1, 0.0, 0, "near", ())
    keys = np.arange(0, len(texts), 50, dtype=np.uint64)

    def read() -> int:
        return sum(1 for _ in read_shingles(files, settings, keys))

    assert read() == len(keys)
    return count_bytes(texts) / 1e6 / min(time_cpu(read) for _ in range(REPEATS))


if __name__ == "__main__":
    main()
