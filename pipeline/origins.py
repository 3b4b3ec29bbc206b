"""Where raw files come from, as a person writes it: a folder, a hub repository, a bucket, or a list of URLs.

    /data/notes   hf://org/name@revision/folder   s3://bucket/prefix   https://host/urls.txt

Reads and fetches nothing. What is shown of an origin never holds a password or a query, where secrets stand.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

BUCKETS = ("s3", "gs")
FOLDER_STARTS = ("/", "./", "../", "~/")
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://")
HUB_ADDRESS = re.compile(r"(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/([^@]*))?")
HUB_BRANCHES = re.compile(r"(refs/(?:convert|pr)/[\w.-]+)(?:/(.*))?")
USER = re.compile(r"(?<=://)[^\s/@,]*@")
QUERY_VALUE = re.compile(r"([?&])([^\s=&,?]+)=([^\s&,'\"]*)")
NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Origin:
    """A place with raw files. kind: "folder", "hub", "bucket" or "urls".

    address: a folder, org/name on the hub, scheme://bucket/prefix, or a URL. folder: within a hub repository.
    config: of a hub repository, as its card names them. template: makes a URL of a line of the list; signals_template
    that of its quality signals, which are listed, too, where it is given.
    """

    kind: str
    address: str
    revision: str | None = None
    folder: str = ""
    config: str | None = None
    template: str | None = None
    signals_template: str | None = None

    @property
    def listed_as(self) -> str:
        """What a listing of it is kept under."""
        return f"{self} and quality signals" if self.signals_template else str(self)

    def __str__(self) -> str:
        if self.kind == "urls":
            return hide_secrets(self.address)
        if self.kind != "hub":
            return self.address
        revision = f"@{self.revision}" if self.revision else ""
        config = f"?config={self.config}" if self.config else ""
        return f"hf://datasets/{self.address}{revision}{f'/{self.folder}' if self.folder else ''}{config}"


def is_origin(text: str) -> bool:
    """Whether a mix's entry names a place rather than a source of the raw folder."""
    return bool(SCHEME.match(text)) or text.startswith(FOLDER_STARTS)


def parse_origin(text: str, *, config: str | None = None, template: str | None = None) -> Origin:
    """The origin that `text` writes. Raises ValueError for a scheme or address that is none."""
    scheme = SCHEME.match(text)
    if scheme is None:
        return refuse_config(Origin("folder", str(Path(text).expanduser())), config)
    if scheme[1] == "hf":
        return parse_hub(text, config=config)
    if scheme[1] in BUCKETS:
        if not text[scheme.end() :].strip("/"):
            raise ValueError(f"{text}: no bucket; write {scheme[1]}://BUCKET/PREFIX")
        return refuse_config(Origin("bucket", text.rstrip("/")), config)
    if scheme[1] in ("http", "https"):
        if not urlsplit(text).hostname:
            raise ValueError(f"{text}: no host in this URL")
        return refuse_config(Origin("urls", text, template=template), config)
    raise ValueError(f"{text}: raw files are read from a folder, hf://, s3://, gs://, http:// or https://")


def parse_hub(text: str, *, config: str | None) -> Origin:
    """hf://[datasets/]org/name[@revision][/folder]; a branch such as refs/convert/parquet holds slashes."""
    address, at, rest = text.removeprefix("hf://").partition("@")
    branch = HUB_BRANCHES.fullmatch(rest)
    found = HUB_ADDRESS.fullmatch(address if branch else address + at + rest)
    if not found or (found[1].startswith(("models/", "spaces/")) and not found[3]):
        raise ValueError(f"{text}: write hf://ORG/NAME, or hf://ORG/NAME@REVISION/FOLDER, of a data set on the hub")
    revision, folder = (branch[1], branch[2]) if branch else (found[2], found[3])
    return Origin("hub", found[1], revision, (folder or "").strip("/"), config)


def refuse_config(origin: Origin, config: str | None) -> Origin:
    """`origin`, or a ValueError where a config was given that only the hub knows."""
    if config is not None:
        raise ValueError(f"{origin}: ?config= is for hf:// alone; give the folder instead")
    return origin


def name_origin(origin: Origin) -> str:
    """The source's name where none is given: the last name of the address, so that a copy of it is called the same.

    >>> name_origin(parse_origin("s3://bucket/corpora/notes/")), name_origin(parse_origin("https://host/web/urls.txt"))
    ('notes', 'web')
    """
    path = urlsplit(origin.address).path if origin.kind == "urls" else origin.address.partition("://")[2]
    if origin.kind in ("folder", "hub"):
        path = str(Path(origin.address).absolute())
    names = [name for name in path.split("/") if name]
    if origin.kind == "urls" and len(names) > 1:  # urls.txt, and files of a known kind, say nothing
        names.pop()
    name = NOT_IN_A_NAME.sub("-", names[-1] if names else "").lstrip("._-")
    if not name:
        raise ValueError(f"{origin}: give the source a name, ?name=NAME")
    return name


def hide_in_text(text: str, *, kept: Collection[str] = ()) -> str:
    """A text in which URLs may stand, without users, passwords, and the values of queries but for some keys.

    >>> hide_in_text("no host in https://me:hush@/list.txt?sig=hush&name=web", kept=("name",))
    'no host in https:///list.txt?sig=...&name=web'
    """

    def hide(found: re.Match[str]) -> str:
        return found[0] if found[2] in kept else f"{found[1]}{found[2]}=..."

    return QUERY_VALUE.sub(hide, USER.sub("", text))


def hide_secrets(url: str) -> str:
    """A URL without user, password, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
