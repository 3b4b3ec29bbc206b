"""Where a tokenizer's file is: names to paths, the cache, the download, and the sha256 that settles which file it is.

Knows nothing of what the files mean. Standard library only, so that training can import it.
"""

import difflib
import hashlib
import http.client
import os
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage import user_cache, write_file

MANIFEST_PATH = Path(__file__).resolve().parent.parent / "data_manifests" / "tokenizers.toml"
Notice = Callable[[str], object]

# Waits between rounds over all urls. Two short ones: a machine without network should learn so within seconds.
RETRY_WAITS_SECONDS = (1.0, 3.0)
DOWNLOAD_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class NamedTokenizer:
    """One table of data_manifests/tokenizers.toml."""

    name: str
    family: str
    file: str
    sha256: str
    size_bytes: int
    vocab_size: int
    licence: str
    notes: str
    urls: tuple[str, ...]


def read_named_tokenizers(manifest_path: Path = MANIFEST_PATH) -> dict[str, NamedTokenizer]:
    """The tokenizers known by name, in the manifest's order."""
    tables = tomllib.loads(manifest_path.read_text(encoding="utf-8"))
    return {
        name: NamedTokenizer(name=name, **{**table, "urls": tuple(table["urls"])}) for name, table in tables.items()
    }


def find_tokenizer_file(
    name_or_path: str | Path,
    *,
    sha256: str | None,
    notice: Notice,
    manifest_path: Path = MANIFEST_PATH,
    wait: Callable[[float], object] = time.sleep,
) -> tuple[str, Path, bytes]:
    """A tokenizer's name, the path of its file and the file's bytes, checked against the sha256 where one is known.

    A known name is looked up in $TOKENMILL_TOKENIZERS, then in the cache, then downloaded into the cache.
    Raises FileNotFoundError where there is no such file, ValueError where it is not the file it should be.
    """
    named = read_named_tokenizers(manifest_path)
    if str(name_or_path) in named:
        entry = named[str(name_or_path)]
        path = _find_named(entry, notice=notice, wait=wait)
        data = path.read_bytes()
        _check_sha256(data, path=path, expected=entry.sha256)
        _check_sha256(data, path=path, expected=sha256)
        return entry.name, path, data
    path = _find_by_path(Path(name_or_path), known_names=list(named), notice=notice)
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{path}: the tokenizer file is empty; fetch it again")
    _check_sha256(data, path=path, expected=sha256)
    return _name_of(path, data, named=named), path, data


def cache_folder() -> Path:
    """The folder of the downloaded tokenizers, one folder each: tokenmill/tokenizers in XDG_CACHE_HOME or ~/.cache."""
    return user_cache("tokenizers")


def download_tokenizer(
    entry: NamedTokenizer, target: Path, *, notice: Notice, wait: Callable[[float], object] = time.sleep
) -> None:
    """Write the tokenizer's file to target: under a temporary name, its sha256 checked, then renamed.

    Goes through all urls, and up to two more times through those that failed for a reason that may pass (server errors,
    time-outs). Raises FileNotFoundError that says what was tried and where the file can be put by hand.
    """
    failures: dict[str, str] = {}
    urls = list(entry.urls)
    for wait_seconds in (*RETRY_WAITS_SECONDS, None):
        urls_worth_a_retry = []
        for url in urls:
            try:
                data = _read_url(url)
            except OSError as error:  # URLError, HTTPError and time-outs are all OSError
                failures[url] = f"{url}: {error}"
                if _may_pass(error):
                    urls_worth_a_retry.append(url)
                continue
            found = hashlib.sha256(data).hexdigest()
            if found == entry.sha256:
                write_file(target, [data])
                notice(f"tokenizer {entry.name}: downloaded {len(data):,} bytes from {url} to {target}")
                return
            failures[url] = f"{url}: sha256 {found}"
        urls = urls_worth_a_retry
        if not urls or wait_seconds is None:
            break
        wait(wait_seconds)
    raise FileNotFoundError(
        f"tokenizer {entry.name} could not be downloaded (tried {'; '.join(failures.values())}); put {entry.file} "
        f"(sha256 {entry.sha256}) at {target} or in $TOKENMILL_TOKENIZERS/{entry.name}/ by hand"
    )


def _find_named(entry: NamedTokenizer, *, notice: Notice, wait: Callable[[float], object]) -> Path:
    places = [cache_folder() / entry.name / entry.file]
    if own_folder := os.environ.get("TOKENMILL_TOKENIZERS"):
        places.insert(0, Path(own_folder) / entry.name / entry.file)
    for path in places:
        if path.is_file():
            return path
    download_tokenizer(entry, places[-1], notice=notice, wait=wait)
    return places[-1]


def _find_by_path(path: Path, *, known_names: Sequence[str], notice: Notice) -> Path:
    if path.is_dir():
        return _pick_from_folder(path, notice=notice)
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"{path}: no such tokenizer file; known names are {', '.join(known_names)}")
    nearest = difflib.get_close_matches(str(path), known_names, n=3, cutoff=0.3) or known_names
    raise ValueError(
        f"unknown tokenizer {str(path)!r}: did you mean {' or '.join(nearest)}? "
        "Otherwise give the path of a SentencePiece .model, a .tiktoken rank file or a tokenizer.json"
    )


def _pick_from_folder(folder: Path, *, notice: Notice) -> Path:
    # The original file before its conversion: a Llama folder holds tokenizer.model and a tokenizer.json made from it.
    found = [path for pattern in ("*.model", "*.tiktoken", "tokenizer.json") for path in sorted(folder.glob(pattern))]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no .model, .tiktoken or tokenizer.json file in it; give the file's own path"
        )
    if len(found) > 1:
        notice(f"{folder} holds {', '.join(path.name for path in found)}: {found[0].name} is used")
    return found[0]


def _name_of(path: Path, data: bytes, *, named: Mapping[str, NamedTokenizer]) -> str:
    found = hashlib.sha256(data).hexdigest()
    for entry in named.values():
        if entry.sha256 == found:
            return entry.name
    # "tokenizer.model" and "tokenizer.json" say nothing; the folder that holds them does.
    name = path.resolve().parent.name if path.stem == "tokenizer" else path.stem
    return f"{name}-{found[:8]}" if name in named else name  # recipes ask for a known name: no other file may have it


def _check_sha256(data: bytes, *, path: Path, expected: str | None) -> None:
    found = hashlib.sha256(data).hexdigest()
    if expected is not None and found != expected:
        raise ValueError(
            f"{path}: sha256 is {found}, not {expected}: it is cut or another tokenizer; "
            "delete it to fetch the right one, or give a path to use it as it is"
        )


def _read_url(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            return response.read()
    except http.client.HTTPException as error:  # the connection broke; not an OSError by itself
        raise ConnectionError(repr(error)) from None


def _may_pass(error: OSError) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    return True
