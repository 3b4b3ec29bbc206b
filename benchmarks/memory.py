"""How much memory one ingest worker takes at most, on inputs made to take much of it.

    python benchmarks/memory.py --tokenizers gpt2 llama2
    python benchmarks/memory.py --cases long-line letters --json memory.json

Each case is one raw file, made in a process of its own and ingested in a fresh one for each tokenizer; the figure is
that process's peak of resident memory, everything included. The text is this Python installation's prose and code,
repeated with a number between. Takes up to 6 GB of disk, and minutes. Exits with 1 where a case is above its limit.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/memory.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.table import Table

from pipeline.progress import make_console

MIB = 1 << 20
LIMIT_BYTES = 1536 * MIB
MB = 1_000_000
LETTERS = 16_000_000
SAMPLE_BYTES = 30 * MB
ROW_GROUP_BYTES = 1 << 30


@dataclass(frozen=True)
class MemoryFlags:
    """Measure the peak memory of ingest."""

    tokenizers: tuple[str, ...] = ("gpt2", "llama2")
    """Names or paths; several in one pass with a + between."""
    cases: tuple[str, ...] = ()
    """Some of the cases, by the beginning of their names; all by default."""
    folder: Path | None = None
    """Where the inputs go (a new folder in it, removed at the end); the system's temporary folder by default."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    flags = tyro.cli(MemoryFlags)
    console = make_console()
    cases = [case for case in CASES if not flags.cases or case.name.startswith(flags.cases)]
    if not cases:
        sys.exit(
            f"error: no case begins with {' or '.join(flags.cases)}; there are {', '.join(case.name for case in CASES)}"
        )
    folder = Path(tempfile.mkdtemp(prefix="tokenmill-memory-", dir=flags.folder))
    figures: list[dict[str, Any]] = []
    try:
        for case in cases:
            figures += measure_case(case, flags.tokenizers, folder)
            console.print(describe(figures[-len(flags.tokenizers) :]))
    finally:
        shutil.rmtree(folder)
    console.print(tabulate(figures))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")
    if any(figure["peak_bytes"] > figure["limit_bytes"] for figure in figures):
        sys.exit("above the limit")


@dataclass(frozen=True)
class Case:
    """One input: its file's name, what writes it, and what ingest may take."""

    name: str
    file_name: str
    write: Callable[[Path], None]
    limit_bytes: int = LIMIT_BYTES


def write_nothing(path: Path) -> None:
    """No document: what the imports and the tokenizer take."""
    path.write_bytes(b"")


def write_long_line(path: Path) -> None:
    """One line of 200 MB."""
    write_lines(path, [join_texts(200 * MB)])


def write_long_lines(path: Path) -> None:
    """Ten lines of 50 MB, one after the other."""
    write_lines(path, (join_texts(50 * MB) for _ in range(10)))


def write_ascii_document(path: Path) -> None:
    """One document of 16 million ASCII characters."""
    write_lines(path, [join_texts(40 * MB).encode("ascii", "ignore").decode()[:LETTERS]])


