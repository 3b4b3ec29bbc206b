"""Data sets on the Hugging Face hub, or on a server that speaks its API ($HF_ENDPOINT).

The revision is pinned when the files are listed. Only files are read: no script of a repository is ever run. The
token ($HF_TOKEN, or that of `hf auth login`) goes into a header and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from pipeline.listing import Listing, RemoteFile, make_listing
from pipeline.manifest import compile_pattern
from pipeline.origins import Origin
from pipeline.web import PassingError, Patience, RefusedError, Stream, WebClient, find_wait

CARD = "README.md"
HUB = "https://huggingface.co"
Result = TypeVar("Result")


class HubPlace:
    """A data set on the hub."""

    def __init__(self, origin: Origin, *, patience: Patience, revision: str | None):
        from huggingface_hub import HfApi

        self.origin, self.patience, self.revision = origin, patience, revision
        self.endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        self.api = HfApi(endpoint=self.endpoint)
        self.client = WebClient(patience)

    def list_files(self) -> Listing:
        """The files of the folder or config asked for, at the commit that the revision is now."""
        card = self.pin()
        files = self.ask(lambda: list(self.walk()))
        if self.origin.config is not None:
            files = choose_config(files, self.origin, card)
        return make_listing(self.origin, self.revision, strip_folder(files, self.origin.folder))

    def find_first(self, is_wanted: Callable[[str], bool]) -> RemoteFile | None:
        """The first file of a wanted path: a page of the listing, or a few."""
        self.pin()
        found = (file for file in strip_folder(self.walk(), self.origin.folder) if is_wanted(file.path))
        return self.ask(lambda: next(found, None))

    def pin(self) -> Any:
        """Find the commit that the revision is now, unless it is known; returns what the card says."""
        revision = self.revision or self.origin.revision
        info = self.ask(lambda: self.api.dataset_info(self.origin.address, revision=revision))
        self.revision = info.sha
        return info.card_data

    def walk(self) -> Iterator[RemoteFile]:
        """Every file at the pinned commit, a page of the listing at a time."""
        entries = self.api.list_repo_tree(
            self.origin.address,
            repo_type="dataset",
            revision=self.revision,
            path_in_repo=self.origin.folder or None,
            recursive=True,
        )
        return (make_file(entry) for entry in entries if hasattr(entry, "blob_id"))

    def ask(self, call: Callable[[], Result]) -> Result:
        """The answer of a call of huggingface_hub's, with failures as we know them."""
        return self.patience.persist(lambda: self.attempt(call), what=str(self.origin))

    def attempt(self, call: Callable[[], Result]) -> Result:
        """Make a call once, its errors turned into ours."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return call()
        except HfHubHTTPError as error:
            if error.response is None:
                raise PassingError("no answer") from None
            headers, status = error.response.headers, error.response.status_code
            if status == 429 or status >= 500:
                raise PassingError(f"the hub answers {status}", wait_seconds=find_wait(headers)) from None
            raise explain(self.origin, self.endpoint, status, headers) from None
        except httpx2.HTTPError as error:
            raise PassingError(f"no answer ({type(error).__name__})") from None

    def open(self, file: RemoteFile, start: int) -> Stream:
        """A file's bytes by its resolve URL, which leads to where they lie."""
        return self.request(file, start=start, method="GET")

    def probe(self, file: RemoteFile) -> None:
        """Ask whether a file may be fetched."""
        self.patience.persist(lambda: self.request(file, start=0, method="HEAD"), what=f"{self.origin}: {file.path}")

    def request(self, file: RemoteFile, *, start: int, method: str) -> Stream:
        """Ask for a file once. Raises PassingError for what may pass, ValueError in one line for what will not."""
        from huggingface_hub.utils import build_hf_headers

        url = f"{self.endpoint}/datasets/{self.origin.address}/resolve/{self.revision}/{quote(file.address)}"
        try:
            return self.client.open(url, headers=build_hf_headers(), start=start, method=method)
        except RefusedError as error:
            raise explain(self.origin, self.endpoint, error.status, error.headers, path=file.path) from None


