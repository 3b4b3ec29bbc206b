"""Build datasets: raw files -> packed token shards.

    python pipeline/build.py --mix slimpajama:0.7,starcoder:0.3

Flags, then the stages as a handful of calls. The same command again continues an unfinished build; on a finished
dataset it says so and does nothing.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python pipeline/build.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.interrupt import end_at_once, end_at_once_on_ctrl_c, ending_soon_on_ctrl_c

if __name__ == "__main__":
    end_at_once_on_ctrl_c()  # the imports below take a second

from rich.console import Console

from pipeline import prepare, stages
from pipeline.arguments import BuildArguments, check_arguments
from pipeline.compiled import explain_cache
from pipeline.contamination import keep_spans
from pipeline.dedup_stages import dedup
from pipeline.finish import Built, describe_sources, hash_content
from pipeline.flags import read_flags
from pipeline.folders import BUILD_LOG, SPANS_FOLDER, WORK_FOLDER, Folders
from pipeline.forecast import make_forecast
from pipeline.forecast_table import print_forecast
from pipeline.held import check_unchanged, describe_held, open_held
from pipeline.ingest_checks import BadRows, check_sources
from pipeline.ingest_plan import group_for_drops, plan_ingest
from pipeline.jobs import Executor, describe
from pipeline.limit import select
from pipeline.local_jobs import Workers
from pipeline.losses import check_losses
from pipeline.mix import Mix, choose_languages, parse_mix
from pipeline.output import check_finished, claim, clear_leftovers, is_finished, is_to_be_removed, make_plan, reopen
from pipeline.plan import BuildSettings, DatasetPlan, PlannedSource, hash_recipe
from pipeline.progress import BuildLog, make_console
from pipeline.raw_sources import RawPlaces, find_sources, save_listings
from pipeline.ray_jobs import RayWorkers, import_ray
from pipeline.read_ahead import read_ahead
from pipeline.removal import remove_build, remove_temporary_files, remove_unlisted, remove_work
from pipeline.sample import is_sample, make_sample
from pipeline.shard import find_lost_files, token_dtype, write_dataset_json
from pipeline.summary import print_summary
from pipeline.workshop import Workshop


def main() -> None:
    """The command: one line and a non-zero exit code for what the user can mend."""
    arguments = read_flags(BuildArguments)
    try:
        with ending_soon_on_ctrl_c():
            build(arguments, make_console())
    except OSError as error:
        sys.exit(f"error: {describe(error)}")
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        end_at_once()


def build(arguments: BuildArguments, console: Console) -> None:
    """Build the datasets, or say that they are there already."""
    notice = partial(print_notice, console)
    started = time.monotonic()
    check_arguments(arguments)
    if arguments.executor == "ray":
        import_ray()  # before any work
    mix = choose_languages(parse_mix(arguments.mix), arguments.languages)
    for text in (*mix.notices, *explain_cache()):
        notice(text)
    given = prepare.name_datasets(prepare.name_tokenizers(arguments, mix))
    out, text = arguments.out, arguments.write_text
    folders = Folders(out, arguments.work or out / WORK_FOLDER, tuple(given), text)
    is_done = is_finished(folders) and not arguments.replace and not arguments.dry_run
    if arguments.sample_mb is not None and not is_done:
        make_raw_sample(arguments, mix, console)
    places = RawPlaces(arguments.raw_folder, folders.work, arguments.fetch, arguments.keep_raw, arguments.replace)
    sources = find_sources(mix, places, may_be_gone=is_done, notice=notice)
    folders.check({source.name: source.folder for source in sources}, is_done=is_done)
    how = {"engine": arguments.engine, "notice": notice}
    tokenizers = {name: prepare.choose_tokenizer(one, **how) for name, one in given.items()}
    settings = prepare.choose_settings(arguments, sources)
    if arguments.dry_run:
        print_forecast(make_forecast(arguments, settings, sources, tokenizers, console), console)
        return
    datasets = prepare.plan_datasets(arguments, settings, sources, tokenizers)
    described = {dataset.name: dataset.described for dataset in datasets}
    plan = make_plan(folders, described, prepare.name_tokenizer_files(tokenizers), is_replacement=arguments.replace)
    if is_done and not reopen_if_lost(folders, plan, sources, notice):
        say_finished(arguments, folders, described, sources, console)
        return
    with folders.locked():
        if arguments.replace and is_to_be_removed(folders, plan):
            remove_build(folders, keep=[tokenizer.path for tokenizer in tokenizers.values() if tokenizer])
        is_continued = claim(folders, plan, notice=notice)
        if is_continued:
            console.print(f"going on with the unfinished build in {folders.work}")
        save_listings(sources)
        contents = build_datasets(arguments, settings, sources, datasets, folders, console)
    seconds = time.monotonic() - started
    how = {"executor": arguments.executor, "workers": arguments.workers, "is_continued": is_continued}
    BuildLog(folders.out / BUILD_LOG).write("finished", seconds=round(seconds, 3), **how)
    for name, content in contents.items():
        print_summary(console, folders.out / name, content, seconds=None if is_continued else seconds)


def print_notice(console: Console, text: str) -> None:
    """Say what a person might not expect."""
    console.print(f"note: {text}")


def make_raw_sample(arguments: BuildArguments, mix: Mix, console: Console) -> None:
    """Make the sample's raw files, or find them made. Raises FileNotFoundError where a dry run finds none."""
    if arguments.dry_run:
        if not is_sample(arguments.raw_folder):
            command = f"pipeline/sample.py --megabytes {arguments.sample_mb:g} --folder {arguments.raw_folder}"
            raise FileNotFoundError(
                f"--dry-run writes nothing, so it makes no sample in {arguments.raw_folder}. Make it first: "
                f"python {command} --mix '{arguments.mix}'"
            )
        return
    shares = tuple((entry.source, entry.exact_weight) for entry in mix.entries if entry.weight)
    report = make_sample(arguments.raw_folder, megabytes=arguments.sample_mb, sources=shares)
    console.print("\n".join(report.lines()))


