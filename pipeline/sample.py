"""A sample: raw files of the sources in a mix, made of real text that this computer's Python carries.

    python pipeline/sample.py --megabytes 20 --mix slimpajama:0.7,starcoder:0.3 --folder data/sample

It lets a build run with no corpus and no network. No text is ever repeated to reach the size; where there is less,
less is written and the report says how much there was. The same request on the same installation gives the same bytes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python pipeline/sample.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.flags import read_flags
from pipeline.manifest import check_source_name
from pipeline.mix import parse_mix
from pipeline.sample_files import Row, add_markers, lay_out, write_rows
from pipeline.sample_record import begin, check_nothing_else, clear, finish, is_intact, is_sample, read_record
from pipeline.sample_text import Installation, Reader, Text, list_places, this_installation

CODE_SHARES = {"starcoder": 1.0, "slimpajama": 0.05, "redpajama": 0.05}  # 5 % of SlimPajama's tokens are GitHub's
FULL = 0.99  # of what a source wants; then no shorter text is looked for
MISSES_ALLOWED = 200  # texts in all that do not fit; then too


@dataclass(frozen=True)
class SourceSample:
    """What was written for one source. Bytes are UTF-8 bytes of text; file_bytes is what its files take."""

    name: str
    share: float
    wanted_bytes: int
    text_bytes: int
    num_documents: int
    num_files: int
    file_bytes: int


@dataclass(frozen=True)
class SampleReport:
    """What a sample holds. prose_bytes and code_bytes: all that the installation has, where all of it was read."""

    folder: Path
    megabytes: float
    sources: tuple[SourceSample, ...]
    prose_bytes: int | None
    code_bytes: int | None
    num_unreadable: int
    was_reused: bool

    def lines(self) -> list[str]:
        """The report for a person, one source a line."""
        verb = "reused" if self.was_reused else "made"
        lines = [f"sample  {verb} in {self.folder}: text of this computer's Python, not the real corpora"]
        for source in self.sources:
            lines.append(
                f"sample  {source.name}  {source.text_bytes / 1e6:.2f} of {source.wanted_bytes / 1e6:.2f} MB of text  "
                f"{source.num_documents:,} documents  {source.num_files} files"
            )
        for kind, num_bytes in (("prose", self.prose_bytes), ("code", self.code_bytes)):
            if num_bytes is not None:
                lines.append(f"sample  all there was: this installation holds {num_bytes / 1e6:.2f} MB of {kind}")
        if self.num_unreadable:
            lines.append(f"sample  {self.num_unreadable} files left out: not UTF-8, or not readable")
        return lines


@dataclass
class Dealt:
    """Texts given to sources, and how many bytes there were in all if every text was looked at."""

    texts: dict[str, list[Text]]
    filled: dict[str, int]
    total_bytes: int | None


def make_sample(
    folder: Path,
    *,
    megabytes: float,
    sources: tuple[tuple[str, float | Fraction], ...],
    installation: Installation | None = None,
) -> SampleReport:
    """Write raw files under folder/<source>/ for each (source, share), about `megabytes` MB of text in all.

    A folder that holds the same sample is left as it is; one with another sample has it replaced. Raises ValueError for
    a folder that holds anything else, for a size or share that is none, and where not one text fits a source.
    """
    check_request(megabytes, sources)
    record = read_record(folder)
    check_nothing_else(folder, record)
    request = {"megabytes": float(megabytes), "shares": [[name, float(share)] for name, share in sources]}
    if (finished := is_sample(folder)) and finished["request"] == request and is_intact(folder, finished):
        return report_of(folder, finished, was_reused=True)

    wanted = share_out(round(megabytes * 1e6), sources)
    *dealt, num_unreadable = gather(wanted, installation or this_installation())
    files = {
        f"{name}/{path}": rows
        for name in wanted
        for path, rows in lay_out(name, in_order(text for of_kind in dealt for text in of_kind.texts[name])).items()
    }
    for name in wanted:
        if not any(path.startswith(f"{name}/") for path in files):
            raise ValueError(f"a sample of {megabytes:g} MB is too small: not one text fits {name}")

    clear(folder, record)
    sizes = write_files(folder, files)
    prose, code = dealt
    content = {
        "request": request,
        "sources": [
            asdict(describe_source(name, float(share), wanted_bytes=wanted[name], dealt=dealt, sizes=sizes))
            for name, share in sources
        ],
        "prose_bytes": prose.total_bytes,
        "code_bytes": code.total_bytes,
        "num_unreadable": num_unreadable,
        "files": [{"path": path, "size_bytes": size_bytes} for path, size_bytes in sizes.items()],
    }
    finish(folder, content)
    return report_of(folder, content, was_reused=False)


def write_files(folder: Path, files: dict[str, list[Row]]) -> dict[str, int]:
    """Write the raw files and return the size of each; until `finish`, the folder says that they are unfinished."""
    begin(folder, files)
    for path, rows in files.items():
        write_rows(folder / path, rows)
    return {path: (folder / path).stat().st_size for path in files}


def check_request(megabytes: float, sources: tuple[tuple[str, float | Fraction], ...]) -> None:
    """Raises ValueError where the size or a share is not a positive number, or a source is there twice."""
    if not (math.isfinite(megabytes) and megabytes > 0):
        raise ValueError(f"the size of a sample is a positive number of MB, not {megabytes}")
    for name, share in sources:
        check_source_name(name)
        if not (math.isfinite(share) and share > 0):
            raise ValueError(f"{name}: the share of a sample is a positive number, not {share}")
    if len({name for name, _ in sources}) != len(sources) or not sources:
        raise ValueError(f"a sample has one share for each source: {sources}")


def share_out(num_bytes: int, sources: tuple[tuple[str, float | Fraction], ...]) -> dict[str, int]:
    """The bytes of text that each source should have; in all at most `num_bytes`."""
    shares = {name: Fraction(share).limit_denominator(10**9) for name, share in sources}  # 0.3 the float is just below
    return {name: int(num_bytes * share / sum(shares.values())) for name, share in shares.items()}


def gather(wanted: dict[str, int], installation: Installation) -> tuple[Dealt, Dealt, int]:
    """Prose and code for the sources, no text twice, and how many files could not be read."""
    prose_places, code_places = list_places(installation)
    reader = Reader()
    wanted_code = {name: round(wanted[name] * CODE_SHARES.get(name, 0.0)) for name in wanted}
    wanted_prose = {name: wanted[name] - wanted_code[name] for name in wanted}
    prose = deal(reader.read_all(prose_places), wanted_prose)
    code = deal(reader.read_all(code_places), wanted_code)
    return prose, code, len(reader.unreadable)


def deal(texts: Iterable[Text], wanted: dict[str, int]) -> Dealt:
    """Give each text to the source that has the smallest part of what it wants, and in whose want it fits.

    So where there is too little, every source lacks the same part. Stops when all are full.
    """
    given: dict[str, list[Text]] = {name: [] for name in wanted}
    filled = dict.fromkeys(wanted, 0)
    misses = dict.fromkeys(wanted, 0)
    total_bytes = 0
    for text in texts:
        hungry = [name for name in wanted if filled[name] < FULL * wanted[name] and misses[name] < MISSES_ALLOWED]
        if not hungry:
            return Dealt(given, filled, total_bytes=None)
        total_bytes += len(text.text.encode())
        sizes = {name: size_in(name, text) for name in hungry}
        fitting = [name for name in hungry if filled[name] + sizes[name] <= wanted[name]]
        for name in set(hungry) - set(fitting):
            misses[name] += 1
        if fitting:
            chosen = min(fitting, key=lambda name: Fraction(filled[name], wanted[name]))
            given[chosen].append(text)
            filled[chosen] += sizes[chosen]
    return Dealt(given, filled, total_bytes)


def size_in(source: str, text: Text) -> int:
    """The bytes of a text as the source would hold it."""
    return len((add_markers(text) if source == "starcoder" else text.text).encode())


def in_order(texts: Iterable[Text]) -> list[Text]:
    """The texts as they stand in the files: in hash order, prose and code among each other."""
    return sorted(texts, key=lambda text: text.place.order)


def describe_source(
    name: str, share: float, *, wanted_bytes: int, dealt: list[Dealt], sizes: dict[str, int]
) -> SourceSample:
    """What was written for the source `name`."""
    own = [size for path, size in sizes.items() if path.startswith(f"{name}/")]
    return SourceSample(
        name=name,
        share=share,
        wanted_bytes=wanted_bytes,
        text_bytes=sum(of_kind.filled[name] for of_kind in dealt),
        num_documents=sum(len(of_kind.texts[name]) for of_kind in dealt),
        num_files=len(own),
        file_bytes=sum(own),
    )


def report_of(folder: Path, record: dict[str, Any], *, was_reused: bool) -> SampleReport:
    """The report of a finished sample."""
    return SampleReport(
        folder=folder,
        megabytes=record["request"]["megabytes"],
        sources=tuple(SourceSample(**source) for source in record["sources"]),
        prose_bytes=record["prose_bytes"],
        code_bytes=record["code_bytes"],
        num_unreadable=record["num_unreadable"],
        was_reused=was_reused,
    )


@dataclass(frozen=True)
class SampleArguments:
    """Write a sample of raw files, made of real text that this computer's Python carries."""

    megabytes: float = 20.0
    """MB of text (1,000,000 bytes) in all; less where the installation holds less."""
    mix: str = "slimpajama:0.7,starcoder:0.3"
    """Sources and their shares, or a named mix."""
    folder: Path = Path("data/sample")
    """Where to write; a folder of its own."""


def main() -> None:
    """The command: one line and a non-zero exit code for what the user can mend."""
    arguments = read_flags(SampleArguments)
    try:
        entries = [entry for entry in parse_mix(arguments.mix).entries if entry.exact_weight]
        shares = tuple((entry.source, entry.exact_weight) for entry in entries)
        report = make_sample(arguments.folder, megabytes=arguments.megabytes, sources=shares)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
