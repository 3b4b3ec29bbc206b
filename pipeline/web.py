"""Requests to servers that may be busy, slow or rude: one body as one stream, waits where a server asks for them.

What may pass (429, 5xx, a cut connection, a stall) is tried again, later and later; what will not is raised at once.
Knows no hub and no files. Messages name things by what the caller calls them: a URL may carry a secret.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

CHUNK_BYTES = 1 << 20
CONNECT_SECONDS, READ_SECONDS = 20.0, 30.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 60.0
MOST_FAILURES = 10  # in a row without a byte: about five minutes
TOLD_SECONDS = 4.0  # shorter waits go without a word
MOST_ASKED_SECONDS = 3600.0  # a server that asks for a longer wait is given up
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
RATE_LIMIT = re.compile(r"\b(r|t)=(\d+)")  # https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")

Result = TypeVar("Result")


class PassingError(Exception):
    """A failure that may pass. wait_seconds: for how long the server asked us to stay away, if it did."""

    def __init__(self, reason: str, *, wait_seconds: float | None = None):
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class RefusedError(Exception):
    """A server's answer that will not change by itself. headers: its own, which may say why."""

    def __init__(self, status: int, headers: Mapping[str, str]):
        super().__init__(f"the server answers {status}")
        self.status, self.headers = status, headers


class AddressError(ValueError):
    """A URL, or one that it leads to, that cannot be asked for. Its text does not say which."""


@dataclass(frozen=True)
class Stream:
    """A body from byte `start` on. size_bytes: of all of it; None where the server does not say."""

    start: int
    size_bytes: int | None
    etag: str | None
    chunks: Iterator[bytes]


@dataclass
class Patience:
    """How failures are met: what has been waited for so far, and how to wait. Several threads may share one."""

    wait: Callable[[float], object] = time.sleep
    read_seconds: float = READ_SECONDS
    most_failures: int = MOST_FAILURES
    num_failures: int = 0
    waited_seconds: float = 0.0
    quiet_until: float = 0.0  # a rate limit is the whole program's, not one file's
    notice: Callable[[str], object] = lambda _: None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def persist(self, attempt: Callable[[], Result], *, what: str, progress: Callable[[], int] = lambda: 0) -> Result:
        """attempt(), again and again while it fails by PassingError.

        progress: a number that grows while there is hope, such as the bytes on disk. Raises OSError in the end.
        """
        in_a_row, reached = 0, progress()
        while True:
            self.keep_quiet()
            try:
                return attempt()
            except AddressError as error:
                raise ValueError(f"{what}: {error}") from None
            except PassingError as error:
                in_a_row = 1 if progress() > reached else in_a_row + 1
                reached = progress()
                self.meet(error, in_a_row, what=what)

    def meet(self, error: PassingError, in_a_row: int, *, what: str) -> None:
        """Wait after a failure, or give up; longer each time, whatever a server asks for: some always say 0."""
        asked = error.wait_seconds
        if in_a_row >= self.most_failures or (asked is not None and asked > MOST_ASKED_SECONDS):
            more = f" (and asks for {asked:,.0f} s of quiet)" if asked else ""
            raise OSError(f"{what}: {error}{more}; given up after {in_a_row} attempts. Try again later")
        seconds = max(asked or 0.0, min(FIRST_WAIT_SECONDS * 2 ** (in_a_row - 1), LONGEST_WAIT_SECONDS))
        if seconds >= TOLD_SECONDS:
            self.notice(f"{what}: {error}; trying again in {seconds:.0f} s")
        with self.lock:
            self.num_failures += 1
            if asked is not None:
                self.quiet_until = max(self.quiet_until, time.monotonic() + seconds)
                return
            self.waited_seconds += seconds
        self.wait(seconds)

    def keep_quiet(self) -> None:
        """Wait until no server asks for quiet."""
        with self.lock:
            seconds = self.quiet_until - time.monotonic()
            if seconds > 0:
                self.waited_seconds += seconds
        if seconds > 0:
            self.wait(seconds)


