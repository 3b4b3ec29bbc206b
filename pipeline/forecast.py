"""--dry-run: what a build will make, hold and take, from a sample of its raw files. Writes nothing.

What the documents and tokens are follows from the sample; what disks and memory they take, from the records and bounds
of the modules that write them. All of it is before dedup, whose part no sample can tell.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console

from pipeline.arguments import BuildArguments
from pipeline.contamination import keep_spans
from pipeline.dedup import DOCUMENTS_PER_TASK
from pipeline.documents import is_divisible
from pipeline.folders import WORK_FOLDER
from pipeline.forecast_fetch import RemoteSample
from pipeline.forecast_pieces import estimate_text, share_budget
from pipeline.forecast_sample import SourceSample, read_sample
from pipeline.held import HASH
from pipeline.ingest import EncodeSettings
from pipeline.ingest_plan import PACKED_RATIO, choose_settings, choose_task_bytes, describe_encoding
from pipeline.pack import MOST_DOCUMENTS, READ_BYTES
from pipeline.plan import BuildSettings, DatasetPlan, PlannedSource
from pipeline.prepare import NamedTokenizers, choose_document_rule, train_tokenizer
from pipeline.progress import format_bytes
from pipeline.remote import RemoteSource
from pipeline.shard import SPLITS
from pipeline.sketch_file import RECIPES
from pipeline.token_file import DROP, RUN_BYTES, RUN_DOCUMENTS, WRITE_BYTES, document_dtype
from pipeline.work import NUM_BUCKETS, kept_dtype

INDEX_BYTES = 8 + 20  # a document in .bin.index and in .idx
TABLE_BYTES, TABLE_START = 23, 1500  # a document in .docs.parquet, and a table without any: measured
DROPS_BYTES, DROPS_START = 6, 2500  # the same of drops/*.parquet
DEDUP_MEMORY, PACK_MEMORY = 200, 250  # bytes of memory for each document of a task, a shard: measured
OTHER_STAGES = 0.15  # of ingest's seconds, for sorting and writing there, dedup and pack: measured


@dataclass(frozen=True)
class Forecast:
    """The samples of all sources, in the order of the mix, and what is to become of them.

    encode: the datasets' encodings; names: of their tokenizers, for a person.
    """

    arguments: BuildArguments
    samples: list[SourceSample]
    encode: tuple[EncodeSettings, ...]
    names: list[str]

    def count(self, sample: SourceSample, *outcomes: str) -> float:
        """Documents, or rows, of a source by outcome."""
        return sample.estimate(lambda tally: sum(tally.documents[outcome] for outcome in outcomes))

    def count_dropped(self, sample: SourceSample) -> float:
        """Rows of a source that ingest drops."""
        return self.count(sample, "read") - self.count(sample, "accepted")

    def find_share(self, sample: SourceSample) -> int | None:
        """The tokens that --tokens asks of a source; None: all it has."""
        tokens = self.arguments.num_tokens
        return None if tokens is None else sample.source.find_share(tokens)

    def find_part(self, sample: SourceSample, number: int) -> float:
        """The part of a source's tokens that dataset `number` takes: 1 or less."""
        share = self.find_share(sample)
        return 1.0 if share is None else min(1.0, share / max(1.0, sample.estimate_tokens(number)))

    def find_epochs(self, sample: SourceSample, number: int, tokens: int) -> float:
        """How often a source is read for its share of so many tokens of the mix."""
        return tokens * sample.source.weight / max(1.0, sample.estimate_tokens(number))

    def find_one_epoch(self, number: int) -> tuple[int, str]:
        """How many tokens of the mix there are before a source must be read again, and which one it is."""
        ends = {
            sample.source.name: sample.estimate_tokens(number) / sample.source.weight
            for sample in self.samples
            if sample.source.weight
        }
        first = min(ends, key=ends.__getitem__)
        return int(ends[first]), first

    def output_bytes(self, sample: SourceSample, number: int) -> float:
        """What a source takes in dataset `number`: ids, indexes, tables of documents, and the list of drops."""
        part = self.find_part(sample, number)
        tokens, documents = part * sample.estimate_tokens(number), part * self.count(sample, "accepted")
        num_shards = 1 + tokens // self.arguments.shard_tokens
        dropped = self.count_dropped(sample) + (1 - part) * self.count(sample, "accepted")
        tables = num_shards * TABLE_START + (DROPS_START if dropped else 0) + dropped * DROPS_BYTES
        record = INDEX_BYTES + TABLE_BYTES
        if self.arguments.keep_signatures:
            record += HASH.itemsize + RECIPES[self.arguments.dedup].document_bytes
        return tokens * self.itemsize(number) + documents * record + tables

    def work_bytes(self, sample: SourceSample) -> float:
        """What a source takes in the work folder, until the build is done: all its ids and documents, twice listed."""
        num_tokenizers = len(self.encode)
        ids = sum(sample.estimate_tokens(number) * self.itemsize(number) for number in range(num_tokenizers))
        record = document_dtype(num_tokenizers).itemsize + kept_dtype(num_tokenizers).itemsize
        record += RECIPES[self.arguments.dedup].document_bytes
        counts = (1 + num_tokenizers) * len(SPLITS) * NUM_BUCKETS * np.dtype(np.int64).itemsize
        return ids + self.count(sample, "accepted") * record + self.count_dropped(sample) * DROP.itemsize + counts

    def itemsize(self, number: int) -> int:
        """The bytes of an id of dataset `number`."""
        return np.dtype(self.encode[number].dtype).itemsize

    def seconds(self, sample: SourceSample) -> float:
        """How long all stages take for a source, on one core of this machine."""
        num_bytes = sample.estimate(lambda tally: tally.bytes["read"])
        return num_bytes / sample.bytes_per_second * (1 + OTHER_STAGES)

    @cached_property
    def memory(self) -> dict[str, float]:
        """The most that a worker holds in each stage, in bytes."""
        program = measure_memory()
        documents = sum(self.count(sample, "accepted") for sample in self.samples)
        return {
            "the program with tokenizers": program,
            "ingest": program + max(map(self.run_bytes, self.samples)),
            "dedup": program + min(DOCUMENTS_PER_TASK, documents) * DEDUP_MEMORY,
            "pack": program + max(map(self.shard_bytes, self.samples)),
        }

    def run_bytes(self, sample: SourceSample) -> float:
        """The memory of a run while it is sorted and written: see token_file.py."""
        files, tokenizers = sample.source.files, range(len(self.encode))
        task_bytes = choose_task_bytes(tuple(one.source for one in self.samples)) * PACKED_RATIO
        whole = [estimate_text(file) for file in files if not is_divisible(Path(file.path))]
        part = min(1.0, max([task_bytes, *whole]) / max(1, sum(map(estimate_text, files))))
        ids = sum(sample.estimate_tokens(number) * self.itemsize(number) for number in tokenizers)
        documents = min(RUN_DOCUMENTS, part * self.count(sample, "accepted"))
        record = document_dtype(len(self.encode)).itemsize + RECIPES[self.arguments.dedup].document_bytes
        return min(RUN_BYTES, part * ids) + WRITE_BYTES + documents * 2 * record

    def shard_bytes(self, sample: SourceSample) -> float:
        """The memory of a source's largest shard of any dataset: see pack.py."""
        documents, sizes = self.count(sample, "accepted"), []
        for number in range(len(self.encode)):
            tokens = max(1.0, sample.estimate_tokens(number))
            part = min(1.0, self.arguments.shard_tokens / tokens, MOST_DOCUMENTS / max(1.0, documents))
            sizes.append(part * (tokens * self.itemsize(number) + documents * PACK_MEMORY))
        return max(sizes) + READ_BYTES


