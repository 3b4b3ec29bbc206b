"""Objects of a bucket: s3:// by s3fs, gs:// by gcsfs, as fsspec finds them.

Endpoint, region and credentials come from the environment, as for every program (AWS_ENDPOINT_URL, AWS_PROFILE, ...);
without credentials a bucket is asked as anybody may. An object of S3 is one stream from a signed URL; of other
buckets it comes in pieces, which grow up to PIECE_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from pipeline.listing import Listing, RemoteFile, make_listing
from pipeline.origins import Origin
from pipeline.web import PassingError, Patience, RefusedError, Stream, WebClient

FIRST_PIECE_BYTES, PIECE_BYTES = 1 << 20, 32 << 20
PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
SIGNED_SECONDS = 3600
CLIENTS = ("botocore", "aiobotocore", "aiohttp")  # some of whose errors are of no kind of Python's own
Result = TypeVar("Result")


class BucketPlace:
    """A bucket, or a part of it under a prefix."""

    def __init__(self, origin: Origin, *, patience: Patience):
        self.origin, self.patience = origin, patience
        self.scheme, _, self.prefix = origin.address.partition("://")
        self.client = WebClient(patience)
        self.files = open_bucket(self.scheme, is_public=False)

    def list_files(self) -> Listing:
        """All objects under the prefix."""
        found = self.ask(lambda: self.files.find(self.prefix, detail=True))
        return make_listing(self.origin, None, list(self.name_files(found)))

    def find_first(self, is_wanted: Callable[[str], bool]) -> RemoteFile | None:
        """The first object of a wanted path."""
        return next((file for file in self.list_files().files if is_wanted(file.path)), None)

    def name_files(self, found: dict[str, Any]) -> Iterator[RemoteFile]:
        """fsspec's entries as files; an object that ends with `/` stands for a folder."""
        for name, entry in found.items():
            if entry["type"] == "file" and not name.endswith("/"):
                path = name.removeprefix(self.prefix).lstrip("/") or name.rsplit("/", 1)[-1]
                etag = str(entry.get("ETag") or entry.get("etag") or "").strip('"')
                yield RemoteFile(path, entry["size"], f"etag:{etag}" if etag else "", name)

    def ask(self, call: Callable[[], Result], *, path: str | None = None) -> Result:
        """The answer of a call of fsspec's; once more without credentials where there are none."""
        return self.patience.persist(lambda: self.attempt(call, path=path), what=str(self.origin))

    def attempt(self, call: Callable[[], Result], *, path: str | None = None) -> Result:
        """Make a call once, its errors turned into ours. path: of the object asked for; None: it asks for a listing."""
        try:
            return call()
        except FileNotFoundError:
            if path is not None:
                raise self.explain(path, 404) from None
            raise FileNotFoundError(f"{self.origin}: no such bucket or prefix") from None
        except PermissionError:
            if path is not None:
                raise self.explain(path, 403) from None
            raise ValueError(f"{self.origin}: access is denied: give credentials that may list and read it") from None
        except Exception as error:
            if type(error).__name__ == "NoCredentialsError" and self.scheme == "s3":
                self.files = open_bucket(self.scheme, is_public=True)
                raise PassingError("no credentials: asked as anybody may") from None
            if is_of_client(error):
                raise PassingError(f"the bucket cannot be read ({type(error).__name__}: {error})") from None
            raise

    def open(self, file: RemoteFile, start: int) -> Stream:
        """An object's bytes from `start` on."""
        if self.scheme != "s3":
            etag = None  # cat_file tells none: the size and the end of the file stand for it
            return Stream(start, file.size_bytes, etag, self.read_pieces(file, start))
        url = self.attempt(lambda: self.files.sign(file.address, expiration=SIGNED_SECONDS), path=file.path)
        try:
            return self.client.open(url, headers={}, start=start)
        except RefusedError as error:
            raise self.explain(file.path, error.status) from None

    def explain(self, path: str, status: int) -> ValueError:
        """The error, in one line, for an object that the bucket does not give."""
        what = "is not there (any more)" if status == 404 else "may not be read with these credentials"
        return ValueError(f"{self.origin}: {path} {what} (the bucket answers {status})")

    def read_pieces(self, file: RemoteFile, start: int) -> Iterator[bytes]:
        """An object piece by piece."""
        first, num_bytes = start, FIRST_PIECE_BYTES
        while first < file.size_bytes:
            last = min(first + num_bytes, file.size_bytes)
            yield self.attempt(partial(self.files.cat_file, file.address, first, last), path=file.path)
            first, num_bytes = last, min(2 * num_bytes, PIECE_BYTES)

    def probe(self, file: RemoteFile) -> None:
        """Ask for an object's first byte."""
        if file.size_bytes:
            self.ask(lambda: self.files.cat_file(file.address, 0, 1), path=file.path)


def is_of_client(error: Exception) -> bool:
    """Whether an error is the system's, or one of the libraries that speak with buckets: it may pass."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in CLIENTS


def open_bucket(scheme: str, *, is_public: bool) -> Any:
    """fsspec's file system for a scheme, with no cache of listings."""
    import fsspec

    how = {"anon": is_public} if scheme == "s3" else {}
    try:
        return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True, **how)
    except ImportError:
        raise ValueError(f"{scheme}:// needs the package {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}") from None
