"""The output and work folders of a build: what lies where, whose they are, and who builds there now."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
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
RESERVED_NAMES = (DATASET_FILE, BUILD_LOG, HOLDER_FILE, TOKENIZER_FOLDER, SIGNATURES_FOLDER, WORK_FOLDER, "report.html")


@dataclass(frozen=True)
class Folders:
    """Where a build writes.

    datasets: the folder of each dataset in `out`; "" where there is only one. text: where texts go, too.
    """

    out: Path
    work: Path
    datasets: tuple[str, ...] = ("",)
    text: Path | None = None

    @property
    def is_work_inside(self) -> bool:
        """Whether the work folder is the usual one, in `out`, and moves with it."""
        return self.work.resolve() == self.out.resolve() / WORK_FOLDER

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders that a build has for itself."""
        return (self.out,) if self.is_work_inside else (self.out, self.work)

    def check(self, raw_folders: Mapping[str, Path], *, is_done: bool) -> None:
        """Raise ValueError where one folder lies in another, so that a build would read or remove its own files.

        Or where the folder for texts holds others than this build's. is_done: there is nothing left to build.
        """
        out, work = self.out.resolve(), self.work.resolve()
        if not self.is_work_inside and (work == out or out in work.parents or work in out.parents):
            raise ValueError(f"--work {self.work} must be a folder of its own: not --out {self.out}, in it or above it")
        for name, folder in raw_folders.items():
            for flag, path in (("--out", out), ("--work", work)):
                if folder.resolve() in (path, *path.parents):
                    raise ValueError(f"{flag} {path} lies in the raw files of {name} ({folder}): choose another place")
        if self.text is not None:
            self.check_text([out, work, *(folder.resolve() for folder in raw_folders.values())], is_done=is_done)

    def check_text(self, others: Iterable[Path], *, is_done: bool) -> None:
        """Raise ValueError where the folder for texts is not apart from others, or holds what it should not."""
        text = self.text.resolve()
        for other in others:
            if text in (other, *other.parents) or other in text.parents:
                raise ValueError(f"--write-text {self.text} must be a folder of its own, not {other}, in it or above")
        first = min(list_files(text), default=None)
        if is_done and first is None:
            what = f"{self.out} holds this one, finished: --replace builds it anew"
            raise ValueError(f"--write-text {self.text}: texts are written while a dataset is built, and {what}")
        is_unfinished = self.read_plan() and not any((self.out / one / DATASET_FILE).is_file() for one in self.datasets)
        if first is not None and not is_done and not is_unfinished:
            raise ValueError(
                f"--write-text {self.text} holds {first.relative_to(text)}, which is not of this build: choose an "
                "empty or new folder, or move it away"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other builds out of both folders while the block runs. The lock dies with this process.

        Raises ValueError that names the holder where another build is at work. Folders that stay empty are not left.
        """
        with contextlib.ExitStack() as stack:
            for folder in self.roots:
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(f"another build is at work in {folder}{name_holder(folder)}") from None
                # Done before the lock is given up, and never without it: another build may have just made a folder.
                stack.callback(remove_empty_folders, folder)
            yield

    def write_holder(self) -> None:
        """Say who builds here, for whoever comes and finds it locked, and where the work files are."""
        work = None if self.is_work_inside else str(self.work.resolve())
        for folder in self.roots:
            write_json(folder / HOLDER_FILE, {"process": os.getpid(), "host": socket.gethostname(), "work": work})

    def remove_holder(self) -> None:
        """Take back what `write_holder` said."""
        for folder in self.roots:
            (folder / HOLDER_FILE).unlink(missing_ok=True)

    def refuse_other_work(self) -> None:
        """Raise ValueError where an unfinished build in the output folder has its work files in another place."""
        path = self.out / HOLDER_FILE
        if not path.is_file():
            return
        work = Path(read_json(path)["work"] or self.out / WORK_FOLDER)
        if work.resolve() == self.work.resolve():
            return
        what = f"{self.out} holds an unfinished build, whose work files are in {work}"
        if not (work / PLAN_FILE).is_file():
            raise ValueError(f"{what}, but gone: choose another --out, or remove this one")
        raise ValueError(f"{what}: --work {work} goes on with it, --replace beside that starts over")

    def read_plan(self) -> dict[str, Any] | None:
        """The plan of the unfinished build in the work folder, or None. Raises ValueError where it is another's."""
        path = self.work / PLAN_FILE
        if not path.is_file():
            return None
        plan = read_json(path)
        if not isinstance(plan, dict) or not {"datasets", "out", "tokenizer_files"} <= set(plan):
            raise ValueError(f"{path} is not a plan of this program: choose another --work")
        if not self.is_work_inside and plan["out"] != str(self.out.resolve()):
            raise ValueError(f"{self.work} belongs to the build of {plan['out']}: choose another --work")
        return plan


def name_holder(folder: Path) -> str:
    """Who builds in a folder, for a person; nothing where it does not say."""
    path = folder / HOLDER_FILE
    if not path.is_file():
        return ""
    holder = read_json(path)
    return f": process {holder['process']} on {holder['host']}"


def refuse_foreign(folder: Path, foreign: Iterator[Path]) -> None:
    """Raise ValueError where there is a file that a build with these flags did not make."""
    path = next(foreign, None)
    if path is not None:
        whose = "which no build of ours made"
        if path.name == DATASET_FILE:  # before the other files of its folder
            whose = "a dataset that these flags do not make (with several tokenizers each has a folder of its own)"
        what = f"{folder} holds {path.relative_to(folder)}, {whose}"
        raise ValueError(f"{what}: choose an empty or new folder, or move it away")


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
