"""A finished dataset for another program's reader, and another program's token files as a dataset.

    python pipeline/export.py data/packed --to megatron --out data/megatron
    python pipeline/export.py data/packed --to nanogpt --out data/nanogpt --interleave
    python pipeline/export.py --import /data/megatron --tokenizer gpt2 --out data/old

megatron, olmo, datatrove, nanotron and nanogpt get links to the same bytes (see export_views.py); llmc, litdata, mds
and hf get copies (export_copies.py). With --interleave one stream of whole documents in the order of the mix is written
first. OUT is whole or absent.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

if __package__ in (None, ""):  # started as `python pipeline/export.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.adopt import adopt
from pipeline.arguments import parse_count
from pipeline.catalogue import Catalogue
from pipeline.export_copies import copy_for_hf, copy_for_litdata, copy_for_llmc, copy_for_mds
from pipeline.export_views import (
    View,
    view_for_datatrove,
    view_for_megatron,
    view_for_nanogpt,
    view_for_nanotron,
    view_for_olmo,
)
from pipeline.flags import read_flags
from pipeline.interleave import interleave
from pipeline.mixture import parse_weights
from pipeline.remote_dataset import bring
from pipeline.shard import find_lost_files, list_files
from pipeline.storage import name_temporary

TARGETS: dict[str, Callable[[View], str | None]] = {
    "megatron": view_for_megatron,
    "olmo": view_for_olmo,
    "datatrove": view_for_datatrove,
    "nanotron": view_for_nanotron,
    "nanogpt": view_for_nanogpt,
    "llmc": copy_for_llmc,
    "litdata": copy_for_litdata,
    "mds": copy_for_mds,
    "hf": copy_for_hf,
}
STREAM_FOLDER = "stream"
"""Where in OUT the interleaved dataset is."""
TAKEN_BY = {
    "mix": ("megatron", "mds", "hf"),
    "seed": ("mds", "hf"),
    "seq_len": ("mds", "hf"),
    "tokenizer_name": ("datatrove", "nanotron"),
}
"""The formats that a flag means something to; --interleave takes --mix for all."""
OF_IMPORT = ("tokenizer", "source", "dtype")
OF_EXPORT = ("dataset", "to", "splits", "copy", "interleave", "tokens", *TAKEN_BY)
PARALLEL_FETCHES = 8


@dataclass(frozen=True)
class ExportArguments:
    """Give a dataset to another reader, or take in another program's token files."""

    dataset: Annotated[Path | None, tyro.conf.Positional] = None
    """The dataset's folder."""
    to: str | None = None
    """megatron, olmo, datatrove, nanotron, nanogpt (links), or llmc, litdata, mds, hf (copies)."""
    out: Path | None = None
    """The folder to make."""
    splits: str | None = None
    """The splits to export, with commas between. Default: all."""
    copy: bool = False
    """Copy files where links would do, for storage without links."""
    seq_len: int | None = None
    """Tokens per row of mds and hf."""
    mix: str | None = None
    """Weights per source, as source:weight,source:weight, for megatron, mds, hf or --interleave. Default: the
    dataset's own."""
    seed: int | None = None
    """The order of the rows of mds and hf. Default: 0."""
    tokenizer_name: str | None = None
    """What the other program calls the tokenizer, for datatrove and nanotron."""
    interleave: bool = False
    """One stream of documents in the order of the mix, for readers that cannot mix."""
    tokens: str | None = None
    """About how many tokens the stream has: 300_000_000, 1e9, 10B. Default: until the first source ends."""
    import_from: Annotated[Path | None, tyro.conf.arg(name="import")] = None
    """A file or folder of Megatron's (.bin, .idx), datatrove's (.ds) or OLMo's (.npy) to wrap as a dataset."""
    tokenizer: str | None = None
    """With --import: the tokenizer that made the ids, by name or path."""
    source: str | None = None
    """With --import: what the source is called. Default: the folder's name."""
    dtype: Literal["uint16", "uint32"] | None = None
    """With --import: the ids of files that do not say it. Default: uint16 where the tokenizer's ids fit."""


