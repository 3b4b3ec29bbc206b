"""What other systems make of the same text, one core each: datatrove, dolma, and a script that goes by document.

    datatrove   its MinHash signatures and its tokenizer step, with their defaults (pip install datatrove[...])
    dolma       `dolma tokens`, from any environment that has the command: its pins and ours do not fit into one
    a script    json and the tokenizer's own library for each document, as TinyLlama's prepare_slimpajama.py does

Each is optional, imported when it is its turn, warmed up on other text, and timed without its start-up. A peer that is
not installed, or breaks, has a note in place of a figure. No peer is given a name that it could look up on a network.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.corpus import Corpus, read_lines
from benchmarks.hub_json import END_OF_TEXT, build_hub_json
from benchmarks.stopwatch import Speed, Stopwatch, one_after_the_other, speed_of
from pipeline.tokenizer import Tokenizer, load_tokenizer

PEER_BYTES = 20_000_000  # the peers are slow: a part is enough
PEER_SECONDS = 40
WARM_BYTES = 500_000
DATATROVE = "datatrove[processing,multilingual]"
ONE_CORE = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
NO_NETWORK = {"HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class PeerSpeed:
    """The speed of one peer, or why there is none."""

    name: str
    speed: Speed | None
    note: str = ""


class Portion:
    """The first texts of some files, as many as a peer reads in its time; counts the bytes handed out."""

    def __init__(self, *paths: Path, num_bytes: int = PEER_BYTES):
        self.paths, self.most_bytes, self.num_bytes = paths, num_bytes, 0

    def __iter__(self) -> Iterator[str]:
        deadline = time.perf_counter() + PEER_SECONDS
        for text in chain.from_iterable(map(read_lines, self.paths)):
            self.num_bytes += len(text.encode())
            yield text
            if self.num_bytes >= self.most_bytes or time.perf_counter() > deadline:
                return


def measure_signatures(corpus: Corpus, folder: Path) -> PeerSpeed:
    """datatrove's MinHash signatures: word 5-grams, 14 buckets of 8 hashes. No tokenizer has a part in it."""
    return attempt("datatrove MinHash", DATATROVE, lambda: time_signatures(corpus, folder / "signatures"))


def measure_peers(
    corpus: Corpus, tokenizer: Tokenizer, signatures: PeerSpeed, folder: Path, *, dolma: str | None
) -> list[PeerSpeed]:
    """The speeds of all peers with one tokenizer. dolma: the command, where it does not lie on the path."""
    tokenizer_json = folder / f"{tokenizer.name}-tokenizer.json"
    tokenizer_json.write_text(build_hub_json(tokenizer))
    library = {"sentencepiece": "sentencepiece", "tiktoken": "tiktoken"}.get(tokenizer.family, "tokenizers")
    tokens = attempt(
        "datatrove tokenizer", DATATROVE, lambda: time_tokens(corpus, tokenizer_json, folder / "datatrove")
    )
    return [
        attempt(f"{library}, per document", library, lambda: time_documents(corpus, tokenizer)),
        signatures,
        tokens,
        add_up("datatrove, both steps", signatures, tokens),
        attempt("dolma tokens", "dolma", lambda: time_dolma(corpus, tokenizer, tokenizer_json, folder, command=dolma)),
    ]


def attempt(name: str, package: str, measure: Callable[[], Speed]) -> PeerSpeed:
    """A peer's speed, or a note where it is not installed or fails: its faults must not cost us our own figures."""
    try:
        with environment(ONE_CORE | NO_NETWORK):
            return PeerSpeed(name, measure())
    except ImportError:
        return PeerSpeed(name, None, f"not installed (pip install {package})")
    except Exception as error:  # whatever another system raises
        return PeerSpeed(name, None, f"does not run here: {type(error).__name__}: {str(error).strip()[-200:]}")


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """These environment variables, for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def add_up(name: str, *steps: PeerSpeed) -> PeerSpeed:
    """The speed of steps that each read all of the text."""
    missing = [step for step in steps if step.speed is None]
    if missing:
        return PeerSpeed(name, None, missing[0].note)
    return PeerSpeed(name, one_after_the_other(*(step.speed for step in steps)))


def time_run(run: Callable[[Portion], object], corpus: Corpus) -> Speed:
    """The speed of `run` over a portion of the corpus, after a small one of other text."""
    run(Portion(corpus.warm, num_bytes=WARM_BYTES))
    portion = Portion(*corpus.parts)
    watch = Stopwatch()
    run(portion)
    return watch.speed(portion.num_bytes)


def time_documents(corpus: Corpus, tokenizer: Tokenizer) -> Speed:
    """The speed of the tokenizer's own library, document by document."""
    reference = load_tokenizer(tokenizer.path, engine="reference", sha256=tokenizer.sha256)
    return time_run(lambda texts: [len(reference.encode(text)) for text in texts], corpus)


