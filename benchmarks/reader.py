"""Reading: start-up, resume, the permutation, tokens per second from a warm and a cold cache, beside other readers.

    python benchmarks/reader.py
    PYTHONPATH=.readers python benchmarks/reader.py      # with the readers that `make test-readers` installs

Start-up is measured on a dataset of 10**12 tokens in 2,000 shards, whose files are sparse; speed on shards of random
ids. All readers read as many windows of the same files in this one run, and CPU time counts, not the clock; only from
a cold cache it is the clock, for there the disk is waited for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as `python benchmarks/reader.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import tyro
from rich.table import Table

from benchmarks.reader_peers import PEERS
from pipeline.dataset import PackedDataset
from pipeline.order import permute, permute_blocks
from pipeline.progress import make_console
from pipeline.shard import shard_name, write_dataset_json, write_shard

ROOT = Path(__file__).resolve().parent.parent
SEQ_LEN = 2048
BATCH = 256
ROUNDS = 5
TRILLION, TRILLION_SHARDS, MEAN_DOCUMENT = 10**12, 2000, 1000
DTYPE = np.dtype("<u2")
TOKENIZER = {"name": "random", "sha256": "0" * 64, "file": "t", "vocab_size": 50_000, "bos_id": None, "eos_id": 0}

OPEN_SCRIPT = """
import sys, time
started = time.process_time()
from pipeline.dataset import PackedDataset
dataset = PackedDataset(sys.argv[1], seq_len=2048, seed=1)
dataset.sample(0)
opened = time.process_time()
state = dataset.state(123_456_789_012)
again = PackedDataset(sys.argv[1], seq_len=2048, seed=1)
begun = time.process_time()
again.restore(state)
again.read(1)
seconds = time.process_time() - begun
import json
print(json.dumps([opened - started, seconds, len(json.dumps(state))]), PEAK)
"""
PEAK = "open('/proc/self/status').read().split('VmHWM:')[1].split()[0]"  # kB; ru_maxrss counts the parent's too


@dataclass(frozen=True)
class ReaderBenchmark:
    """Measure reading on one core, beside other readers where they are installed."""

    gigabytes: float = 2
    """GB of shards of random ids."""
    samples: int = 20_000
    """Samples that each reader reads, from a warm cache."""
    folder: Path | None = None
    """Where to work. Default: the system's temporary folder."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    arguments = tyro.cli(ReaderBenchmark)
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-reader-", dir=arguments.folder))
    try:
        figures = measure_opening(write_trillion(folder / "trillion"))
        figures |= measure_permutation()
        packed = write_random(folder / "packed", num_tokens=int(arguments.gigabytes * 1e9 / DTYPE.itemsize))
        figures["cold"] = measure_cold(packed)  # before any other map keeps pages in memory
        figures["hot"] = measure_hot(packed, num_samples=arguments.samples)
    finally:
        shutil.rmtree(folder)
    for table in show(figures):
        make_console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def write_trillion(folder: Path) -> Path:
    """A dataset of 10**12 tokens, by its sizes; every id is 0."""
    tokens = TRILLION // TRILLION_SHARDS
    documents = tokens // MEAN_DOCUMENT
    shards = []
    for number in range(TRILLION_SHARDS):
        path = folder / shard_name("web", "train", number)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, num_bytes in ((path, tokens * DTYPE.itemsize), (f"{path}.index", documents * 8)):
            with open(name, "wb") as file:
                file.truncate(num_bytes)
        checksums = {"xxh3_128": f"{number:032x}", "docs_xxh3_128": f"{number:032x}"}
        entry = {"path": shard_name("web", "train", number), "bytes": tokens * 2, "tokens": tokens}
        shards.append({**entry, "documents": documents, "largest_id": 0, **checksums})
    return finish(folder, shards)


