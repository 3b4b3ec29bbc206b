"""What one or several dataset folders hold together, by their dataset.json files alone. numpy only.

Several folders of the same tokenizer are read as one, so that a source can be added without a rebuild.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.remote_dataset import bring, find_folder, is_remote, open_remote
from pipeline.shard import read_dataset_json

SAME_IN_ALL = ("dtype", "document_rule")
SAME_TOKENIZER = ("sha256", "vocab_size", "bos_id", "eos_id")


class Catalogue:
    """What one or several dataset folders say about themselves."""

    def __init__(self, path: Path | str | Sequence[Path | str]):
        paths = [path] if isinstance(path, str | Path) else path
        self.paths = [open_remote(str(one)) if is_remote(one) else Path(one) for one in paths]
        if not self.paths:
            raise ValueError("no dataset folder is named; build one with pipeline/build.py")
        self.path = self.paths[0]
        self.content = read_catalogue(self.paths)

    @property
    def name(self) -> str:
        """The folder or folders, for messages."""
        return ", ".join(map(str, self.paths))

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits in which some source has documents."""
        return tuple(dict.fromkeys(split for source in self.content["sources"].values() for split in source["splits"]))

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the ids, little-endian: uint16, or uint32 for a vocabulary over 65,536."""
        return np.dtype(self.content["dtype"]).newbyteorder("<")

    @property
    def tokenizer(self) -> dict:
        """The tokenizer's name, sha256, and file (relative to the first dataset's folder)."""
        return self.content["tokenizer"]

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file; of a dataset that lies elsewhere it is fetched now."""
        path = self.path / self.tokenizer["file"]
        bring(path)
        return path

    @property
    def is_fetched(self) -> bool:
        """Whether some of the shards come from elsewhere when they are first wanted."""
        return any(find_folder(path) for path in self.paths)

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer has; every id is smaller."""
        return self.tokenizer["vocab_size"]

    @property
    def bos_id(self) -> int | None:
        """The id before every document where the rule is bos+eos."""
        return self.tokenizer["bos_id"]

    @property
    def eos_id(self) -> int:
        """The id that ends every document."""
        return self.tokenizer["eos_id"]

    @property
    def document_rule(self) -> str:
        """What frames each document: "bos+eos", "eos", or "none" where some imported ones have no end-of-text id."""
        return self.content["document_rule"]

    @property
    def fingerprint(self) -> str:
        """Changes when any shard changes; a moved folder keeps it."""
        return self.content["content_hash"]

    def shards(self, source: str, split: str) -> list[dict[str, Any]]:
        """The shards of a source's split, as dataset.json lists them; none where it has no such split.

        Raises ValueError where there is no such source.
        """
        if source not in self.content["sources"]:
            raise ValueError(f"{self.name} has no source {source!r}: it has {', '.join(self.content['sources'])}")
        return self.content["sources"][source]["splits"].get(split, {"shards": []})["shards"]

    def hash_shards(self, sources: Iterable[str], split: str) -> str:
        """32 hex digits over the contents of some sources' shards, wherever they lie: what a state refers to."""
        listed = [
            [source, [[shard["tokens"], shard["xxh3_128"]] for shard in self.shards(source, split)]]
            for source in sorted(sources)
        ]
        return hash_text(json.dumps([self.tokenizer["sha256"], split, listed]))[:32]


def read_catalogue(folders: Sequence[Path]) -> dict[str, Any]:
    """What dataset.json says, of one folder; of several, the first one's with the sources of all.

    The paths of the shards of several are absolute. The mix of several: folders count by their tokens of the train
    split, the sources of one by its own mix. Raises ValueError where folders do not go together.
    """
    contents = [read_dataset_json(folder) for folder in folders]
    if len(contents) == 1:
        return contents[0]
    for folder, content in zip(folders[1:], contents[1:], strict=True):
        refuse_other_tokenizer(folder, content, first_folder=folders[0], first=contents[0])
    refuse_repeated_sources(folders, contents)
    return {
        **contents[0],
        "content_hash": hash_text("".join(content["content_hash"] for content in contents)),
        "mix": join_mixes(contents),
        "sources": {
            name: place_shards(folder, source)
            for folder, content in zip(folders, contents, strict=True)
            for name, source in content["sources"].items()
        },
    }


def refuse_other_tokenizer(folder: Path, content: Mapping, *, first_folder: Path, first: Mapping) -> None:
    """Raises ValueError where ids of one folder mean something else in another."""
    pairs = [(key, content[key], first[key]) for key in SAME_IN_ALL]
    pairs += [(f"tokenizer {key}", content["tokenizer"][key], first["tokenizer"][key]) for key in SAME_TOKENIZER]
    for what, found, expected in pairs:
        if found != expected:
            raise ValueError(
                f"{folder} and {first_folder} cannot be read as one: {what} is {found!r} and {expected!r}. "
                "Build them with the same tokenizer and document rule"
            )


def refuse_repeated_sources(folders: Sequence[Path], contents: Sequence[Mapping]) -> None:
    """Raises ValueError where two folders have a source of the same name."""
    where: dict[str, Path] = {}
    for folder, content in zip(folders, contents, strict=True):
        for name in content["sources"]:
            if name in where:
                raise ValueError(
                    f"{where[name]} and {folder} both have a source {name!r}: which one a weight means is unclear. "
                    "Give one of them another name when it is built"
                )
            where[name] = folder


def join_mixes(contents: Sequence[Mapping]) -> dict[str, float]:
    """One mix of several datasets: a dataset's share is its share of the train tokens, split up by its own mix."""
    joined = {}
    for content in contents:
        splits = [source["splits"].get("train", {"shards": []}) for source in content["sources"].values()]
        num_tokens = sum(shard["tokens"] for split in splits for shard in split["shards"])
        total = sum(content["mix"].values())
        joined |= {name: weight / total * num_tokens for name, weight in content["mix"].items()}
    return joined


def place_shards(folder: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """A source as dataset.json lists it, with the absolute paths of its shards."""

    def place(shard: Mapping[str, Any]) -> dict[str, Any]:
        return {**shard, "path": str((folder / shard["path"]).absolute())}

    splits = {
        name: {**split, "shards": [place(shard) for shard in split["shards"]]}
        for name, split in source["splits"].items()
    }
    return {**source, "splits": splits}


def hash_text(text: str) -> str:
    """The sha256 of a text, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()
