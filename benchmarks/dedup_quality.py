"""How well near duplicates are found: recall and false drops on planted mutations of real text, both presets.

    python benchmarks/dedup_quality.py --documents 400

Each text (prose, code, Chinese made of real characters; short and long) gets mutated copies: words replaced, deleted,
inserted, a stretch moved, an end cut. The truth is the Jaccard similarity of the sets of runs of five words, computed
in plain Python from words split by the table alone. Everything goes through the build's own stages.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/dedup_quality.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import read_code, read_machine_prose, take
from pipeline.dedup_stages import DedupSettings, dedup
from pipeline.drops import DropsTask, Ingest, run_drops
from pipeline.ingest import IngestSettings, IngestTask, TaskFile, run_ingest
from pipeline.local_jobs import Workers
from pipeline.progress import BuildLog, make_console
from pipeline.word_table import ALONE, SKIPPED, build_word_table
from pipeline.workshop import Ingested, Workshop

RATES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08)
Shingles = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class BenchmarkFlags:
    """Measure the recall and the false drops of near, beside slimpajama."""

    documents: int = 300
    """Texts of each kind to mutate."""
    json: Path | None = None
    """Where to write the figures."""


def main() -> None:
    """The command."""
    flags = tyro.cli(BenchmarkFlags)
    console, figures = make_console(), []
    for kind, texts in read_kinds(flags.documents).items():
        figures.append({"kind": kind, **measure(plant(texts, seed=1))})
    print_figures(console, figures)
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")


def read_kinds(num_texts: int) -> dict[str, list[str]]:
    """Real texts of each kind; code with one licence above all of it, too."""
    rng = np.random.default_rng(0)
    prose, code = (list(_first(texts, num_texts)) for texts in (read_machine_prose(), read_code()))
    licence = "# " + " ".join(take(iter(prose), num_bytes=1)[0].split()[:250]) + "\n"
    chinese = ["".join(map(chr, rng.zipf(1.3, rng.integers(30, 800)) % 3000 + 0x4E00)) for _ in range(num_texts)]
    short = [" ".join(text.split()[:40]) for text in prose]
    return {"prose": prose, "short": short, "code": code, "licence": [licence + text for text in code], "cjk": chinese}


def _first(texts: Iterator[str], count: int) -> Iterator[str]:
    for text, _ in zip((text for text in texts if 60 <= len(text.split()) <= 3000), range(count), strict=False):
        yield text


def plant(texts: list[str], *, seed: int) -> list[str]:
    """The texts, each followed by two mutations of it."""
    rng = np.random.default_rng(seed)
    return [one for text in texts for one in (text, mutate(text, rng), mutate(text, rng))]


def mutate(text: str, rng: np.random.Generator) -> str:
    """A text with some words replaced, deleted or inserted, or a stretch moved, or its end cut."""
    words = text.split(" ") if " " in text else list(text)
    joint = " " if " " in text else ""
    rate = rng.choice(RATES)
    kind = rng.integers(5)
    if kind == 3:
        start, length = rng.integers(len(words)), 1 + int(len(words) * rate * 2)
        moved = words[start : start + length]
        words = words[:start] + words[start + length :]
        place = rng.integers(len(words) + 1)
        return joint.join([*words[:place], *moved, *words[place:]])
    if kind == 4:
        return joint.join(words[: max(1, int(len(words) * (1 - 2 * rate)))])
    out: list[str] = []
    for word in words:
        is_hit = rng.random() < rate
        other = chr(0x3400 + int(rng.integers(4000))) if not joint else f"q{rng.integers(10**6)}"
        out += [other] if is_hit and kind == 0 else [] if is_hit and kind == 1 else [word]
        out += [other] if is_hit and kind == 2 else []
    return joint.join(out)


def split_words(text: str) -> list[str]:
    """Words by the table, character by character."""
    table, words, word = build_word_table(), [], ""
    for character in text:
        entry = int(table[min(ord(character), len(table) - 1)])
        if entry == SKIPPED:
            continue
        if entry == 0 or entry & ALONE:
            words, word = words + [word] if word else words, ""
        if entry & ALONE:
            words.append(character)
        elif entry:
            word += chr(entry)
    return words + [word] if word else words


def shingle(text: str) -> Shingles:
    """The set of runs of five words."""
    words = split_words(text)
    return frozenset(tuple(words[place : place + 5]) for place in range(len(words) - 4))


def jaccard(one: Shingles, other: Shingles) -> float:
    """The share of what either has that both have."""
    return len(one & other) / max(1, len(one | other))


def measure(texts: list[str]) -> dict[str, Any]:
    """Recall by similarity, and how many of the drops are how far from what stays for them."""
    sets = [shingle(text) for text in texts]
    near = {row: partner for row, (reason, partner) in find_drops(texts, "near").items() if partner is not None}
    pairs = [
        (first + a, first + b, jaccard(sets[first + a], sets[first + b]))
        for first in range(0, len(texts), 3)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    of_drops = [
        jaccard(sets[row], sets[partner]) if texts[row] != texts[partner] else 1.0 for row, partner in near.items()
    ]
    slim = find_drops(texts, "slimpajama")
    slim_gone = {row for row, (_, partner) in slim.items() if partner is not None}
    figures: dict[str, Any] = {"documents": len(texts), "near drops": len(near), "slimpajama drops": len(slim_gone)}
    for low, high in ((0.8, 0.85), (0.85, 0.9), (0.9, 1.01)):
        of_band = [(a, b) for a, b, similarity in pairs if low <= similarity < high]
        found = sum(a in near or b in near for a, b in of_band)
        figures[f"recall {low:g} to {min(high, 1):g}"] = found / len(of_band) if of_band else None
        figures[f"pairs {low:g} to {min(high, 1):g}"] = len(of_band)
    figures["drops below 0.7"] = sum(similarity < 0.7 for similarity in of_drops)
    figures["drops below 0.6"] = sum(similarity < 0.6 for similarity in of_drops)
    figures["drops below 0.8"] = sum(similarity < 0.8 for similarity in of_drops)
    figures["least"] = min(of_drops, default=1.0)
    figures["only near"], figures["only slimpajama"] = sorted(near.keys() - slim_gone), sorted(slim_gone - near.keys())
    return figures


def find_drops(texts: list[str], method: str) -> dict[int, tuple[str, int | None]]:
    """Row -> why it goes and the row that stays for it, by the stages of a build; rows that stay are left out."""
    with tempfile.TemporaryDirectory(prefix="tokenmill-benchmark-") as temporary:
        folder = Path(temporary)
        path = folder / "texts.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        settings = IngestSettings("text", None, (), 1, 0.0, 0, method, ())
        file = TaskFile(0, str(path), "train", None)
        task = IngestTask("texts", "texts", (file,), 1, settings, str(folder / "in"), "")
        ingested = Ingested(["texts"], ["texts"], [task], [run_ingest(task)])
        with Workers(1, notice=print) as workers:
            shop = Workshop(folder, workers, Console(quiet=True), BuildLog(folder / "log.jsonl"))
            done = dedup(ingested, settings=DedupSettings(method, 0.8, 1 << 30, 1), shop=shop)
        ingest = Ingest(task.folder, 0, ingested.stretches)
        names = {"source": "texts", "source_names": ("texts",), "table_name": "drops.parquet", "fingerprint": ""}
        drops = DropsTask(
            "drops",
            first_file=0,
            last_file=1,
            ingests=(ingest,),
            num_tokenizers=0,
            duplicates=done.duplicates,
            out=str(folder),
            **names,
        )
        if not run_drops(drops)["file"]:
            return {}
        rows = pq.read_table(folder / "drops.parquet").to_pylist()
    return {row["row"]: (row["reason"], row["partner_row"]) for row in rows}


def print_figures(console: Console, figures: list[dict[str, Any]]) -> None:
    """A column per kind of text; then where the presets disagree."""
    table = Table(title="near duplicates, planted")
    table.add_column("")
    for one in figures:
        table.add_column(one["kind"], justify="right")
    for name in figures[0]:
        if name != "kind":
            table.add_row(name, *(show(one[name]) for one in figures))
    console.print(table)
    for one in figures:
        for preset in ("only near", "only slimpajama"):
            console.print(f"{one['kind']}, {preset}: documents {', '.join(map(str, one[preset])) or 'none'}")


def show(value: Any) -> str:
    """A figure; of a list its length."""
    if value is None:
        return "-"
    return f"{len(value):,}" if isinstance(value, list) else f"{value:,.4g}"


if __name__ == "__main__":
    main()
