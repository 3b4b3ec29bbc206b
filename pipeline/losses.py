"""How much of each source and subset goes as duplicates, and for which documents most: to stop where it is too much.

Unverified duplicates have emptied whole sources before; a mistake of ours, or data repeated by accident, is to be seen
before hours of packing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.dedup_stages import Deduplicated
from pipeline.documents import read_row
from pipeline.drops import Duplicates, find_ranks, open_lists
from pipeline.plan import PlannedSource
from pipeline.sketch_file import ROW
from pipeline.token_file import open_records
from pipeline.work import Stretch
from pipeline.workshop import Ingested

CLUSTERS_SHOWN = 3
CHARACTERS_SHOWN = 80
RECORDS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Loss:
    """What a source, or a subset that its raw files' paths name, loses."""

    name: str
    documents: int
    duplicates: int

    @property
    def fraction(self) -> float:
        """The share of its documents that goes."""
        return self.duplicates / max(1, self.documents)


def check_losses(
    ingested: Ingested,
    deduplicated: Deduplicated,
    sources: tuple[PlannedSource, ...],
    *,
    max_fraction: float,
    is_report: bool,
    notice: Callable[[str], None],
) -> None:
    """Raise ValueError that shows the largest clusters where too much goes; with `is_report` say all of it, only."""
    if not is_report:
        refuse_contaminated(ingested, sources, max_fraction=max_fraction)
    losses = list(list_losses(ingested, deduplicated, sources))
    too_large = [loss for loss in losses if loss.fraction > max_fraction]
    if not is_report and not too_large:
        return
    described = [describe_loss(loss) for loss in (losses if is_report else too_large)]
    clusters = list(describe_clusters(deduplicated.duplicates, sources, ingested))
    if is_report:
        for text in (*described, *clusters):
            notice(text)
        return
    raise ValueError(
        f"too many duplicates: {'; '.join(described)}; --max-dup-fraction {max_fraction:g} allows no more. "
        f"{' '.join(clusters)} Nothing is packed, and what was done is kept: look at these texts, then allow more, "
        "choose another --dedup, or leave a source out"
    )


def refuse_contaminated(ingested: Ingested, sources: tuple[PlannedSource, ...], *, max_fraction: float) -> None:
    """Raise ValueError where too much of a source goes for words of evaluation texts: a licence in one, perhaps."""
    for source in sources:
        documents = ingested.count(source.name)["documents"]
        found, total = documents["contaminated"], documents["contaminated"] + documents["accepted"]
        if found > max_fraction * total:
            raise ValueError(
                f"{source.name} loses {found:,} of {total:,} documents ({found / total:.1%}) to --decontaminate; "
                f"--max-dup-fraction {max_fraction:g} allows no more. Nothing is packed: is there text in the "
                "evaluation files that is common to many documents, such as a licence? Else allow more"
            )


def describe_loss(loss: Loss) -> str:
    """A loss in words."""
    return f"{loss.name} loses {loss.duplicates:,} of {loss.documents:,} documents ({loss.fraction:.1%}) as duplicates"


def list_losses(ingested: Ingested, deduplicated: Deduplicated, sources: tuple[PlannedSource, ...]) -> Iterator[Loss]:
    """The losses of each source, each followed by those of its subsets."""
    for number, source in enumerate(sources):
        counts = {outcome: of_sources[number]["documents"] for outcome, of_sources in deduplicated.counts.items()}
        yield Loss(source.name, sum(counts.values()), sum(counts.values()) - counts["kept"])
        subsets = [file.subset for file in source.files]
        if len(set(subsets)) < 2:
            continue
        stretches = [stretch for stretch in ingested.stretches if stretch.source == number]
        documents, duplicates = count_by_file(stretches, deduplicated.duplicates, num_files=len(subsets))
        for subset in sorted({name for name in subsets if name is not None}):
            is_of = np.array([name == subset for name in subsets])
            yield Loss(f"{source.name} {subset}", int(documents[is_of].sum()), int(duplicates[is_of].sum()))


def count_by_file(
    stretches: Sequence[Stretch], duplicates: Duplicates, *, num_files: int
) -> tuple[np.ndarray, np.ndarray]:
    """Documents, and duplicates, of each raw file of a source: int64."""
    counts = np.zeros((2, num_files), np.int64)
    for stretch in stretches:
        files = open_records(Path(stretch.folder) / "rows.bin", ROW)["raw_file"][stretch.first : stretch.last]
        counts[0] += np.bincount(files, minlength=num_files)
        for records in open_lists(duplicates):
            own = find_ranks(records, stretch)["rank"].astype(np.int64) - stretch.first_rank
            counts[1] += np.bincount(files[own], minlength=num_files)
    return counts[0], counts[1]


def describe_clusters(duplicates: Duplicates, sources: tuple[PlannedSource, ...], ingested: Ingested) -> Iterator[str]:
    """The documents for which most others go, and how they begin; for one held elsewhere, how one that goes begins."""
    sizes = np.zeros(duplicates.ranks.num_documents, np.uint32)
    for records in open_lists(duplicates):
        for first in range(0, len(records), RECORDS_AT_ONCE):
            partners, counts = np.unique(records["partner"][first : first + RECORDS_AT_ONCE], return_counts=True)
            sizes[partners] += counts.astype(np.uint32)
    largest = np.argsort(sizes, kind="stable")[::-1][:CLUSTERS_SHOWN]
    for rank in largest[sizes[largest] > 0].tolist():
        number, row = read_place(duplicates, rank)
        if number < len(sources):
            yield f"{sizes[rank]:,} documents go for {describe_text(sources[number], row)}"
            continue
        other, other_row = read_place(duplicates, find_duplicate(duplicates, rank))
        where, text = describe_held(ingested, number, row), describe_text(sources[other], other_row)
        yield f"{sizes[rank]:,} documents go for {where}, so {text}"


def read_place(duplicates: Duplicates, rank: int) -> tuple[int, np.void]:
    """The number of the source, and the ROW record, of a document."""
    numbers, rows = duplicates.ranks.read_rows(np.array([rank], np.uint32))
    return int(numbers[0]), rows[0]


def find_duplicate(duplicates: Duplicates, partner: int) -> int:
    """The rank of the first document that goes for another."""
    for records in open_lists(duplicates):
        for first in range(0, len(records), RECORDS_AT_ONCE):
            own = records[first : first + RECORDS_AT_ONCE]
            if len(found := np.flatnonzero(own["partner"] == partner)):
                return int(own["rank"][found[0]])
    raise AssertionError(f"no document goes for that of rank {partner}")


def describe_held(ingested: Ingested, number: int, row: np.void) -> str:
    """A document of a dataset of --against, and where that is. number: of its source."""
    name = ingested.all_names[number]
    (held,) = (one for one in ingested.held if name in one.source_names)
    raw_file = held.content["sources"][name.removeprefix(f"{held.label}/")]["raw_files"][row["raw_file"]]
    return f"{raw_file} row {row['row']} of {name}, held by {held.folder}"


def describe_text(source: PlannedSource, row: np.void) -> str:
    """A document of a raw file and how it begins, if the file is still here."""
    path = source.folder / source.files[row["raw_file"]].path
    if not path.is_file():  # fetched, and removed behind the reader
        return f"{path} row {row['row']}, whose file is not here any more."
    text = read_row(path, int(row["row"]), text_field=source.source.text_field)
    if text is None:
        raise ValueError(f"{path} has no row {row['row']} any more: run the same command again")
    return f"{path} row {row['row']}, which begins {text[:CHARACTERS_SHOWN]!r}."
