"""--against: datasets whose documents are dropped, too, by the signatures that were kept with them (signatures.py).

Their documents take part as those of more sources, called <label>/<source>; the label is the beginning of the dataset's
content hash, so that what is written does not depend on where a dataset lies. They always stay: those of validation and
test rank before all of the build, those of train behind the build's own validation and test, which are not dropped for
the sake of train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.arguments import BuildArguments
from pipeline.copies import HELD
from pipeline.ingest import find_places
from pipeline.plan import hash_texts
from pipeline.remote_dataset import is_remote
from pipeline.shard import SPLITS, check_size, list_signatures, read_dataset_json
from pipeline.sketch_file import SKETCH_VERSION
from pipeline.storage import checksum_file, write_file
from pipeline.token_file import open_records
from pipeline.work import FileTask, Stretch

LABEL_DIGITS = 12
HASH = np.dtype(("<u8", (2,)))
# Whose kept signatures a method can use. Of exact it is the content hash alone, which slimpajama takes of other texts.
SERVED_BY = {"exact": ("none", "exact", "near"), "near": ("near",), "slimpajama": ("slimpajama",)}


@dataclass(frozen=True)
class HeldPart:
    """The kept signatures of up to a million documents of one source. files: name, bytes and xxh3-128 of each."""

    folder: str
    source: str
    splits: tuple[tuple[str, int], ...]  # documents of each, one behind the other
    num_signed: int
    files: tuple[tuple[str, int, str], ...]

    @property
    def num_documents(self) -> int:
        """The documents of all splits."""
        return sum(count for _, count in self.splits)

    def as_run(self) -> dict[str, int]:
        """The part as a run of an ingest task, as an IngestRecord lists one: a part is always a single run."""
        return {"documents": self.num_documents, "short": 0, "signed": self.num_signed}

    def list_segments(self) -> list[dict[str, Any]]:
        """Split, first and last document of each stretch."""
        segments, first = [], 0
        for split, count in self.splits:
            segments.append({"split": split, "first": first, "last": first + count, "is_held": True})
            first += count
        return segments


@dataclass(frozen=True)
class HeldDataset:
    """A dataset whose documents are dropped; content: its dataset.json."""

    folder: Path
    content: Mapping[str, Any]

    @property
    def content_hash(self) -> str:
        """What tells it from any other."""
        return self.content["content_hash"]

    @property
    def label(self) -> str:
        """What it is called in drops."""
        return self.content_hash[:LABEL_DIGITS]

    @property
    def source_names(self) -> list[str]:
        """What its sources are called in drops."""
        return [f"{self.label}/{name}" for name in self.content["sources"]]

    @cached_property
    def parts(self) -> tuple[HeldPart, ...]:
        """Its kept signatures."""
        return tuple(
            HeldPart(
                folder=str(self.folder / part["path"]),
                source=f"{self.label}/{part['source']}",
                splits=tuple((split, part["splits"][split]) for split in SPLITS if split in part["splits"]),
                num_signed=part["signed"],
                files=tuple((name, file["bytes"], file["xxh3_128"]) for name, file in part["files"].items()),
            )
            for part in self.content["signatures"]["parts"]
        )

    @property
    def num_documents(self) -> int:
        """How many documents the dataset holds."""
        return sum(part.num_documents for part in self.parts)

    def describe(self) -> dict[str, Any]:
        """What a build against it says of it, so that drops can be read without it."""
        raw_files = {name: source["raw_files"] for name, source in self.content["sources"].items()}
        return {"content_hash": self.content_hash, "raw_files": raw_files}


def open_held(arguments: BuildArguments) -> tuple[HeldDataset, ...]:
    """The datasets of --against, in the order given.

    Raises FileNotFoundError or ValueError for one that is none, keeps no signatures or others than --dedup needs, is
    there twice, or lies where the build goes.
    """
    held: dict[str, HeldDataset] = {}
    out = arguments.out.resolve()
    for path in arguments.against.split(",") if arguments.against else []:
        if is_remote(path):
            raise ValueError(f"--against {path}: it must be on this disk; copy it here first")
        if out in (Path(path).resolve(), *Path(path).resolve().parents):
            raise ValueError(f"--against {path} lies in --out {arguments.out}, where the build goes: choose another")
        dataset = HeldDataset(Path(path).absolute(), read_dataset_json(path))
        check_held(path, dataset, method=arguments.dedup, threshold=arguments.dedup_threshold)
        if dataset.label in held:
            raise ValueError(f"--against {path} is the same dataset as {held[dataset.label].folder}: name it once")
        held[dataset.label] = dataset
    return tuple(held.values())


def check_held(path: str, dataset: HeldDataset, *, method: str, threshold: float) -> None:
    """Raise ValueError where a dataset's signatures are not there, or are not those that a method needs."""
    kept = dataset.content.get("signatures")
    if kept is None:
        raise ValueError(f"--against {path}: it keeps no signatures; build it with --keep-signatures (and --replace)")
    if kept["method"] not in SERVED_BY[method]:
        raise ValueError(f"--against {path}: it was built with --dedup {kept['method']}, this build has {method}")
    if kept["version"] != SKETCH_VERSION:
        raise ValueError(
            f"--against {path}: its signatures are of version {kept['version']}, this program's of {SKETCH_VERSION}: "
            "build it again with --replace"
        )
    if method == "near" and kept["threshold"] != threshold:
        raise ValueError(
            f"--against {path}: it was built with --dedup-threshold {kept['threshold']}, this build has {threshold}"
        )
    for file_path, file in list_signatures(dataset.folder, dataset.content):
        check_size(file_path, file["bytes"])


