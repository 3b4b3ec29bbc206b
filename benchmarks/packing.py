"""What packing does to documents: those cut needlessly, padding, tokens lost; concat, best-fit, and two peers' ways.

    python benchmarks/packing.py
    python benchmarks/packing.py --dataset data/packed
    PYTHONPATH=.readers python benchmarks/packing.py      # with OLMo-core's packer, from `make test-readers`

On lengths of real documents: those of a dataset's shards, or else of every text that this computer carries
(code and prose, by UTF-8 bytes / 4, near enough to tokens), and on lengths like the web's and code's.
"""

from __future__ import annotations

import bisect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as `python benchmarks/packing.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import tyro
from rich.table import Table

from benchmarks.corpus import list_files, read_text
from pipeline.catalogue import Catalogue
from pipeline.packing_index import POOL_DOCUMENTS, pack_pool
from pipeline.progress import make_console
from pipeline.source_shards import SourceShards

NANOCHAT_BUFFER = 1000


@dataclass(frozen=True)
class PackingBenchmark:
    """Compare ways of packing on lengths of documents."""

    dataset: Path | None = None
    """A dataset whose documents' lengths are taken."""
    seq_len: int = 2048
    """Inputs per sample."""
    documents: int = POOL_DOCUMENTS
    """At most so many documents of each kind."""
    json: Path | None = None
    """Where to write the figures."""


@dataclass(frozen=True)
class Outcome:
    """Shares: of documents that would fit into a sample, those cut; of inputs, padding; of tokens, those not read."""

    way: str
    cut_needlessly: float
    padding: float
    lost: float
    million_documents_s: float


def main() -> None:
    """The command."""
    arguments = tyro.cli(PackingBenchmark)
    figures = {}
    for kind, lengths in collect_lengths(arguments).items():
        outcomes = [measure(way, lengths, arguments.seq_len) for way in WAYS]
        figures[kind] = {"documents": len(lengths), "outcomes": [asdict(outcome) for outcome in outcomes]}
        make_console().print(show(kind, lengths, outcomes, seq_len=arguments.seq_len))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def collect_lengths(arguments: PackingBenchmark) -> dict[str, np.ndarray]:
    """Tokens per document, int64, by kind of text."""
    rng = np.random.default_rng(0)
    if arguments.dataset:
        kinds = read_dataset_lengths(arguments.dataset)
    else:
        files = [Path("/usr/share/doc"), Path("/usr/share/man"), Path(sys.prefix), Path(sys.base_prefix) / "lib"]
        sizes = [len(read_text(path).encode()) // 4 + 1 for folder in files for path in list_files(folder)]
        kinds = {"this computer's texts": np.array([size for size in sizes if size > 1], dtype=np.int64)}
    for kind, mean, sigma in (("like the web", 1060, 1.2), ("like code", 1500, 1.4), ("short", 500, 1.0)):
        drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, arguments.documents)
        kinds[kind] = np.maximum(2, drawn).astype(np.int64)
    return {kind: rng.permutation(lengths)[: arguments.documents] for kind, lengths in kinds.items() if len(lengths)}


def read_dataset_lengths(folder: Path) -> dict[str, np.ndarray]:
    """The train documents of each source."""
    catalogue = Catalogue(folder)
    sources = {
        name: SourceShards(catalogue.path, catalogue.shards(name, "train"), dtype=catalogue.dtype)
        for name in catalogue.content["sources"]
    }
    return {name: source.document_lengths(0, int(source.first_documents[-1])) for name, source in sources.items()}


def measure(way: tuple[str, Callable], lengths: np.ndarray, seq_len: int) -> Outcome:
    """One way of packing, timed."""
    name, pack = way
    try:
        pack(lengths[:1000], seq_len)  # compiled, where it is
    except ImportError as error:
        return Outcome(f"{name}: not installed ({error.name})", *[float("nan")] * 4)
    started = time.process_time()
    cut, num_inputs, num_slots, lost = pack(lengths, seq_len)
    seconds = time.process_time() - started
    fitting = int((lengths <= seq_len).sum())
    return Outcome(
        name,
        cut / max(1, fitting),
        1 - num_inputs / num_slots,
        lost / int(lengths.sum()),
        len(lengths) / seconds / 1e6,
    )


def pack_concat(lengths: np.ndarray, seq_len: int) -> tuple[int, int, int, int]:
    """Documents cut although they fit, inputs, room for inputs, tokens lost: windows over the row of documents."""
    ends = np.cumsum(lengths)
    num_slots = int(ends[-1] - 1) // seq_len * seq_len
    is_cut = (ends - lengths) // seq_len != (ends - 1) // seq_len
    return int((is_cut & (lengths <= seq_len)).sum()), num_slots, num_slots, int(ends[-1]) - num_slots


def pack_best_fit(lengths: np.ndarray, seq_len: int) -> tuple[int, int, int, int]:
    """Ours; what is lost has no target."""
    pool = pack_pool(lengths, 0, seq_len=seq_len, key=0)
    num_inputs = int(np.minimum(pool["lengths"], seq_len).sum())
    return 0, num_inputs, len(pool["counts"]) * seq_len, int((lengths == 1).sum())


def pack_with_olmo(lengths: np.ndarray, seq_len: int) -> tuple[int, int, int, int]:
    """OLMo-core's own packer, on documents cut into fragments; each cut loses a target. Raises ImportError."""
    from olmo_core.data.utils import InstancePacker

    full = lengths // seq_len
    rests = (lengths - full * seq_len)[lengths % seq_len > 0]
    packer = InstancePacker(seq_len)
    packer.pack_documents(np.stack([np.zeros_like(rests), rests], axis=1))
    num_slots = (len(packer.instance_bins) + int(full.sum())) * seq_len
    return 0, int(lengths.sum()), num_slots, int(((lengths - 1) // seq_len).sum())


def pack_like_nanochat(lengths: np.ndarray, seq_len: int) -> tuple[int, int, int, int]:
    """nanochat's way: rows of seq_len + 1 from a buffer of 1,000, the largest that fits or the shortest, cropped."""
    waiting = iter(lengths.tolist())
    buffer = sorted(length for length, _ in zip(waiting, range(NANOCHAT_BUFFER), strict=False))
    cut = num_rows = lost = 0
    while buffer:
        left = seq_len + 1
        while left and buffer:
            place = bisect.bisect_right(buffer, left) - 1
            length = buffer.pop(max(place, 0))
            if place < 0:
                cut += length <= seq_len
                lost += length - left
                length = left
            left -= length
            if (following := next(waiting, None)) is not None:
                bisect.insort(buffer, following)
        num_rows += 1
    slots = num_rows * seq_len
    return cut, slots, slots, lost


WAYS: list[tuple[str, Callable]] = [
    ("concat", pack_concat),
    ("best-fit", pack_best_fit),
    ("OLMo-core", pack_with_olmo),
    ("nanochat's way", pack_like_nanochat),
]


def show(kind: str, lengths: np.ndarray, outcomes: list[Outcome], *, seq_len: int) -> Table:
    """A row per way."""
    is_long = lengths > seq_len
    title = (
        f"{kind}: {len(lengths):,} documents, mean {lengths.mean():,.0f} tokens, {is_long.mean():.1%} longer than "
        f"{seq_len:,} with {lengths[is_long].sum() / lengths.sum():.0%} of the tokens"
    )
    table = Table(title=title)
    for column in ("packing", "cut needlessly", "padding", "tokens lost", "million documents/s"):
        table.add_column(column, justify="left" if column == "packing" else "right")
    for outcome in outcomes:
        shares = (f"{outcome.cut_needlessly:.1%}", f"{outcome.padding:.4%}", f"{outcome.lost:.2%}")
        table.add_row(outcome.way, *shares, f"{outcome.million_documents_s:.2f}")
    return table


if __name__ == "__main__":
    main()
