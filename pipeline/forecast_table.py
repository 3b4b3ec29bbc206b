"""What --dry-run prints: tables of documents, tokens, disk and time, then what to know before starting."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.copies import HELD
from pipeline.document_batch import BAD_REASONS
from pipeline.forecast import Forecast, list_folders
from pipeline.forecast_sample import SourceSample
from pipeline.held import open_held
from pipeline.progress import format_bytes, format_seconds

DIGITS = 4  # of a figure that is not exact
FEW_DOCUMENTS = 200


def print_forecast(forecast: Forecast, console: Console) -> None:
    """Print a forecast and its warnings."""
    console.print(documents_table(forecast))
    console.print(tokens_table(forecast))
    console.print(costs_table(forecast))
    for line in (
        *describe_sample(forecast),
        *describe_contaminated(forecast),
        *describe_mix(forecast),
        *describe_costs(forecast),
        *list_held(forecast),
    ):
        console.print(line)
    for line in find_warnings(forecast):
        console.print(f"warning: {line}")


def documents_table(forecast: Forecast) -> Table:
    """Raw files and documents, a row per source."""
    columns = ("raw files", "raw", "text", "documents", "error", "excluded", "short", "bad", "text read")
    table = make_table("documents, before dedup", ("source",), columns)
    for sample in forecast.samples:
        source = sample.source
        counts = [forecast.count(sample, *reasons) for reasons in (("accepted",), ("excluded",), ("short",))]
        counts.append(forecast.count(sample, *BAD_REASONS))
        text = format_bytes(sample.estimate(lambda tally: tally.bytes["read"]))
        numbers = [format_count(count, is_exact=sample.is_exact) for count in counts]
        numbers.insert(1, format_error(sample.find_error(lambda tally: tally.documents["accepted"])))
        read = "all" if sample.is_exact else format_bytes(sample.read_bytes)
        table.add_row(source.name, f"{len(source.files):,}", format_bytes(source.size_bytes), text, *numbers, read)
    return table


def describe_contaminated(forecast: Forecast) -> Iterator[str]:
    """What goes for words of evaluation files, where any are given."""
    for sample in forecast.samples if forecast.arguments.decontaminate else []:
        count = format_count(forecast.count(sample, "contaminated"), is_exact=sample.is_exact)
        yield f"{sample.source.name}: {count} documents contaminated by evaluation texts, not among those above"


def tokens_table(forecast: Forecast) -> Table:
    """Tokens and epochs, a row per source and tokenizer."""
    goal = forecast.arguments.num_tokens
    title = f"tokens, before dedup; shares and epochs for --tokens {goal:,}" if goal else "tokens, before dedup"
    table = make_table(title, ("source", "tokenizer"), ("tokens", "error", "weight", "share", "epochs", "output"))
    for number, tokenizer in enumerate(forecast.names):
        tokens = goal or forecast.find_one_epoch(number)[0]
        for sample in forecast.samples:
            share = format_count(sample.source.find_share(tokens), is_exact=sample.is_exact or goal is not None)
            table.add_row(
                sample.source.name,
                tokenizer,
                format_count(sample.estimate_tokens(number), is_exact=sample.is_exact),
                format_error(sample.find_error(lambda tally, number=number: tally.tokens[number])),
                f"{sample.source.weight:.4g}",
                share,
                f"{forecast.find_epochs(sample, number, tokens):.3g}",
                format_bytes(forecast.output_bytes(sample, number)),
            )
    return table


def costs_table(forecast: Forecast) -> Table:
    """Disk and time, a row per source and one for all."""
    workers = 1 if forecast.arguments.executor == "ray" else forecast.arguments.workers
    cores = f"{workers} core{'s' if workers > 1 else ''}"
    columns = ("output", "work files", "peak", "text/s and core", "1 core", *([cores] if workers > 1 else []))
    table = make_table("disk and time", ("source",), columns)
    for names, samples in [*(([one.source.name], [one]) for one in forecast.samples), (["all"], forecast.samples)]:
        output, work, seconds = add_costs(forecast, samples)
        speed = sum(sample.estimate(lambda tally: tally.bytes["read"]) for sample in samples) / max(seconds, 1e-9)
        sizes = (format_bytes(size) for size in (output, work, output + work))
        times = (seconds, seconds / workers)[: 1 + (workers > 1)]
        table.add_row(*names, *sizes, format_bytes(speed), *map(format_seconds, times))
    return table


def add_costs(forecast: Forecast, samples: list[SourceSample]) -> tuple[float, float, float]:
    """Bytes of output and of work files, and seconds on one core, of some sources."""
    output = sum(forecast.output_bytes(one, number) for one in samples for number in range(len(forecast.names)))
    return output, sum(map(forecast.work_bytes, samples)), sum(map(forecast.seconds, samples))


def describe_sample(forecast: Forecast) -> Iterator[str]:
    """What the figures rest on."""
    if all(sample.is_exact for sample in forecast.samples):
        yield "exact (all read), before dedup: documents, text and tokens are counts; the rest are estimates"
        return
    read_bytes = sum(sample.read_bytes for sample in forecast.samples)
    yield (
        f"predicted from {format_bytes(read_bytes)} of text; before dedup, which makes documents, tokens and output "
        "fewer. error: two standard errors"
    )
    num_heads = sum(reading.piece.is_head for sample in forecast.samples for reading in sample.readings)
    if num_heads:
        yield (
            f"of {num_heads:,} packed file{'s' if num_heads > 1 else ''} the beginnings were read, since unpacking all "
            "of them would take long (or they are elsewhere, or have quality signals): where rows are sorted within a "
            "file, figures are further off"
        )


def describe_mix(forecast: Forecast) -> Iterator[str]:
    """How far the sources reach at the mix's weights."""
    for number, tokenizer in enumerate(forecast.names):
        tokens, source = forecast.find_one_epoch(number)
        shown = format_count(tokens, is_exact=all(sample.is_exact for sample in forecast.samples))
        yield f"{tokenizer}: the mix gives {shown} tokens until its first source, {source}, is used up"


