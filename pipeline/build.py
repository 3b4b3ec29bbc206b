"""Build a dataset: raw files -> packed token shards.

    python pipeline/build.py --mix slimpajama:0.7,starcoder:0.3

Flags, then the stages as a handful of calls. The same command again continues an unfinished build; on a finished
dataset it says so and does nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):  # started as `python pipeline/build.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
from rich.console import Console

from pipeline import prepare, stages
from pipeline.finish import describe_sources, hash_content
from pipeline.jobs import Executor, Workers, describe
from pipeline.mix import Mix, parse_mix
from pipeline.output import (
    BUILD_LOG,
    WORK_FOLDER,
    Folders,
    check_finished,
    claim,
    is_finished,
    remove_build,
    remove_temporary_files,
    remove_work,
)
from pipeline.plan import BuildSettings, PlannedSource, describe_settings, hash_recipe, plan_ingest
from pipeline.progress import BuildLog, make_console
from pipeline.ray_jobs import RayWorkers, import_ray
from pipeline.sample import is_sample, make_sample
from pipeline.shard import token_dtype, write_dataset_json
from pipeline.summary import print_summary
from pipeline.tokenizer import Tokenizer


@dataclass(frozen=True)
class BuildArguments:
    """Turn raw pretraining text into packed token shards."""

    mix: str
    """Sources and their shares of the tokens, name:weight,... or a named mix (tinyllama, litellama). A source takes
    options as in a URL: slimpajama?exclude=RedPajamaGithub:0.7. A name without a manifest is a folder of your own
    .jsonl, .json (plain, .zst, .gz), .txt or .parquet files in --raw."""
    tokenizer: str | None = None
    """llama2, gpt2, sample (a small one trained on the raw text), or a path to a SentencePiece .model, a .tiktoken file
    or a tokenizer.json. Default: the named mix's; sample with --sample-mb; else llama2."""
    raw: Path | None = None
    """Folder with one folder of raw files per source. Default: data/raw; data/sample-<N>mb with --sample-mb."""
    out: Path = Path("data/packed")
    """Where the dataset goes."""
    work: Path | None = None
    """Where work files go while building; removed when done. Default: OUT/work."""
    dedup: Literal["none", "exact"] = "exact"
    """exact: of documents with the same text one stays, over all sources and splits."""
    workers: int = os.cpu_count() or 1
    """Worker processes of --executor local. The output does not depend on it."""
    executor: Literal["local", "ray"] = "local"
    """Where tasks run: in worker processes here, or on the CPUs of a Ray cluster that shares this storage."""
    ray_address: str = "auto"
    """HOST:PORT of the cluster's head. auto: $RAY_ADDRESS, or the cluster that this machine is part of."""
    seed: int = 0
    """Decides the order of documents."""
    shard_tokens: int = 1 << 28
    """About how many tokens a shard holds."""
    valid_fraction: float = 0.005
    """Share of the documents that become validation where a source has no validation files of its own."""
    document_rule: Literal["auto", "bos+eos", "eos"] = "auto"
    """Ids around each document. auto: what the tokenizer's family does at inference (Llama: bos+eos, GPT-2: eos)."""
    min_chars: int = 1
    """Documents with fewer characters are dropped as short. 1 drops only empty ones."""
    max_bad_fraction: float = 0.01
    """Stop if a larger share of a source's rows holds no document (broken JSON, no text, not UTF-8)."""
    engine: Literal["fast", "reference"] = "fast"
    """fast: gigatoken. reference: sentencepiece, tiktoken or tokenizers. The ids are the same."""
    sample_mb: float | None = None
    """Try it without raw files: first make up to this many MB of raw files from text on this computer."""
    replace: bool = False
    """Remove what an earlier build left in --out and --work, and start over."""

    expect: str | None = None
    """Fail unless the recipe hash or the content hash begins with this: the same dataset as somebody else's."""
    keep_work: bool = False
    """Leave the work files where they are when the build is done."""

    @property
    def raw_folder(self) -> Path:
        """Where the raw files are: a sample never goes where the real ones are expected."""
        if self.raw is not None:
            return self.raw
        return Path("data/raw") if self.sample_mb is None else Path(f"data/sample-{self.sample_mb:g}mb")


