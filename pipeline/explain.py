"""From a token to the row of the raw file that it came from, and from a row to what became of it.

    python pipeline/explain.py data/packed --source slimpajama --token 123456789 --raw data/raw
    python pipeline/explain.py data/packed --run runs/tinyllama --step 41000 --limit 8
    python pipeline/explain.py data/packed --document train/chunk1/part-7.jsonl.zst:1234

A step's samples follow from the run's saved settings alone. Reads the tables of the shards and drops, and raw files
where --raw says so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):  # started as `python pipeline/explain.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.catalogue import Catalogue
from pipeline.dataset import PackedDataset
from pipeline.document_batch import ROW_BITS
from pipeline.documents import read_row
from pipeline.flags import read_flags
from pipeline.row_search import find_drops, find_in_table, find_shard, read_rows
from pipeline.source_shards import SourceShards
from pipeline.storage import read_json

SHOWN_CHARACTERS = 2000
READ_SETTINGS = ("seq_len", "mix", "seed", "packing", "shuffle", "max_epochs")
COUNTED_SETTINGS = ("seq_len", "tokens_per_step")
MOST_DIGITS = 20  # of a row or file, before Python refuses to read it as a number
MOST_POSITIONS = 1 << 62  # a position is an int64


@dataclass(frozen=True)
class ExplainArguments:
    """Say where a token comes from, or what became of a document."""

    dataset: Annotated[Path, tyro.conf.Positional]
    """The dataset's folder."""
    source: str | None = None
    """The source of --token; with --document, the only one that is asked."""
    token: int | None = None
    """A token of --source, counted over all shards of the split."""
    split: str = "train"
    """The split of --token."""
    run: Path | None = None
    """The folder of a training run, for --step."""
    step: int | None = None
    """An optimizer step of --run, 1 being the first: its samples are listed."""
    limit: int = 20
    """How many samples of a step are shown."""
    document: str | None = None
    """RAW_FILE:ROW, as drops and dataset.json name them; RAW_FILE may be its number."""
    raw: Path | None = None
    """The folder of the raw files: show the texts too."""


def main() -> None:
    """The command."""
    arguments = read_flags(ExplainArguments)
    try:
        for line in explain(arguments):
            print(line)
    except (ValueError, OSError, IndexError) as error:  # the last: a step behind the end that max_epochs sets
        sys.exit(f"error: {error}")


def explain(arguments: ExplainArguments) -> Iterator[str]:
    """The lines of the answer. Raises ValueError for a question without an answer."""
    asked = (arguments.token is not None, arguments.step is not None, arguments.document is not None)
    if sum(asked) != 1:
        raise ValueError("ask one thing: --source S --token N, or --run RUN_DIR --step K, or --document FILE:ROW")
    catalogue = Catalogue(arguments.dataset)
    if arguments.token is not None:
        return explain_token(catalogue, arguments)
    if arguments.step is not None:
        return explain_step(catalogue, arguments)
    return explain_document(catalogue, arguments)


def open_shards(catalogue: Catalogue, source: str, split: str) -> SourceShards:
    """The shards of a source's split."""
    return SourceShards(catalogue.path, catalogue.shards(source, split), dtype=catalogue.dtype)


def explain_token(catalogue: Catalogue, arguments: ExplainArguments) -> Iterator[str]:
    """The document of a token. Raises ValueError for a token that is not there."""
    if arguments.source is None:
        raise ValueError(f"--token needs --source: it is one of {', '.join(catalogue.content['sources'])}")
    shards = open_shards(catalogue, arguments.source, arguments.split)
    if not 0 <= arguments.token < shards.num_tokens:
        raise ValueError(
            f"--token {arguments.token:,}: {arguments.source} has {shards.num_tokens:,} tokens in {arguments.split}"
        )
    document = shards.find_document(arguments.token + 1) - 1
    yield from describe_document(catalogue, arguments, arguments.source, shards, document)
    start = shards.document_start(document)
    (token,) = shards.read_tokens(arguments.token, arguments.token + 1)
    yield f"  token {arguments.token:,} is its number {arguments.token - start:,} from 0, id {token}"


def describe_document(
    catalogue: Catalogue, arguments: ExplainArguments, source: str, shards: SourceShards, document: int
) -> Iterator[str]:
    """Where a document, counted over the shards, is and whence it came."""
    shard, inside = shards.locate_document(document)
    number, row = read_rows(shards.paths[shard])[inside].tolist()
    start, end = (shards.document_start(one) - int(shards.first_tokens[shard]) for one in (document, document + 1))
    yield f"{source}  {catalogue.content['sources'][source]['raw_files'][number]}:{row}"
    yield f"  in {shards.paths[shard]}, tokens {start:,} to {end:,}"
    if arguments.raw:
        text = read_text(catalogue, arguments.raw, source, number, row)
        more = f" ... {len(text):,} characters" if len(text) > SHOWN_CHARACTERS else ""
        yield f"  text: {text[:SHOWN_CHARACTERS]!r}{more}"


