"""Raw files named by a list of URLs on a web server, one a line; or one raw file by its own URL.

A line may be a path from where the list lies. With a template each line goes where it says {line}. A file's path is
its URL's below the list's folder, as `wget -x -nH --cut-dirs` lays it out, or below what the template begins with; else
below what all URLs have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urljoin, urlsplit

from pipeline.endings import KNOWN_ENDINGS, TABLE_ENDINGS
from pipeline.listing import Listing, RemoteFile, make_listing
from pipeline.origins import Origin, hide_in_text, hide_secrets
from pipeline.quality_signals import name_signals
from pipeline.web import Patience, RefusedError, Stream, WebClient

ASKED_AT_ONCE = 8
LIST_BYTES = 64 << 20
NUMBER = "number "  # before a URL's number in the list
LIST_ENDINGS = (".txt", ".lst", ".list", ".urls")


class UrlPlace:
    """The files that a list of URLs names."""

    def __init__(self, origin: Origin, *, patience: Patience):
        self.origin, self.patience = origin, patience
        self.client = WebClient(patience)
        self.lines: list[str] = []
        self.lock = threading.Lock()

    def list_files(self) -> Listing:
        """All files of the list, each with its size as the server says."""
        urls = self.read_urls()
        paths = name_paths(urls[: len(self.lines)], self.base)
        paths += [name_signals(path)[0] for path in paths[: len(urls) - len(paths)]]
        with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
            files = list(threads.map(self.describe, urls, paths, range(len(urls))))
        return make_listing(self.origin, None, files)

    def read_urls(self) -> list[str]:
        """The URLs that the list stands for: those of raw files, then those of their quality signals, if asked for."""
        with self.lock:
            if not self.lines:
                self.lines = self.list_lines()
        urls = self.make_urls(self.lines, self.origin.template)
        if self.origin.signals_template:
            urls += self.make_urls(self.lines, self.origin.signals_template)
        return urls

    @property
    def base(self) -> str:
        """The URL below which paths are counted, up to its last slash."""
        return self.origin.template.partition("{line}")[0] if self.origin.template else self.origin.address

    def find_first(self, is_wanted: Callable[[str], bool]) -> RemoteFile | None:
        """The first file of a wanted path."""
        urls = self.read_urls()[: len(self.lines)]
        paths = name_paths(urls, self.base)
        number = next((number for number, path in enumerate(paths) if is_wanted(path)), None)
        return None if number is None else self.describe(urls[number], paths[number], number)

    def list_lines(self) -> list[str]:
        """The lines of the list that say something; of a raw file's own URL, that."""
        address = self.origin.address
        path = urlsplit(address).path
        if path.endswith((*KNOWN_ENDINGS, *TABLE_ENDINGS)) and not path.endswith(LIST_ENDINGS):
            return [address]
        text = self.patience.persist(self.read_list, what=str(self.origin)).decode("utf-8-sig", errors="replace")
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        if not lines:
            raise FileNotFoundError(f"{self.origin}: the list is empty")
        return lines

    def make_urls(self, lines: list[str], template: str | None) -> list[str]:
        """The URL that each line stands for."""
        lines = [template.replace("{line}", line) for line in lines] if template else lines
        urls = [urljoin(self.origin.address, line) for line in lines]
        for url in urls:
            if urlsplit(url).scheme not in ("http", "https") or "<" in url:
                shown = hide_in_text(url[:80])
                raise ValueError(f"{self.origin}: {shown!r} is no URL: this is not a list of one URL a line")
        return urls

    def read_list(self) -> bytes:
        """The list itself."""
        text = bytearray()
        for chunk in self.request(self.origin.address, "the list").chunks:
            text += chunk
            if len(text) > LIST_BYTES:
                raise ValueError(f"{self.origin} is longer than {LIST_BYTES >> 20} MiB: not a list of URLs")
        return bytes(text)

    def describe(self, url: str, path: str, number: int = 0) -> RemoteFile:
        """A file with its size and ETag. number: of its URL, which stands for one that holds a secret.

        So no secret is written into a listing: where one is read again, so is the list.
        """
        what = f"{self.origin}: {path}"
        found = self.patience.persist(lambda: self.ask(url, path), what=what)
        if found.size_bytes is None:
            raise ValueError(f"{what}: the server does not say how long it is: fetch it yourself, into the raw folder")
        address = url if url == hide_secrets(url) else f"{NUMBER}{number}"
        return RemoteFile(path, found.size_bytes, f"etag:{found.etag}" if found.etag else "", address)

    def ask(self, url: str, path: str) -> Stream:
        """What the server says of a file; by a GET that is not read where a HEAD does not tell its length."""
        try:
            found = self.client.open(url, headers={}, method="HEAD")
            if found.size_bytes is not None:
                return found
        except RefusedError as error:
            if error.status not in (403, 405, 501):
                raise self.explain(error, path) from None
        found = self.request(url, path)
        found.chunks.close()
        return found

    def open(self, file: RemoteFile, start: int) -> Stream:
        """A file's bytes from `start` on."""
        return self.request(self.find_url(file), file.path, start=start)

    def find_url(self, file: RemoteFile) -> str:
        """The URL of a file, from the list where its listing has a number. Raises ValueError for a shorter list."""
        if not file.address.startswith(NUMBER):
            return file.address
        urls, number = self.read_urls(), int(file.address.removeprefix(NUMBER))
        if number >= len(urls):
            raise ValueError(f"{self.origin}: the list has changed: {file.path} is not in it. --replace lists it anew")
        return urls[number]

    def probe(self, file: RemoteFile) -> None:
        """Ask whether a file may be fetched: listing it did."""

    def request(self, url: str, path: str, *, start: int = 0) -> Stream:
        """Ask for a URL once. path: what messages call it."""
        try:
            return self.client.open(url, headers={}, start=start)
        except RefusedError as error:
            raise self.explain(error, path) from None

    def explain(self, error: RefusedError, path: str) -> ValueError:
        """The error, in one line, for an answer that will not change by itself."""
        hints = {404: ": it is not there (any more)", 410: ": it is not there any more", 401: ": it asks for a login"}
        hint = hints.get(error.status, "")
        return ValueError(f"{self.origin}: {path}: the server answers {error.status}{hint}")


def name_paths(urls: list[str], base: str) -> list[str]:
    """A path for each URL, none with its query. base: the URL below whose folder they are counted if all lie there."""
    places = [unquote(urlsplit(hide_secrets(url)).path).lstrip("/") for url in urls]
    own = unquote(urlsplit(base).path).lstrip("/").rpartition("/")[0]
    same_host = all(urlsplit(url).netloc == urlsplit(base).netloc for url in urls)
    if same_host and all(place.startswith(f"{own}/" if own else "") for place in places):
        return [place[len(own) :].lstrip("/") for place in places]
    common = find_common(places)
    return ["/".join(place.split("/")[common:]) for place in places]


def find_common(places: list[str]) -> int:
    """How many folders all paths begin with."""
    folders: Iterator[tuple[str, ...]] = zip(*(place.split("/")[:-1] for place in places), strict=False)
    common = 0
    for names in folders:
        if len(set(names)) > 1:
            break
        common += 1
    return common
