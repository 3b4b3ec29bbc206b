"""A source: what its raw files are called, which field holds the text, its licence, where it can be had.

Known sources are described in data_manifests/<name>.toml; any other name is a folder of the user's own files. This
module reads manifests and lists files. It never opens a raw file and knows nothing of mixes.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.endings import DESCRIPTIONS, KNOWN_ENDINGS, KNOWN_KINDS, ROW_ENDINGS, TABLE_ENDINGS
from pipeline.shard import SPLITS

MANIFEST_FOLDER = Path(__file__).parent.parent / "data_manifests"
NOT_SOURCES = ("mixes", "tokenizers")

SPLIT_WORDS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
PARTIAL = "partial-"  # before a split of which the hub's copy in parquet has only the first part
SPLIT_FILE_NAME = re.compile(rf"({'|'.join(SPLIT_WORDS)})[-_.]")
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Source:
    """What is known of a source. Patterns and paths are relative to the source's folder, with `/` between names."""

    name: str
    title: str = ""
    licence: str = ""
    where: tuple[str, ...] = ()  # lines for a person; {folder} stands for the folder where the files belong
    text_field: str = "text"
    subset_field: str | None = None  # a column or a dotted path into a row
    subset_from_path: bool = False  # a folder of a path names the subset
    subset_paths: Mapping[str, str] = field(default_factory=dict)  # pattern -> subset, where the folder does not say
    subsets: tuple[str, ...] = ()
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # split -> patterns
    notes: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()  # where --fetch finds it, best first
    url_template: str | None = None  # of what a line of a list of URLs stands for, with {line}
    signals_template: str | None = None  # of the quality signals of what a line stands for
    signal_rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # sets of rules about them, by name
    not_raw: tuple[str, ...] = ()  # patterns of files beside the raw files

    @property
    def has_manifest(self) -> bool:
        """Whether data_manifests/ describes it; else it is a folder of the user."""
        return bool(self.splits)


@dataclass(frozen=True)
class RawFile:
    """One raw file: where it is, which split it belongs to, and its subset where the path says so."""

    path: str
    split: str
    size_bytes: int
    subset: str | None
    signals: str | None = None  # the path of its documents' quality signals, where rules ask for them


@dataclass(frozen=True)
class RawFiles:
    """The raw files of a source in a fixed order, and the other files of its folder, which are not read."""

    files: tuple[RawFile, ...]
    ignored: tuple[str, ...]


def known_source_names() -> tuple[str, ...]:
    """The sources that have a manifest, sorted."""
    return tuple(sorted(path.stem for path in MANIFEST_FOLDER.glob("*.toml") if path.stem not in NOT_SOURCES))


def check_source_name(name: str) -> None:
    """Raises ValueError for a name that could not be a folder of the raw folder."""
    if not SOURCE_NAME.fullmatch(name):
        raise ValueError(
            f"source name {name!r}: a name is letters, digits, '.', '_' and '-', and begins with a letter or digit"
        )


def load_source(name: str) -> Source:
    """The source called `name`: from its manifest, or a source of the user's own with the text in `text`.

    Raises ValueError for a name that is none, and for a manifest with a wrong key, naming the file and the key.
    """
    check_source_name(name)
    if name not in known_source_names():
        return Source(name=name)
    return read_manifest(MANIFEST_FOLDER / f"{name}.toml")


