"""The two places that a dataset can be published to: a data set repository on the hub, and a bucket of S3."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.bucket import open_bucket
from pipeline.fetch import identify
from pipeline.hub import HUB, HubPlace
from pipeline.origins import Origin
from pipeline.storage import checksum_file
from pipeline.web import Patience

CHECKSUM_KEY = "xxh3-128"  # in the metadata of an object


class HubTarget:
    """A repository on the hub, made if it is not there."""

    def __init__(self, origin: Origin, *, is_private: bool):
        from huggingface_hub import HfApi

        self.origin = origin
        self.api = HfApi(endpoint=os.environ.get("HF_ENDPOINT", HUB).rstrip("/"))
        self.do(lambda: self.api.create_repo(origin.address, repo_type="dataset", private=is_private, exist_ok=True))

    def do(self, call: Callable[[], Any]) -> Any:
        """The answer of a call of huggingface_hub's, which repeats what may pass itself."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "nothing"
            hint = ": log in with a token that may write (hf auth login, or HF_TOKEN)" if status in (401, 403) else ""
            raise ValueError(f"{self.origin}: the hub answers {status}{hint}") from None

    def find_missing(self, files: Mapping[str, Path]) -> list[str]:
        """The paths of those files that are not there with the same content."""
        place = HubPlace(self.origin, patience=Patience(), revision=None)
        place.pin()
        there = {file.path: file.identity for file in place.ask(lambda: list(place.walk()))}
        return [
            path for path, local in files.items() if path not in there or identify(local, there[path]) != there[path]
        ]

    def send(self, files: Mapping[str, Path]) -> None:
        """Add some files in one commit."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=local) for path, local in files.items()]
        if operations:
            message = f"Add {operations[-1].path_in_repo}" + (f" and {len(files) - 1:,} more" if files else "")
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

    def find_missing(self, files: Mapping[str, Path]) -> list[str]:
        """The paths of those files that are not there with the same content."""
        return [path for path, local in files.items() if not self.holds(path, local)]

    def holds(self, path: str, local: Path) -> bool:
        """Whether an object is a file's copy, by its size and the checksum that it carries."""
        name = f"{self.prefix}/{path}"
        try:
            is_as_long = self.bucket.info(name)["size"] == local.stat().st_size
        except FileNotFoundError:
            return False
        return is_as_long and self.bucket.metadata(name).get(CHECKSUM_KEY) == checksum_file(local)

    def send(self, files: Mapping[str, Path]) -> None:
        """Put some files there, and look whether they arrived."""
        for path, local in files.items():
            name = f"{self.prefix}/{path}"
            self.bucket.put_file(str(local), name, Metadata={CHECKSUM_KEY: checksum_file(local)})
            found = self.bucket.info(name)["size"]
            if found != local.stat().st_size:
                raise ValueError(f"s3://{name} has {found:,} bytes, {local} has {local.stat().st_size:,}: try again")
