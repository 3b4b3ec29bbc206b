"""A mix: which sources, in which shares of the tokens, without which of their subsets.

    slimpajama?exclude=RedPajamaGithub:0.7,starcoder:0.3

Entries are parted by commas; each is a source or a place (`hf://org/name`), its options as in a URL (see
source_options.py), a colon and a weight. Weights are kept exactly, as fractions of the decimals written.
This module knows manifests, not files.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from pipeline.manifest import MANIFEST_FOLDER, known_source_names, load_source
from pipeline.origins import hide_in_text
from pipeline.source_options import OPTIONS, SourceChoice, choose_subsets, nearest, parse_source

# ASCII digits and a short exponent: 1e999999999 as a fraction would fill the memory.
WEIGHT = re.compile(r"\+?(\d{1,30}\.?\d{0,30}|\.\d{1,30})(e[+-]?\d{1,2})?", re.ASCII | re.IGNORECASE)
GITHUB_SUBSET = "RedPajamaGithub"


@dataclass(frozen=True)
class MixEntry:
    """One source of a mix. `exact_weight` is its share of the mix; `weight` is the same as a float."""

    choice: SourceChoice
    weight: float
    exact_weight: Fraction

    @property
    def source(self) -> str:
        """The source's name."""
        return self.choice.name

    @property
    def exclude(self) -> tuple[str, ...]:
        """The subsets that are left out."""
        return self.choice.exclude


@dataclass(frozen=True)
class Mix:
    """The entries in the order written; shares add up to 1. `notices` are lines to print once."""

    entries: tuple[MixEntry, ...]
    name: str | None = None
    tokenizer: str | None = None
    notices: tuple[str, ...] = ()


def parse_mix(text: str) -> Mix:
    """The mix that `text` writes: `name:weight,...`, a named mix, or one known source alone.

    >>> [(entry.source, entry.weight) for entry in parse_mix("slimpajama:3,starcoder:1").entries]
    [('slimpajama', 0.75), ('starcoder', 0.25)]

    Raises ValueError with the text, without what in it is secret, and the value at fault.
    """
    try:
        return parse_whole(text)
    except ValueError as error:
        raise ValueError(hide_in_text(str(error), kept=OPTIONS)) from None


def parse_whole(text: str) -> Mix:
    """What parse_mix gives. The text of its errors may show secrets."""
    named_mixes = load_named_mixes()
    if (name := text.strip()) in named_mixes:
        named = named_mixes[name]
        entries, notices = parse_entries(named["mix"])
        return Mix(entries, name=name, tokenizer=named.get("tokenizer"), notices=notices)
    if "," not in text and ":" not in text:
        text = f"{check_known(name, named_mixes)}:1"
    entries, notices = parse_entries(text)
    for entry in entries:
        if entry.source in named_mixes:
            raise ValueError(f"mix {text!r}: {entry.source!r} is a named mix and stands alone: --mix {entry.source}")
    return Mix(entries, notices=notices)


def load_named_mixes() -> dict[str, dict[str, Any]]:
    """The named mixes: name -> its title, mix and recommended tokenizer."""
    return tomllib.loads((MANIFEST_FOLDER / "mixes.toml").read_text(encoding="utf-8"))


def check_known(text: str, named_mixes: Iterable[str]) -> str:
    """`text`, a lone word, if it begins with a known source; else a ValueError with the nearest names."""
    if not text:
        raise ValueError("the mix is empty; write for example slimpajama:0.7,starcoder:0.3")
    source = text.partition("?")[0]
    if source in known_source_names():
        return text
    known = (*named_mixes, *known_source_names())
    raise ValueError(
        f"mix {text!r}: no named mix or known source is called {source!r}{nearest(source, known)}. Known: "
        f"{', '.join(known)}. For a folder of your own files write {source}:1"
    )


def parse_entries(text: str) -> tuple[tuple[MixEntry, ...], tuple[str, ...]]:
    """The entries of a mix written out, and what the user should be told of them."""
    written = [parse_entry(entry.strip(), text) for entry in text.split(",")]
    sources = [choice.name for choice, _ in written]
    if repeated := [source for source in sources if sources.count(source) > 1]:
        raise ValueError(f"mix {text!r}: the source {repeated[0]!r} is there twice")
    total = sum(weight for _, weight in written)
    if total == 0:
        raise ValueError(f"mix {text!r}: every weight is 0; at least one source must be drawn")
    entries = tuple(MixEntry(choice, float(weight / total), weight / total) for choice, weight in written)
    return entries, tuple(find_notices(entries, total=total))


def parse_entry(entry: str, text: str) -> tuple[SourceChoice, Fraction]:
    """The source and its weight as written, from `name?options:weight`."""
    if not entry:
        raise ValueError(f"mix {text!r}: an empty entry; entries are parted by one comma")
    described, colon, weight = entry.rpartition(":")
    if not colon or weight.startswith("//") or ("://" in described and "/" in weight):  # a colon of an address
        raise ValueError(f"mix {text!r}: {entry!r} has no weight; write {entry}:0.5, say")
    try:
        return parse_source(described.strip()), parse_weight(weight.strip())
    except ValueError as error:
        raise ValueError(f"mix {text!r}: {error}") from None


def parse_weight(text: str) -> Fraction:
    """The weight exactly as its decimals say.

    >>> parse_weight("0.693584")
    Fraction(43349, 62500)
    """
    if text.startswith("-") and WEIGHT.fullmatch(text[1:]):
        raise ValueError(f"the weight {text} is negative; a weight is 0 or more")
    if not WEIGHT.fullmatch(text):
        raise ValueError(f"the weight {text!r} is not a number such as 0.7")
    return Fraction(text)


def choose_languages(mix: Mix, languages: str | None) -> Mix:
    """The mix with only these languages of starcoder, with commas between them; None: as it is.

    Raises ValueError where starcoder is not in the mix, or has no such language.
    """
    if languages is None:
        return mix
    entries = {entry.source: entry for entry in mix.entries}
    if "starcoder" not in entries:
        raise ValueError(f"--languages {languages}: starcoder is not in the mix")
    entry = entries["starcoder"]
    try:
        _, only = choose_subsets(load_source("starcoder"), set(entry.exclude), set(languages.split(",")))
    except ValueError as error:
        raise ValueError(f"--languages {languages}: {error}") from None
    entries["starcoder"] = replace(entry, choice=replace(entry.choice, only=only))
    return replace(mix, entries=tuple(entries.values()))


def find_notices(entries: tuple[MixEntry, ...], *, total: Fraction) -> Iterable[str]:
    """What a mix says that is allowed, but may not be meant: lines for a person."""
    if total != 1:
        shares = ", ".join(f"{entry.source} {entry.weight:.4g}" for entry in entries)
        yield f"weights add up to {float(total):g}, not 1; taken as shares: {shares}"
    drawn = {entry.source: entry for entry in entries if entry.exact_weight}
    if "slimpajama" in drawn and "starcoder" in drawn and GITHUB_SUBSET not in drawn["slimpajama"].exclude:
        wanted = f"slimpajama?exclude={'+'.join(sorted({*drawn['slimpajama'].exclude, GITHUB_SUBSET}))}"
        yield (
            f"slimpajama brings its own GitHub code beside starcoder; TinyLlama left that part out. To do the same, "
            f"write '{wanted}:{drawn['slimpajama'].weight:g}' in --mix (quoted: ? is special in some shells)"
        )
