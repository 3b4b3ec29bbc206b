"""Check every claim of a dataset.json again, from the bytes on disk.

    python pipeline/verify.py data/packed
    python pipeline/verify.py data/packed --raw data/raw --fraction 0.01

With --raw the raw files are read once more and their documents encoded with the reference engine, id for id. Exit
code 0 where all is as claimed, else 1 with a line for each thing that is wrong, and where. A later check relies on the
earlier ones, so it waits until they find nothing. Of a dataset that was imported or interleaved the files alone are
checked: it says nothing of raw files.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):  # started as `python pipeline/verify.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.contamination import keep_spans
from pipeline.flags import read_flags
from pipeline.shard import SPLITS, read_dataset_json
from pipeline.verify_adopted import verify_adopted
from pipeline.verify_claims import verify_claims, verify_shape
from pipeline.verify_copies import verify_copies
from pipeline.verify_drops import verify_drops
from pipeline.verify_held import open_reachable, verify_partners_elsewhere, verify_signatures
from pipeline.verify_near import verify_near
from pipeline.verify_raw import verify_raw_files
from pipeline.verify_rows import open_rows, verify_rows
from pipeline.verify_shard import verify_split
from pipeline.verify_source import claimed_sources, held_sources

MOST_PROBLEMS = 200  # shown: a seed that is wrong is wrong for every document

Notice = Callable[[str], object]


@dataclass(frozen=True)
class VerifyArguments:
    """Check every claim of a dataset.json again, from the bytes on disk. Exit code 1 where one is wrong."""

    dataset: Annotated[Path, tyro.conf.Positional]
    """The dataset's folder."""
    raw: Path | None = None
    """Folder with the raw files that it was built from: their documents are encoded again and compared."""
    fraction: float | None = None
    """Share of the documents to encode again, chosen by --seed. Default: all. Needs --raw."""
    seed: int = 0
    """Which documents a --fraction takes."""
    against: str | None = None
    """Where the datasets are that it was built against, with commas between them: what went for their documents is
    looked up there, and with --raw compared."""
    decontaminate: tuple[Path, ...] = ()
    """The evaluation files that the build was given: their spans are looked for again. Needs --raw."""


def main() -> None:
    """The command."""
    arguments = read_flags(VerifyArguments)
    num_problems = 0
    try:
        check_arguments(arguments)
        content = read_dataset_json(arguments.dataset)
        refuse_raw_files_of_adopted(arguments, content)
        refuse_wrong_folder(arguments.raw, content)
        for problem in itertools.islice(find_problems(arguments, content), MOST_PROBLEMS):
            print(f"WRONG  {problem}", flush=True)
            num_problems += 1
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if num_problems:
        stopped = ", and it stopped there" if num_problems == MOST_PROBLEMS else ""
        sys.exit(f"{arguments.dataset}: {num_problems:,} things are wrong{stopped}")
    print(summarise(arguments, content))


def check_arguments(arguments: VerifyArguments) -> None:
    """Raise ValueError for a --fraction that makes no sense."""
    fraction = arguments.fraction
    if fraction is not None and not 0 <= fraction <= 1:
        raise ValueError(f"--fraction must be from 0 to 1, found {fraction}")
    if fraction is not None and arguments.raw is None:
        raise ValueError("--fraction is a share of the documents to encode again: give --raw, their raw files' folder")
    if arguments.decontaminate and arguments.raw is None:
        raise ValueError("--decontaminate: spans are looked for in the raw files: give --raw, their folder")


def refuse_wrong_folder(raw: Path | None, content: Mapping[str, Any]) -> None:
    """Raise ValueError where the folder of --raw holds none of the sources: it is another one that was meant."""
    names = list(content["sources"]) if isinstance(content["sources"], dict) else []  # its shape is checked later
    if raw is not None and names and not any((raw / name).is_dir() for name in names):
        what = "has no folder" if raw.is_dir() else "is no folder with a folder"
        raise ValueError(f"--raw {raw} {what} {' or '.join(names)}: name the one that holds a folder of each source")


def refuse_raw_files_of_adopted(arguments: VerifyArguments, content: Mapping[str, Any]) -> None:
    """Raise ValueError where raw files are given for a dataset that was not built from any."""
    given = [f"--{name}" for name in ("raw", "against", "decontaminate") if getattr(arguments, name)]
    if "made_by" in content and given:
        raise ValueError(
            f"{arguments.dataset} was not built from raw files (made_by {content['made_by']}): leave {given[0]} out"
        )


