"""What the options of a mix's entry say: which subsets to read, where from, which column holds the text.

    slimpajama?exclude=RedPajamaGithub+RedPajamaBook    hf://org/name?config=en&column=content    starcoder?only=python

This module knows manifests, not files.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote

from pipeline.manifest import Source, check_source_name, load_source
from pipeline.origins import Origin, is_origin, name_origin, parse_origin
from pipeline.signal_rules import parse_rules

SUBSET_OPTIONS = ("exclude", "only")
OPTIONS = (*SUBSET_OPTIONS, "from", "config", "column", "name", "signals")


@dataclass(frozen=True)
class SourceChoice:
    """One source of a mix as it is asked for.

    exclude: subsets whose rows are left out. only: subsets whose raw files alone are read; empty: all.
    origin: where its raw files are; None: in the raw folder. column: the field with the text; None: the manifest's.
    rules: about the quality signals of its documents, see signal_rules.py.
    """

    name: str
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    origin: Origin | None = None
    column: str | None = None
    rules: tuple[str, ...] = ()


def parse_source(text: str) -> SourceChoice:
    """A source's name or place, with its options. Raises ValueError with the value at fault."""
    described, values = split_options(text)
    if is_origin(described):
        if "from" in values:
            raise ValueError(f"{described}: ?from= is for a source that has a name")
        origin = parse_origin(described, config=values.get("config"))
        name = values.get("name") or name_origin(origin)
    else:
        name, origin = described, None
        if "from" in values:
            origin = parse_origin(values["from"], config=values.get("config"))
        elif "config" in values:
            raise ValueError(f"{name}: ?config= is for hf://ORG/NAME")
        if "name" in values:
            raise ValueError(f"{name}: ?name= is for a place, such as hf://ORG/NAME")
    check_source_name(name)
    source = load_source(name)
    exclude, only = choose_subsets(source, split_names(values, "exclude"), split_names(values, "only"))
    return SourceChoice(name, exclude, only, origin, values.get("column"), choose_rules(source, values.get("signals")))


def choose_rules(source: Source, text: str | None) -> tuple[str, ...]:
    """The rules about quality signals that an option lists. Raises ValueError for a source that has no such signals."""
    if text is None:
        return ()
    if not source.signal_rules:
        raise ValueError(f"{source.name}: ?signals= is for a source with quality signals, such as redpajama-v2")
    return parse_rules(text, source.signal_rules)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the options, and their values; a key that is there twice has both, with `+` between them.

    A URL keeps the parts of its query that are no options of ours.
    """
    described, _, query = text.partition("?")
    values: dict[str, str] = {}
    kept = []
    for option in filter(None, query.split("&")):
        key, _, value = option.partition("=")
        if key in OPTIONS:
            values[key] = f"{values[key]}+{unquote(value)}" if key in values else unquote(value)
        elif described.startswith(("http://", "https://")):
            kept.append(option)
        else:
            known = "an option is ?exclude=SUBSET, only, from, config, column, name or signals"
            raise ValueError(f"{described} has no option {key!r}{nearest(key, OPTIONS)}; {known}")
    if empty := [key for key, value in values.items() if not value and key not in SUBSET_OPTIONS]:
        raise ValueError(f"{described}: the option {empty[0]} has no value")
    return described + ("?" + "&".join(kept) if kept else ""), values


def split_names(values: dict[str, str], key: str) -> set[str]:
    """The names that an option lists, with `+` between them."""
    return set(values[key].split("+")) if key in values else set()


def choose_subsets(source: Source, exclude: set[str], only: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The subsets whose rows are left out, and those whose files alone are read, each sorted.

    Where a row names its subset, `only` leaves out the rows of all others; where a path does, their files.
    """
    check_subsets(exclude, source=source)
    check_subsets(only - exclude, source=source, may_be_all=True)
    if only and not source.subset_from_path:
        return tuple(sorted(exclude | (set(source.subsets) - only))), ()
    return tuple(sorted(exclude)), tuple(sorted(only))


def check_subsets(names: set[str], *, source: Source, may_be_all: bool = False) -> None:
    """Raises ValueError where a name is not one of the source's subsets, or where leaving them out leaves nothing."""
    subsets = source.subsets
    if names and not subsets:
        raise ValueError(f"{source.name} has no manifest that names subsets, so none can be left out: {sorted(names)}")
    for name in sorted(names - set(subsets)):
        some = ", ".join(subsets[:12]) + (" ..." if len(subsets) > 12 else "")
        raise ValueError(f"{source.name} has no subset {name!r}{nearest(name, subsets) or f'; it has {some}'}")
    if names and names == set(subsets) and not may_be_all:
        raise ValueError(f"{source.name}: every subset is left out; leave out the source instead")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; nearest: A, B` with the known names nearest to `name`, or nothing where none is near."""
    lowered = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    return f"; nearest: {', '.join(lowered[one] for one in near)}" if near else ""