def describe_costs(forecast: Forecast) -> Iterator[str]:
    """Disk, memory and time in words, with what bounds them."""
    output, work, _ = add_costs(forecast, forecast.samples)
    yield (
        f"disk: at most {format_bytes(output + work)} at any time beside the raw files: {format_bytes(output)} of "
        f"output, {format_bytes(work)} of work files, which go when the build is done"
    )
    for folder, size in add_by_disk(forecast):
        free = format_bytes(find_free(folder))
        yield f"disk: {format_bytes(size)} of it on the disk of {folder}, which has {free} free"
    program, *stages = (f"{stage} {format_bytes(size)}" for stage, size in forecast.memory.items())
    yield (
        f"memory: up to {format_bytes(max(forecast.memory.values()))} for each worker ({', '.join(stages)}; "
        f"of that {program}). A line or text file beyond a few MB takes about three times its size more"
    )
    yield "time: what a core of this machine worked on the sample, as often as needed; more where disks are slower"
    if forecast.arguments.executor == "ray":
        yield "time: a Ray cluster of N CPUs like this takes an Nth of it, a worker's memory on each"


def list_held(forecast: Forecast) -> Iterator[str]:
    """The datasets of --against."""
    for dataset in open_held(forecast.arguments):
        size = format_bytes(dataset.num_documents * HELD.itemsize)
        yield (
            f"against: {dataset.folder} holds {dataset.num_documents:,} documents ({dataset.label} in drops), which "
            f"take {size} of work files more; what goes for them cannot be foretold"
        )


def find_warnings(forecast: Forecast) -> Iterator[str]:
    """What would stop the build, or is not as asked for."""
    for sample in forecast.samples:
        yield from find_source_warnings(forecast, sample)
    for number, tokenizer in enumerate(forecast.names if forecast.arguments.num_tokens else []):
        for sample in forecast.samples:
            yield from find_lack(forecast, sample, number, tokenizer)
    yield from find_full_disks(forecast)
    memory = max(forecast.memory.values()) * forecast.arguments.workers
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory > total and forecast.arguments.executor != "ray":
        yield (
            f"{forecast.arguments.workers} workers may take {format_bytes(memory)} of memory, this machine has "
            f"{format_bytes(total)}: fewer --workers, or smaller shards (--shard-tokens)"
        )


def find_source_warnings(forecast: Forecast, sample: SourceSample) -> Iterator[str]:
    """What is wrong with a source's rows, or with the sample of them."""
    name, allowed = sample.source.name, forecast.arguments.max_bad_fraction
    read, bad = forecast.count(sample, "read"), forecast.count(sample, *BAD_REASONS)
    if not forecast.count(sample, "accepted"):
        yield f"{name}: no document to keep was found; the build stops if there is none in all of it"
    if bad > allowed * read:
        yield f"{name}: {bad / read:.1%} of the rows are bad; above --max-bad-fraction {allowed:g} the build stops"
    num_sampled = sum(reading.tally.documents["read"] for reading in sample.readings)
    if not sample.is_exact and num_sampled < FEW_DOCUMENTS:
        yield f"{name}: the sample holds only {round(num_sampled):,} documents, so its figures are rough"


def find_lack(forecast: Forecast, sample: SourceSample, number: int, tokenizer: str) -> Iterator[str]:
    """Whether --tokens asks a source for more than it has."""
    share, tokens = forecast.find_share(sample), sample.estimate_tokens(number)
    if share > tokens:
        epochs = forecast.find_epochs(sample, number, forecast.arguments.num_tokens)
        yield (
            f"{sample.source.name} has {format_count(tokens, is_exact=sample.is_exact)} {tokenizer} tokens before "
            f"dedup, fewer than its share of {share:,}: the build takes all, and the mix reads them {epochs:.3g} times"
        )


def find_full_disks(forecast: Forecast) -> Iterator[str]:
    """Whether what is to be written fits on its disk."""
    for folder, size in add_by_disk(forecast):
        if size > (free := find_free(folder)):
            yield f"the disk of {folder} has {format_bytes(free)} free, but {format_bytes(size)} are to go there"


def add_by_disk(forecast: Forecast) -> list[tuple[Path, float]]:
    """How many bytes go to each disk, and a folder on it."""
    output, work, _ = add_costs(forecast, forecast.samples)
    disks: dict[int, tuple[Path, float]] = {}
    for folder, size in zip(list_folders(forecast.arguments), (output, work), strict=True):
        disk = find_existing(folder).stat().st_dev
        first, before = disks.get(disk, (folder, 0.0))
        disks[disk] = first, before + size
    return list(disks.values())


def find_free(folder: Path) -> int:
    """The free bytes of the disk where a folder is or will be."""
    return shutil.disk_usage(find_existing(folder)).free


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def make_table(title: str, left: tuple[str, ...], right: tuple[str, ...]) -> Table:
    """A table with words on the left and numbers on the right."""
    table = Table(title=title)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def format_count(number: float, *, is_exact: bool) -> str:
    """A number with thousands marks; an estimate has no more digits than it deserves."""
    if not is_exact and number >= 1:
        number = float(f"{number:.{DIGITS}g}")
    return f"{round(number):,}"


def format_error(error: float | None) -> str:
    """A relative error."""
    if error is None:
        return "?"
    return f"{error:.1%}" if error else "exact"