def main() -> None:
    """The command."""
    arguments = read_flags(ExportArguments)
    try:
        print(export(arguments))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def export(arguments: ExportArguments) -> str:
    """Make OUT; returns a line that says what is there.

    Raises ValueError for settings that do not go together, FileExistsError where OUT is there already.
    """
    if arguments.out is None:
        raise ValueError("--out says where to write: --out data/megatron")
    if arguments.out.exists():
        raise FileExistsError(f"{arguments.out} is there already: remove it, or choose another --out")
    temporary = name_temporary(arguments.out)
    temporary.mkdir(parents=True)
    try:
        said = _fill(arguments, temporary)
        temporary.rename(arguments.out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # nothing is there any more where all went well
    return said


def _fill(arguments: ExportArguments, out: Path) -> str:
    """Do what is asked for in a folder that will be OUT."""
    refuse_ignored_flags(arguments)
    if arguments.import_from is not None:
        if arguments.tokenizer is None:
            raise ValueError("--import needs --tokenizer: ids mean nothing without it")
        return adopt(
            arguments.import_from, out,
            tokenizer_name=arguments.tokenizer, source=arguments.source, dtype=arguments.dtype,
        )  # fmt: skip
    if arguments.dataset is None:
        raise ValueError("no dataset is named: python pipeline/export.py data/packed --to megatron --out data/megatron")
    if arguments.to not in TARGETS:
        what = "--to is missing" if arguments.to is None else f"--to {arguments.to}"
        raise ValueError(f"{what}: it is one of {', '.join(TARGETS)}")
    view = choose_view(arguments, out)
    if said := TARGETS[arguments.to](view):
        return f"{arguments.out}: {said} for {arguments.to}"
    num_tokens = sum(shard["tokens"] for *_, shard in view.shards())
    return f"{arguments.out}: {num_tokens:,} tokens of {', '.join(view.splits)} for {arguments.to}"


def refuse_ignored_flags(arguments: ExportArguments) -> None:
    """Raises ValueError for a flag that changes nothing here: whoever gave it expects that it does."""
    is_import = arguments.import_from is not None
    for name in OF_EXPORT if is_import else OF_IMPORT:
        value = getattr(arguments, name)
        if value is not None and value is not False:
            flag = "a dataset" if name == "dataset" else f"--{name.replace('_', '-')}"
            raise ValueError(
                f"--import makes a dataset: it does not take {flag}" if is_import else f"{flag} is for --import alone"
            )
    for name, takers in TAKEN_BY.items():
        is_taken = arguments.to in takers or (name == "mix" and arguments.interleave)
        if arguments.to in TARGETS and not is_taken and getattr(arguments, name) is not None:
            more = ", or for --interleave" if name == "mix" else ""
            raise ValueError(
                f"--{name.replace('_', '-')} changes nothing of {arguments.to}: it is for {', '.join(takers)}{more}"
            )


def choose_view(arguments: ExportArguments, out: Path) -> View:
    """What to export: the dataset, or the stream made of it."""
    catalogue = Catalogue(arguments.dataset)
    mix = dict(catalogue.content["mix"])
    if arguments.mix:
        mix = parse_weights(arguments.mix, known=mix)
    for source in mix:
        catalogue.shards(source, "train")  # raises where there is no such source
    splits = tuple(arguments.splits.split(",")) if arguments.splits else catalogue.splits
    if missing := set(splits) - set(catalogue.splits):
        raise ValueError(f"{catalogue.name} has no split {', '.join(missing)}: it has {', '.join(catalogue.splits)}")
    if arguments.tokens is not None and not arguments.interleave:
        raise ValueError("--tokens is the length of the stream of --interleave: give both")
    num_tokens = None if arguments.tokens is None else parse_count(arguments.tokens, flag="--tokens")
    bring_whole(catalogue, splits)
    if arguments.interleave:
        stream = out / STREAM_FOLDER
        catalogue = interleave(catalogue, stream, mix=mix, splits=splits, num_tokens=num_tokens)
        mix = dict(catalogue.content["mix"])
    return View(
        catalogue, splits, out, home=arguments.out.absolute(), is_copied=arguments.copy,
        tokenizer_name=arguments.tokenizer_name, seq_len=arguments.seq_len, mix=mix, seed=arguments.seed or 0,
    )  # fmt: skip


def bring_whole(catalogue: Catalogue, splits: Sequence[str]) -> None:
    """Fetch what is still elsewhere of some splits. Raises ValueError where a file is gone or of another size."""
    sources = {
        name: {"drops": [], "splits": {split: source["splits"][split] for split in splits if split in source["splits"]}}
        for name, source in catalogue.content["sources"].items()
    }
    exported = {"tokenizer": catalogue.tokenizer, "sources": sources}
    with ThreadPoolExecutor(PARALLEL_FETCHES) as pool:
        list(pool.map(bring, [path for path, _ in list_files(catalogue.path, exported)]))
    if lost := find_lost_files(catalogue.path, exported):
        more = f", and {len(lost) - 1:,} more files" if len(lost) > 1 else ""
        raise ValueError(f"{catalogue.name} is not whole: {lost[0]}{more}. Copy it again, or rebuild with --replace")


if __name__ == "__main__":
    main()
