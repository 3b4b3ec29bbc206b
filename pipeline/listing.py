"""What raw files an origin has, asked once: paths, sizes, and what tells one state of a file from another.

A listing is kept with the work files, so that a restart asks for nothing. What the three kinds of places have in common
is a Place; see places.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from pipeline.origins import Origin
from pipeline.storage import read_json, write_json
from pipeline.web import Stream


@dataclass(frozen=True)
class RemoteFile:
    """One file of an origin. path: below the source's folder.

    identity: "sha256:..." or "git:..." (sha1 of a git blob), which the bytes must have; or "etag:...", which the server
    must repeat; empty where it says nothing. address: what the place asks for it by.
    """

    path: str
    size_bytes: int
    identity: str
    address: str


@dataclass(frozen=True)
class Listing:
    """The files of an origin, sorted by path. revision: the commit of the hub that they are of."""

    origin: str
    revision: str | None
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size_bytes for file in self.files)


class Place(Protocol):
    """An origin that can be asked."""

    def list_files(self) -> Listing:
        """All files. Raises ValueError, FileNotFoundError or OSError with one line for a person."""

    def find_first(self, is_wanted: Callable[[str], bool]) -> RemoteFile | None:
        """A file whose path is wanted, found with as few questions as can be; None: there is none."""

    def open(self, file: RemoteFile, start: int) -> Stream:
        """A file's bytes from `start` on, or all of them. Raises PassingError, and ValueError for a person."""

    def probe(self, file: RemoteFile) -> None:
        """Ask whether a file may be fetched, without fetching it. Raises ValueError where not."""


def make_listing(origin: Origin, revision: str | None, files: Iterable[RemoteFile]) -> Listing:
    """The listing of some files, hidden ones left out. Raises ValueError for paths that could not be files of ours."""
    kept = [file for file in files if not any(map(is_hidden, file.path.split("/")))]
    kept.sort(key=lambda file: file.path.encode())
    for file in kept:
        check_path(file.path, origin)
    for file, after in zip(kept, kept[1:], strict=False):
        if file.path == after.path or after.path.startswith(f"{file.path}/"):
            raise ValueError(f"{origin}: {file.path} is listed twice, or is a file and a folder")
    if not kept:
        raise FileNotFoundError(f"{origin}: there are no files")
    return Listing(origin.listed_as, revision, tuple(kept))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that is passed over; `..` is none, but a path to be refused."""
    return name.startswith(".") and name not in (".", "..")


def check_path(path: str, origin: Origin) -> None:
    """Raises ValueError for a path that would leave the source's folder, or that no disk can hold."""
    names = path.split("/")
    if not path or any(name in ("", ".", "..") or len(name.encode()) > 240 for name in names) or "\0" in path:
        raise ValueError(f"{origin}: the path {path!r} cannot be a file in a folder of ours")


def save_listing(listing: Listing, path: Path) -> None:
    """Keep a listing."""
    write_json(path, asdict(listing))


def load_listing(path: Path, origin: Origin) -> Listing | None:
    """The listing kept at `path` if it is this origin's."""
    if not path.is_file():
        return None
    kept = read_json(path)
    if kept["origin"] != origin.listed_as:
        return None
    return Listing(kept["origin"], kept["revision"], tuple(RemoteFile(**file) for file in kept["files"]))
