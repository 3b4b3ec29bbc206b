"""What may be removed of a build's folders, and removing it.

Only what a build of ours made is ever removed: files with the names that a build gives them, in folders that its own
plan or dataset.json lists. Whatever else is found there makes --replace refuse before anything is touched.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.folders import (
    BUILD_LOG,
    HOLDER_FILE,
    PLAN_FILE,
    TOKENIZER_FOLDER,
    WORK_FOLDER,
    WORK_PARTS,
    WORK_TABLES,
    Folders,
    list_files,
    refuse_foreign,
    remove_empty_folders,
)
from pipeline.manifest import SOURCE_NAME
from pipeline.shard import DATASET_FILE, SIGNATURES_FOLDER, SPLITS, read_dataset_json
from pipeline.shard import list_files as list_dataset_files
from pipeline.storage import TEMPORARY_NAME, TEMPORARY_SUFFIX, write_json

SHARD_FILE = re.compile(rf"({'|'.join(SPLITS)})/shard-\d{{5,}}\.(bin|bin\.index|idx|docs\.parquet)")
DROPS_FILE = re.compile(r"drops/drops-\d{5,}\.parquet")
SIGNATURES_FILE = re.compile(r"part-\d{5,}-\d{3,}/(hashes|rows|signatures|bands)\.bin")


def remove_build(folders: Folders, *, keep: list[Path]) -> None:
    """Remove what a build of ours left, finished or not.

    dataset.json goes first: from then on there is no finished dataset. keep: the tokenizer files of the coming build.
    Raises ValueError, before anything is removed, where the folders hold files that no build made, or `keep`.
    """
    folders.refuse_other_work()
    parts = name_parts(folders)
    ours = [path for path in list_files(folders.out) if is_ours(path.relative_to(folders.out), parts)]
    inside_work = [path for path in list_files(folders.work) if is_work_file(path.relative_to(folders.work))]
    known = {*ours, *inside_work}
    for folder in (folders.out, folders.work):
        refuse_foreign(folder, (path for path in list_files(folder) if path not in known))
    needed = {path.resolve() for path in keep} & {path.resolve() for path in known}
    if needed:
        raise ValueError(
            f"--replace would remove the tokenizer {min(needed)} that the new build needs: copy it elsewhere first"
        )
    plan_removal(folders, parts)
    for path in sorted(ours, key=lambda path: path.name != DATASET_FILE):
        path.unlink()
    remove_work(folders)
    remove_empty_folders(folders.out)


def plan_removal(folders: Folders, parts: Mapping[str, DatasetParts]) -> None:
    """Name finished datasets in the plan of the work folder: killed halfway, a removal still knows what is ours."""
    plan = folders.read_plan() or {"datasets": {}, "out": str(folders.out.resolve()), "tokenizer_files": {}}
    plan["is_replacement"] = False  # what is half removed is not to be gone on with
    for name, one in parts.items():
        if (folders.out / name / DATASET_FILE).is_file():
            content = read_dataset_json(folders.out / name)
            plan["datasets"][name] = {**content.get("settings", {}), "source_order": list(content["sources"])}
            plan["tokenizer_files"][name] = sorted(one.tokenizer_files)
    write_json(folders.work / PLAN_FILE, plan)


@dataclass(frozen=True)
class DatasetParts:
    """What a build may have written into a dataset's folder: its sources, and its tokenizer's files."""

    sources: frozenset[str]
    tokenizer_files: frozenset[str]


def name_parts(folders: Folders) -> dict[str, DatasetParts]:
    """What finished datasets of these names, or an unfinished build, say is their own; by the dataset's folder."""
    plan = folders.read_plan() or {"datasets": {}, "tokenizer_files": {}}
    parts = {}
    for name in {"", *folders.datasets, *plan["datasets"]}:
        settings, files = plan["datasets"].get(name), set(plan["tokenizer_files"].get(name, []))
        sources = set(settings["source_order"]) if settings else set()
        if (folders.out / name / DATASET_FILE).is_file():
            content = read_dataset_json(folders.out / name)
            sources |= set(content["sources"])
            files |= {Path(content["tokenizer"]["file"]).name, "tokenizer_config.json"}
        named = frozenset(source for source in sources if SOURCE_NAME.fullmatch(source))
        parts[name] = DatasetParts(named, frozenset(files))
    return parts


def is_ours(path: Path, parts: Mapping[str, DatasetParts]) -> bool:
    """Whether a path in the output folder is one that a build writes."""
    top, *rest = path.parts
    if top in parts and rest:  # a dataset among several
        return is_of_dataset(Path(*rest), parts[top])
    is_holder = not rest and (top == HOLDER_FILE or is_temporary(top, (HOLDER_FILE,)))
    return top != WORK_FOLDER and (is_holder or is_of_dataset(path, parts[""]))


def is_of_dataset(path: Path, parts: DatasetParts) -> bool:
    """Whether a path in a dataset's folder is one that a build writes."""
    top, *rest = path.parts
    if not rest:
        return top in (DATASET_FILE, BUILD_LOG) or is_temporary(top, (DATASET_FILE,))
    below = TEMPORARY_NAME.sub("", "/".join(rest))
    if top == TOKENIZER_FOLDER:
        return below in parts.tokenizer_files
    if top == SIGNATURES_FOLDER:
        source, _, file = below.partition("/")
        return source in parts.sources and bool(SIGNATURES_FILE.fullmatch(file))
    return top in parts.sources and bool(SHARD_FILE.fullmatch(below) or DROPS_FILE.fullmatch(below))


def remove_unlisted(folders: Folders, contents: Mapping[str, Mapping[str, Any]]) -> None:
    """Remove files that the datasets about to be finished do not have: of a run with other raw files."""
    for name, content in contents.items():
        folder = folders.out / name
        listed = {path for path, _ in list_dataset_files(folder, content)}
        parts = DatasetParts(frozenset(content["sources"]), frozenset())
        for top in (*content["sources"], SIGNATURES_FOLDER):
            for path in [path for path in list_files(folder / top) if path not in listed]:
                if is_of_dataset(path.relative_to(folder), parts):
                    path.unlink()


def is_work_file(path: Path) -> bool:
    """Whether a path in the work folder is one that a build writes."""
    top, *rest = path.parts
    if rest:
        return top in WORK_PARTS
    return top in WORK_TABLES or is_temporary(top, WORK_TABLES)


def is_temporary(name: str, finals: tuple[str, ...]) -> bool:
    """Whether a name is the temporary one of a file while it is written."""
    return name.startswith(finals) and bool(TEMPORARY_NAME.search(name))


def remove_temporary_files(folders: Folders) -> None:
    """Remove what killed workers left half-written. Nobody else works here: the lock is ours, our workers are idle."""
    for folder in {folders.out, folders.work}:
        for path in [path for path in folder.rglob(f"*{TEMPORARY_SUFFIX}") if TEMPORARY_NAME.search(path.name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # it lay in a folder that was temporary itself


def remove_work(folders: Folders) -> None:
    """Remove the work files; the plan goes last, so that a half-removed folder is still known as ours."""
    for name in WORK_PARTS:
        shutil.rmtree(folders.work / name, ignore_errors=True)
    folders.remove_holder()
    for name in WORK_TABLES:
        (folders.work / name).unlink(missing_ok=True)
    remove_empty_folders(folders.work)
