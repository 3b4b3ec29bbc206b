"""One raw file from its origin to the disk: as one stream, gone on with where it broke off, and checked.

A file under its own name is whole and checked. Before that it is NAME.<8 hex digits>.part, the digits standing for the
state of the file that it was begun with: after a kill it is gone on with from its last byte.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.listing import Place, RemoteFile
from pipeline.storage import READ_BYTES, naming, sync_folder
from pipeline.web import PassingError, Patience

PART_SUFFIX = ".part"
STATE_DIGITS = 8
MOST_WRONG_BYTES = 2  # times that a file comes with other bytes than it should have


class StoppedError(Exception):
    """The fetching was called off."""


class Fetcher:
    """Fetches files of one place. is_stopped: asked between chunks; True calls the fetching off."""

    def __init__(self, place: Place, *, patience: Patience, is_stopped: Callable[[], bool] = lambda: False):
        self.place, self.patience, self.is_stopped = place, patience, is_stopped

    def fetch(self, file: RemoteFile, target: Path, *, when_whole: Callable[[Path], object] = lambda _: None) -> int:
        """Bring a file to `target`, unless it is there; returns the bytes that were fetched for it.

        when_whole: called with the checked file before others may find it under its own name.
        Raises ValueError where it is another file than was listed, OSError where the server or the disk gives up.
        """
        if target.is_file():
            check_present(target, file)
            when_whole(target)
            return 0
        target.parent.mkdir(parents=True, exist_ok=True)
        part = name_part(target, file)
        for stale in target.parent.glob(f"{glob.escape(target.name)}.{'[0-9a-f]' * STATE_DIGITS}{PART_SUFFIX}"):
            if stale != part:
                stale.unlink(missing_ok=True)
        num_fetched = 0
        for _ in range(MOST_WRONG_BYTES):
            before = size_of(part)
            self.patience.persist(lambda: self.go_on(file, part), what=file.path, progress=lambda: size_of(part))
            num_fetched += max(0, size_of(part) - before)
            found = identify(part, file.identity)
            if found in (None, file.identity):
                when_whole(part)
                os.replace(part, target)
                sync_folder(target.parent)
                return num_fetched
            part.unlink()
        raise ValueError(f"{file.path}: its bytes are {found}, but {file.identity} was listed: they are damaged")

    def go_on(self, file: RemoteFile, part: Path) -> None:
        """Fetch what is missing of a part."""
        if size_of(part) > file.size_bytes:
            part.unlink()
        with naming(part), open(part, "ab") as out:
            if out.tell() < file.size_bytes:
                self.append(file, out)
            os.fsync(out.fileno())

    def append(self, file: RemoteFile, out: BinaryIO) -> None:
        """Add to a part until it is whole. Raises PassingError where the stream ends before."""
        start = out.tell()
        stream = self.place.open(file, start)
        with closing(stream.chunks):
            check_unchanged(file, stream.etag, stream.size_bytes)
            if stream.start not in (0, start):
                raise PassingError(f"asked for byte {start:,}, the server answers from {stream.start:,}")
            if stream.start != start:  # a server that knows no ranges
                out.truncate(0)
                out.seek(0)
            for chunk in stream.chunks:
                if self.is_stopped():
                    raise StoppedError
                if out.tell() + len(chunk) > file.size_bytes:
                    raise ValueError(f"{file.path}: the server sends more than the {file.size_bytes:,} bytes listed")
                out.write(chunk)
        if out.tell() < file.size_bytes:
            raise PassingError(f"the stream ends after {out.tell():,} of {file.size_bytes:,} bytes")


def size_of(path: Path) -> int:
    """How long a file is; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def name_part(target: Path, file: RemoteFile) -> Path:
    """What a file is called until it is whole."""
    state = hashlib.sha256(f"{file.size_bytes} {file.identity}".encode()).hexdigest()[:STATE_DIGITS]
    return target.with_name(f"{target.name}.{state}{PART_SUFFIX}")


def check_present(target: Path, file: RemoteFile) -> None:
    """Raises ValueError where a file that is there already is not the one listed."""
    size_bytes = size_of(target)
    if size_bytes != file.size_bytes:
        raise ValueError(
            f"{target} has {size_bytes:,} bytes, but {file.size_bytes:,} were listed: remove it and it is fetched again"
        )
    found = identify(target, file.identity)
    if found not in (None, file.identity):
        raise ValueError(f"{target} is {found}, but {file.identity} was listed: remove it and it is fetched again")


def check_unchanged(file: RemoteFile, etag: str | None, size_bytes: int | None) -> None:
    """Raises ValueError where the server has another state of the file than was listed."""
    kind, _, listed = file.identity.partition(":")
    is_other = kind == "etag" and etag is not None and etag.strip('"') != listed.strip('"')
    if is_other or size_bytes not in (None, file.size_bytes):
        raise ValueError(
            f"{file.path}: it has changed since it was listed (then {file.size_bytes:,} bytes, {listed[:40]}; now "
            f"{size_bytes if size_bytes is not None else '?'} bytes, {etag}). --replace lists everything anew"
        )


def identify(path: Path, identity: str) -> str | None:
    """The identity that a file's bytes have, of the kind of `identity`; None where bytes do not tell."""
    kind = identity.partition(":")[0]
    if kind == "sha256":
        return f"sha256:{digest_file(path, hashlib.sha256())}"
    if kind == "git":  # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        return f"git:{digest_file(path, hashlib.sha1(b'blob %d' % size_of(path) + bytes(1), usedforsecurity=False))}"
    return None


def digest_file(path: Path, digest: Any) -> str:
    """The hex digest of a file's bytes, behind what `digest` holds already."""
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