def find_problems(arguments: VerifyArguments, content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, one text each, with the raw files only where the dataset itself is all right."""
    if "made_by" in content:
        yield from verify_adopted(arguments.dataset, content)
        return
    held, num_problems = open_reachable(arguments.against, content), 0
    for problem in verify_dataset(arguments.dataset, content, notice=print_notice):
        num_problems += 1
        yield problem
    if num_problems:
        return
    for label in sorted(content.get("against", {}).keys() - held.keys()):
        print_notice(f"what went for documents of the dataset {label} is not looked up: --against says where that is")
    yield from verify_partners_elsewhere(arguments.dataset, content, held)
    if arguments.raw is not None:
        fraction = 1.0 if arguments.fraction is None else arguments.fraction
        how = {"raw": arguments.raw, "fraction": fraction, "seed": arguments.seed}
        with tempfile.TemporaryDirectory(prefix="tokenmill-verify-") as temporary:
            spans = open_spans(arguments, content, Path(temporary))
            yield from verify_raw_files(arguments.dataset, content, **how, contamination=spans, notice=print_notice)
        if content["settings"]["dedup"] == "near":
            yield from verify_near(arguments.dataset, content, **how, held=held)


def open_spans(arguments: VerifyArguments, content: Mapping[str, Any], folder: Path) -> str | None:
    """The spans of the evaluation files, made again in `folder`; None where none are given.

    Raises ValueError where they are not those that the dataset was built with.
    """
    rule = content["settings"]["decontaminate"]
    if rule is None and arguments.decontaminate:
        raise ValueError(f"--decontaminate: {arguments.dataset} was built without")
    if rule is not None and not arguments.decontaminate:
        print_notice(f"contaminated documents are not looked at: --decontaminate {' '.join(rule['files'])}")
        return None
    return keep_spans(arguments.decontaminate, rule, folder, notice=print_notice)


def print_notice(text: str) -> None:
    """Say how far it is, at once also where the output goes to a file."""
    print(text, flush=True)


def summarise(arguments: VerifyArguments, content: Mapping[str, Any]) -> str:
    """What was found right, in one line."""
    splits = [split for source in content["sources"].values() for split in source["splits"].values()]
    totals = {what: sum(split[what] for split in splits) for what in ("documents", "tokens")}
    num_shards = sum(len(split["shards"]) for split in splits)
    checked = (
        f"{arguments.dataset}: all right: {num_shards:,} shards, {totals['documents']:,} documents, "
        f"{totals['tokens']:,} tokens"
    )
    if "made_by" in content:
        return f"{checked} (made by {content['made_by']}: nothing is said of raw files)"
    if arguments.raw is None:
        return f"{checked} (not compared with the raw files: --raw)"
    share = "all" if arguments.fraction is None else f"{arguments.fraction:.4g}"
    return f"{checked}; {share} of the documents encoded again from {arguments.raw}"


def verify_dataset(folder: Path, content: Mapping[str, Any], *, notice: Notice | None = None) -> Iterator[str]:
    """What is wrong, one text each. `notice` is told when a source is done."""
    problems = list(verify_shape(content))
    yield from problems
    if problems:
        return
    problems = list(verify_claims(folder, content))
    yield from problems
    if set(content["settings"]["source_order"]) != set(content["sources"]):
        return
    found_any = bool(problems)
    for problem in verify_files_of_sources(folder, content, notice=notice or (lambda text: None)):
        found_any = True
        yield problem
    if found_any:
        return
    with open_rows(folder, content) as rows:
        yield from verify_rows(rows)
        yield from verify_signatures(folder, content, rows)
    if content["settings"]["dedup"] != "none":
        yield from verify_copies(folder, claimed_sources(content))


def verify_files_of_sources(folder: Path, content: Mapping[str, Any], *, notice: Notice) -> Iterator[str]:
    """What is wrong with the shards and drops of each source."""
    sources = claimed_sources(content)
    by_name = {source.name: source for source in (*sources, *held_sources(content))}
    for source in sources:
        started = time.monotonic()
        for split in sorted(source.entry["splits"].keys() & set(SPLITS)):  # any other is a false claim already
            yield from verify_split(folder, source, split, content)
        yield from verify_drops(folder, source, by_name)
        num_documents = sum(split["documents"] for split in source.entry["splits"].values())
        seconds = time.monotonic() - started
        notice(
            f"shards  {source.name:12} {len(source.shards):>6,} shards  {num_documents:>13,} documents  {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
