"""What the manifests know of sources, and whether they can be reached now.

    python pipeline/sources.py list
    python pipeline/sources.py show slimpajama
    python pipeline/sources.py check slimpajama          or any place: hf://org/name, s3://bucket/prefix, a URL

`check` lists as little as it can, and asks for one raw file without fetching it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

if __package__ in (None, ""):  # started as `python pipeline/sources.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.console import Console

from pipeline.flags import read_flags
from pipeline.jobs import describe
from pipeline.manifest import Source, is_raw_file, is_table_name, known_source_names, load_source
from pipeline.origins import Origin, hide_in_text, parse_origin
from pipeline.places import open_place
from pipeline.progress import format_bytes, make_console
from pipeline.raw_sources import add_templates, choose_origin
from pipeline.source_options import OPTIONS, parse_source
from pipeline.web import Patience

MOST_FAILURES = 4  # a check does not wait for minutes


@dataclass(frozen=True)
class SourcesArguments:
    """What the manifests know of sources, and whether they can be reached now."""

    what: Annotated[Literal["list", "show", "check"], tyro.conf.Positional]
    """list all sources, show what a manifest says, or check where its raw files can be had now."""
    name: Annotated[str | None, tyro.conf.Positional] = None
    """The source, or a place: hf://org/name, s3://bucket/prefix, https://host/urls.txt."""


def main() -> None:
    """The command: one line and a non-zero exit code for what the user can mend."""
    arguments = read_flags(SourcesArguments)
    console = make_console()
    try:
        if arguments.what == "list":
            list_sources(console)
        elif arguments.name is None:
            raise ValueError(f"sources.py {arguments.what} needs a name: {', '.join(known_source_names())}")
        elif arguments.what == "show":
            console.print("\n".join(show_source(find_source(arguments.name))))
        else:
            check_origins(arguments.name, console)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {hide_in_text(describe(error), kept=OPTIONS)}")


def list_sources(console: Console) -> None:
    """A line for each manifest."""
    for name in known_source_names():
        console.print(f"{name:14}{load_source(name).title}")


def find_source(name: str) -> Source:
    """A source that has a manifest. Raises ValueError for another name."""
    if name not in known_source_names():
        raise ValueError(f"no manifest is called {name!r}; known: {', '.join(known_source_names())}")
    return load_source(name)


def show_source(source: Source) -> Iterator[str]:
    """All that a manifest knows, line by line."""
    yield f"{source.name}: {source.title}"
    yield f"  licence     {source.licence}"
    yield from (f"  origin      {origin}" for origin in source.origins)
    yield from (f"  by hand     {line.replace('{folder}', f'data/raw/{source.name}')}" for line in source.where)
    yield f"  text        {source.text_field}"
    if source.subsets:
        where = "the path" if source.subset_from_path else source.subset_field
        yield f"  subsets     by {where}: {', '.join(source.subsets)}"
    for split, patterns in source.splits.items():
        yield f"  {split:12}{', '.join(patterns)}"
    yield from (f"  signals     {name}: {'; '.join(rules)}" for name, rules in source.signal_rules.items())
    yield from (f"  note        {note}" for note in source.notes)


def check_origins(name: str, console: Console) -> None:
    """A line for each origin. Raises ValueError where none can be reached."""
    choice = parse_source(name)
    source = load_source(choice.name)
    origin = choose_origin(choice, fetch=False)
    if origin is None:
        find_source(name)
    known = [add_templates(parse_origin(one), source, has_signals=False) for one in source.origins]
    origins = [origin] if origin else known
    reached = [check_origin(one, source, console) for one in origins]
    if not any(reached):
        raise ValueError(f"{name} cannot be reached now")


def check_origin(origin: Origin, source: Source, console: Console) -> bool:
    """Whether a raw file of an origin may be fetched; says so in a line."""
    patience = Patience(most_failures=MOST_FAILURES)
    try:
        place = open_place(origin, patience=patience)
        file = place.find_first(lambda path: is_raw_file(path, source))
        file = file or place.find_first(lambda path: is_table_name(path, source))
        if file is None:
            raise ValueError(f"{origin}: no raw file of a known kind")
        place.probe(file)
    except (ValueError, OSError) as error:
        console.print(f"no    {describe(error)}")
        return False
    console.print(f"yes   {origin}: {file.path}, {format_bytes(file.size_bytes)}, may be fetched")
    return True


if __name__ == "__main__":
    main()