def read_text(catalogue: Catalogue, raw: Path, source: str, raw_file: int, row: int) -> str:
    """The text of a row. Raises ValueError where the file has no such document, or the dataset was not built."""
    if "settings" not in catalogue.content:
        raise ValueError(f"{catalogue.name} was not built from raw files, but exported or imported: leave --raw out")
    path = raw / source / catalogue.content["sources"][source]["raw_files"][raw_file]
    text = read_row(path, row, text_field=catalogue.content["settings"]["columns"][source])
    if text is None:
        raise ValueError(f"{path} has no document in row {row:,}: it has fewer rows, or is not what was built from")
    return text


def explain_step(catalogue: Catalogue, arguments: ExplainArguments) -> Iterator[str]:
    """The samples of a step of a run, each with its documents. Raises ValueError where the run read other data."""
    if arguments.run is None or arguments.step < 1:
        raise ValueError("--step needs --run, the folder of the run; its first step is 1")
    dataset, first, samples_per_step = open_run(catalogue, arguments.run, arguments.step)
    shown = range(first, first + min(arguments.limit, samples_per_step))
    yield f"step {arguments.step:,}: positions {first:,} to {first + samples_per_step:,}, {len(shown)} of them shown"
    for position in shown:
        yield from describe_sample(catalogue, arguments, dataset, position)


def open_run(catalogue: Catalogue, run: Path, step: int) -> tuple[PackedDataset, int, int]:
    """The data as a run read it, the first position of a step, and its samples: from config.json and newest checkpoint.

    What a run left out, after numbers that were not finite, its checkpoint says. Raises ValueError for another's data.
    """
    config = read_config(run)
    newest = read_newest_checkpoint(run) or {"dataset": {"fingerprint": catalogue.fingerprint}}
    if (found := newest["dataset"]["fingerprint"]) != catalogue.fingerprint:
        raise ValueError(f"{run} read other data: fingerprint {found[:12]}, {catalogue.name} has another")
    settings = {name: config[name] for name in READ_SETTINGS if config.get(name) is not None}
    samples_per_step = config["tokens_per_step"] // config["seq_len"]
    position = (step - 1) * samples_per_step
    for start, end in newest.get("skipped", []):
        position += end - start if position >= start else 0
    if position + samples_per_step > MOST_POSITIONS:
        raise ValueError(f"--step {step:,}: no run has so many steps")
    return PackedDataset(catalogue.paths, **settings), position, samples_per_step


