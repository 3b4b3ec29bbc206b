"""The raw files of a build's sources: which there are, on this disk or at their origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin

from pipeline.endings import KNOWN_KINDS, PACKED_ENDINGS
from pipeline.fetch import PART_SUFFIX
from pipeline.folders import FETCHED_FOLDER, RESERVED_NAMES
from pipeline.manifest import (
    PARTIAL,
    RawFiles,
    Source,
    choose_raw_files,
    how_to_get,
    list_raw_files,
    load_source,
)
from pipeline.mix import Mix, MixEntry
from pipeline.origins import Origin, parse_origin
from pipeline.plan import PlannedSource
from pipeline.progress import format_bytes
from pipeline.quality_signals import attach_signals
from pipeline.remote import RemoteSource, find_remote
from pipeline.source_options import SourceChoice
from pipeline.web import Patience

Notice = Callable[[str], None]


@dataclass(frozen=True)
class RawPlaces:
    """Where raw files are looked for. work: of the build; is_new: what it holds is not gone on with."""

    raw: Path
    work: Path
    fetch: bool
    keep_raw: bool
    is_new: bool

    def find_folder(self, name: str, *, is_fetched: bool) -> Path:
        """Where the raw files of a source are, or will be."""
        return self.work / FETCHED_FOLDER / name if is_fetched and not self.keep_raw else self.raw / name


def find_sources(mix: Mix, places: RawPlaces, *, may_be_gone: bool, notice: Notice) -> tuple[PlannedSource, ...]:
    """The sources of the mix with their raw files.

    may_be_gone: the dataset is finished, so that raw files may have been removed. Otherwise raises FileNotFoundError
    that tells, for each source without raw files, what was looked for and where the source can be had.
    """
    found = [find_source(entry, places, may_be_gone=may_be_gone, notice=notice) for entry in mix.entries]
    missing = [how_to_get(source.source, source.folder) for source in found if not source.files]
    if missing and not may_be_gone:
        raise FileNotFoundError("\n\n".join(["nothing to build from", *missing]))
    return tuple(found)


def find_source(entry: MixEntry, places: RawPlaces, *, may_be_gone: bool, notice: Notice) -> PlannedSource:
    """One source with its raw files, of which there may be none. Says what a person might not expect."""
    if entry.source in RESERVED_NAMES:
        raise ValueError(f"a source cannot be called {entry.source!r}: OUT/{entry.source} is the build's own")
    source, origin = choose_source(entry.choice), choose_origin(entry.choice, fetch=places.fetch)
    is_fetched = origin is not None and origin.kind != "folder"
    folder = places.find_folder(source.name, is_fetched=is_fetched)
    if origin is not None and not is_fetched:
        folder = Path(origin.address)
    planned = PlannedSource(source, folder, entry.exclude, entry.exact_weight, (), rules=entry.choice.rules)
    if (is_fetched and may_be_gone) or not (is_fetched or folder.is_dir()):
        return planned
    if is_fetched:
        remote, listed = ask_origin(source, origin, folder, places, notice=notice)
    else:
        remote, listed = None, list_raw_files(source, folder)
    listed = choose_only(source, listed, entry.choice.only, where=origin or folder)
    try:
        listed = find_signals(source, listed, remote, notice=notice) if entry.choice.rules else listed
    except FileNotFoundError:
        if may_be_gone:
            return planned
        raise
    say_found(source, folder, entry, listed, notice=notice)
    return replace(planned, files=listed.files, fetching=remote)


def choose_source(choice: SourceChoice) -> Source:
    """What the manifests know of a source, with the column that was asked for."""
    source = load_source(choice.name)
    return source if choice.column is None else replace(source, text_field=choice.column)


def leave_out_empty(source: Source, remote: RemoteSource, *, notice: Notice) -> dict[str, int]:
    """The sizes of what an origin has, by path, without packed files of no byte at all: nothing unpacks those.

    On this disk such a file is taken for one that was not fetched to its end; here its size was listed.
    """
    sizes = {file.path: file.size_bytes for file in remote.listing.files}
    empty = [path for path, size_bytes in sizes.items() if not size_bytes and path.endswith(PACKED_ENDINGS)]
    if empty:
        notice(f"{source.name}: {len(empty):,} files are empty at their origin, and not read: {', '.join(empty[:3])}")
    return {path: size_bytes for path, size_bytes in sizes.items() if path not in set(empty)}


def find_signals(source: Source, listed: RawFiles, remote: RemoteSource | None, *, notice: Notice) -> RawFiles:
    """The raw files with their quality signals, which are among the other files. Raises where one has none."""
    ignored = set(listed.ignored)
    files = attach_signals(listed.files, ignored.__contains__)
    if remote is not None:
        size = format_bytes(sum(remote.files[file.signals].size_bytes for file in files))
        notice(f"{source.name}: their quality signals ({size}) are fetched, too")
    return RawFiles(files, tuple(path for path in listed.ignored if path not in {file.signals for file in files}))


def choose_origin(choice: SourceChoice, *, fetch: bool) -> Origin | None:
    """Where a source's raw files are; None: in the raw folder."""
    source = load_source(choice.name)
    origin = choice.origin
    if origin is None and fetch and source.origins:
        origin = parse_origin(source.origins[0])
    return None if origin is None else add_templates(origin, source, has_signals=bool(choice.rules))