def write_cjk_document(path: Path) -> None:
    """One document of 16 million Chinese characters in words that repeat as words do, with no space between."""
    import random

    chance = random.Random(0)
    words = ["".join(chr(0x4E00 + chance.randrange(8000)) for _ in range(1 + number % 4)) for number in range(50_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    text = "".join(chance.choices(words, weights, k=LETTERS))
    write_lines(path, [text[:LETTERS]])


def write_letters(path: Path) -> None:
    """16 million times one letter: no tokenizer can cut it."""
    write_lines(path, ["a" * LETTERS])


def write_rare_letters(path: Path) -> None:
    """16 million times a letter of four bytes."""
    write_lines(path, ["\U00020000" * LETTERS])


def write_random_words(path: Path) -> None:
    """300 MB of words that never repeat: nothing that an encoder remembers helps it."""
    import random

    chance = random.Random(0)
    write_lines(path, (chance.randbytes(5000).hex(" ", 5) for _ in range(300 * MB // 11_000)))


def write_5_gb(path: Path) -> None:
    """5 GB of JSON lines without compression."""
    texts, num_bytes = repeat_texts(), 0
    with path.open("wb") as file:
        while num_bytes < 5000 * MB:
            num_bytes += file.write(json.dumps({"text": next(texts)}).encode() + b"\n")


def write_row_group(path: Path, *, compression: str, use_dictionary: bool) -> None:
    """A parquet file with one row group of 1 GiB, as most writers make it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, num_bytes, rows = repeat_texts(), 0, []
    while num_bytes < ROW_GROUP_BYTES:
        rows.append(next(texts))
        num_bytes += len(rows[-1].encode())
    table = pa.table({"text": pa.array(rows, pa.large_string())})
    pq.write_table(table, path, row_group_size=len(rows), compression=compression, use_dictionary=use_dictionary)


def write_plain_rows(path: Path) -> None:
    write_row_group(path, compression="none", use_dictionary=False)


def write_zstd_rows(path: Path) -> None:
    write_row_group(path, compression="zstd", use_dictionary=False)


def write_dictionary_rows(path: Path) -> None:
    write_row_group(path, compression="none", use_dictionary=True)


def write_zstd_dictionary_rows(path: Path) -> None:
    write_row_group(path, compression="zstd", use_dictionary=True)


def write_uneven_rows(path: Path) -> None:
    """A row group of 100,000 short rows and then 20 of 50 MB: its average says nothing. A page ends with each row, as a
    page is read whole (writers end one at 1 MB, but may look only every so many rows)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [f"short {number}" for number in range(100_000)] + [join_texts(50 * MB)] * 20
    table = pa.table({"text": pa.array(rows, pa.large_string())})
    options = {"compression": "zstd", "use_dictionary": False, "write_batch_size": 1}
    pq.write_table(table, path, row_group_size=len(rows), **options)


def write_repeated_rows(path: Path) -> None:
    """2,000 rows that are one text of 0.5 MB: 1 GB that a dictionary makes 0.5 MB of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": pa.array([join_texts(MB // 2)] * 2000, pa.large_string())})
    pq.write_table(table, path, row_group_size=len(table), compression="zstd", use_dictionary=True)


# What ingest may take for a chunk that no tokenizer can cut, above LIMIT_BYTES: bytes per character.
UNCUT_BYTES_PER_CHARACTER = 100

CASES = (
    Case("imports", "empty.jsonl", write_nothing),
    Case("long-line-200-mb", "line.jsonl", write_long_line),
    Case("ten-lines-of-50-mb", "lines.jsonl", write_long_lines),
    Case("document-16m-ascii", "ascii.jsonl", write_ascii_document),
    Case("document-16m-cjk", "cjk.jsonl", write_cjk_document),
    Case("letters-16m", "letters.jsonl", write_letters, LIMIT_BYTES + UNCUT_BYTES_PER_CHARACTER * LETTERS),
    Case("rare-letters-16m", "rare.jsonl", write_rare_letters, LIMIT_BYTES + UNCUT_BYTES_PER_CHARACTER * LETTERS),
    Case("random-words-300-mb", "words.jsonl", write_random_words),
    Case("parquet-1-gb-plain", "plain.parquet", write_plain_rows),
    Case("parquet-1-gb-zstd", "zstd.parquet", write_zstd_rows),
    Case("parquet-1-gb-dictionary", "dictionary.parquet", write_dictionary_rows),
    Case("parquet-1-gb-zstd-dictionary", "zstd-dictionary.parquet", write_zstd_dictionary_rows),
    Case("parquet-uneven-rows", "uneven.parquet", write_uneven_rows),
    Case("parquet-repeated-rows", "repeated.parquet", write_repeated_rows),
    Case("jsonl-5-gb", "huge.jsonl", write_5_gb),
)


def write_lines(path: Path, texts: list[str] | Iterator[str]) -> None:
    """JSON lines of texts."""
    with path.open("wb") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")


def repeat_texts() -> Iterator[str]:
    """This installation's prose and code in turns, without end; each text is numbered, so that none comes twice."""
    from pipeline.sample_text import Reader, list_places, this_installation

    prose, code = list_places(this_installation())
    reader, texts, num_bytes = Reader(), [], 0
    for pair in zip(reader.read_all(prose), reader.read_all(code), strict=False):
        texts += [text.text for text in pair]
        num_bytes += sum(len(text) for text in texts[-2:])
        if num_bytes > SAMPLE_BYTES:
            break
    for number in itertools.count():
        yield f"{number} {texts[number % len(texts)]}"


def join_texts(num_bytes: int) -> str:
    """A text of about that many bytes."""
    texts, size_bytes = [], 0
    for text in repeat_texts():
        texts.append(text)
        size_bytes += len(text.encode())
        if size_bytes >= num_bytes:
            return "\n".join(texts)
    raise AssertionError("repeat_texts ends")


def measure_case(case: Case, tokenizers: tuple[str, ...], folder: Path) -> list[dict[str, Any]]:
    """The figures of one case, one per tokenizer."""
    path = folder / case.file_name
    in_fresh_process(case.write, path)
    figures = []
    for name in tokenizers:
        figure = in_fresh_process(ingest_file, path, name, folder / "work")
        figures.append({"case": case.name, "tokenizer": name, "limit_bytes": case.limit_bytes, **figure})
        shutil.rmtree(folder / "work")
    path.unlink()
    return figures


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
    """What a function returns in a process of its own, which starts from nothing."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def ingest_file(path: Path, tokenizer_names: str, folder: Path) -> dict[str, Any]:
    """Ingest one file in this process; its peak of memory from the process's start, and seconds."""
    from pipeline.ingest import IngestSettings, IngestTask, TaskFile, run_ingest

    settings = IngestSettings(
        text_field="text",
        subset_field=None,
        exclude=(),
        min_chars=1,
        valid_fraction=0.005,
        seed=0,
        dedup="near",
        encode=tuple(describe_tokenizer(name) for name in tokenizer_names.split("+")),
    )
    task = IngestTask("whole", "memory", (TaskFile(0, str(path), "train", None),), 0, settings, str(folder), "")
    started = time.perf_counter()
    record = run_ingest(task)
    seconds = time.perf_counter() - started
    text_bytes = record["bytes"].get("read", 0)
    return {"peak_bytes": peak_bytes(), "seconds": seconds, "text_bytes": text_bytes, "tokens": record["tokens"]}


def describe_tokenizer(name: str) -> Any:  # noqa: ANN401
    """A tokenizer as a task is told of it."""
    from pipeline.ingest import EncodeSettings
    from pipeline.shard import token_dtype
    from pipeline.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(name)
    dtype = token_dtype(tokenizer.vocab_size).str
    return EncodeSettings(str(tokenizer.path), tokenizer.sha256, "fast", tokenizer.document_rule, dtype)


def peak_bytes() -> int:
    """The most memory that this process ever had resident. Linux counts it in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(figures: list[dict[str, Any]]) -> str:
    """One case in a line."""
    peaks = ", ".join(
        f"{figure['tokenizer']} {figure['peak_bytes'] / MIB:,.0f} MiB in {figure['seconds']:.0f} s"
        for figure in figures
    )
    return f"{figures[0]['case']}: {peaks}"


def tabulate(figures: list[dict[str, Any]]) -> Table:
    """All figures."""
    table = Table(title="peak of resident memory of one worker")
    for column in ("case", "tokenizer", "MB of text", "seconds", "peak, MiB", "limit, MiB", ""):
        table.add_column(column, justify="left" if column in ("case", "tokenizer", "") else "right")
    for figure in figures:
        table.add_row(
            figure["case"],
            figure["tokenizer"],
            f"{figure['text_bytes'] / 1e6:,.1f}",
            f"{figure['seconds']:.1f}",
            f"{figure['peak_bytes'] / MIB:,.0f}",
            f"{figure['limit_bytes'] / MIB:,.0f}",
            "" if figure["peak_bytes"] <= figure["limit_bytes"] else "above",
        )
    return table


if __name__ == "__main__":
    main()
