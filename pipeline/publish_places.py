"""The two places that a dataset can be published to: a data set repository on the hub, and a bucket of S3."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.bucket import is_of_client, open_bucket
from pipeline.fetch import identify
from pipeline.hub import HUB, HubPlace
from pipeline.listing import RemoteFile
from pipeline.origins import Origin
from pipeline.storage import checksum_file
from pipeline.web import PassingError, Patience

CHECKSUM_KEY = "xxh3-128"  # in the metadata of an object
MOST_FAILURES = 5  # in a row: a quarter of a minute
Result = TypeVar("Result")


class HubTarget:
    """A repository on the hub, made if it is not there."""

    def __init__(self, origin: Origin, *, is_private: bool):
        from huggingface_hub import HfApi

        self.origin = origin
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", HUB).rstrip("/"))
        self.do(lambda: self.api.create_repo(origin.address, repo_type="dataset", private=is_private, exist_ok=True))

    def do(self, call: Callable[[], Any]) -> Any:
        """The answer of a call of huggingface_hub's, which repeats what may pass itself."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return call()
        except httpx2.TransportError as error:
            raise OSError(f"{self.origin}: no answer of the hub ({type(error).__name__}). Try again later") from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "nothing"
            hint = ": log in with a token that may write (hf auth login, or HF_TOKEN)" if status in (401, 403) else ""
            raise ValueError(f"{self.origin}: the hub answers {status}{hint}") from None

    def find_missing(self, files: Mapping[str, Path]) -> list[str]:
        """The paths of those files that are not there with the same content."""
        _, there = self.list_files()
        return [
            path
            for path, local in files.items()
            if path not in there or identify(local, there[path].identity) != there[path].identity
        ]

    def list_files(self) -> tuple[HubPlace, dict[str, RemoteFile]]:
        """The repository as it is now, and its files by path."""
        place = HubPlace(self.origin, patience=Patience(), revision=None)
        place.pin()
        return place, {file.path: file for file in place.ask(lambda: list(place.walk()))}

    def read(self, path: str) -> bytes | None:
        """A small file that is there; None: it is not."""
        place, there = self.list_files()
        if path not in there:
            return None
        return place.patience.persist(lambda: b"".join(place.open(there[path], 0).chunks), what=path)

    def send(self, files: Mapping[str, Path]) -> None:
        """Add some files in one commit."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=local) for path, local in files.items()]
        if operations:
            message = f"Add {operations[-1].path_in_repo}" + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")
            how = {"repo_type": "dataset", "revision": self.origin.revision, "commit_message": message}
            self.do(lambda: self.api.create_commit(self.origin.address, operations, **how))


class BucketTarget:
    """A bucket of S3 under a prefix. Each object carries its file's checksum."""

    def __init__(self, origin: Origin):
        self.origin = origin
        scheme, _, self.prefix = origin.address.partition("://")
        if scheme != "s3":
            raise ValueError(f"{origin}: publishing to {scheme}:// is not built in; copy the folder with its own tool")
        self.bucket = open_bucket(scheme, is_public=False)
        self.patience = Patience(most_failures=MOST_FAILURES)

    def do(self, call: Callable[[], Result]) -> Result:
        """The answer of a call of fsspec's, repeated while its failure may pass."""
        return self.patience.persist(lambda: self.attempt(call), what=str(self.origin))

    def attempt(self, call: Callable[[], Result]) -> Result:
        """Make a call once, its errors turned into ours. Raises FileNotFoundError where there is no such object."""
        try:
            return call()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.origin}: {error}") from None
        except PermissionError:
            raise ValueError(f"{self.origin}: access is denied: give credentials that may write there") from None
        except Exception as error:
            if type(error).__name__ == "NoCredentialsError":
                raise ValueError(f"{self.origin}: there are no credentials: see `aws configure`") from None
            if is_of_client(error):
                raise PassingError(f"no answer of the bucket ({type(error).__name__}: {error})") from None
            raise

    def find_missing(self, files: Mapping[str, Path]) -> list[str]:
        """The paths of those files that are not there with the same content."""
        return [path for path, local in files.items() if not self.holds(path, local)]

    def read(self, path: str) -> bytes | None:
        """A small file that is there; None: it is not."""
        try:
            return self.do(lambda: self.bucket.cat_file(f"{self.prefix}/{path}"))
        except FileNotFoundError:
            return None

    def holds(self, path: str, local: Path) -> bool:
        """Whether an object is a file's copy, by its size and the checksum that it carries."""
        name = f"{self.prefix}/{path}"
        try:
            is_as_long = self.do(lambda: self.bucket.info(name))["size"] == local.stat().st_size
        except FileNotFoundError:
            return False
        return is_as_long and self.do(lambda: self.bucket.metadata(name)).get(CHECKSUM_KEY) == checksum_file(local)

    def send(self, files: Mapping[str, Path]) -> None:
        """Put some files there, and look whether they arrived."""
        for path, local in files.items():
            name, metadata = f"{self.prefix}/{path}", {CHECKSUM_KEY: checksum_file(local)}
            self.do(partial(self.bucket.put_file, str(local), name, Metadata=metadata))
            found = self.do(partial(self.bucket.info, name))["size"]
            if found != local.stat().st_size:
                raise ValueError(f"s3://{name} has {found:,} bytes, {local} has {local.stat().st_size:,}: try again")
