"""Make the best-fit indexes of a dataset before a run, and say what best-fit packing does to its documents.

    python pipeline/packing.py data/packed --seq-len 2048

The indexes are those that PackedDataset(..., packing="best-fit") makes on first use. They lie in the user's cache, and
nothing is added to the dataset.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # started as `python pipeline/packing.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.table import Table

from pipeline.catalogue import Catalogue
from pipeline.flags import read_flags
from pipeline.packing_index import PackingIndex, find_index
from pipeline.progress import make_console
from pipeline.source_shards import SourceShards

LOWEST_REAL_FRACTION = 0.999


@dataclass(frozen=True)
class PackingArguments:
    """Make the best-fit indexes of a dataset, and say what they do to its documents."""

    dataset: Annotated[Path, tyro.conf.Positional]
    """The dataset's folder."""
    seq_len: int
    """Inputs per sample."""
    split: str = "train"
    """The split to pack."""
    cache: Path | None = None
    """Where the indexes go. Default: tokenmill/best-fit in the user's cache folder."""


def main() -> None:
    """The command."""
    arguments = read_flags(PackingArguments)
    try:
        indexes = make_indexes(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console = make_console()
    console.print(tabulate(indexes))
    for source, index in indexes.items():
        if index.real_fraction < LOWEST_REAL_FRACTION:
            console.print(describe_waste(source, index), soft_wrap=True, highlight=False)


def make_indexes(arguments: PackingArguments) -> dict[str, PackingIndex]:
    """The index of each source that has documents in the split. Raises ValueError where none has."""
    catalogue = Catalogue(arguments.dataset)
    if arguments.seq_len < 1:
        raise ValueError(f"--seq-len must be 1 or more, found {arguments.seq_len}")
    indexes = {}
    for source in catalogue.content["sources"]:
        shards = SourceShards(catalogue.path, catalogue.shards(source, arguments.split), dtype=catalogue.dtype)
        if shards.num_tokens:
            indexes[source] = find_index(shards, seq_len=arguments.seq_len, cache=arguments.cache)[0]
    if not indexes:
        raise ValueError(f"{catalogue.name} has no split {arguments.split!r}: it has {', '.join(catalogue.splits)}")
    return indexes


def tabulate(indexes: dict[str, PackingIndex]) -> Table:
    """A row per source."""
    table = Table(title="best-fit packing")
    for column in ("source", "documents", "longer than a sample", "single token", "samples", "real tokens"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for source, index in indexes.items():
        counts = (index.num_documents, index.num_cut, index.num_left_out, index.num_bins)
        table.add_row(source, *(f"{count:,}" for count in counts), f"{index.real_fraction:.4%}")
    return table


def describe_waste(source: str, index: PackingIndex) -> str:
    """Why a source has more padding than it should."""
    padding = index.num_bins * index.seq_len - index.num_inputs
    return (
        f"{source}: {padding:,} of {index.num_bins * index.seq_len:,} inputs are padding. Its documents do not fill "
        f"samples of {index.seq_len:,} inputs: they are too few, or few lengths add up to it. Another --seq-len, or "
        'packing="concat", wastes less'
    )


if __name__ == "__main__":
    main()