def read_manifest(path: Path) -> Source:
    """The source that a manifest describes; its name is the file's."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a TOML file: {error}") from error
    known_keys = {known.name for known in fields(Source)} - {"name"}
    for key in entries:
        if key not in known_keys:
            raise ValueError(f"{path}: unknown key {key!r}; a manifest knows {', '.join(sorted(known_keys))}")
    if missing := {"title", "licence", "where", "text_field", "splits"} - set(entries):
        raise ValueError(f"{path}: the key {min(missing)!r} is missing")
    return Source(name=path.stem, **{key: parse_entry(path, key, value) for key, value in entries.items()})


def parse_entry(path: Path, key: str, value: Any) -> Any:
    """The value of one manifest key, lists as tuples; raises ValueError where it has the wrong type."""
    match key:
        case "title" | "licence" | "text_field" | "subset_field" | "url_template" | "signals_template":
            return checked(path, key, value, is_right=isinstance(value, str), wanted="a string")
        case "subset_from_path":
            return checked(path, key, value, is_right=isinstance(value, bool), wanted="true or false")
        case "subset_paths":
            is_right = isinstance(value, dict) and is_list_of_strings(list(value.values()))
            return checked(path, key, value, is_right=is_right, wanted="a table of strings")
        case "signal_rules":
            checked(path, key, value, is_right=isinstance(value, dict), wanted="a table of lists")
            return {name: parse_entry(path, f"signal_rules.{name}", rules) for name, rules in value.items()}
        case "splits":
            is_right = isinstance(value, dict) and set(value) <= set(SPLITS) and "train" in value
            checked(path, key, value, is_right=is_right, wanted=f"a table with train and no split but {SPLITS}")
            return {split: parse_entry(path, f"splits.{split}", patterns) for split, patterns in value.items()}
        case _:
            return tuple(checked(path, key, value, is_right=is_list_of_strings(value), wanted="a list of strings"))


def checked(path: Path, key: str, value: Any, *, is_right: bool, wanted: str) -> Any:
    """`value`, or a ValueError that says what the key should hold."""
    if not is_right:
        raise ValueError(f"{path}: {key!r} should be {wanted}, not {value!r}")
    return value


def is_list_of_strings(value: Any) -> bool:
    """Whether `value` is a list that holds strings alone."""
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def list_raw_files(source: Source, folder: Path) -> RawFiles:
    """The raw files under `folder`, sorted by the bytes of their path, so never in an order that the disk chose.

    A pattern of the manifest decides a file's split, else `guess_split`, else it is train. Hidden files and folders are
    passed over; links are followed. Raises FileNotFoundError for a folder that is not there (with `how_to_get`) and for
    a link to nothing, ValueError for a file name that is not UTF-8.
    """
    if not folder.is_dir():
        raise FileNotFoundError(how_to_get(source, folder))
    sizes = {path: status.st_size for path, status in walk_files(folder) if stat.S_ISREG(status.st_mode)}
    listed = choose_raw_files(source, sizes)
    for file in listed.files:
        check_utf8(file.path, folder)
    odd = [path for path, status in walk_files(folder) if not stat.S_ISREG(status.st_mode)]
    return RawFiles(listed.files, tuple(sorted([*listed.ignored, *odd], key=os.fsencode)))


def choose_raw_files(source: Source, sizes: Mapping[str, int]) -> RawFiles:
    """Which of some files are the source's raw files, with their splits. sizes: in bytes, by path."""
    wanted = {path for path in sizes if is_raw_file(path, source)}
    paths = sorted(wanted := wanted or {path for path in sizes if is_table_name(path, source)}, key=os.fsencode)
    splits = assign_splits(source, paths)
    files = [
        RawFile(path, split, sizes[path], find_subset(path, source)) for path, split in zip(paths, splits, strict=True)
    ]
    return RawFiles(tuple(files), tuple(sorted(set(sizes) - wanted, key=os.fsencode)))


def assign_splits(source: Source, paths: Sequence[str]) -> list[str]:
    """The split of each of a source's raw files: by a pattern of the manifest, else by `guess_split`, else train.

    Guesses count only where they find train files: a lone test.jsonl is train.
    """
    named = [find_named_split(source, path) for path in paths]
    guesses = [split or guess_split(path) for split, path in zip(named, paths, strict=True)]
    trust_guesses = "train" in guesses
    return [split or (trust_guesses and guess) or "train" for split, guess in zip(named, guesses, strict=True)]


def find_named_split(source: Source, path: str) -> str | None:
    """The split of which a pattern of the manifest takes this path."""
    for split in SPLITS:
        if any(compile_pattern(pattern).fullmatch(path) for pattern in source.splits.get(split, ())):
            return split
    return None


