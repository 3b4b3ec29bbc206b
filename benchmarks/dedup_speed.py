"""How fast signatures are made, beside other libraries', and spans looked for: MB of text per second of CPU time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import slimpajama
from pipeline.contamination import SPAN, find_contaminated, sort_spans, write_table
from pipeline.document_batch import text_buffers
from pipeline.forecast_sample import Tally
from pipeline.ingest import IngestSettings, TaskFile, ingest_batch, keep_wanted, read_file
from pipeline.minhash import sign_documents
from pipeline.wanted_documents import join_small

REPEATS = 7
EVALUATION_SPANS = 300_000


def measure_speeds(texts: pa.Array, foreign: pa.Array, folder: Path) -> list[dict[str, Any]]:
    """MB of text per second of CPU time of every system. foreign: texts of which none is ASCII alone."""
    rows = []
    for name, (function, num_bytes, repeats) in list_systems(texts, foreign, folder).items():
        function()  # compiled, caches filled
        seconds = min(time_cpu(function) for _ in range(repeats))
        rows.append({"system": name, "MB": num_bytes / 1e6, "MB/s": num_bytes / 1e6 / seconds})
    return rows


def list_systems(texts: pa.Array, foreign: pa.Array, folder: Path) -> dict[str, tuple[Callable[[], Any], int, int]]:
    """Of each system what it does, with how many bytes, and how often. folder: for a raw file and a list of spans."""
    num_bytes, buffers = count_bytes(texts), text_buffers(texts)
    systems = {"tokenmill near": (lambda: sign_documents(*buffers), num_bytes, REPEATS)}
    for kind, own in {"": texts, ", non-ASCII texts": foreign}.items():
        if not len(own):
            continue
        normal = slimpajama.normalise_texts(own)
        systems[f"tokenmill slimpajama, ftfy included{kind}"] = partial(make_whole, own), count_bytes(own), REPEATS
        name = f"tokenmill slimpajama, signature alone{kind}"
        systems[name] = partial(slimpajama.make_keys, normal), count_bytes(own), REPEATS
    few = texts[: max(1, len(texts) // 100)]
    systems |= {name: (function, num_bytes, REPEATS) for name, function in list_ingests(texts, folder)}
    return systems | {name: (function, count_bytes(few), 1) for name, function in list_peers(few.to_pylist())}


def make_whole(texts: pa.Array) -> np.ndarray:
    """The keys of --dedup slimpajama, from texts as they stand in raw files."""
    return slimpajama.make_keys(slimpajama.normalise_texts(texts))


def count_bytes(texts: pa.Array) -> int:
    """Of all texts."""
    return pc.sum(pc.binary_length(texts)).as_py()


def list_ingests(texts: pa.Array, folder: Path) -> list[tuple[str, Callable[[], Any]]]:
    """The check for spans alone, and ingest of the texts with and without it, for no tokenizer."""
    rng = np.random.default_rng(0)
    spans = np.zeros(EVALUATION_SPANS, SPAN)
    spans["first"], spans["second"] = rng.integers(0, 1 << 64, (2, len(spans)), np.uint64)
    write_table(sort_spans(spans), ["random"], {}, folder)
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.to_pylist()))

    def ingest(method: str, contamination: str | None) -> None:
        settings = IngestSettings("text", None, (), 1, 0.0, 0, method, (), contamination=contamination)
        tally, file = Tally([]), TaskFile(0, str(path), "train", None)
        batches = (keep_wanted(batch, file, settings, tally) for batch in read_file(file, settings))
        for wanted in join_small(batches):
            ingest_batch(wanted, settings, tally)

    return [
        ("tokenmill decontaminate", partial(find_contaminated, texts, str(folder))),
        *(
            (
                f"ingest without ids, {method}{', decontaminate' if folder_of else ''}",
                partial(ingest, method, folder_of),
            )
            for method in ("none", "near")
            for folder_of in (None, str(folder))
        ),
    ]


def time_cpu(function: Callable[[], Any]) -> float:
    """Seconds of CPU time of one call."""
    started = time.process_time()  # finer than a Stopwatch, and there are no children
    function()
    return time.process_time() - started


def list_peers(texts: list[str]) -> list[tuple[str, Callable[[], Any]]]:
    """The peers that are installed, on some of the texts."""
    peers: list[tuple[str, Callable[[], Any]]] = []
    try:
        from datasketch import MinHash
    except ImportError:
        MinHash = None  # noqa: N806

    def update() -> None:
        for text in texts:
            minhash = MinHash(num_perm=128)
            cleaned = slimpajama.clean(text)
            for place in range(len(cleaned) - 12):
                minhash.update(cleaned[place : place + 13].encode())

    if MinHash is not None:
        peers.append(("datasketch, 13 characters, one update a shingle", update))
    try:
        from rensa import RMinHash
    except ImportError:
        return peers

    def rensa() -> None:
        for text in texts:
            words = text.lower().split()
            minhash = RMinHash(128, 1)
            minhash.update([" ".join(words[place : place + 5]) for place in range(len(words) - 4)])

    return [*peers, ("rensa, five words", rensa)]
