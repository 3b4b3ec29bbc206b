"""How fast text becomes SentencePiece ids and ids become text: our kernel beside gigatoken and sentencepiece, one core.

    python benchmarks/encode.py
    python benchmarks/encode.py --megabytes 20 --tokenizer llama2 --corpus my/prose/*.txt --json figures.json

Text is real: prose and code as in ingest.py, other languages from this machine's message catalogues; and prose with
emoji strewn in. "Cold" is the first pass of a new engine over all of it, "warm" the best of the passes after that, in
batches as ingest makes them. sentencepiece reads a part. Ids are compared. All by CPU time, all in one run.
"""

from __future__ import annotations

import gettext
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/encode.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import tyro
from rich.table import Table

from benchmarks.corpus import list_files, read_code, read_prose, take
from benchmarks.hub_json import build_hub_json
from pipeline.progress import make_console
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokenizer_engines import FastEngine

BATCH_BYTES = 1 << 20
WARM_PASSES, WARM_SECONDS = 3, 0.5  # at least, both
REFERENCE_BYTES = 1_000_000
DOCUMENT_CHARACTERS = 2_000
CATALOGUES = Path("/usr/share/locale")
LANGUAGES = {
    "Latin": ("de", "fr", "es", "pl", "tr", "vi"),
    "Cyrillic": ("ru", "uk", "bg", "sr"),
    "CJK": ("zh_CN", "zh_TW", "ja", "ko"),
    "Arabic": ("ar", "fa", "he"),
}
EMOJI = (
    "\U0001f600",
    "\U0001f44d\U0001f3fd",
    "\u2764\ufe0f",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea",
)
Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class EncodeFlags:
    """Measure our SentencePiece kernel beside gigatoken and sentencepiece."""

    tokenizer: str = "llama2"
    """Name or path."""
    megabytes: float = 50
    """MB of text of each kind, at most."""
    kinds: tuple[str, ...] = ()
    """Which kinds of text, such as prose and code; all where none is named."""
    corpus: tuple[Path, ...] = ()
    """Text files to take the prose from, instead of this machine's."""
    json: Path | None = None
    """Where to write the figures."""


@dataclass(frozen=True)
class Figures:
    """MB/s of one kind of text, by CPU time, and where our time went."""

    kind: str
    text_bytes: int
    bytes_per_id: float
    cold: float
    warm: float
    gigatoken_cold: float
    gigatoken_warm: float
    sentencepiece: float
    cutting_share: float  # of our warm time; the rest looks chunks up, and joins those that are not found
    first_sight_share: float  # of our cold time: what it took more than warm
    decode: float
    sentencepiece_decode: float


def main() -> None:
    """The command. Exits with 1 where ids differ."""
    flags = tyro.cli(EncodeFlags)
    console = make_console()
    tokenizer = load_tokenizer(flags.tokenizer, notice=console.print)
    if not tokenizer.can_frame:
        raise SystemExit(f"{tokenizer.path}: not served by our kernel; take a SentencePiece BPE model")
    figures = []
    for kind, texts in list_kinds(flags.corpus):
        if kind not in (flags.kinds or kind):
            continue
        chosen = take(texts, num_bytes=flags.megabytes * 1e6)
        if sum(map(len, chosen)) < 100_000:
            console.print(f"{kind}: too little text on this machine; left out")
            continue
        figures.append(measure(kind, make_batches(chosen), tokenizer))
        console.print(f"{kind}: {figures[-1].text_bytes / 1e6:.0f} MB, the ids of all engines equal")
    console.print(tabulate(figures))
    if flags.json:
        flags.json.write_text(json.dumps([asdict(each) for each in figures], indent=1) + "\n")


def list_kinds(corpus: tuple[Path, ...]) -> Iterator[tuple[str, Iterator[str]]]:
    """Each kind of text, and its documents."""
    yield "prose", read_prose(corpus)
    yield "code", read_code()
    for name, languages in LANGUAGES.items():
        yield name, read_catalogues(languages)
    yield "emoji", strew_emoji(read_prose(corpus))


def read_catalogues(languages: tuple[str, ...]) -> Iterator[str]:
    """The translations in this machine's message catalogues, none twice, in documents of some length."""
    seen: set[str] = set()
    for path in list_files(CATALOGUES):
        if path.suffix != ".mo" or path.relative_to(CATALOGUES).parts[0] not in languages:
            continue
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog
        except (OSError, UnicodeDecodeError):  # a broken one; there are others
            continue
        messages = {text for text in catalogue.values() if isinstance(text, str)} - seen
        seen |= messages
        joined = "\n".join(sorted(messages))
        for start in range(0, len(joined), DOCUMENT_CHARACTERS):
            yield joined[start : start + DOCUMENT_CHARACTERS]


def strew_emoji(texts: Iterator[str]) -> Iterator[str]:
    """The texts with an emoji after one word in twelve."""
    chance = random.Random(0)
    for text in texts:
        words = (f"{word} {chance.choice(EMOJI)}" if chance.random() < 1 / 12 else word for word in text.split(" "))
        yield " ".join(words)


def make_batches(texts: list[str]) -> list[Batch]:
    """Documents in flat buffers of BATCH_BYTES or a little more, in an order of chance, as ingest makes them."""
    random.Random(0).shuffle(texts)
    batches, waiting, size = [], [], 0
    for text in texts:
        waiting.append(text.encode())
        size += len(waiting[-1])
        if size >= BATCH_BYTES:
            batches.append(join(waiting))
            waiting, size = [], 0
    return [*batches, join(waiting)] if waiting else batches