def write_random(folder: Path, *, num_tokens: int) -> Path:
    """A dataset of random ids in shards of 50 million."""
    rng, shards = np.random.default_rng(0), []
    for number in range(max(1, num_tokens // 50_000_000)):
        lengths = np.full(50_000_000 // MEAN_DOCUMENT, MEAN_DOCUMENT, np.int64)
        ids = rng.integers(1, 50_000, int(lengths.sum()), dtype=DTYPE)
        ids[np.cumsum(lengths) - 1] = 0
        columns = {"raw_file": np.zeros(len(lengths), np.uint32), "row": np.arange(len(lengths), dtype=np.uint64)}
        columns["content_hash"] = np.zeros(len(lengths), "V16")
        name = shard_name("web", "train", number)
        shards.append(write_shard(folder, name, ids=ids, lengths=lengths, documents=columns).__dict__)
    return finish(folder, shards)


def finish(folder: Path, shards: list[dict]) -> Path:
    """Write dataset.json."""
    content = {"tokenizer": TOKENIZER, "dtype": "uint16", "document_rule": "eos", "content_hash": "0" * 64}
    content |= {"mix": {"web": 1.0}, "sources": {"web": {"splits": {"train": {"shards": shards}}}}}
    write_dataset_json(folder, content)
    return folder


def measure_opening(folder: Path) -> dict[str, float]:
    """Seconds of CPU time and MB of memory of a process that opens 10**12 tokens; the better of three."""
    runs = []
    for _ in range(3):
        *line, peak = run_python(OPEN_SCRIPT.replace("PEAK", PEAK), str(folder)).rsplit(" ", 1)
        runs.append((*json.loads(line[0]), int(peak)))
    bare_kilobytes = int(run_python(f"print({PEAK})"))
    seconds, resume, state, kilobytes = (min(column) for column in zip(*runs, strict=True))
    return {
        "open_s": seconds, "resume_s": resume, "state_bytes": state, "open_mb": (kilobytes - bare_kilobytes) / 1024
    }  # fmt: skip


def run_python(script: str, *arguments: str) -> str:
    """What a script prints in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def measure_permutation() -> dict[str, dict[str, float]]:
    """Nanoseconds of CPU time per position, of 488 million."""
    return {
        name: {str(batch): time_permutation(permutation, batch) for batch in (1024, 8192, 1_000_000)}
        for name, permutation in (("permute", permute), ("permute_blocks", permute_blocks))
    }


def time_permutation(permutation: Callable, batch: int) -> float:
    """The best of five times, in ns."""
    size, repeats = TRILLION // SEQ_LEN, max(1, 1_000_000 // batch)
    indices = np.arange(batch) + size // 3
    return min(cpu_seconds(lambda: permutation(indices, size=size, key=1), repeats) for _ in range(5)) / batch * 1e9


def cpu_seconds(function: Callable, repeats: int) -> float:
    """CPU time of one call."""
    started = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - started) / repeats


def measure_hot(folder: Path, *, num_samples: int) -> dict[str, dict[str, float | str]]:
    """Million tokens per second of CPU time from a warm cache, and what setting up took; the readers take turns."""
    warm(folder)
    figures: dict[str, dict[str, float | str]] = {}
    readers = {}
    for name, peer in {"tokenmill": open_tokenmill, **PEERS}.items():
        try:
            started = time.process_time()
            readers[name] = peer(folder, SEQ_LEN)
            figures[name] = {"set_up_s": time.process_time() - started, "million_tokens_s": 0.0}
        except ImportError as error:
            figures[name] = {"note": f"not installed ({error.name})"}
        except Exception as error:  # a peer's own failure is a finding about it, not about us
            figures[name] = {"note": f"does not run here: {type(error).__name__}: {error}"[:90]}
    for first in range(0, num_samples, num_samples // ROUNDS):
        for name, read in readers.items():
            speed = time_reader(read, first, num_samples // ROUNDS)
            figures[name]["million_tokens_s"] = max(speed, figures[name]["million_tokens_s"])
    return figures


def time_reader(read: Callable[[np.ndarray], object], first: int, num_samples: int) -> float:
    """Million tokens per second of CPU time, over batches from a position on."""
    started = time.process_time()
    batches = range(first, first + num_samples, BATCH)
    for start in batches:
        read(np.arange(start, start + BATCH))
    return len(batches) * BATCH * SEQ_LEN / (time.process_time() - started) / 1e6


def open_tokenmill(folder: Path, seq_len: int) -> Callable[[np.ndarray], object]:
    """Our reader, into one buffer of uint16."""
    dataset = PackedDataset(folder, seq_len=seq_len, seed=1, max_epochs=None)
    out = np.empty((BATCH, seq_len + 1), DTYPE)
    return lambda positions: dataset.samples(positions, out=out)


def warm(folder: Path) -> None:
    """Read every shard once."""
    for path in folder.rglob("*.bin"):
        path.read_bytes()


def measure_cold(folder: Path) -> dict[str, float]:
    """Microseconds of the clock per window from a cold cache: a default map, and our reader. Alternating, best of 3."""
    dataset = PackedDataset(folder, seq_len=SEQ_LEN, seed=2)
    located = dataset.locate(np.arange(3 * BATCH))
    source = dataset.windows["web"]
    shards, starts = source.locate(0, located.samples)
    times: dict[str, list[float]] = {"default_map_us": [], "reader_us": []}
    for _ in range(3):
        drop_cache(folder)
        started = time.perf_counter()
        read_default_maps(source.paths, shards, starts)
        times["default_map_us"].append((time.perf_counter() - started) / len(shards) * 1e6)
        drop_cache(folder)
        reader = PackedDataset(folder, seq_len=SEQ_LEN, seed=2)
        started = time.perf_counter()
        for _ in range(3):
            reader.read(BATCH)
        times["reader_us"].append((time.perf_counter() - started) / len(shards) * 1e6)
        del reader
    return {name: min(each) for name, each in times.items()}


def read_default_maps(paths: list[Path], shards: np.ndarray, starts: np.ndarray) -> None:
    """Copy the windows out of np.memmap, as most readers do."""
    maps = [np.memmap(path, dtype=DTYPE, mode="r") for path in paths]
    for shard, start in zip(shards.tolist(), starts.tolist(), strict=True):
        np.array(maps[shard][start : start + SEQ_LEN + 1])


def drop_cache(folder: Path) -> None:
    """Let the system forget the shards' pages."""
    os.sync()
    for path in folder.rglob("*.bin"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def show(figures: dict) -> list[Table]:
    """The figures."""
    table = Table(title="tokenmill's reader, one core", show_header=False)
    cold = figures["cold"]
    rows = {
        "open 10**12 tokens, 2,000 shards": f"{figures['open_s']:.2f} s, {figures['open_mb']:.0f} MB more than Python",
        "resume at position 123,456,789,012": f"{figures['resume_s'] * 1e3:.0f} ms to the first sample",
        "state": f"{figures['state_bytes']} bytes",
        "permutation, batches of 1,024 / 8,192 / 10**6": " / ".join(f"{v:.0f}" for v in figures["permute"].values())
        + " ns",
        "block permutation": " / ".join(f"{v:.0f}" for v in figures["permute_blocks"].values()) + " ns",
        "cold cache": f"{cold['reader_us']:.0f} us a window, {cold['default_map_us']:.0f} us by a default map",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return [table, show_hot(figures["hot"])]


def show_hot(hot: dict[str, dict]) -> Table:
    """Readers side by side."""
    table = Table(title=f"windows of {SEQ_LEN:,} tokens from a warm cache, CPU time")
    for column in ("reader", "million tokens per second", "set-up", "ours is"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    ours = hot["tokenmill"]["million_tokens_s"]
    for name, row in hot.items():
        if "note" in row:
            table.add_row(name, row["note"], "", "")
        else:
            speed = row["million_tokens_s"]
            table.add_row(name, f"{speed:,.0f}", f"{row['set_up_s']:.2f} s", f"{ours / speed:.1f}x")
    return table


if __name__ == "__main__":
    main()
