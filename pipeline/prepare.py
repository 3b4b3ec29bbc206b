"""What a build needs before its first stage: its settings and the tokenizers. Raw files: raw_sources.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.arguments import BuildArguments
from pipeline.contamination import describe_rule
from pipeline.documents import read_documents
from pipeline.evaluation_files import find_evaluation_files
from pipeline.folders import TOKENIZER_FOLDER
from pipeline.held import open_held
from pipeline.ingest import find_excluded, find_failed
from pipeline.manifest import check_source_name
from pipeline.mix import Mix
from pipeline.plan import BuildSettings, DatasetPlan, PlannedSource, describe_settings, hash_texts
from pipeline.quality_signals import judge
from pipeline.shard import LARGEST_UINT16_VOCABULARY
from pipeline.storage import write_file
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokenizer_training import train_sample_tokenizer
from pipeline.workshop import DedupSettings

SAMPLE_TOKENIZER = "sample"
SAMPLE_VOCABULARY = 4096
SAMPLE_TRAINING_BYTES = 4_000_000
SAMPLE_RULE = "bos+eos"  # the sample tokenizer is of Llama's family

Notice = Callable[[str], None]
NamedTokenizers = dict[str, Tokenizer | None]  # by the dataset's folder in OUT; None: to be trained


def name_tokenizers(arguments: BuildArguments, mix: Mix) -> list[str]:
    """The tokenizers asked for, or the default."""
    default = SAMPLE_TOKENIZER if arguments.sample_mb is not None else "llama2"
    return (arguments.tokenizer or mix.tokenizer or default).split(",")


def choose_settings(arguments: BuildArguments, sources: tuple[PlannedSource, ...]) -> BuildSettings:
    """The settings that decide the output, with nothing left to choose."""
    return BuildSettings(
        dedup=arguments.dedup,
        dedup_threshold=arguments.dedup_threshold if arguments.dedup == "near" else None,
        dedup_priority=choose_priority(arguments.dedup_priority, [source.name for source in sources]),
        keep_signatures=arguments.keep_signatures,
        against=tuple(dataset.content_hash for dataset in open_held(arguments)),
        min_chars=max(1, arguments.min_chars),
        strip_markers=arguments.strip_markers,
        decontaminate=describe_rule(find_evaluation_files(arguments.decontaminate)),
        valid_fraction=arguments.valid_fraction,
        shard_tokens=arguments.shard_tokens,
        seed=arguments.seed,
    )


def choose_dedup(arguments: BuildArguments, settings: BuildSettings) -> DedupSettings:
    """How duplicates are found. Each worker has its share of the memory."""
    memory_bytes = int(arguments.memory * (1 << 30)) // arguments.workers
    return DedupSettings(settings.dedup, settings.dedup_threshold or 0.0, memory_bytes, arguments.workers)


def choose_priority(given: str | None, names: list[str]) -> tuple[str, ...]:
    """The sources in the order of --dedup-priority, those that it leaves out last, as in the mix.

    Raises ValueError where it names one that is not in the mix, or one twice.
    """
    first = given.split(",") if given else []
    for name in first:
        if name not in names or first.count(name) > 1:
            what = "is there twice" if name in names else f"is no source of the mix ({', '.join(names)})"
            raise ValueError(f"--dedup-priority {given}: {name!r} {what}")
    return (*first, *(name for name in names if name not in first))


def plan_datasets(
    arguments: BuildArguments,
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    tokenizers: NamedTokenizers,
) -> list[DatasetPlan]:
    """What each tokenizer's dataset is decided by."""
    shares = None
    if arguments.num_tokens is not None:
        shares = {source.name: source.find_share(arguments.num_tokens) for source in sources}
    datasets = []
    for name, tokenizer in tokenizers.items():
        rule = choose_document_rule(arguments.document_rule, tokenizer)
        identity = identify_tokenizer(tokenizer)
        described = describe_settings(settings, sources, tokenizer_identity=identity, document_rule=rule, shares=shares)
        datasets.append(DatasetPlan(name, tokenizer, rule, described))
    return datasets


def name_datasets(tokenizers: list[str]) -> dict[str, str]:
    """The folder in OUT of each tokenizer's dataset -> the tokenizer as it was given; "" where there is one only.

    Raises ValueError where two have one name.
    """
    if len(tokenizers) == 1:
        return {"": tokenizers[0]}
    named = {}
    for given in sorted(tokenizers, key=name_dataset):
        name = name_dataset(given)
        check_source_name(name)
        if name in named:
            raise ValueError(
                f"--tokenizer {','.join(tokenizers)}: two of these are called {name}, but each dataset needs a folder "
                "of its own: rename a file, or build twice"
            )
        named[name] = given
    return named


def name_dataset(tokenizer: str) -> str:
    """A name for a tokenizer given by name or path."""
    path = Path(tokenizer)
    return path.resolve().parent.name if path.stem == "tokenizer" else path.stem


def choose_tokenizer(name: str, *, engine: str, notice: Notice) -> Tokenizer | None:
    """The tokenizer asked for, or None where it is to be trained on the raw files."""
    if name == SAMPLE_TOKENIZER:
        return None
    tokenizer = load_tokenizer(name, engine=engine, notice=notice)
    if tokenizer.vocab_size > LARGEST_UINT16_VOCABULARY:
        notice(f"{tokenizer.vocab_size:,} ids do not fit into uint16: shards hold uint32, twice the size")
    return tokenizer


