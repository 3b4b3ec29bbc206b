"""What a folder with a sample says of itself, and what may be removed from it. Knows no text and no source.

sample.json is written last: a folder that has one is a complete sample. sample-unfinished.json is written first and
lists the files to come, so that a run after a killed one knows which files are its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.storage import TEMPORARY_NAME, write_json

RECORD = "sample.json"
UNFINISHED_RECORD = "sample-unfinished.json"
FORMAT = "tokenmill sample 1"


def begin(folder: Path, paths: Iterable[str]) -> None:
    """Say which files are about to be written."""
    write_json(folder / UNFINISHED_RECORD, {"format": FORMAT, "files": [{"path": path} for path in paths]})


def finish(folder: Path, content: dict[str, Any]) -> None:
    """Say that the sample is complete, and what it holds."""
    write_json(folder / RECORD, {"format": FORMAT, **content})
    (folder / UNFINISHED_RECORD).unlink()


def is_sample(folder: Path) -> dict[str, Any] | None:
    """What sample.json says of a folder that holds a finished sample; None for any other folder."""
    record = read_record(folder)
    return record if record and "request" in record else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a sample in `folder`, or of one that was not finished; None where there is none of ours."""
    for name in (RECORD, UNFINISHED_RECORD):
        try:
            record = json.loads((folder / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        if isinstance(record, dict) and record.get("format") == FORMAT:
            return record
    return None


def is_intact(folder: Path, record: dict[str, Any]) -> bool:
    """Whether every file of a sample is there with its size."""
    paths = [(folder / file["path"], file["size_bytes"]) for file in record["files"]]
    return all(path.is_file() and path.stat().st_size == size_bytes for path, size_bytes in paths)


def own_paths(record: dict[str, Any] | None) -> set[str]:
    """The paths that a sample may have written, its records too; none that would lead out of the folder."""
    paths = [file["path"] for file in record["files"]] if record else []
    inside = [path for path in paths if ".." not in PurePosixPath(path).parts and not path.startswith("/")]
    return {*inside, RECORD, UNFINISHED_RECORD} if record else set()


def list_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file in the folder, hidden ones left out, and its path within it; of one half written that of the whole."""
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        if not path.is_dir() and not path.name.startswith("."):
            yield path, TEMPORARY_NAME.sub("", path.relative_to(folder).as_posix())


def check_nothing_else(folder: Path, record: dict[str, Any] | None) -> None:
    """Raises ValueError where the folder holds a file that is not the sample's: it might be real raw data."""
    own = own_paths(record)
    for path, relative in list_files(folder):
        if relative not in own:
            found = path.relative_to(folder)
            raise ValueError(f"{folder} holds {found}, which is no part of a sample; give the sample its own folder")


def clear(folder: Path, record: dict[str, Any] | None) -> None:
    """Remove the sample that `record` describes, the record last, and the folders that it leaves empty."""
    own = own_paths(record)
    found = [(path, relative) for path, relative in list_files(folder) if relative in own]
    for path, _ in sorted(found, key=lambda one: one[1] in (RECORD, UNFINISHED_RECORD)):
        path.unlink()
    for relative in sorted({str(above) for path in own for above in PurePosixPath(path).parents} - {"."}, reverse=True):
        if (folder / relative).is_dir() and not any((folder / relative).iterdir()):
            (folder / relative).rmdir()
