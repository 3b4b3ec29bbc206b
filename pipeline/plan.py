"""What is to be built: the sources and their raw files, the settings that decide the output, and the datasets.

The settings and what they are compared by are plain JSON: they stand in work/plan.json and in dataset.json.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from pipeline.manifest import RawFile, Source
from pipeline.tokenizer import Tokenizer

ONLY_WHERE_GIVEN = ("keep_signatures", "against", "signals")  # settings that are not described where they are off
BY_SOURCE = frozenset(("tokens", "exclude", "columns", "signals", "raw_files"))  # settings with an entry per source
WORK_VERSION = 5  # of the work files: another version's are not taken up
SAMPLED_BYTES = 4 << 10
SAMPLED_PLACES = 16


class Fetching(Protocol):
    """Where raw files come from that are not on this disk: see remote.py."""

    def identity(self, path: str) -> str:
        """What tells one state of a file from another, before it is fetched."""

    def checksum(self, path: str) -> str:
        """The `sample_checksum` that a file had when it was fetched."""

    def bring(self, path: str) -> Path:
        """Fetch a file unless it is there; returns where it is."""

    def read_end(self, path: str, num_bytes: int) -> bytes | None:
        """The last bytes of a file, which need not be here; None where they cannot be had alone."""


@dataclass(frozen=True)
class PlannedSource:
    """A source of the mix with its raw files, in the order of their numbers.

    fetching: None where they are in `folder` all the time; else they are there only while they are needed.
    rules: about their documents' quality signals; each file has some then.
    """

    source: Source
    folder: Path
    exclude: tuple[str, ...]
    exact_weight: Fraction
    files: tuple[RawFile, ...]
    fetching: Fetching | None = None
    rules: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def weight(self) -> float:
        """Its share of the mix."""
        return float(self.exact_weight)

    def find_share(self, tokens: int) -> int:
        """Its share of so many tokens of the mix, exact but for less than one."""
        return int(tokens * self.exact_weight)

    @functools.cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """A digest of each raw file: of its path, split, size and sampled content, or what its origin says of it."""
        sample = self.fetching.identity if self.fetching else self.sample
        return tuple(fingerprint_file(file, describe_content(file, sample)) for file in self.files)

    def digest(self) -> str:
        """A digest of all raw files' contents, once they have been read: the same wherever they came from."""
        if self.fetching is None:
            return hash_texts(self.fingerprints)
        checksum = self.fetching.checksum
        return hash_texts(fingerprint_file(file, describe_content(file, checksum)) for file in self.files)

    def sample(self, path: str) -> str:
        """The sampled content of a raw file on this disk."""
        return sample_checksum(self.folder / path)

    def bring(self, path: str) -> Path:
        """Where a raw file is; one that is not on this disk is fetched first."""
        return self.fetching.bring(path) if self.fetching else self.folder / path

    @property
    def size_bytes(self) -> int:
        """The size of all raw files, as they lie on a disk: packed ones packed."""
        return sum(file.size_bytes for file in self.files)

    @property
    def has_own_validation(self) -> bool:
        """Whether the source comes with validation files, so that none is taken from train."""
        return any(file.split == "validation" for file in self.files)


@dataclass(frozen=True)
class BuildSettings:
    """What decides the output, besides the raw files and the tokenizers."""

    dedup: str
    dedup_threshold: float | None  # None: the method has none
    dedup_priority: tuple[str, ...]  # the sources, first those whose documents stay
    keep_signatures: bool
    against: tuple[str, ...]  # content hashes of the datasets whose documents are dropped, too
    min_chars: int
    strip_markers: bool
    decontaminate: dict[str, Any] | None  # describe_rule of contamination.py
    valid_fraction: float
    shard_tokens: int
    seed: int


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset of a build: the documents as the ids of one tokenizer.

    name: its folder in OUT, or "" where a build makes only one. tokenizer: None until it is trained.
    """

    name: str
    tokenizer: Tokenizer | None
    document_rule: str
    described: Mapping[str, Any]  # all that decides it, see describe_settings


def describe_settings(
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    *,
    tokenizer_identity: str,
    document_rule: str,
    shares: Mapping[str, int] | None,
) -> dict[str, Any]:
    """All that decides a dataset, as JSON. Weights are not in it: they are used when reading.

    shares: the training tokens that each source may give; None: all.
    """
    described = {
        "work_version": WORK_VERSION,
        "tokenizer": tokenizer_identity,
        "document_rule": document_rule,
        **vars(settings),
        "dedup_priority": list(settings.dedup_priority),
        "against": list(settings.against),
        "tokens": dict(shares) if shares else None,
        "source_order": [source.name for source in sources],
        "exclude": {source.name: list(source.exclude) for source in sources},
        "columns": {source.name: source.source.text_field for source in sources},
        "signals": {source.name: list(source.rules) for source in sources if source.rules},
        "raw_files": {source.name: hash_texts(source.fingerprints) if source.files else None for source in sources},
    }
    return {name: value for name, value in described.items() if value or name not in ONLY_WHERE_GIVEN}


def hash_texts(texts: Iterable[str]) -> str:
    """One digest of several texts, none of which holds a line feed."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def describe_content(file: RawFile, describe: Callable[[str], str]) -> str:
    """What stands for the bytes of a raw file and of its quality signals. describe: what stands for those at a path."""
    return describe(file.path) if file.signals is None else f"{describe(file.path)} {describe(file.signals)}"


def fingerprint_file(file: RawFile, content: str) -> str:
    """A digest of a raw file, `content` standing for its bytes."""
    return hash_texts(map(json.dumps, [file.path, file.split, file.size_bytes, content]))


def sample_checksum(path: Path) -> str:
    """The sha256 of 16 pieces of a file, 4 KiB each, from its start to its end; of all of a small file.

    Enough to notice another file of the same size at any size; not a change of a few bytes in a large one.
    """
    digest = hashlib.sha256()
    last_start = max(0, path.stat().st_size - SAMPLED_BYTES)
    with open(path, "rb") as file:
        for place in range(SAMPLED_PLACES):
            file.seek(last_start * place // (SAMPLED_PLACES - 1))
            digest.update(file.read(SAMPLED_BYTES))
    return digest.hexdigest()


def hash_recipe(described: Mapping[str, Any]) -> str:
    """The recipe hash: sha256 of the described settings as canonical JSON."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def keep_sources(settings: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Settings without what is set by or for other sources than these."""
    kept = {name: value for name, value in settings.items() if name not in ("source_order", "dedup_priority")}
    for name in BY_SOURCE & kept.keys():
        kept[name] = {source: value for source, value in (kept[name] or {}).items() if source in names}
    return kept


def find_differences(there: Mapping[str, Any], here: Mapping[str, Any], *, prefix: str = "") -> Iterator[str]:
    """Which settings differ, one text each, such as "seed is 1 there, 2 here".

    Of other sources the names are enough: what is set for one alone is not told.
    """
    old_sources, new_sources = (settings.get("source_order", []) for settings in (there, here))
    if set(old_sources) != set(new_sources):
        yield f"its sources are {', '.join(old_sources)} there, {', '.join(new_sources)} here"
        shared = set(old_sources) & set(new_sources)
        there, here = (keep_sources(settings, shared) for settings in (there, here))
    for key in sorted({*there, *here}):
        old, new = there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from find_differences(old, new, prefix=f"{prefix}{key} of ")
        elif old != new and prefix.startswith("raw_files"):
            yield f"the raw files of {key} are not the same"
        elif old != new:
            yield f"{prefix}{key} is {json.dumps(old)} there, {json.dumps(new)} here"
