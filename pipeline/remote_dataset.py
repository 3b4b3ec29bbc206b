"""A published dataset as a folder of a local cache, whose files are fetched when they are first wanted.

    folder = open_remote("hf://org/name")       # dataset.json alone is fetched
    bring(folder / "web/train/shard-00000.bin")  # the first time: fetched and checked; else nothing happens

The folder's own origin.json says where its files come from, so that any process that knows a path can `bring` it:
ranks on one machine share a cache, and a file is fetched by one of them while the others wait. A reader of
other folders pays one look at each folder, and none at its files. What fetches is imported where something is fetched.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.storage import locked, user_cache

if TYPE_CHECKING:
    from pipeline.listing import Place, RemoteFile
    from pipeline.origins import Origin

ORIGIN_FILE, LISTING_FILE = "origin.json", "listing.json"
DATASET_FILE = "dataset.json"
REMOTE_SCHEMES = ("hf://", "s3://", "gs://", "http://", "https://")


def is_remote(path: Path | str) -> bool:
    """Whether a dataset's path is a place elsewhere."""
    return str(path).startswith(REMOTE_SCHEMES)


def open_remote(address: str, *, cache: Path | None = None) -> Path:
    """The folder in the cache of the dataset at `address`; its dataset.json is fetched if it has none.

    A revision of the hub is pinned then: remove the folder for a newer one. Raises ValueError or OSError with one line
    where there is no such dataset, or where the address holds a secret: it is written into the cache and into runs.
    """
    parts = urlsplit(address)
    if parts.query or (parts.scheme in ("http", "https") and "@" in parts.netloc):
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ValueError(f"{shown}: a dataset is read from an address without a password and a query (?...)")
    name = address.rstrip("/").rsplit("/", 1)[-1]
    folder = (cache or user_cache("datasets")) / f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / DATASET_FILE):
        if not (folder / DATASET_FILE).is_file():
            fetch_description(address, folder)
    return folder


def fetch_description(address: str, folder: Path) -> None:
    """Fetch dataset.json, and before it write down where it is from."""
    from pipeline.fetch import Fetcher
    from pipeline.storage import write_json
    from pipeline.web import Patience

    place = open_dataset_place(address, DATASET_FILE, revision=None)
    file = place.find_first(lambda path: path == DATASET_FILE)
    if file is None:
        raise FileNotFoundError(f"{address} holds no finished dataset (no {DATASET_FILE})")
    write_json(folder / ORIGIN_FILE, {"address": address, "revision": getattr(place, "revision", None)})
    Fetcher(place, patience=Patience()).fetch(file, folder / DATASET_FILE)


def open_dataset_place(address: str, path: str, *, revision: str | None) -> Place:
    """The place that a file of a dataset comes from: of URLs, the file's own."""
    from pipeline.origins import parse_origin
    from pipeline.places import open_place
    from pipeline.web import Patience

    is_web = address.startswith(("http://", "https://"))
    origin: Origin = parse_origin(f"{address.rstrip('/')}/{path}" if is_web else address)
    return open_place(origin, patience=Patience(), revision=revision)


def bring(path: Path, *, waits: bool = True) -> None:
    """Fetch a file of a dataset in the cache unless it is there; for any other path do nothing.

    waits: where another process or thread is fetching it; False leaves it to that one.
    Raises ValueError or OSError where it cannot be fetched, or is not the file that dataset.json lists.
    """
    folder = find_folder(path.parent)
    if folder is None or path.exists():
        return
    with locked(path, waits=waits) as is_ours:
        if is_ours and not path.exists():
            fetch_file(folder, path.relative_to(folder).as_posix())


def is_fetched_later(path: Path) -> bool:
    """Whether a file is not there yet, but will be when it is first wanted."""
    return find_folder(path.parent) is not None and not path.exists()


@cache
def find_folder(folder: Path) -> Path | None:
    """The folder of the cache that a path lies in, if it lies in one."""
    return next((one for one in (folder, *folder.parents) if (one / ORIGIN_FILE).is_file()), None)


def fetch_file(folder: Path, path: str) -> None:
    """Fetch one file into the cache, and check it."""
    from pipeline.fetch import Fetcher
    from pipeline.web import Patience

    origin = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
    place = open_dataset_place(origin["address"], path, revision=origin["revision"])
    file = find_file(place, folder, origin["address"], path)
    expected = read_checksums(folder).get(folder / path)
    Fetcher(place, patience=Patience()).fetch(
        file, folder / path, when_whole=lambda whole: check_whole(whole, expected, path, origin["address"])
    )


def find_file(place: Place, folder: Path, address: str, path: str) -> RemoteFile:
    """A file of a dataset as its place knows it: a web server is asked for each, others are listed once."""
    from pipeline.listing import load_listing, save_listing
    from pipeline.origins import parse_origin
    from pipeline.url_list import UrlPlace

    if isinstance(place, UrlPlace):
        return place.describe(place.origin.address, path)
    with locked(folder / LISTING_FILE):
        listing = load_listing(folder / LISTING_FILE, parse_origin(address))
        if listing is None:
            listing = place.list_files()
            save_listing(listing, folder / LISTING_FILE)
    file = next((one for one in listing.files if one.path == path), None)
    if file is None:
        raise FileNotFoundError(f"{address} has no {path}, which its dataset.json lists")
    return file


@cache
def read_checksums(folder: Path) -> dict[Path, str]:
    """The xxh3-128 of the files of a dataset in the cache that its dataset.json knows."""
    from pipeline.shard import list_checksums, read_dataset_json

    return dict(list_checksums(folder, read_dataset_json(folder)))


def check_whole(whole: Path, expected: str | None, path: str, address: str) -> None:
    """Raises ValueError where a fetched file has another checksum than dataset.json says."""
    from pipeline.storage import checksum_file

    if expected is not None and (found := checksum_file(whole)) != expected:
        whole.unlink()
        raise ValueError(f"{address}: {path} has the checksum {found}, dataset.json says {expected}: it was changed")