def check_unchanged(held: Sequence[HeldDataset], content_hashes: Sequence[str]) -> None:
    """Raise ValueError where datasets are not those with which the build began."""
    for dataset, content_hash in zip(held, content_hashes, strict=True):
        now = read_dataset_json(dataset.folder)
        if now["content_hash"] != content_hash or now.get("signatures") != dataset.content["signatures"]:
            raise ValueError(f"--against {dataset.folder} changed while the build was at work: start with --replace")


def describe_held(held: Sequence[HeldDataset]) -> dict[str, dict[str, Any]]:
    """What the dataset.json of a build against some datasets says of them, by label; nothing where there is none."""
    return {"against": {dataset.label: dataset.describe() for dataset in held}} if held else {}


@dataclass(frozen=True)
class HeldTask(FileTask):
    """A part to be checked and sorted by place, which depends on the seed. stretches: its documents' ranks."""

    name: str
    part: HeldPart
    stretches: tuple[Stretch, ...]
    seed: int
    folder: str
    fingerprint: str

    @property
    def subject(self) -> str:
        """The part's folder, for a person."""
        return self.part.folder

    @property
    def path(self) -> Path:
        """The HELD records, sorted by place."""
        return Path(self.folder) / f"{self.name}.held.bin"


def plan_held(
    parts: Sequence[HeldPart], stretches: Sequence[Stretch], *, seed: int, folder: Path, fingerprint: str
) -> list[HeldTask]:
    """A task for each part. stretches: of all parts."""
    of_part: dict[str, list[Stretch]] = {}
    for stretch in stretches:
        of_part.setdefault(stretch.folder, []).append(stretch)
    return [
        HeldTask(
            name=f"part-{number:05d}",
            part=part,
            stretches=tuple(of_part[part.folder]),
            seed=seed,
            folder=str(folder),
            fingerprint=hash_texts([fingerprint, *(checksum for _, _, checksum in part.files)]),
        )
        for number, part in enumerate(parts)
    ]


def check_listed(path: Path, checksum: str) -> None:
    """Raises ValueError where a file is not what its dataset.json lists, FileNotFoundError where there is none."""
    advice = "copy or build that dataset again"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, its dataset.json lists it: {advice}")
    if checksum_file(path) != checksum:
        raise ValueError(f"{path} is not the file that its dataset.json lists: {advice}")


def run_held(task: HeldTask) -> dict[str, int]:
    """Write the records; returns how many. Raises ValueError where a file is not what its dataset.json lists."""
    for name, size_bytes, checksum in task.part.files:
        path = Path(task.part.folder) / name
        check_size(path, size_bytes)
        check_listed(path, checksum)
    hashes = open_records(Path(task.part.folder) / "hashes.bin", HASH)
    records = np.empty(len(hashes), HELD)
    records["place"], records["content_hash"] = find_places(hashes, seed=task.seed), hashes
    for stretch in task.stretches:
        own = slice(stretch.first, stretch.last)
        records["rank"][own] = stretch.rank(np.arange(stretch.first, stretch.last))
    write_file(task.path, [records[np.argsort(records["place"], kind="stable")].view(np.uint8)])
    return {"documents": len(records)}
