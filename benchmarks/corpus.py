"""The text that benchmarks read: real, nothing in it twice, as the zstd JSON lines that SlimPajama's files are.

Code is what this Python installation carries. So is prose, and where that is not enough, the manual pages and package
documentation of the machine; or the files given. Knows no tokenizer and measures nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import zstandard

from pipeline.sample_text import LONGEST_TEXT_BYTES, SHORTEST_PROSE, Reader, list_places, this_installation

NUM_PARTS = 8  # of 100 MB: each is as much as the smallest task of a build reads (ingest_plan.py)
WARM_SHARE = 0.08  # of the text is kept out of the parts: every system reads it before it is timed
MANUALS, DOCUMENTATION = Path("/usr/share/man"), Path("/usr/share/doc")
ENGLISH_MANUALS = re.compile(r"man\d\w*")  # other languages lie in folders such as de/man1
DOCUMENT_NAMES = re.compile(r"(?:copyright|readme.*|news.*|.*changelog.*|changes.*|.*\.(?:md|rst|txt))(?:\.gz)?", re.I)
HISTORY_NAMES = re.compile(r".*change.*|news.*", re.I)
BREAK = re.compile(r"\n[ \t]*\n")
ROFF_HEADINGS = re.compile(r"^\.(?:SH|SS|B|I|BR|IR|RB|RI|Nm|Sh|It) +", re.MULTILINE)
ROFF_BREAKS = re.compile(r"^\.(?:PP|P|LP|Pp|sp|TP|IP|RS|RE)\b.*$", re.MULTILINE)
ROFF_REQUESTS = re.compile(r"^[.'].*\n?", re.MULTILINE)
ROFF_ESCAPES = re.compile(r"\\(?:f(?:\[\w*\]|\(..|.)|s[-+]?\d|[&|/^])")


@dataclass(frozen=True)
class Corpus:
    """Text of one kind on disk. num_bytes: of text in `parts`, which hold random texts, as many bytes each."""

    kind: str
    warm: Path
    parts: tuple[Path, ...]
    num_bytes: int


def read_prose(files: Iterable[Path]) -> Iterator[str]:
    """Prose without a paragraph in it twice: of these files, cut where two lines are blank; or of this machine."""
    texts = (text for file in files for text in file.read_text(encoding="utf-8").split("\n\n\n"))
    return leave_out_repeated(texts if files else read_machine_prose())


def read_code() -> Iterator[str]:
    """The source files of this Python installation, none of them twice."""
    return (text.text for text in Reader().read_all(list_places(this_installation())[1]))


def read_machine_prose() -> Iterator[str]:
    """The prose of this installation, then of manual pages and documentation; lists of changes come last."""
    yield from (text.text for text in Reader().read_all(list_places(this_installation())[0]))
    manuals = [path for path in list_files(MANUALS) if ENGLISH_MANUALS.fullmatch(path.parent.name)]
    documents = [path for path in list_files(DOCUMENTATION) if DOCUMENT_NAMES.fullmatch(path.name)]
    history = [path for path in documents if HISTORY_NAMES.fullmatch(path.name)]
    for path in [*manuals, *sorted(set(documents) - set(history)), *history]:
        text = read_text(path)
        if len(text) >= SHORTEST_PROSE:
            yield strip_roff(text) if MANUALS in path.parents else text


def list_files(folder: Path) -> list[Path]:
    """The regular files below a folder, ordered by a hash of their paths."""
    paths = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return sorted((path for path in paths if not path.is_symlink()), key=lambda path: hash_text(str(path)))


def read_text(path: Path) -> str:
    """A text file's text, unpacked; empty where it is no UTF-8 text."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if "\0" in text else text


def strip_roff(text: str) -> str:
    """What a manual page says, without the requests and escapes of its markup."""
    text = ROFF_REQUESTS.sub("", ROFF_BREAKS.sub("", ROFF_HEADINGS.sub("", text)))
    text = ROFF_ESCAPES.sub("", text)
    return text.replace("\\-", "-").replace("\\(aq", "'").replace("\\ ", " ")


def leave_out_repeated(texts: Iterable[str]) -> Iterator[str]:
    """The texts without the paragraphs that stood in one before, whatever their white space; short rests are left out.

    Documentation repeats itself: a licence, the options that all commands of a family share.
    """
    seen: set[bytes] = set()
    for text in texts:
        paragraphs = {hash_text(" ".join(paragraph.split())): paragraph for paragraph in BREAK.split(text)}
        rest = "\n\n".join(paragraph for digest, paragraph in paragraphs.items() if digest not in seen)
        seen.update(paragraphs)
        if len(rest) >= SHORTEST_PROSE:
            yield rest


def hash_text(text: str) -> bytes:
    """A digest to tell texts apart and to order them by."""
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


def write_corpus(kind: str, texts: Iterator[str], folder: Path, *, num_bytes: int) -> Corpus:
    """`num_bytes` of text or a little more, or what there is, in parts, and other text to warm up with.

    Raises ValueError where there is too little for that.
    """
    folder.mkdir()
    warm_bytes_left = num_bytes * WARM_SHARE
    # The last of the warm texts may be long: the parts should still have all of `num_bytes`.
    wanted = num_bytes + warm_bytes_left + min(num_bytes // 10, LONGEST_TEXT_BYTES)
    chosen = sorted(take(texts, num_bytes=wanted), key=hash_text)
    warm, parts = folder / "warm.jsonl.zst", tuple(folder / f"part-{number}.jsonl.zst" for number in range(NUM_PARTS))
    sizes = [0] * NUM_PARTS
    with ExitStack() as stack:
        write_warm, *write_part = (open_lines(path, stack) for path in (warm, *parts))
        for text in chosen:
            size = len(text.encode())
            if warm_bytes_left > 0:
                write_warm(text)
                warm_bytes_left -= size
            else:
                shortest = sizes.index(min(sizes))
                write_part[shortest](text)
                sizes[shortest] += size
    if not any(sizes):
        raise ValueError(f"{kind}: {len(chosen):,} texts are too few to measure with; give more with --corpus")
    return Corpus(kind, warm, parts, sum(sizes))


def take(texts: Iterator[str], *, num_bytes: float) -> list[str]:
    """The first texts that together have `num_bytes`."""
    taken = []
    for text in texts:
        taken.append(text)
        num_bytes -= len(text.encode())
        if num_bytes <= 0:
            break
    return taken


def open_lines(path: Path, stack: ExitStack) -> Callable[[str], object]:
    """What writes one text as a line of a new zstd file. Level 3, as SlimPajama."""
    file = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(path.open("wb")))
    return lambda text: file.write(json.dumps({"text": text}).encode() + b"\n")


def read_lines(path: Path) -> Iterator[str]:
    """The texts of a part, by zstandard and json, document by document."""
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield json.loads(line)["text"]