def join(texts: list[bytes]) -> Batch:
    """Texts as one batch."""
    return np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)


def measure(kind: str, batches: list[Batch], tokenizer: Tokenizer) -> Figures:
    """All figures of one kind of text. Raises ValueError where ids differ."""
    import gigatoken

    num_bytes = sum(len(data) for data, _ in batches)
    engine = load_tokenizer(tokenizer.path)._engine  # a new one: it has seen the probe's texts only
    hub_json = build_hub_json(tokenizer)
    gigatoken_engine = FastEngine(lambda: gigatoken.Tokenizer.from_json(hub_json), routed_to=None)
    ours, theirs = [], []
    cold = time_passes(engine.encode_documents, batches, 1, keep=ours)
    gigatoken_cold = time_passes(gigatoken_engine.encode_documents, batches, 1, keep=theirs)
    compare(kind, ours, theirs)
    few = take_batches(batches)
    reference = [tokenizer._reference.encode_documents(*batch) for batch in few]
    compare(kind, ours[: len(few)], reference)
    warm = time_passes(engine.encode_documents, batches, WARM_PASSES)
    few_bytes = sum(len(data) for data, _ in few)
    decoding = [(ids.astype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32), at) for ids, at in ours]
    return Figures(
        kind=kind,
        text_bytes=num_bytes,
        bytes_per_id=num_bytes / sum(len(ids) for ids, _ in ours),
        cold=num_bytes / 1e6 / cold,
        warm=num_bytes / 1e6 / warm,
        gigatoken_cold=num_bytes / 1e6 / gigatoken_cold,
        gigatoken_warm=num_bytes / 1e6 / time_passes(gigatoken_engine.encode_documents, batches, WARM_PASSES),
        sentencepiece=few_bytes / 1e6 / time_passes(tokenizer._reference.encode_documents, few, 1),
        cutting_share=time_passes(lambda *batch: mark(engine, *batch), batches, WARM_PASSES) / warm,
        first_sight_share=1 - warm / cold,
        decode=num_bytes / 1e6 / time_passes(engine.decode_documents, decoding, WARM_PASSES),
        sentencepiece_decode=few_bytes / 1e6 / time_reference_decode(tokenizer, ours[: len(few)]),
    )


def time_passes(
    run: Callable[..., Any], batches: list[Batch], num_passes: int, *, keep: list[Batch] | None = None
) -> float:
    """CPU seconds of the best of some passes, or of more where they are short. keep: where the results of one go."""
    seconds = []
    while len(seconds) < num_passes or (num_passes > 1 and sum(seconds) < WARM_SECONDS):
        started = time.process_time()
        for batch in batches:
            result = run(*batch)
            if keep is not None:
                keep.append(result)
        seconds.append(time.process_time() - started)
    return min(seconds)


def take_batches(batches: list[Batch]) -> list[Batch]:
    """Batches of REFERENCE_BYTES or a little more."""
    return batches[: 1 + int(np.searchsorted(np.cumsum([len(data) for data, _ in batches]), REFERENCE_BYTES))]


def mark(engine: Any, data: np.ndarray, offsets: np.ndarray) -> None:  # noqa: ANN401
    """Find the cuts of a batch, and nothing more."""
    data, offsets = data[:], offsets[:]
    data.flags.writeable = offsets.flags.writeable = False
    engine.mark_cuts(data, offsets)


def time_reference_decode(tokenizer: Tokenizer, encoded: list[Batch]) -> float:
    """CPU seconds that sentencepiece itself takes to decode some documents, one at a time."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    documents = [ids[start:end].tolist() for ids, at in encoded for start, end in zip(at[:-1], at[1:], strict=True)]
    started = time.process_time()
    for document in documents:
        processor.decode(document)
    return time.process_time() - started


def compare(kind: str, ours: list[Batch], theirs: list[Batch]) -> None:
    """Raises ValueError where ids or offsets differ."""
    for number, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        if not all(map(np.array_equal, our, their)):
            raise ValueError(f"{kind}: the ids of batch {number} differ")


def tabulate(figures: list[Figures]) -> Table:
    """Speeds, and how many times a peer's speed ours is."""
    table = Table(title="MB of text per second of CPU time, one core", caption="x: times the peer's speed")
    names = (
        "text",
        "MB",
        "bytes/id",
        "cold",
        "warm",
        "gigatoken cold",
        "warm",
        "sentencepiece",
        "cuts",
        "joins",
        "decode",
        "x",
    )
    for name in names:
        table.add_column(name, justify="left" if name == "text" else "right")
    for each in figures:
        table.add_row(
            each.kind,
            f"{each.text_bytes / 1e6:.1f}",
            f"{each.bytes_per_id:.2f}",
            f"{each.cold:.0f}",
            f"{each.warm:.0f}",
            f"{each.gigatoken_cold:.1f} ({each.cold / each.gigatoken_cold:.1f}x)",
            f"{each.gigatoken_warm:.1f} ({each.warm / each.gigatoken_warm:.1f}x)",
            f"{each.sentencepiece:.2f} ({each.warm / each.sentencepiece:.0f}x)",
            f"{each.cutting_share:.0%} of warm",
            f"{each.first_sight_share:.0%} of cold",
            f"{each.decode:.0f}",
            f"{each.decode / each.sentencepiece_decode:.0f}x",
        )
    return table


if __name__ == "__main__":
    main()