def reopen_if_lost(
    folders: Folders, plan: dict[str, Any], sources: tuple[PlannedSource, ...], notice: prepare.Notice
) -> bool:
    """Whether files of the finished datasets are gone or cut: then they become an unfinished build again."""
    contents = check_finished(folders, plan["datasets"])
    lost = [text for name, content in contents.items() for text in find_lost_files(folders.out / name, content)]
    if not lost:
        return False
    if not all(source.files for source in sources):
        raise ValueError(f"{lost[0]}, and so are raw files: copy the dataset again, or fetch the raw files")
    notice(f"of a finished dataset {lost[0]}{f', and {len(lost) - 1:,} more' if lost[1:] else ''}: building it again")
    with folders.locked():
        reopen(folders, plan)
    return True


def say_finished(
    arguments: BuildArguments,
    folders: Folders,
    described: dict[str, Any],
    sources: tuple[PlannedSource, ...],
    console: Console,
) -> None:
    """Say that there is nothing to do, and what there is."""
    contents = check_finished(folders, described)
    refuse_unexpected(arguments.expect, contents)
    if not arguments.keep_work:
        clear_leftovers(folders)
    console.print(f"{folders.out} holds this dataset already: nothing to do (--replace builds it anew)")
    for name, content in contents.items():
        if content["mix"] != {source.name: source.weight for source in sources}:
            print_notice(
                console,
                "its default mix stays as it was built: weights are used when reading, so give --mix to the trainer",
            )
        print_summary(console, folders.out / name, content, seconds=None)


def build_datasets(
    arguments: BuildArguments,
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    datasets: list[DatasetPlan],
    folders: Folders,
    console: Console,
) -> dict[str, dict[str, Any]]:
    """Build in folders that are ready and ours; returns what each dataset.json says."""
    notice = partial(print_notice, console)
    datasets = [
        replace(one, tokenizer=prepare.keep_tokenizer(one.tokenizer, sources, folders.work, engine=arguments.engine))
        for one in datasets
    ]
    log = BuildLog(folders.out / BUILD_LOG)
    with choose_executor(arguments, notice=notice) as workers:
        shop = Workshop(folders.work, workers, console, log)
        contents = run_stages(arguments, settings, sources, datasets, folders, shop)
    refuse_unexpected(arguments.expect, contents)  # before dataset.json: what is not as expected is not finished
    remove_temporary_files(folders)  # of workers that died: their tasks were done again under other names
    remove_unlisted(folders, contents)
    for name, content in contents.items():
        write_dataset_json(folders.out / name, content)
    folders.remove_holder()
    if not arguments.keep_work:
        remove_work(folders)
    return contents