def main() -> None:
    """The command: one line and a non-zero exit code for what the user can mend."""
    arguments = tyro.cli(BuildArguments)
    try:
        build(arguments, make_console())
    except OSError as error:
        sys.exit(f"error: {describe(error)}")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped. What was finished is kept: run the same command again to continue")


def build(arguments: BuildArguments, console: Console) -> None:
    """Build the dataset, or say that it is there already."""
    notice = partial(print_notice, console)
    started = time.monotonic()
    check_arguments(arguments)
    mix = parse_mix(arguments.mix)
    for text in mix.notices:
        notice(text)
    folders = Folders(arguments.out, arguments.work or arguments.out / WORK_FOLDER)
    is_done = is_finished(folders.out) and not arguments.replace
    if arguments.sample_mb is not None and not is_done:
        make_raw_sample(arguments, mix, console)
    sources = prepare.find_sources(mix, arguments.raw_folder, may_be_gone=is_done, notice=notice)
    folders.check({source.name: source.folder for source in sources})
    tokenizer = prepare.choose_tokenizer(name_tokenizer(arguments, mix), engine=arguments.engine, notice=notice)
    settings = choose_settings(arguments, tokenizer)
    described = describe_settings(settings, sources, tokenizer_identity=prepare.identify_tokenizer(tokenizer))
    if is_done:
        content = check_finished(folders, described, keep_work=arguments.keep_work)
        refuse_unexpected(arguments.expect, content)
        console.print(f"{folders.out} holds this dataset already: nothing to do (--replace builds it anew)")
        if content["mix"] != {source.name: source.weight for source in sources}:
            notice("its default mix stays as it was built: weights are used when reading, so give --mix to the trainer")
        print_summary(console, folders.out, content, seconds=None)
        return
    with folders.locked():
        if arguments.replace:
            remove_build(folders, keep=tokenizer.path if tokenizer else None)
        if claim(folders, described, tokenizer_files=prepare.name_tokenizer_files(tokenizer)):
            console.print(f"going on with the unfinished build in {folders.work}")
        content = build_dataset(arguments, settings, sources, tokenizer, folders, described, console)
    seconds = time.monotonic() - started
    how = {"executor": arguments.executor, "workers": arguments.workers}
    BuildLog(folders.out / BUILD_LOG).write("finished", seconds=round(seconds, 3), **how)
    print_summary(console, folders.out, content, seconds=seconds)


def print_notice(console: Console, text: str) -> None:
    """Say what a person might not expect."""
    console.print(f"note: {text}")


def make_raw_sample(arguments: BuildArguments, mix: Mix, console: Console) -> None:
    """Make the sample's raw files, or find them made."""
    shares = tuple((entry.source, entry.exact_weight) for entry in mix.entries if entry.weight)
    report = make_sample(arguments.raw_folder, megabytes=arguments.sample_mb, sources=shares)
    console.print("\n".join(report.lines()))