def walk_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file under `folder` that is not hidden: its path with `/`, and what the system says of it.

    Follows links; a link to a folder that holds it is not entered again.
    """

    def walk(prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, os.stat_result]]:
        for name in sorted(os.listdir(folder / prefix)):
            if name.startswith("."):
                continue
            path = prefix + name
            status = stat_through_links(folder / path)
            identity = (status.st_dev, status.st_ino)
            if not stat.S_ISDIR(status.st_mode):
                yield path, status
            elif identity not in above:
                yield from walk(path + "/", (*above, identity))

    top = folder.stat()
    yield from walk("", ((top.st_dev, top.st_ino),))


def stat_through_links(path: Path) -> os.stat_result:
    """What the system says of the file that `path` leads to; FileNotFoundError says which link leads nowhere."""
    try:
        return path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: a link to a file that is not there; remove it or fetch the file") from None


def is_raw_file(path: str, source: Source) -> bool:
    """Whether a file is read: a pattern of the manifest names it, or its ending says so."""
    is_beside = any(compile_pattern(pattern).fullmatch(path) for pattern in source.not_raw)
    return not is_beside and (find_named_split(source, path) is not None or is_raw_file_name(path, source))


def is_raw_file_name(path: str, source: Source) -> bool:
    """Whether a file that no pattern names is read by its ending.

    Beside a known source a .txt file is a README or a list of URLs, not a document.
    """
    name = path.rsplit("/", 1)[-1]
    return name.endswith((*ROW_ENDINGS, ".parquet") if source.has_manifest else KNOWN_ENDINGS) and (
        name not in DESCRIPTIONS
    )


def is_table_name(path: str, source: Source) -> bool:
    """Whether a file is read by its ending where a source has no others: beside them it is a list or a description."""
    return path.endswith(TABLE_ENDINGS) and not source.has_manifest


def check_utf8(path: str, folder: Path) -> None:
    """Raises ValueError where a path's bytes are no text: dataset.json could not name it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{folder}: the file name {os.fsencode(path)!r} is not UTF-8; rename the file") from None


def guess_split(path: str) -> str | None:
    """The split that a path names: its first folder, or the start of the file's name; None where neither does.

    >>> guess_split("valid/a.jsonl"), guess_split("data/test-00000-of-00001.parquet"), guess_split("a.jsonl")
    ('validation', 'test', None)
    """
    first, *others = path.split("/")
    if others and first in SPLIT_WORDS:
        return SPLIT_WORDS[first]
    if others and first.startswith(PARTIAL) and first.removeprefix(PARTIAL) in SPLIT_WORDS:
        return SPLIT_WORDS[first.removeprefix(PARTIAL)]
    named = SPLIT_FILE_NAME.match(path.rsplit("/", 1)[-1])
    return SPLIT_WORDS[named[1]] if named else None


def find_subset(path: str, source: Source) -> str | None:
    """The subset that a path names, or None where the path does not say."""
    for pattern, subset in source.subset_paths.items():
        if compile_pattern(pattern).fullmatch(path):
            return subset
    folders = path.split("/")[:-1] if source.subset_from_path else []
    return next((folder for folder in folders if folder in source.subsets), None)


@cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression: `*` and `?` stay within a name, `**/` is any number of folders."""
    pieces = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(pieces.get(piece) or re.escape(piece) for piece in re.split(r"(\*\*/|\*|\?)", pattern)))


def how_to_get(source: Source, folder: Path) -> str:
    """What was looked for and where the source can be had, in at most seven lines for a person."""
    patterns = source.splits.get("train", ())
    looked_for = f"{', '.join(patterns[:4])}{' ...' if len(patterns) > 4 else ''}" or KNOWN_KINDS
    lines = [
        f"{source.name}: no raw files in {folder}" + (f" ({source.title})" if source.title else ""),
        f"  looked for: {looked_for}",
        *(f"  {line}".replace("{folder}", str(folder)) for line in source.where),
    ]
    if not source.has_manifest:
        lines.append(f"  no manifest knows this name (known: {', '.join(known_source_names())}); put your files there")
    return "\n".join([*lines, "  or try it first: --sample-mb 20 makes a small sample of text from this computer"])