def make_file(entry: Any) -> RemoteFile:
    """A file of the hub's listing: large ones carry the sha256 of their bytes, small ones git's sha1."""
    identity = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
    return RemoteFile(entry.path, entry.size, identity, entry.path)


def strip_folder(files: Iterable[RemoteFile], folder: str) -> Iterator[RemoteFile]:
    """The files with paths that count from a folder of the repository, without its card."""
    for file in files:
        path = file.path.removeprefix(f"{folder}/") if folder else file.path
        if path != CARD:
            yield RemoteFile(path, file.size_bytes, file.identity, file.address)


def choose_config(files: list[RemoteFile], origin: Origin, card: Any) -> list[RemoteFile]:
    """The files of a config: as the card's `configs` says, or else those of the folder of that name, below it."""
    configs = list_configs(card)
    if origin.config in configs:
        patterns = [compile_pattern(fill_folder(pattern)) for pattern in configs[origin.config]]
    else:
        patterns = [compile_pattern(f"{origin.config}/**/*")]
    chosen = [file for file in files if any(pattern.fullmatch(file.path) for pattern in patterns)]
    if origin.config not in configs:  # below it are the splits, as in the hub's own copies in parquet
        chosen = [replace(file, path=file.path.removeprefix(f"{origin.config}/")) for file in chosen]
    if not chosen:
        known = ", ".join(configs) or "none by its card"
        raise ValueError(f"{origin}: no such config, nor a folder of that name; it has {known}")
    return chosen


def fill_folder(pattern: str) -> str:
    """A pattern of a card as one of ours: a last name without a dot or star is a folder, and so is `/**`."""
    pattern = pattern.removeprefix("./").rstrip("/")
    if pattern.endswith("**"):
        return f"{pattern}/*"
    last = pattern.rsplit("/", 1)[-1]
    return pattern if "." in last or "*" in last else f"{pattern}/**/*"


def list_configs(card: Any) -> dict[str, list[str]]:
    """The configs of a card: name -> patterns of all its splits.

    As huggingface.co/docs/hub/datasets-manual-configuration says.
    """
    configs = (card.get("configs") if card else None) or []
    found = {}
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict) and isinstance(config.get("config_name"), str):
            folder = config.get("data_dir") or ""
            patterns = list(list_patterns(config.get("data_files") or ([f"{folder}/**/*"] if folder else [])))
            found[config["config_name"]] = patterns or ["**/*"]
    return found


def list_patterns(data_files: Any) -> Iterator[str]:
    """Every pattern in a card's data_files, however it is nested."""
    if isinstance(data_files, str):
        yield data_files
    elif isinstance(data_files, list):
        for entry in data_files:
            yield from list_patterns(entry)
    elif isinstance(data_files, dict):
        yield from list_patterns(data_files.get("path") or list(data_files.values()))


def explain(
    origin: Origin, endpoint: str, status: int, headers: Mapping[str, str], *, path: str | None = None
) -> ValueError:
    """The error, in one line that says what to do, for an answer that will not change by itself."""
    where = f"{origin}: {path}" if path else str(origin)
    code = headers.get("X-Error-Code", "")
    if code == "GatedRepo":
        return ValueError(
            f"{where}: access is gated. Accept the terms at {endpoint}/datasets/{origin.address} with your account, "
            "then `hf auth login` with a token of it (or set HF_TOKEN), and run the command again"
        )
    if code == "RevisionNotFound":
        return ValueError(f"{where}: the hub knows no revision {origin.revision!r}")
    if code == "RepoNotFound" or status in (401, 403):
        return ValueError(
            f"{where}: the hub answers {status}: there is no such data set, or it is private or gated. Look at "
            f"{endpoint}/datasets/{origin.address}; with an account that may read it: hf auth login, or HF_TOKEN"
        )
    if status == 404:
        return ValueError(f"{where}: the hub answers 404: there is no such file or folder at this revision")
    return ValueError(f"{where}: the hub answers {status}")