def build_dataset(
    arguments: BuildArguments,
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    tokenizer: Tokenizer | None,
    folders: Folders,
    described: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Build in folders that are ready and ours; returns what dataset.json says."""
    tokenizer = tokenizer or prepare.train_tokenizer(sources, folders.work, engine=arguments.engine)
    tokenizer = prepare.keep_tokenizer(tokenizer, folders.work)
    with choose_executor(arguments, notice=partial(print_notice, console)) as workers:
        shop = stages.Workshop(folders.out, folders.work, workers, console)
        content = run_stages(arguments, settings, sources, tokenizer, shop)
    content = {
        **content,
        "settings": described,
        "recipe_hash": hash_recipe(described),
        "sample": is_sample(arguments.raw_folder),
    }
    refuse_unexpected(arguments.expect, content)  # before dataset.json: what is not as expected is not finished
    remove_temporary_files(folders)  # of workers that died: their tasks were done again under other names
    write_dataset_json(folders.out, content)
    if not arguments.keep_work:
        remove_work(folders)
    return content


def choose_executor(arguments: BuildArguments, *, notice: Callable[[str], None]) -> Executor:
    """Where the tasks run: nothing else of the build depends on it."""
    if arguments.executor == "ray":
        return RayWorkers(arguments.ray_address, notice=notice)
    return Workers(arguments.workers, notice=notice)


def refuse_unexpected(expected: str | None, content: dict[str, Any]) -> None:
    """Raise ValueError where neither hash of a dataset begins as expected."""
    hashes = {name: content[name] for name in ("recipe_hash", "content_hash")}
    if expected is None or (expected and any(digest.startswith(expected) for digest in hashes.values())):
        return
    found = ", ".join(f"{name} {digest}" for name, digest in hashes.items())
    raise ValueError(f"--expect {expected}: this is another dataset ({found})")


def check_arguments(arguments: BuildArguments) -> None:
    """Raise ValueError for a number that makes no sense, or an executor that is not installed."""
    if arguments.executor == "ray":
        import_ray()
    infinity = float("inf")
    limits = {
        "workers": (1, infinity),
        "seed": (0, infinity),
        "shard_tokens": (1, infinity),
        "min_chars": (0, infinity),
        "valid_fraction": (0, 1),
        "max_bad_fraction": (0, 1),
    }
    for name, (lowest, highest) in limits.items():
        value = getattr(arguments, name)
        if not lowest <= value <= highest:
            wanted = f"{lowest} or more" if highest == infinity else f"from {lowest} to {highest}"
            raise ValueError(f"--{name.replace('_', '-')} must be {wanted}, found {value}")


def name_tokenizer(arguments: BuildArguments, mix: Mix) -> str:
    """The tokenizer asked for, or the default."""
    default = prepare.SAMPLE_TOKENIZER if arguments.sample_mb is not None else "llama2"
    return arguments.tokenizer or mix.tokenizer or default


def choose_settings(arguments: BuildArguments, tokenizer: Tokenizer | None) -> BuildSettings:
    """The settings that decide the output, with nothing left to choose."""
    return BuildSettings(
        document_rule=prepare.choose_document_rule(arguments.document_rule, tokenizer),
        dedup=arguments.dedup,
        min_chars=max(1, arguments.min_chars),
        valid_fraction=arguments.valid_fraction,
        shard_tokens=arguments.shard_tokens,
        seed=arguments.seed,
    )


def run_stages(
    arguments: BuildArguments,
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    tokenizer: Tokenizer,
    shop: stages.Workshop,
) -> dict[str, Any]:
    """The stages, one after the other; returns most of what dataset.json will say."""
    dtype = token_dtype(tokenizer.vocab_size)
    folder = shop.work / "ingest"
    tasks = plan_ingest(sources, settings, tokenizer=tokenizer, engine=arguments.engine, dtype=dtype.str, folder=folder)
    ingested = stages.ingest(tasks, sources, max_bad_fraction=arguments.max_bad_fraction, shop=shop)
    names = [source.name for source in sources]
    deduplicated = stages.dedup(ingested, names, method=settings.dedup, shop=shop)
    drops = stages.write_drops(ingested, deduplicated, names, shop)
    shards = stages.pack(ingested, deduplicated, names, shard_tokens=settings.shard_tokens, dtype=dtype.str, shop=shop)
    described = describe_sources(sources, ingested=ingested, deduplicated=deduplicated, shards=shards, drops=drops)
    return {
        "tokenizer": prepare.copy_tokenizer(tokenizer, shop.out),
        "dtype": dtype.name,
        "document_rule": settings.document_rule,
        "mix": {source.name: source.weight for source in sources},
        "sources": described,
        "content_hash": hash_content(described),
    }


if __name__ == "__main__":
    main()