def add_templates(origin: Origin, source: Source, *, has_signals: bool) -> Origin:
    """An origin with what a line of it stands for where it is a list of names, as the manifest's own.

    Such lists lie in a folder of the same name, on a mirror too; the manifest's templates count from there.
    """
    folders = {one.rsplit("/", 2)[1] for one in source.origins}
    if source.url_template is None or origin.kind != "urls" or origin.address.rsplit("/", 2)[1] not in folders:
        return origin
    template = urljoin(origin.address, source.url_template)
    signals_template = urljoin(origin.address, source.signals_template) if has_signals else None
    return replace(origin, template=template, signals_template=signals_template)


def ask_origin(
    source: Source, origin: Origin, folder: Path, places: RawPlaces, *, notice: Notice
) -> tuple[RemoteSource, RawFiles]:
    """What an origin has, and the raw files among it; says how many. Raises where it cannot be asked, or has none."""
    patience = Patience(notice=notice)
    remote = find_remote(
        source.name,
        origin,
        folder=folder,
        work=places.work,
        keep=places.keep_raw,
        is_new=places.is_new,
        patience=patience,
    )
    listed = choose_raw_files(source, leave_out_empty(source, remote, notice=notice))
    if not listed.files:
        raise FileNotFoundError(
            f"{origin}: none of its {len(remote.listing.files):,} files is a raw file of a known kind (the first is "
            f"{remote.listing.files[0].path}): {KNOWN_KINDS}"
            + (". Try the hub's own copy in parquet: @refs/convert/parquet" if origin.kind == "hub" else "")
        )
    size = format_bytes(sum(file.size_bytes for file in listed.files))
    revision = f" at revision {remote.listing.revision}" if remote.listing.revision else ""
    notice(f"{source.name}: {len(listed.files):,} raw files ({size}) are fetched from {origin}{revision}")
    if partial := [file.path for file in listed.files if f"/{PARTIAL}" in f"/{file.path}"]:
        notice(f"{source.name}: {partial[0]} and its like are only the first part of their data, by the hub's own copy")
    first = remote.files[listed.files[0].path]
    if not (folder / first.path).exists():
        remote.fetcher.place.probe(first)  # a gated repository lists its files, and refuses them
    return remote, listed


def choose_only(source: Source, listed: RawFiles, only: tuple[str, ...], *, where: Path | Origin) -> RawFiles:
    """The raw files of some subsets, by their paths; of all where `only` is empty.

    Raises FileNotFoundError for a subset without any, which names the place that was looked at, `where`.
    """
    if not only:
        return listed
    files = tuple(file for file in listed.files if file.subset in only)
    if missing := set(only) - {file.subset for file in files}:
        raise FileNotFoundError(
            f"{source.name}: there are no raw files of {', '.join(sorted(missing))} ({where}): leave them out of only= "
            "or --languages, or fetch them"
        )
    return RawFiles(files, listed.ignored)


def say_found(source: Source, folder: Path, entry: MixEntry, listed: RawFiles, *, notice: Notice) -> None:
    """Say what a person might not expect of some raw files. Raises ValueError where what is excluded cannot be told."""
    unfinished = [path for path in listed.ignored if path.endswith(PART_SUFFIX)]
    if unfinished:
        raise ValueError(
            f"{folder / unfinished[0]} is half fetched: run the command again that fetched it, or remove it to build "
            "from the files that are there"
        )
    if listed.ignored:
        shown = ", ".join(listed.ignored[:3])
        notice(f"{source.name}: {len(listed.ignored):,} files in {folder} are of no known kind, not read: {shown}")
    splits = Counter(file.split for file in listed.files)
    if len(splits) > 1:
        counts = ", ".join(f"{number:,} {split}" for split, number in splits.items())
        notice(f"{source.name}: raw files by split, as their names say: {counts}")
    unnamed = [file.path for file in listed.files if file.subset is None]
    if entry.exclude and source.subset_from_path and unnamed:
        raise ValueError(
            f"{source.name}?exclude={'+'.join(entry.exclude)}: the path {unnamed[0]} names no subset "
            f"({len(unnamed):,} such files), so whether to leave it out cannot be told. Move it below a folder named "
            "after its subset"
        )


def find_remotes(sources: tuple[PlannedSource, ...]) -> dict[str, RemoteSource]:
    """The sources whose raw files are fetched, by name."""
    return {source.name: source.fetching for source in sources if isinstance(source.fetching, RemoteSource)}


def save_listings(sources: tuple[PlannedSource, ...]) -> None:
    """Keep what was listed with the work files, so that a restart asks for nothing."""
    for remote in find_remotes(sources).values():
        remote.save()
