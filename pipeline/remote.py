"""The raw files of one source that are fetched while it is built: what was listed, where they go, what they were.

Of every file that came a checksum is written down, as plan.py samples it from files on this disk: so a dataset does not
show where its raw files came from.
"""

from __future__ import annotations

import contextlib
import json
import threading
from functools import cached_property
from pathlib import Path

from pipeline.fetch import Fetcher, check_unchanged
from pipeline.listing import Listing, Place, RemoteFile, load_listing, save_listing
from pipeline.origins import Origin
from pipeline.places import open_place
from pipeline.plan import sample_checksum
from pipeline.web import PassingError, Patience


class RemoteSource:
    """The files of an origin, below `folder` once they are fetched. journal: where checksums are written down."""

    def __init__(self, name: str, listing: Listing, fetcher: Fetcher, *, folder: Path, work: Path, keep: bool):
        self.name, self.listing, self.fetcher, self.folder, self.keep = name, listing, fetcher, folder, keep
        self.listing_path, self.journal = listing_path(work, name), work / "fetched" / f"{name}.jsonl"
        self.lock = threading.Lock()

    @cached_property
    def files(self) -> dict[str, RemoteFile]:
        """The files by path."""
        return {file.path: file for file in self.listing.files}

    @cached_property
    def checksums(self) -> dict[str, str]:
        """The checksum of each file that was fetched in this run or one before it, by path."""
        checksums: dict[str, str] = {}
        if self.journal.is_file():
            for line in self.journal.read_text(encoding="utf-8").split("\n"):
                with contextlib.suppress(json.JSONDecodeError):  # a kill may leave half a line: its file comes again
                    entry = json.loads(line)
                    checksums[entry["path"]] = entry["checksum"]
        return checksums

    def identity(self, path: str) -> str:
        """What tells one state of a file from another, before it is fetched."""
        file = self.files[path]
        return file.identity or f"address:{file.address}"

    def checksum(self, path: str) -> str:
        """The checksum of a file that was fetched."""
        return self.checksums[path]

    def bring(self, path: str) -> Path:
        """Fetch a file now; returns where it is."""
        target = self.folder / path
        self.fetch(path)
        return target

    def fetch(self, path: str) -> int:
        """Fetch a file unless it is there, and write its checksum down; returns the bytes fetched."""
        file = self.files[path]
        return self.fetcher.fetch(file, self.folder / path, when_whole=lambda whole: self.note(path, whole))

    def read_end(self, path: str, num_bytes: int) -> bytes | None:
        """The last bytes of a file, which need not be here; None where its server gives no parts of files."""
        return self.fetcher.patience.persist(lambda: self.try_end(path, num_bytes), what=path)

    def try_end(self, path: str, num_bytes: int) -> bytes | None:
        """Try once to read the last bytes of a file; as read_end."""
        file = self.files[path]
        start = file.size_bytes - num_bytes
        stream = self.fetcher.place.open(file, start)
        with contextlib.closing(stream.chunks):
            check_unchanged(file, stream.etag, stream.size_bytes)
            if stream.start != start:
                return None
            end = b"".join(stream.chunks)
        if len(end) != num_bytes:
            raise PassingError(f"the stream ends after {start + len(end):,} of {file.size_bytes:,} bytes")
        return end

    def note(self, path: str, whole: Path) -> None:
        """Write down the checksum of a file that came."""
        checksum = sample_checksum(whole)
        with self.lock:
            if self.checksums.get(path) == checksum:
                return
            self.checksums[path] = checksum
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            with open(self.journal, "a", encoding="utf-8") as file:
                file.write("\n" + json.dumps({"path": path, "checksum": checksum}))

    def save(self) -> None:
        """Keep the listing with the work files."""
        save_listing(self.listing, self.listing_path)


def listing_path(work: Path, name: str) -> Path:
    """Where a source's listing is kept."""
    return work / "listings" / f"{name}.json"


def find_remote(
    name: str, origin: Origin, *, folder: Path, work: Path, keep: bool, is_new: bool, patience: Patience
) -> RemoteSource:
    """The files of an origin: as an earlier run of the same build listed them, or listed now.

    is_new: list them now in any case. Raises ValueError or OSError where the origin cannot be listed, or read.
    """
    kept = None if is_new else load_listing(listing_path(work, name), origin)
    place: Place = open_place(origin, patience=patience, revision=kept.revision if kept else None)
    listing = kept or place.list_files()
    return RemoteSource(name, listing, Fetcher(place, patience=patience), folder=folder, work=work, keep=keep)
