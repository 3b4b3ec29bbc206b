"""A finished dataset as other readers look for it: the same bytes under their names, by symbolic links.

    megatron   OUT/<source>/<split>/shard-00000.bin .idx, OUT/blend.json for --per-split-data-args-path
    olmo       OUT/<source>/<split>/shard-00000.npy .csv.gz, OUT/olmo.json with what its config needs
    datatrove  OUT/<source>/<split>/shard-00000.ds .ds.index .ds.metadata
    nanotron   as datatrove, with a tokenizer's name that it can load
    nanogpt    OUT/train.bin, OUT/val.bin: a link where the split is one shard, else its shards one after the other

Formats: megatron/core/datasets/indexed_dataset.py, olmo_core/data/numpy_dataset.py, datatrove/pipeline/tokens.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalogue import Catalogue
from pipeline.shard import index_path, megatron_path
from pipeline.storage import write_file, write_json

MEGATRON_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
NANOGPT_SPLITS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class View:
    """What is exported, and how."""

    catalogue: Catalogue
    splits: tuple[str, ...]
    out: Path
    home: Path
    """Where `out` will be in the end, absolute."""
    is_copied: bool = False
    """Copy files instead of linking them."""
    tokenizer_name: str | None = None
    """The tokenizer as the other program calls it."""
    seq_len: int | None = None
    mix: Mapping[str, float] | None = None
    seed: int = 0

    def place(self, file: Path, name: str) -> None:
        """Let a file stand in OUT under another name."""
        target = self.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.is_copied:
            shutil.copyfile(file, target)
        else:
            # Within OUT a relative link, since OUT has another name until it is whole.
            is_inside = file.is_relative_to(self.out)
            target.symlink_to(os.path.relpath(file, target.parent) if is_inside else file.resolve())

    def shards(self) -> Iterator[tuple[str, str, Path, dict[str, Any]]]:
        """Source, split, .bin and entry of every shard."""
        for source in self.catalogue.content["sources"]:
            for split in self.splits:
                for shard in self.catalogue.shards(source, split):
                    yield source, split, self.catalogue.path / shard["path"], shard

    def need_uint16(self, reader: str) -> None:
        """Raises ValueError for a reader that knows two-byte ids only."""
        if self.catalogue.dtype.itemsize != 2:
            raise ValueError(
                f"{reader} reads uint16 ids only; {self.catalogue.name} has {self.catalogue.dtype.name} ids, since "
                f"its vocabulary is {self.catalogue.vocab_size:,}"
            )


def view_for_megatron(view: View) -> None:
    """Prefixes with their weights: a source's weight, split up by the tokens of its shards."""
    mix = view.catalogue.content["mix"] if view.mix is None else view.mix
    blend: dict[str, list[str]] = {split: [] for split in MEGATRON_SPLITS.values()}
    for source, split, path, shard in view.shards():
        prefix = f"{source}/{split}/{path.stem}"
        view.place(path, f"{prefix}.bin")
        view.place(megatron_path(path), f"{prefix}.idx")
        of_split = sum(other["tokens"] for other in view.catalogue.shards(source, split))
        weight = mix.get(source, 0) * shard["tokens"] / of_split
        if weight:
            blend[MEGATRON_SPLITS[split]] += [f"{weight:.9g}", str(view.home / prefix)]
    write_json(view.out / "blend.json", {split: entries or None for split, entries in blend.items()})


def view_for_olmo(view: View) -> None:
    """Names that end in .npy, and a table of documents for storage where it does not scan the ids itself."""
    names = []
    for source, split, path, shard in view.shards():
        name = f"{source}/{split}/{path.stem}"
        view.place(path, f"{name}.npy")
        write_file(view.out / f"{name}.csv.gz", [list_documents(path, shard["documents"])])
        names.append(f"{name}.npy")
    settings = {
        "paths": names,
        "dtype": view.catalogue.dtype.name,
        "vocab_size": view.catalogue.vocab_size,
        "eos_token_id": view.catalogue.eos_id,
        "pad_token_id": view.catalogue.eos_id,
        # With a BOS it takes only EOS followed by BOS for a boundary; TokenizerConfig.gpt2() gives one, and finds none.
        "bos_token_id": None,
    }
    write_json(view.out / "olmo.json", settings)


def list_documents(path: Path, num_documents: int) -> bytes:
    """The rows `start,end,id,src,loc` of a shard, compressed, the same bytes each time; ends are exclusive."""
    ends = np.fromfile(index_path(path), dtype="<u8", count=num_documents).astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    rows = "".join(
        f"{start},{end},{number},{path.name},{number}\n"
        for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
    )
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(rows.encode())
    return packed.getvalue()


def view_for_datatrove(view: View) -> None:
    """Names that end in .ds, and a line of metadata that has a name: without one, nanotron cannot read the line."""
    name = view.tokenizer_name or view.catalogue.tokenizer["name"]
    for source, split, path, shard in view.shards():
        target = f"{source}/{split}/{path.stem}.ds"
        view.place(path, target)
        view.place(index_path(path), f"{target}.index")
        metadata = f"{name}|{view.catalogue.dtype.itemsize}\n{shard['tokens']}\n{shard['tokens']:,} tokens\n"
        write_file(view.out / f"{target}.metadata", [metadata.encode()])


def view_for_nanotron(view: View) -> None:
    """The view for datatrove. Raises ValueError without a tokenizer name: nanotron loads the tokenizer by it."""
    if not view.tokenizer_name:
        raise ValueError(
            "nanotron loads the tokenizer by its name on the hub: give it, as --tokenizer-name gpt2 or "
            "--tokenizer-name meta-llama/Llama-2-7b-hf"
        )
    view_for_datatrove(view)


def view_for_nanogpt(view: View) -> None:
    """One file per split: nanoGPT draws windows from all of it, so a source counts by its tokens."""
    view.need_uint16("nanoGPT")
    for split in view.splits:
        paths = [path for _, of, path, _ in view.shards() if of == split]
        if len(paths) == 1:
            view.place(paths[0], f"{NANOGPT_SPLITS[split]}.bin")
        elif paths:
            blocks = (np.memmap(path, dtype=np.uint8, mode="r") for path in paths)
            write_file(view.out / f"{NANOGPT_SPLITS[split]}.bin", blocks)
