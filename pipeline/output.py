"""Is there a finished dataset, an unfinished build to go on with, or room for a new one?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.folders import BUILD_LOG, HOLDER_FILE, PLAN_FILE, Folders, list_files, refuse_foreign
from pipeline.plan import find_differences
from pipeline.removal import is_temporary, remove_temporary_files, remove_work
from pipeline.shard import DATASET_FILE, read_dataset_json
from pipeline.storage import write_json


def is_finished(folders: Folders) -> bool:
    """Whether the folder holds all datasets of the build, finished."""
    return all((folders.out / name / DATASET_FILE).is_file() for name in folders.datasets)


def check_finished(folders: Folders, datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The dataset.json of finished datasets that were built with these settings, by name.

    Raises ValueError naming what differs where the settings are others. Where raw files are gone by now (a source's
    entry in `raw_files` is None) they are not compared.
    """
    contents = {}
    for name, described in datasets.items():
        content = contents[name] = read_dataset_json(folders.out / name)
        settings = dict(content["settings"])
        gone = {source for source, digest in described["raw_files"].items() if digest is None}
        raw_files = settings["raw_files"].items()
        settings["raw_files"] = {source: None if source in gone else digest for source, digest in raw_files}
        refuse_differences(f"{folders.out / name} holds another dataset", settings, described)
    return contents


def clear_leftovers(folders: Folders) -> None:
    """Remove the work files that a kill between a build's last two steps left beside finished datasets."""
    if (folders.work / PLAN_FILE).is_file() and folders.read_plan():
        with folders.locked():
            remove_work(folders)


def reopen(folders: Folders, plan: Mapping[str, Any]) -> None:
    """Turn finished datasets, of which files were lost, back into an unfinished build: dataset.json goes last."""
    write_json(folders.work / PLAN_FILE, plan)
    for name in folders.datasets:
        (folders.out / name / DATASET_FILE).unlink(missing_ok=True)


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise ValueError where settings differ, naming them."""
    differences = list(find_differences(there, here))
    if differences:
        raise ValueError(f"{what}: {'; '.join(differences)}. Choose another --out, or start over with --replace")


def make_plan(
    folders: Folders,
    datasets: Mapping[str, Mapping[str, Any]],
    tokenizer_files: Mapping[str, list[str]],
    *,
    is_replacement: bool,
) -> dict[str, Any]:
    """What work/plan.json says: the settings of each dataset, and the names of the files in its tokenizer folder.

    is_replacement: whether --replace began the build. Killed, the same command goes on with it.
    """
    files = dict(tokenizer_files)
    out = str(folders.out.resolve())
    return {"datasets": dict(datasets), "out": out, "tokenizer_files": files, "is_replacement": is_replacement}


def is_to_be_removed(folders: Folders, plan: Mapping[str, Any]) -> bool:
    """Whether --replace has to remove what is there: all but what the same command began, and did not finish."""
    return is_finished(folders) or folders.read_plan() != plan


def claim(folders: Folders, plan: Mapping[str, Any], *, notice: Callable[[str], None]) -> bool:
    """Make the folders ready for a build by this plan; returns whether an unfinished one is continued.

    Raw files may have changed since then: that is said, and what was made of them is not taken up. Raises ValueError
    where the folders hold something else, or work of other settings.
    """
    there = folders.read_plan()
    if there is None:
        folders.refuse_other_work()
        for folder in (folders.out, folders.work):
            refuse_foreign(folder, (path for path in list_files(folder) if not is_of_every_build(path.name)))
    else:
        what = f"{folders.work} holds an unfinished build with other settings"
        if set(there["datasets"]) != set(plan["datasets"]):
            names = (", ".join(one["datasets"]) or "one" for one in (there, plan))
            raise ValueError(f"{what}: its datasets are {', not '.join(names)}. Choose another --out, or --replace")
        for name, described in plan["datasets"].items():
            same_files = {**there["datasets"][name], "raw_files": described["raw_files"]}
            refuse_differences(what, same_files, described)
        say_changed_files(there, plan, notice=notice)
    remove_temporary_files(folders)
    if there != plan:
        write_json(folders.work / PLAN_FILE, plan)
    folders.write_holder()
    return there is not None


def say_changed_files(there: Mapping[str, Any], here: Mapping[str, Any], *, notice: Callable[[str], None]) -> None:
    """Say which sources' raw files are not what they were when the build began."""
    name = next(iter(here["datasets"]))
    old, new = (plan["datasets"][name]["raw_files"] for plan in (there, here))
    changed = [source for source in new if old[source] != new[source]]
    if changed:
        listed = ", ".join(changed)
        notice(f"raw files of {listed} have changed since this build began: what was made of them is made again")


def is_of_every_build(name: str) -> bool:
    """Whether a file may lie in a folder where no build is planned: what an aborted start leaves."""
    return name in (BUILD_LOG, HOLDER_FILE) or is_temporary(name, (PLAN_FILE, HOLDER_FILE))
