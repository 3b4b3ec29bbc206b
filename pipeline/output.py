"""The output and work folders of a build: whose they are, who builds there now, and what may be removed.

Only what a build of ours made is ever removed: files with the names that a build gives them, in folders that its own
plan or dataset.json lists. Whatever else is found there makes --replace refuse before anything is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.manifest import SOURCE_NAME
from pipeline.plan import find_differences
from pipeline.shard import DATASET_FILE, SPLITS, read_dataset_json
from pipeline.storage import TEMPORARY_SUFFIX, read_json, write_json

PLAN_FILE = "plan.json"
HOLDER_FILE = "holder.json"
BUILD_LOG = "build-log.jsonl"
TOKENIZER_FOLDER = "tokenizer"
WORK_FOLDER = "work"
WORK_PARTS = ("ingest", "dedup", "dropped", "records", TOKENIZER_FOLDER)
RESERVED_NAMES = (DATASET_FILE, BUILD_LOG, TOKENIZER_FOLDER, WORK_FOLDER, "report.html")

SHARD_FILE = re.compile(rf"({'|'.join(SPLITS)})/shard-\d{{5,}}\.(bin|bin\.index|idx|docs\.parquet)")
DROPS_FILE = re.compile(r"drops/drops-\d{5,}\.parquet")


@dataclass(frozen=True)
class Folders:
    """Where a build writes."""

    out: Path
    work: Path

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
                stack.callback(remove_empty_folders, folder)
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(f"another build is at work in {folder}{self._name_holder()}") from None
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
        if not isinstance(plan, dict) or not {"settings", "out", "tokenizer_files"} <= set(plan):
            raise ValueError(f"{path} is not a plan of this program: choose another --work")
        if plan["out"] != str(self.out.resolve()):
            raise ValueError(f"{self.work} belongs to the build of {plan['out']}: choose another --work")
        return plan


def is_finished(out: Path) -> bool:
    """Whether the folder holds a finished dataset."""
    return (out / DATASET_FILE).is_file()


def check_finished(folders: Folders, described: Mapping[str, Any], *, keep_work: bool) -> dict[str, Any]:
    """The dataset.json of a finished dataset that was built with these settings.

    Work files that a kill between a build's last two steps left are removed, unless they are to be kept.

    Raises ValueError naming what differs where the settings are others. Where raw files are gone by now (a source's
    entry in `described["raw_files"]` is None) they are not compared.
    """
    content = read_dataset_json(folders.out)
    settings = dict(content["settings"])
    gone = {name for name, digest in described["raw_files"].items() if digest is None}
    settings["raw_files"] = {name: None if name in gone else digest for name, digest in settings["raw_files"].items()}
    refuse_differences(f"{folders.out} holds another dataset", settings, described)
    if (folders.work / PLAN_FILE).is_file() and not keep_work and folders.read_plan():
        with folders.locked():
            remove_work(folders)
    return content


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError where settings differ, naming them."""
    differences = list(find_differences(there, here))
    if differences:
        raise ValueError(f"{what}: {'; '.join(differences)}. Choose another --out, or start over with --replace")


def claim(folders: Folders, described: Mapping[str, Any], *, tokenizer_files: list[str]) -> bool:
    """Make the folders ready for a build with these settings; returns whether an unfinished one is continued.

    tokenizer_files: the names that the build will write into OUT/tokenizer. Raises ValueError where the folders hold
    something else, or work of other settings.
    """
    plan = folders.read_plan()
    if plan is not None:
        refuse_differences(f"{folders.work} holds an unfinished build with other settings", plan["settings"], described)
        remove_temporary_files(folders)
        folders.write_holder()
        return True
    for folder in (folders.out, folders.work):
        refuse_foreign(folder, (path for path in list_files(folder) if not is_of_every_build(path.name)))
    plan = {"settings": dict(described), "out": str(folders.out.resolve()), "tokenizer_files": tokenizer_files}
    write_json(folders.work / PLAN_FILE, plan)
    folders.write_holder()
    return False