def choose_document_rule(rule: str, tokenizer: Tokenizer | None) -> str:
    """The rule asked for; "auto" is what the tokenizer's family does at inference.

    Raises ValueError for bos+eos where the tokenizer has no begin-of-text id.
    """
    if rule == "auto":
        return tokenizer.document_rule if tokenizer else SAMPLE_RULE
    if rule == "bos+eos" and tokenizer and tokenizer.bos_id is None:
        raise ValueError(f"tokenizer {tokenizer.name} has no begin-of-text id: use --document-rule eos")
    return rule


def identify_tokenizer(tokenizer: Tokenizer | None) -> str:
    """What tells two tokenizers apart; a sample tokenizer follows from the raw files."""
    if tokenizer is None:
        return f"sample: {SAMPLE_VOCABULARY} ids from {SAMPLE_TRAINING_BYTES} bytes of the raw files"
    controls = f"bos {tokenizer.bos_id} eos {tokenizer.eos_id}"  # a tokenizer.json leaves these to its config file
    return f"{tokenizer.sha256} {controls}"


def train_tokenizer(sources: tuple[PlannedSource, ...], work: Path, *, engine: str) -> Tokenizer:
    """The sample tokenizer, trained on the beginning of every source's train files."""
    raw_files = hash_texts(fingerprint for source in sources for fingerprint in source.fingerprints)
    path = work / TOKENIZER_FOLDER / raw_files[:16] / f"{SAMPLE_TOKENIZER}.model"  # of others, where they change
    if not path.is_file():
        write_file(path, [train_sample_tokenizer(read_training_texts(sources), vocab_size=SAMPLE_VOCABULARY)])
    return load_tokenizer(str(path), engine=engine)


def read_training_texts(sources: tuple[PlannedSource, ...]) -> Iterator[str]:
    """The first documents of each source's train files, up to an equal share of SAMPLE_TRAINING_BYTES."""
    for source in sources:
        bytes_left = SAMPLE_TRAINING_BYTES // len(sources)
        for text in read_train_texts(source):
            yield text
            bytes_left -= len(text.encode())
            if bytes_left <= 0:
                break


def read_train_texts(source: PlannedSource) -> Iterator[str]:
    """All texts of a source's train files, in order, without those of excluded subsets."""
    subset_field = source.source.subset_field if source.exclude else None
    for file in source.files:
        if file.split == "train" and file.subset not in source.exclude:
            path = source.bring(file.path)
            batches = read_documents(path, text_field=source.source.text_field, subset_field=subset_field)
            if file.signals:
                batches = judge(batches, path, source.bring(file.signals), source.rules, is_whole=True)
            for batch in batches:
                is_wanted = ~find_excluded(batch, source.exclude) & (find_failed(batch) == 0)
                yield from batch.texts.filter(pa.array(is_wanted)).to_pylist()


def name_tokenizer_files(tokenizers: NamedTokenizers) -> dict[str, list[str]]:
    """What the files in each dataset's tokenizer folder will be called."""
    return {
        name: [path.name for path in list_tokenizer_files(one)] if one else [f"{SAMPLE_TOKENIZER}.model"]
        for name, one in tokenizers.items()
    }


def list_tokenizer_files(tokenizer: Tokenizer) -> list[Path]:
    """The tokenizer's file; for a tokenizer.json also the file beside it that names the control ids."""
    beside = tokenizer.path.with_name("tokenizer_config.json")
    return [tokenizer.path, *([beside] if tokenizer.family == "huggingface" and beside.is_file() else [])]


def copy_tokenizer_files(tokenizer: Tokenizer, folder: Path) -> None:
    """Put the tokenizer's files into `folder`, where they are not there already: a full disk has no room for them."""
    for path in list_tokenizer_files(tokenizer):
        copy, data = folder / path.name, path.read_bytes()
        if not copy.is_file() or copy.read_bytes() != data:
            write_file(copy, [data])


def keep_tokenizer(
    tokenizer: Tokenizer | None, sources: tuple[PlannedSource, ...], work: Path, *, engine: str
) -> Tokenizer:
    """The same tokenizer from a copy among the work files: the user may move the original while the build runs.

    None is trained now.
    """
    if tokenizer is None:
        return train_tokenizer(sources, work, engine=engine)
    folder = work / TOKENIZER_FOLDER / tokenizer.sha256[:16]
    copy_tokenizer_files(tokenizer, folder)
    return replace(tokenizer, path=folder / tokenizer.path.name)


def copy_tokenizer(tokenizer: Tokenizer, out: Path) -> dict[str, Any]:
    """Put the tokenizer into the dataset, so that its ids can be read anywhere; returns its entry."""
    copy_tokenizer_files(tokenizer, out / TOKENIZER_FOLDER)
    return {
        "name": tokenizer.name,
        "family": tokenizer.family,
        "file": f"{TOKENIZER_FOLDER}/{tokenizer.path.name}",
        "sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }
