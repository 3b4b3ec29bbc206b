"""How fast pack is on one core, and how it reads: token files -> shards.

    python benchmarks/pack.py --gigabytes 1

Makes token files of random ids in documents as long as SlimPajama's, then measures dedup and pack with one worker from
a warm cache: MB of tokens per second, all included (read, put in order, checksum, write, sync). Reads are counted,
not guessed; a plan of the same reads is made for one shard of all of SlimPajama, whose size no benchmark can have.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/pack.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import tyro
from rich.table import Table

from pipeline.dedup_stages import DedupSettings, dedup
from pipeline.file_parts import WHOLE
from pipeline.ingest import EncodeSettings, IngestSettings, IngestTask, TaskFile, find_places
from pipeline.ingest_plan import LARGEST_TASK_BYTES
from pipeline.limit import Selection
from pipeline.local_jobs import Workers
from pipeline.pack import plan_reads
from pipeline.progress import BuildLog, make_console
from pipeline.sketch_file import RECIPES, Sketches
from pipeline.stages import pack
from pipeline.token_file import RUN_BYTES, TokenFile, document_dtype, starts_of
from pipeline.work import kept_dtype
from pipeline.workshop import Ingested, Workshop

# SlimPajama: facts of the dataset card, and of Llama 2's ids.
SLIMPAJAMA_TOKENS, SLIMPAJAMA_DOCUMENTS, SLIMPAJAMA_FILE_BYTES = 627e9, 590_394_625, 895e9
MEAN_TOKENS = SLIMPAJAMA_TOKENS / SLIMPAJAMA_DOCUMENTS
SHARD_TOKENS = 1 << 28  # the default of --shard-tokens
DROPPED_SHARE = 0.05
DTYPE = np.dtype("<u2")


@dataclass(frozen=True)
class PackBenchmark:
    """Measure pack on one core, and count its reads."""

    gigabytes: float = 1
    """GB of token files, in tasks of 100 MB."""
    folder: Path | None = None
    """Where to work; needs three times as much. Default: the system's temporary folder."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    flags = tyro.cli(PackBenchmark)
    console = make_console()
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-pack-", dir=flags.folder))
    try:
        figures = measure(folder, num_tasks=max(1, round(flags.gigabytes * 10)))
    finally:
        shutil.rmtree(folder)
    figures["slimpajama"] = count_reads_of_slimpajama()
    console.print(show(figures))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(folder: Path, *, num_tasks: int) -> dict[str, Any]:
    """Seconds and reads of dedup and pack over new token files."""
    ingested = Ingested(
        ["random"], ["random"], *zip(*(make_task(folder, number) for number in range(num_tasks)), strict=True)
    )
    with Workers(1, notice=print) as workers:
        shop = Workshop(folder / "work", workers, make_console(), BuildLog(folder / "log.jsonl"))
        started = time.perf_counter()
        deduplicated = dedup(ingested, settings=DedupSettings("exact", 0.0, 1 << 30, 1), shop=shop)
        dedup_seconds = time.perf_counter() - started
        kept = deduplicated.kept
        selection = Selection(0, "", folder / "out", [None], kept.counts, deduplicated.tokens[0])
        started = time.perf_counter()
        pack(ingested, kept, selection, shard_tokens=SHARD_TOKENS // 4, shop=shop)
        pack_seconds = time.perf_counter() - started
    records = [json.loads(path.read_text())["result"] for path in (folder / "work/records/pack").glob("*.json")]
    num_bytes = sum(record["shard"]["bytes"] for record in records)
    reads = {what: sum(record["reads"][what] for record in records) for what in ("count", "bytes")}
    return {
        "token_bytes": num_bytes,
        "documents": int(kept.counts.sum()),
        "dedup_seconds": dedup_seconds,
        "pack_mb_s": num_bytes / pack_seconds / 1e6,
        "disk_mb_s": time_disk(folder / "plain", num_bytes),
        "reads": reads,
        "reads_per_byte": reads["bytes"] / num_bytes,
    }


def make_task(folder: Path, number: int) -> tuple[IngestTask, dict[str, Any]]:
    """A token file of 50 million random ids, in documents as long as SlimPajama's; and its record."""
    rng = np.random.default_rng(number)
    encode = (EncodeSettings("random", "", "fast", "eos", DTYPE.str),)
    settings = IngestSettings("text", None, (), 1, 0.0, 0, "none", encode)
    place = folder / "work/ingest" / f"random-{number:05d}"
    place.mkdir(parents=True)
    lengths = draw_lengths(rng, 50_000_000)
    documents = np.zeros(len(lengths), document_dtype(1))
    documents["content_hash"] = rng.integers(0, 1 << 63, (len(lengths), 2), dtype=np.uint64)
    documents["place"] = find_places(documents["content_hash"], seed=0)
    documents["row"], documents["num_tokens"][:, 0] = np.arange(len(lengths)), lengths
    with TokenFile(place, dtypes=[DTYPE], recipe=RECIPES["none"]) as token_file:
        ids = rng.integers(0, 50_000, int(lengths.sum()), dtype=DTYPE)
        none = np.empty((len(lengths), 0), np.uint8)
        sketches = Sketches(none, none.astype(np.uint64), np.zeros(len(lengths), bool))
        token_file.add(documents, np.zeros(len(lengths), np.uint8), [ids], sketches)
        token_file.num_rows = len(lengths)
    file = TaskFile(number, "random", "train", None, WHOLE)
    return IngestTask(place.name, "random", (file,), 1, settings, str(place), ""), asdict(token_file.record())


def time_disk(path: Path, num_bytes: int) -> float:
    """MB/s of the disk alone: as many bytes written in order to one file, and synced."""
    block = np.random.default_rng(0).bytes(8 << 20)
    started = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(num_bytes // len(block)):
            file.write(block)
        os.fsync(file.fileno())
    return num_bytes / (time.perf_counter() - started) / 1e6


def draw_lengths(rng: np.random.Generator, num_tokens: float) -> np.ndarray:
    """Tokens of documents that have MEAN_TOKENS on average, many short and a few long: int64."""
    sigma = 1.2
    lengths = rng.lognormal(np.log(MEAN_TOKENS) - sigma**2 / 2, sigma, int(num_tokens / MEAN_TOKENS))
    return np.maximum(2, lengths).astype(np.int64)


def count_reads_of_slimpajama() -> dict[str, float]:
    """The reads of one shard of SlimPajama, planned by pack itself: documents at random places in every token file."""
    rng = np.random.default_rng(0)
    num_tasks = round(SLIMPAJAMA_FILE_BYTES / LARGEST_TASK_BYTES)
    num_shards = -(-SLIMPAJAMA_TOKENS // SHARD_TOKENS)
    run_bytes = SLIMPAJAMA_TOKENS * DTYPE.itemsize / num_tasks
    lengths = draw_lengths(rng, SLIMPAJAMA_TOKENS / num_shards)
    tasks = np.sort(rng.integers(0, num_tasks, len(lengths)))
    is_kept = rng.random(len(lengths)) >= DROPPED_SHARE
    starts = starts_of(lengths)  # within a task one after the other; what precedes them there does not matter
    pieces = plan_reads(tasks[is_kept], starts[is_kept], lengths[is_kept], itemsize=DTYPE.itemsize)
    ends = starts[is_kept] + lengths[is_kept]
    sizes = np.array([(ends[last - 1] - starts[is_kept][first]) * DTYPE.itemsize for first, last in pieces])
    return {
        "tasks": num_tasks,
        "runs_per_task": float(-(-run_bytes // RUN_BYTES)),
        "reads_per_shard": len(sizes),
        "mean_read_bytes": float(sizes.mean()),
        "reads_per_byte": float(sizes.sum() / (lengths[is_kept].sum() * DTYPE.itemsize)),
        "table_read_bytes": float(is_kept.sum() * kept_dtype(1).itemsize),
    }


def show(figures: dict[str, Any]) -> Table:
    """The figures."""
    table = Table(title="pack, one process", show_header=False)
    there = figures["slimpajama"]
    mean_read = figures["reads"]["bytes"] / figures["reads"]["count"]
    rows = {
        "token files": f"{figures['token_bytes'] / 1e6:,.0f} MB, {figures['documents']:,} documents",
        "dedup": f"{figures['dedup_seconds']:.2f} s",
        "pack": f"{figures['pack_mb_s']:,.0f} MB of tokens per second",
        "the disk alone": f"{figures['disk_mb_s']:,.0f} MB per second: written and synced, nothing read",
        "reads": f"{figures['reads']['count']:,} of {mean_read / 1e3:,.0f} kB on average",
        "read per byte packed": f"{figures['reads_per_byte']:.3f}",
        "SlimPajama, planned": f"{there['tasks']:,} token files, {there['runs_per_task']:.0f} run each",
        "  reads per shard": f"{there['reads_per_shard']:,} of {there['mean_read_bytes'] / 1e3:,.0f} kB on average",
        "  read per byte packed": f"{there['reads_per_byte']:.3f}",
        "  table of documents": f"1 read of {there['table_read_bytes'] / 1e6:,.0f} MB",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


if __name__ == "__main__":
    main()
