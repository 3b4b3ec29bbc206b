"""Put a finished dataset on the hub or into a bucket, from where PackedDataset can read it.

    python pipeline/publish.py data/packed hf://org/name
    python pipeline/publish.py data/packed s3://bucket/prefix

Every file is checked against dataset.json before it goes. What is there already with the same content is not sent
again, so the same command goes on after a failure. dataset.json goes last: without it there is no dataset. A place
that holds another dataset is refused: who reads that one would find its shards changed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

if __package__ in (None, ""):  # started as `python pipeline/publish.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.console import Console

from pipeline.dataset_card import CARD, write_card
from pipeline.flags import read_flags
from pipeline.jobs import describe
from pipeline.origins import Origin, parse_origin
from pipeline.progress import format_bytes, make_console
from pipeline.publish_places import BucketTarget, HubTarget
from pipeline.shard import DATASET_FILE, find_lost_files, list_checksums, list_files, read_dataset_json
from pipeline.storage import checksum_file

FILES_AT_ONCE = 32  # in one commit of the hub: few enough that a failure costs little


@dataclass(frozen=True)
class PublishArguments:
    """Put a finished dataset on the hub or into a bucket."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The dataset's folder."""
    target: Annotated[str, tyro.conf.Positional]
    """hf://org/name, or s3://bucket/prefix."""
    public: bool = False
    """Let anybody read a repository that is made on the hub now; else only its owners may."""


class Target(Protocol):
    """Where a dataset goes."""

    def find_missing(self, files: Mapping[str, Path]) -> list[str]:
        """The paths of those files that are not there with the same content."""

    def send(self, files: Mapping[str, Path]) -> None:
        """Put some files there."""

    def read(self, path: str) -> bytes | None:
        """A small file that is there; None: it is not."""


def main() -> None:
    """The command: one line and a non-zero exit code for what the user can mend."""
    arguments = read_flags(PublishArguments)
    try:
        publish(arguments, make_console())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {describe(error)}")


def publish(arguments: PublishArguments, console: Console) -> None:
    """Check the dataset, and send what is not there yet."""
    folder, target_text = arguments.folder, arguments.target
    content = read_dataset_json(folder)
    if lost := find_lost_files(folder, content):
        raise ValueError(f"{lost[0]}: build it again before it is published")
    if target_text.startswith("hf:") and not target_text.startswith("hf://"):
        target_text = f"hf://{target_text[3:]}"
    origin = parse_origin(target_text)
    target = open_target(origin, is_private=not arguments.public)
    files = {path.relative_to(folder).as_posix(): path for path in list_published(folder, content)}
    refuse_another(origin, target.read(DATASET_FILE), content)
    check_shards(folder, content)
    missing = target.find_missing(files)
    size = format_bytes(sum(files[path].stat().st_size for path in missing))
    console.print(f"{len(files) - len(missing):,} of {len(files):,} files are there already; sending {size}")
    for start in range(0, len(missing), FILES_AT_ONCE):
        batch = missing[start : start + FILES_AT_ONCE]
        target.send({path: files[path] for path in batch})
        console.print(f"sent {start + len(batch):,} of {len(missing):,} files")
    with write_card(content, origin) as card:
        last = {CARD: card, DATASET_FILE: folder / DATASET_FILE}
        unsent = target.find_missing(last)
        target.send({path: last[path] for path in unsent})
    console.print(f"{origin} holds the dataset: PackedDataset({str(origin)!r}, seq_len=2048) reads it")


def open_target(origin: Origin, *, is_private: bool) -> Target:
    """The place to publish to. Raises ValueError for one that cannot be written to."""
    if origin.kind == "hub" and not origin.folder and not origin.config:
        return HubTarget(origin, is_private=is_private)
    if origin.kind == "bucket":
        return BucketTarget(origin)
    raise ValueError(f"{origin}: a dataset is published to hf://org/name or s3://bucket/prefix")


def refuse_another(origin: Origin, there: bytes | None, content: Mapping[str, Any]) -> None:
    """Raise ValueError where the dataset.json that is there is another dataset's."""
    try:
        found = {} if there is None else json.loads(there)
    except ValueError:
        found = None
    if there is not None and not (isinstance(found, dict) and found.get("content_hash") == content["content_hash"]):
        raise ValueError(
            f"{origin} holds another dataset, by its {DATASET_FILE}: publish to another name, or remove that one first"
        )


def list_published(folder: Path, content: Mapping[str, Any]) -> Iterator[Path]:
    """The files that make the dataset, but for dataset.json."""
    yield from (path for path, _ in list_files(folder, content))
    beside = (folder / content["tokenizer"]["file"]).with_name("tokenizer_config.json")
    if beside.is_file():
        yield beside


def check_shards(folder: Path, content: Mapping[str, Any]) -> None:
    """Raise ValueError where a file is not the one that dataset.json lists."""
    for path, checksum in list_checksums(folder, content):
        if checksum_file(path) != checksum:
            raise ValueError(f"{path} is not the file that dataset.json lists: its checksum differs. Build it again")


if __name__ == "__main__":
    main()