def make_forecast(
    arguments: BuildArguments,
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    tokenizers: NamedTokenizers,
    console: Console,
) -> Forecast:
    """Read a sample of all sources. Raises as a build does where a raw file cannot be read."""
    budgets = share_budget(sources)
    raw_bytes = sum(source.size_bytes for source in sources)
    console.print(
        f"dry run: reads about {format_bytes(sum(budgets.values()))} of text from {format_bytes(raw_bytes)} "
        "of raw files, and writes nothing"
    )
    # For the sample tokenizer, evaluation texts and what is fetched; gone in the end.
    with tempfile.TemporaryDirectory() as folder:
        sources = tuple(sample_remote(source, Path(folder)) for source in sources)
        encode, names = [], []
        for name, given in tokenizers.items():
            tokenizer = given or train_tokenizer(sources, Path(folder), engine=arguments.engine)
            dataset = DatasetPlan(name, tokenizer, choose_document_rule(arguments.document_rule, tokenizer), {})
            encode.append(describe_encoding(dataset, engine=arguments.engine))
            names.append(name or tokenizer.name)
        spans = keep_spans(arguments.decontaminate, settings.decontaminate, Path(folder), notice=console.print)
        samples = [
            read_sample(source, choose_settings(source, settings, tuple(encode), spans), budgets[source.name])
            for source in sources
        ]
    return Forecast(arguments, samples, tuple(encode), names)


def sample_remote(source: PlannedSource, folder: Path) -> PlannedSource:
    """The source, with pieces of its raw files fetched below `folder` where they are not on this disk."""
    if not isinstance(source.fetching, RemoteSource):
        return source
    folder = folder / "raw" / source.name
    return replace(source, folder=folder, fetching=RemoteSample(source.fetching, folder))


def measure_memory() -> float:
    """The most that this process has held so far, in bytes: Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def list_folders(arguments: BuildArguments) -> tuple[Path, Path]:
    """--out and --work."""
    return arguments.out, arguments.work or arguments.out / WORK_FOLDER