class WebClient:
    """Connections to servers, a set of them for each thread."""

    def __init__(self, patience: Patience):
        self.patience = patience
        self.local = threading.local()

    def open(self, url: str, *, headers: Mapping[str, str], start: int = 0, method: str = "GET") -> Stream:
        """One answer; its body from `start` on, unless the server insists on all of it: look at the stream's start.

        Raises PassingError, RefusedError or AddressError.
        """
        wanted = {"Accept-Encoding": "identity", **headers, **({"Range": f"bytes={start}-"} if start else {})}
        response = self.request(method, url, wanted)
        if response.status_code >= 400:
            response.close()
            raise refuse(response)
        found = CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        first = int(found[1]) if response.status_code == 206 and found and found[1] else 0
        return Stream(first, find_size(response, found), find_etag(response), self.read(response))

    def request(self, method: str, url: str, headers: Mapping[str, str]) -> Any:
        """requests' answer, its body unread."""
        import requests

        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
        times = (CONNECT_SECONDS, self.patience.read_seconds)
        try:
            return self.local.session.request(
                method, url, headers=headers, stream=True, timeout=times, allow_redirects=True
            )
        except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as error:
            raise PassingError(f"no answer ({name_cause(error)})") from None
        except (requests.exceptions.RequestException, ValueError) as error:
            raise AddressError(f"its address cannot be asked for ({type(error).__name__})") from None

    def read(self, response: Any) -> Iterator[bytes]:
        """The body as it was sent: not unpacked, whatever the server calls its packing."""
        import urllib3

        with response:
            try:
                yield from response.raw.stream(CHUNK_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise PassingError(f"the connection broke off ({name_cause(error)})") from None


def name_cause(error: BaseException) -> str:
    """What kind of failure it was, without the URL that its own text would show."""
    cause = error
    while (inner := getattr(cause, "reason", None) or cause.__cause__ or cause.__context__) and inner is not cause:
        if not isinstance(inner, BaseException):
            break
        cause = inner
    return type(cause).__name__


def refuse(response: Any) -> Exception:
    """The error for an answer of 400 or more."""
    status, headers = response.status_code, response.headers
    if status in PASSING_STATUS:
        return PassingError(f"the server answers {status}", wait_seconds=find_wait(headers))
    return RefusedError(status, headers)


def find_wait(headers: Mapping[str, str]) -> float | None:
    """For how many seconds a server asks for quiet, by Retry-After or RateLimit; None where it does not.

    >>> find_wait({"Retry-After": "7"}), find_wait({"RateLimit": '"api";r=0;t=55'}), find_wait({})
    (7.0, 55.0, None)
    """
    after = headers.get("Retry-After", "").strip()
    if after.isdecimal():
        return float(after)
    if after:
        moment, now = read_date(after), read_date(headers.get("Date", ""))  # by the server's own clock
        return None if moment is None else max(0.0, moment - (now or time.time()))
    limits = [dict(RATE_LIMIT.findall(limit)) for limit in headers.get("RateLimit", "").split(",")]
    if headers.get("RateLimit-Remaining", "").strip() == "0":  # older drafts have a header each
        limits.append({"r": "0", "t": headers.get("RateLimit-Reset", "").strip()})
    waits = [float(limit["t"]) for limit in limits if limit.get("r") == "0" and limit.get("t", "").isdecimal()]
    return max(waits, default=None)


def read_date(text: str) -> float | None:
    """The moment that a header names, in seconds; None where it is no date."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


def find_size(response: Any, content_range: re.Match[str] | None) -> int | None:
    """How long the whole body is."""
    if content_range:
        return int(content_range[2]) if content_range[2] != "*" else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and response.status_code == 200 else None


def find_etag(response: Any) -> str | None:
    """What tells one state of the body from another: the ETag, weak or strong, or else when it was last changed."""
    return response.headers.get("ETag", "").removeprefix("W/") or response.headers.get("Last-Modified")