def time_signatures(corpus: Corpus, folder: Path) -> Speed:
    """The speed of datatrove's first deduplication step."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

    step = MinhashDedupSignature(str(folder))
    return time_run(lambda texts: step.run(as_datatrove(texts)), corpus)


def time_tokens(corpus: Corpus, tokenizer_json: Path, folder: Path) -> Speed:
    """The speed of datatrove's tokenizer step, which shuffles and writes the documents of one task."""
    from datatrove.pipeline.tokens import DocumentTokenizer

    step = DocumentTokenizer(str(folder), str(tokenizer_json), eos_token=read_eos(tokenizer_json), seed=0)
    return time_run(lambda texts: step.run(as_datatrove(texts)), corpus)


def as_datatrove(texts: Portion) -> Iterator[Any]:
    """The texts as datatrove's documents; its log is switched off."""
    from datatrove.data import Document
    from loguru import logger

    logger.disable("datatrove")
    for number, text in enumerate(texts):
        yield Document(text=text, id=str(number))


def time_dolma(
    corpus: Corpus, tokenizer: Tokenizer, tokenizer_json: Path, folder: Path, *, command: str | None
) -> Speed:
    """The speed of `dolma tokens`. Its start-up, measured on the smallest portion, is taken off."""
    command = command or shutil.which("dolma", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if command is None:
        raise ImportError("dolma")
    documents = folder / "dolma.json.gz"
    taken, num_bytes = [], 0
    for portion in (Portion(corpus.warm, num_bytes=1), Portion(*corpus.parts)):
        num_bytes = write_dolma(portion, documents) - num_bytes
        watch = Stopwatch()
        run_dolma(command, documents, tokenizer, tokenizer_json, folder / "dolma")
        taken.append(watch.read())
    return speed_of(num_bytes, tuple(long - short for short, long in zip(*taken, strict=True)))


def write_dolma(texts: Portion, path: Path) -> int:
    """A portion as dolma's documents; returns the bytes of text."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return texts.num_bytes


def run_dolma(command: str, documents: Path, tokenizer: Tokenizer, tokenizer_json: Path, destination: Path) -> None:
    """Run the command. Raises RuntimeError where it fails or writes no tokens."""
    punkt = destination / "nltk" / "tokenizers" / "punkt"  # it fetches what it finds no folder of, needed or not
    punkt.mkdir(parents=True, exist_ok=True)
    options = {
        "documents": documents,
        "destination": destination / "tokens",
        "tokenizer.name_or_path": tokenizer_json,
        "tokenizer.eos_token_id": tokenizer.eos_id,
        "tokenizer.pad_token_id": tokenizer.eos_id,
        "dtype": "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32",
        "processes": 1,
    }
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    variables = {**os.environ, "NLTK_DATA": str(punkt.parent.parent)}
    result = subprocess.run([command, "tokens", *arguments], env=variables, capture_output=True, text=True)
    shutil.rmtree(destination / "tokens", ignore_errors=True)
    if result.returncode or "Traceback" in result.stderr:  # it goes on after a file that it could not read
        raise RuntimeError(result.stderr)


def read_eos(tokenizer_json: Path) -> str:
    """The text of the token that ends a document."""
    vocabulary = json.loads(tokenizer_json.read_text())["model"]["vocab"]
    return next(text for text in (END_OF_TEXT, "</s>") if text in vocabulary)