def read_config(run: Path) -> dict[str, Any]:
    """The settings of a run. Raises ValueError where they do not say what a step is."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"--run {run}: it has no config.json, so it is no training run's folder")
    config = read_json(path)
    counts = [config.get(name) if isinstance(config, dict) else None for name in COUNTED_SETTINGS]
    for name, value in zip(COUNTED_SETTINGS, counts, strict=True):
        if type(value) is not int or value < 1:
            raise ValueError(
                f"{path} has {name} {value!r}, not a whole number from 1: {run} is no training run's folder"
            )
    return config


def read_newest_checkpoint(run: Path) -> dict[str, Any] | None:
    """What the newest checkpoint says; None where a run has none. Raises ValueError where it says no dataset."""
    paths = sorted(run.glob("checkpoints/step-*[0-9]/checkpoint.json"), key=lambda path: int(path.parts[-2][5:]))
    if not paths:
        return None
    newest = read_json(paths[-1])
    dataset = newest.get("dataset") if isinstance(newest, dict) else None
    if not isinstance(dataset, dict) or not isinstance(dataset.get("fingerprint"), str):
        raise ValueError(f"{paths[-1]} has no dataset.fingerprint, the data that was read: it is damaged")
    return newest


def describe_sample(
    catalogue: Catalogue, arguments: ExplainArguments, dataset: PackedDataset, position: int
) -> Iterator[str]:
    """A sample and the documents that its inputs are of."""
    located = dataset.locate([position])
    source, epoch, sample = dataset.sources[located.sources[0]], int(located.epochs[0]), int(located.samples[0])
    yield f"position {position:,}: {source}, epoch {epoch}, sample {sample:,}"
    opened = dataset.windows[source]
    for start in opened.piece_starts(epoch, sample):
        document = opened.find_document(start + 1) - 1
        yield from (f"  {line}" for line in describe_document(catalogue, arguments, source, opened, document))


def explain_document(catalogue: Catalogue, arguments: ExplainArguments) -> Iterator[str]:
    """What became of a row, in each source that has such a raw file.

    Raises ValueError where none has, or no file could have such a row.
    """
    name, _, row = (arguments.document or "").rpartition(":")
    if not name or not row.isdecimal():
        raise ValueError(f"--document {arguments.document}: it is RAW_FILE:ROW, such as part-0.jsonl:17")
    if len(row) > MOST_DIGITS or int(row) >> ROW_BITS:
        raise ValueError(
            f"--document {arguments.document}: the last row that a file can have is {(1 << ROW_BITS) - 1:,}"
        )
    found = {
        source: number
        for source, entry in catalogue.content["sources"].items()
        if (number := find_raw_file(entry["raw_files"], name)) is not None and arguments.source in (None, source)
    }
    if not found:
        known = next(iter(catalogue.content["sources"].values()))["raw_files"][0]
        raise ValueError(
            f"{catalogue.name} has no raw file {name!r} in {arguments.source or 'any source'}: one is named as its "
            f"source's folder holds it, such as {known}:0"
        )
    for source, number in found.items():
        yield from explain_row(catalogue, arguments, source, (number, int(row)))


def explain_row(
    catalogue: Catalogue, arguments: ExplainArguments, source: str, identity: tuple[int, int]
) -> Iterator[str]:
    """What became of a row of one source."""
    number, row = identity
    lines = list(find_in_drops(catalogue, source, identity))
    lines = lines or list(find_in_shards(catalogue, arguments, source, identity))
    file = catalogue.content["sources"][source]["raw_files"][number]
    yield from lines or [f"{source}  {file} has no row {row}: it has fewer, or the row is blank"]


def find_raw_file(raw_files: list[str], name: str) -> int | None:
    """The number of a raw file given by name or number."""
    if name in raw_files:
        return raw_files.index(name)
    is_number = name.isdecimal() and len(name) <= MOST_DIGITS and int(name) < len(raw_files)
    return int(name) if is_number else None


def find_in_shards(
    catalogue: Catalogue, arguments: ExplainArguments, source: str, identity: tuple[int, int]
) -> Iterator[str]:
    """Where a document stands, if it was kept: the tables of all shards are read until it is found.

    With --raw the right one comes first, for shards are ranges of places, and a place is a hash of the text.
    """
    opened = [open_shards(catalogue, source, split) for split in catalogue.content["sources"][source]["splits"]]
    tables = [(shards, number) for shards in opened for number in range(len(shards.paths))]
    if arguments.raw:
        text = read_text(catalogue, arguments.raw, source, *identity)
        seed = catalogue.content["settings"]["seed"]
        tables = [*((shards, find_shard(shards, text, seed=seed)) for shards in opened), *tables]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda table: find_in_table(table[0].paths[table[1]], identity), tables)
        for (shards, number), index in zip(tables, found, strict=True):
            if index is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                document = int(shards.first_documents[number]) + index
                yield from describe_document(catalogue, arguments, source, shards, document)
                return


def find_in_drops(catalogue: Catalogue, source: str, identity: tuple[int, int]) -> Iterator[str]:
    """Why a document was not kept, and what stays in its place."""
    entry = catalogue.content["sources"][source]
    paths = [catalogue.path / file["path"] for file in entry["drops"]]
    for drop in find_drops(paths, identity):
        yield f"{source}  {entry['raw_files'][identity[0]]}:{identity[1]}"
        yield f"  not kept: {drop['reason']}, {drop['num_bytes']:,} bytes"
        if drop["item"] is not None:
            yield f"  shares a span of words with {drop['item']}"
        yield from describe_partner(catalogue, drop)


def describe_partner(catalogue: Catalogue, drop: Mapping[str, Any]) -> Iterator[str]:
    """The document that stays in place of a duplicate."""
    if drop["partner_source"] is None:
        return
    label, _, name = drop["partner_source"].rpartition("/")
    holder = catalogue.content["against"][label] if label else None
    raw_files = holder["raw_files"][name] if holder else catalogue.content["sources"][name]["raw_files"]
    where = f" in the dataset of content hash {holder['content_hash']}" if holder else ""
    near = "" if drop["similarity"] is None else f", similarity {drop['similarity']:.3f}"
    yield f"  {raw_files[drop['partner_raw_file']]}:{drop['partner_row']} of {name} stays{near}{where}"


if __name__ == "__main__":
    main()
