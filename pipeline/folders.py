"""The output and work folders of a build: what lies where, whose they are, and who builds there now."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.shard import DATASET_FILE, SIGNATURES_FOLDER
from pipeline.storage import read_json, write_json

PLAN_FILE = "plan.json"
HOLDER_FILE = "holder.json"
BUILD_LOG = "build-log.jsonl"
TOKENIZER_FOLDER = "tokenizer"
WORK_FOLDER = "work"
TASKS_FILE = "tasks.json"
FETCHED_FOLDER = "raw"
SPANS_FOLDER = "spans"
FETCH_FAILURE = "fetched/failure.txt"
WORK_PARTS = ("ingest", "dedup", "records", TOKENIZER_FOLDER, SPANS_FOLDER, "listings", "fetched", FETCHED_FOLDER)
WORK_TABLES = (TASKS_FILE, HOLDER_FILE, PLAN_FILE)  # in the order in which they are removed
RESERVED_NAMES = (DATASET_FILE, BUILD_LOG, TOKENIZER_FOLDER, SIGNATURES_FOLDER, WORK_FOLDER, "report.html")


@dataclass(frozen=True)
class Folders:
    """Where a build writes. datasets: the folder of each dataset in `out`; "" where there is only one."""

    out: Path
    work: Path
    datasets: tuple[str, ...] = ("",)

    def check(self, raw_folders: Mapping[str, Path]) -> None:
        """Raise ValueError where one folder lies in another, so that a build would read or remove its own files."""
        out, work = self.out.resolve(), self.work.resolve()
        if work != out / WORK_FOLDER and (work == out or out in work.parents or work in out.parents):
            raise ValueError(f"--work {self.work} must be a folder of its own: not --out {self.out}, in it or above it")
        for name, folder in raw_folders.items():
            for flag, path in (("--out", out), ("--work", work)):
                if folder.resolve() in (path, *path.parents):
                    raise ValueError(f"{flag} {path} lies in the raw files of {name} ({folder}): choose another place")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out of both folders while the block runs. The lock dies with this process.

        Raises ValueError that names the holder where another build is at work. Folders that stay empty are not left.
        """
        with contextlib.ExitStack() as stack:
            for folder in dict.fromkeys((self.out, self.out if self.work == self.out / WORK_FOLDER else self.work)):
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(f"another build is at work in {folder}{self._name_holder()}") from None
                # Done before the lock is given up, and never without it: another build may have just made a folder.
                stack.callback(remove_empty_folders, folder)
            yield

    def _name_holder(self) -> str:
        path = self.work / HOLDER_FILE
        if not path.is_file():
            return ""
        holder = read_json(path)
        return f": process {holder['process']} on {holder['host']}"

    def write_holder(self) -> None:
        """Say who builds here, for whoever comes and finds it locked."""
        write_json(self.work / HOLDER_FILE, {"process": os.getpid(), "host": socket.gethostname()})

    def read_plan(self) -> dict[str, Any] | None:
        """The plan of the unfinished build in the work folder, or None. Raises ValueError where it is another's."""
        path = self.work / PLAN_FILE
        if not path.is_file():
            return None
        plan = read_json(path)
        if not isinstance(plan, dict) or not {"datasets", "out", "tokenizer_files"} <= set(plan):
            raise ValueError(f"{path} is not a plan of this program: choose another --work")
        if plan["out"] != str(self.out.resolve()):
            raise ValueError(f"{self.work} belongs to the build of {plan['out']}: choose another --work")
        return plan


def refuse_foreign(folder: Path, foreign: Iterator[Path]) -> None:
    """Raise ValueError where there is a file that no build of ours made."""
    path = next(foreign, None)
    if path is not None:
        raise ValueError(
            f"{folder} holds {path.relative_to(folder)}, which no build of ours made: choose an empty or new folder, "
            "or move it away"
        )


def list_files(folder: Path) -> Iterator[Path]:
    """Every file, link or odd thing under a folder, folders themselves left out; links are not followed."""
    for root, names, files in os.walk(folder):
        links = [name for name in names if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in [*files, *links])


def remove_empty_folders(folder: Path) -> None:
    """Remove the folders under `folder` that hold nothing, and then itself if nothing is left."""
    for root, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(root)