def is_of_every_build(name: str) -> bool:
    """Whether a file may lie in a folder where no build is planned: what an aborted start leaves."""
    return name in (BUILD_LOG, HOLDER_FILE) or name.endswith(TEMPORARY_SUFFIX)


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


def remove_build(folders: Folders, *, keep: Path | None) -> None:
    """Remove what a build of ours left, finished or not.

    dataset.json goes first: from then on there is no finished dataset. keep: the tokenizer file of the coming build.
    Raises ValueError, before anything is removed, where the folders hold files that no build made, or `keep`.
    """
    sources, tokenizer_files = name_parts(folders)
    ours = [
        path for path in list_files(folders.out) if is_ours(path.relative_to(folders.out), sources, tokenizer_files)
    ]
    inside_work = [path for path in list_files(folders.work) if is_work_file(path.relative_to(folders.work))]
    known = {*ours, *inside_work}
    for folder in (folders.out, folders.work):
        refuse_foreign(folder, (path for path in list_files(folder) if path not in known))
    if keep is not None and keep.resolve() in {path.resolve() for path in known}:
        raise ValueError(
            f"--replace would remove the tokenizer {keep} that the new build needs: copy it elsewhere first"
        )
    for path in sorted(ours, key=lambda path: path.name != DATASET_FILE):
        path.unlink()
    remove_work(folders)
    remove_empty_folders(folders.out)


def name_parts(folders: Folders) -> tuple[set[str], set[str]]:
    """The sources and tokenizer files that a finished dataset or an unfinished build says are its own."""
    sources: set[str] = set()
    tokenizer_files: set[str] = set()
    if is_finished(folders.out):
        content = read_dataset_json(folders.out)
        sources |= set(content["sources"])
        tokenizer_files |= {Path(content["tokenizer"]["file"]).name, "tokenizer_config.json"}
    plan = folders.read_plan()
    if plan is not None:
        sources |= set(plan["settings"]["source_order"])
        tokenizer_files |= set(plan["tokenizer_files"])
    return {name for name in sources if SOURCE_NAME.fullmatch(name)}, tokenizer_files


def is_ours(path: Path, sources: set[str], tokenizer_files: set[str]) -> bool:
    """Whether a path in the output folder is one that a build writes."""
    top, *rest = path.parts
    if top == WORK_FOLDER:
        return False
    if not rest:
        return top in (DATASET_FILE, BUILD_LOG, HOLDER_FILE) or is_temporary(top, (DATASET_FILE,))
    below = re.sub(rf"(\.\d+)?{re.escape(TEMPORARY_SUFFIX)}$", "", "/".join(rest))
    if top == TOKENIZER_FOLDER:
        return below in tokenizer_files
    return top in sources and bool(SHARD_FILE.fullmatch(below) or DROPS_FILE.fullmatch(below))


def is_work_file(path: Path) -> bool:
    """Whether a path in the work folder is one that a build writes."""
    top, *rest = path.parts
    if rest:
        return top in WORK_PARTS
    return top in (PLAN_FILE, HOLDER_FILE) or is_temporary(top, (PLAN_FILE, HOLDER_FILE))


def is_temporary(name: str, finals: tuple[str, ...]) -> bool:
    """Whether a name is the temporary one of a file while it is written."""
    return name.endswith(TEMPORARY_SUFFIX) and name.startswith(finals)


def remove_temporary_files(folders: Folders) -> None:
    """Remove what killed workers left half-written. Nobody else works here: the lock is ours, our workers are idle."""
    for folder in {folders.out, folders.work}:
        for path in [path for path in folder.rglob(f"*{TEMPORARY_SUFFIX}") if path.exists()]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def remove_work(folders: Folders) -> None:
    """Remove the work files; the plan goes last, so that a half-removed folder is still known as ours."""
    for name in WORK_PARTS:
        shutil.rmtree(folders.work / name, ignore_errors=True)
    for name in (HOLDER_FILE, PLAN_FILE):
        (folders.work / name).unlink(missing_ok=True)
    remove_empty_folders(folders.work)


def remove_empty_folders(folder: Path) -> None:
    """Remove the folders under `folder` that hold nothing, and then itself if nothing is left."""
    for root, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(root)