def choose_executor(arguments: BuildArguments, *, notice: prepare.Notice) -> Executor:
    """Where the tasks run: nothing else of the build depends on it."""
    if arguments.executor == "ray":
        return RayWorkers(arguments.ray_address, notice=notice)
    return Workers(arguments.workers, notice=notice)


def refuse_unexpected(expected: str | None, contents: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError where no hash of any dataset begins as expected."""
    hashes = {
        f"{f'{name} ' if name else ''}{kind} {content[kind]}": content[kind]
        for name, content in contents.items()
        for kind in ("recipe_hash", "content_hash")
    }
    if expected is not None and not (expected and any(digest.startswith(expected) for digest in hashes.values())):
        raise ValueError(f"--expect {expected}: this is another dataset ({', '.join(hashes)})")


def run_stages(
    arguments: BuildArguments,
    settings: BuildSettings,
    sources: tuple[PlannedSource, ...],
    datasets: list[DatasetPlan],
    folders: Folders,
    shop: Workshop,
) -> dict[str, dict[str, Any]]:
    """The stages, one after the other; returns what each dataset.json will say."""
    notice = partial(print_notice, shop.console)
    spans = keep_spans(arguments.decontaminate, settings.decontaminate, shop.work / SPANS_FOLDER, notice=notice)
    tasks = plan_ingest(sources, settings, datasets, engine=arguments.engine, work=shop.work, contamination=spans)
    bad_rows = BadRows(sources, max_bad_fraction=arguments.max_bad_fraction, out=folders.out / datasets[0].name)
    ahead = read_ahead(tasks, sources, work=shop.work, room_bytes=int(arguments.cache_gb * 1e9), log=shop.log)
    names, priority = [source.name for source in sources], list(settings.dedup_priority)
    with ahead:
        check = ahead.releasing(bad_rows.check)
        ingested = stages.ingest(tasks, names, priority=priority, check=check, shop=shop)
    check_sources(ingested, sources, notice=notice)
    held = open_held(arguments)
    check_unchanged(held, settings.against)
    ingested = replace(ingested, held=held)
    deduplicated = dedup(ingested, settings=prepare.choose_dedup(arguments, settings), shop=shop)
    allowed = {"max_fraction": arguments.max_dup_fraction, "is_report": arguments.dedup_report}
    check_losses(ingested, deduplicated, sources, **allowed, notice=notice)
    if arguments.write_text is not None:
        stages.write_texts(ingested, deduplicated.duplicates, out=arguments.write_text.absolute(), shop=shop)
    contents = {}
    for number, dataset in enumerate(datasets):
        out = folders.out / dataset.name
        staying = {"kept": deduplicated.kept, "tokens": deduplicated.tokens[number]}
        selection = select(dataset, number, sources, **staying, out=out, notice=notice)
        lists = stages.plan_drops(ingested, deduplicated, selection, groups=group_for_drops(sources))
        drops = stages.write_drops(ingested, lists, folder=dataset.name, shop=shop)
        signatures = stages.keep_signatures(settings, lists, folder=dataset.name, shop=shop)
        shards = stages.pack(ingested, deduplicated.kept, selection, shard_tokens=settings.shard_tokens, shop=shop)
        built = Built(selection, shards, drops)
        described = describe_sources(sources, ingested=ingested, deduplicated=deduplicated, built=built)
        content = describe_dataset(dataset, described, sources, arguments, out)
        contents[dataset.name] = {**content, **signatures, **describe_held(held)}
    check_unchanged(held, settings.against)
    return contents


def describe_dataset(
    dataset: DatasetPlan,
    described: dict[str, Any],
    sources: tuple[PlannedSource, ...],
    arguments: BuildArguments,
    out: Path,
) -> dict[str, Any]:
    """What dataset.json says; puts the tokenizer beside it."""
    settings = {**dataset.described, "raw_files": {source.name: source.digest() for source in sources}}
    return {
        "tokenizer": prepare.copy_tokenizer(dataset.tokenizer, out),
        "dtype": token_dtype(dataset.tokenizer.vocab_size).name,
        "document_rule": dataset.document_rule,
        "mix": {source.name: source.weight for source in sources},
        "sources": described,
        "content_hash": hash_content(described),
        "settings": settings,
        "recipe_hash": hash_recipe(settings),
        "sample": is_sample(arguments.raw_folder),
    }


if __name__ == "__main__":
    main()
