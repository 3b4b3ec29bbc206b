"""What dataset.json says, held against itself, the tokenizer's file and the names of the files around it.

Reads no shard. First the shape: every later check may rely on each claim being there and of its kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.dedup import METHODS
from pipeline.document_batch import BAD_REASONS
from pipeline.finish import UNTOKENISED, hash_content
from pipeline.folders import TOKENIZER_FOLDER
from pipeline.manifest import check_source_name
from pipeline.plan import hash_recipe
from pipeline.shard import (
    OUTCOMES,
    SIGNATURES_FOLDER,
    SPLITS,
    documents_path,
    index_path,
    list_signatures,
    megatron_path,
    shard_name,
)
from pipeline.signal_rules import is_written_rule
from pipeline.span_kernels import SPAN_WORDS
from pipeline.storage import TEMPORARY_SUFFIX
from pipeline.verify_held import verify_held_claims
from pipeline.verify_source import verify_sums
from pipeline.verify_tokenizer import verify_tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"  # beside a tokenizer.json: the names of its control ids

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """Whether a claim is a string."""
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Whether a claim is a whole number, 0 or more. JSON's true is none."""
    return type(value) is int and value >= 0


def is_number(value: Any) -> bool:
    """Whether a claim is a number, NaN and infinity apart."""
    return type(value) in (int, float) and math.isfinite(value)


def one_of(*values: Any) -> Check:
    """Whether a claim is one of a few values."""
    return lambda value: any(type(value) is type(known) and value == known for known in values)


def optional(shape: Any) -> Check:
    """Whether a claim is not there, or is of a shape."""
    return lambda value: value is None or not any(verify_shape(value, shape))


def is_rule(value: Any) -> bool:
    """Whether a claim says what contaminates documents, as describe_rule of contamination.py does."""
    is_whole = isinstance(value, dict) and value.keys() == {"span_words", "files"} and isinstance(value["files"], dict)
    return is_whole and {*map(is_text, value["files"].values())} == {True} and value["span_words"] == SPAN_WORDS


SIZES = {"documents": is_count, "tokens": is_count, "bytes": is_count}
SHARD = {
    "path": is_text,
    "bytes": is_count,
    "tokens": is_count,
    "documents": is_count,
    "largest_id": is_count,
    "xxh3_128": is_text,
    "docs_xxh3_128": is_text,
}
SOURCE = {
    "title": is_text,
    "licence": is_text,
    "raw_files": [is_text],
    "counts": dict.fromkeys(("read", *OUTCOMES), SIZES),
    "bad_reasons": {"*": is_count},
    "splits": {"*": {**SIZES, "shards": [SHARD]}},
    "overlap": {"*": {"documents": is_count, "bytes": is_count}},
    "drops": [{"path": is_text, "documents": is_count, "xxh3_128": is_text}],
    "failed": optional({"*": is_count}),
}
SETTINGS = {
    "work_version": is_count,
    "tokenizer": is_text,
    "document_rule": one_of("bos+eos", "eos"),
    "dedup": one_of(*METHODS),
    "dedup_threshold": lambda value: value is None or (is_number(value) and 0 < value <= 1),
    "dedup_priority": [is_text],
    "keep_signatures": optional(one_of(True)),
    "against": optional([is_text]),
    "min_chars": is_count,
    "strip_markers": lambda value: isinstance(value, bool),
    "decontaminate": lambda value: value is None or is_rule(value),
    "valid_fraction": lambda value: is_number(value) and 0 <= value <= 1,
    "shard_tokens": lambda value: is_count(value) and value > 0,
    "seed": is_count,
    "tokens": lambda value: value is None or (isinstance(value, dict) and all(map(is_count, value.values()))),
    "source_order": [is_text],
    "exclude": {"*": [is_text]},
    "columns": {"*": is_text},
    "signals": optional({"*": [is_written_rule]}),
    "raw_files": {"*": is_text},
}
SIGNATURES = {
    "method": one_of(*METHODS),
    "threshold": lambda value: value is None or is_number(value),
    "version": is_count,
    "parts": [
        {
            "path": is_text,
            "source": is_text,
            "splits": {"*": is_count},
            "signed": is_count,
            "files": {"*": {"bytes": is_count, "xxh3_128": is_text}},
        }
    ],
}
DATASET = {
    "format": one_of("tokenmill dataset"),
    "format_version": is_count,
    "tokenizer": {
        "name": is_text,
        "family": is_text,
        "file": is_text,
        "sha256": is_text,
        "vocab_size": is_count,
        "bos_id": lambda value: value is None or is_count(value),
        "eos_id": is_count,
    },
    "dtype": one_of("uint16", "uint32"),
    "document_rule": one_of("bos+eos", "eos"),
    "mix": {"*": is_number},
    "sources": {"*": SOURCE},
    "content_hash": is_text,
    "signatures": optional(SIGNATURES),
    "against": optional({"*": {"content_hash": is_text, "raw_files": {"*": [is_text]}}}),
    "settings": SETTINGS,
    "recipe_hash": is_text,
    "sample": lambda value: value is None or isinstance(value, dict),
}


def verify_shape(content: Any, shape: Any = DATASET, where: str = "") -> Iterator[str]:
    """What is missing, of the wrong kind, or a claim that nothing here checks."""
    is_right = shape(content) if callable(shape) else isinstance(content, type(shape))
    if not is_right:
        yield f"dataset.json: {where or 'it all'} is missing or of the wrong kind"
    elif isinstance(shape, list):
        for index, value in enumerate(content):
            yield from verify_shape(value, shape[0], f"{where}[{index}]")
    elif isinstance(shape, dict):
        prefix = f"{where}." if where else ""
        for key in shape.keys() - {"*"}:
            yield from verify_shape(content.get(key), shape[key], f"{prefix}{key}")
        for key in content.keys() - shape.keys():
            if "*" in shape:
                yield from verify_shape(content[key], shape["*"], f"{prefix}{key}")
            else:
                yield f"dataset.json: {prefix}{key} is no claim that this program knows"


def verify_claims(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong in a dataset.json of the right shape, or with the files around it, one text each."""
    if hash_recipe(content["settings"]) != content["recipe_hash"]:
        yield "dataset.json: recipe_hash does not follow from settings: it was edited"
    if hash_content(content["sources"]) != content["content_hash"]:
        yield "dataset.json: content_hash does not follow from sources: it was edited"
    yield from verify_sources(content)
    yield from verify_mix(content)
    yield from verify_held_claims(content)
    yield from verify_sample(content)
    yield from verify_tokenizer(folder, content)
    for name, source in content["sources"].items():
        yield from verify_counts(name, source)
        yield from verify_share(name, source, content["settings"]["tokens"])
        yield from verify_paths(name, source)
        if source["raw_files"] != sorted(set(source["raw_files"]), key=str.encode):
            yield f"{name}: raw_files are not in the order of their paths, or one is there twice"
    yield from verify_files(folder, content)


def verify_sources(content: Mapping[str, Any]) -> Iterator[str]:
    """That settings and sources speak of the same sources, by names that a source can have."""
    sources, settings = content["sources"], content["settings"]
    if not sources:
        yield "dataset.json: sources is empty"
    for what in ("source_order", "dedup_priority", "exclude", "columns", "raw_files"):
        if sorted(settings[what]) != sorted(sources):
            yield f"dataset.json: settings.{what} names {sorted(settings[what])}, sources {sorted(sources)}"
    if set(settings["source_order"]) == set(sources) and settings["source_order"] != list(sources):
        yield "dataset.json: settings.source_order is not the order of sources"
    for name in sources:
        try:
            check_source_name(name)
        except ValueError as error:
            yield f"dataset.json: sources: {error}"


def verify_mix(content: Mapping[str, Any]) -> Iterator[str]:
    """That the default mix gives each source a share, and no other."""
    mix, sources = content["mix"], content["sources"]
    if sorted(mix) != sorted(sources):
        yield f"dataset.json: mix names {sorted(mix)}, sources {sorted(sources)}"
    for name, weight in mix.items():
        if weight < 0:
            yield f"dataset.json: mix gives {name} the weight {weight}: a weight is 0 or more"
    if not math.isclose(sum(mix.values()), 1, rel_tol=1e-9):
        yield f"dataset.json: the weights of mix add up to {sum(mix.values()):g}, not 1"


def verify_sample(content: Mapping[str, Any]) -> Iterator[str]:
    """That a dataset said to be of a sample was built from that sample's files, which its record lists."""
    if content["sample"] is None:
        return
    files = content["sample"].get("files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        yield "dataset.json: sample.files is missing or of the wrong kind"
        return
    listed = {file.get("path") for file in files}
    built_from = {f"{name}/{path}" for name, source in content["sources"].items() for path in source["raw_files"]}
    if built_from - listed:
        yield f"dataset.json: raw file {min(built_from - listed)} is not of the sample that sample describes"


def verify_counts(name: str, source: Mapping[str, Any]) -> Iterator[str]:
    """That a source's counts balance, and agree with its splits and shards."""
    counts = source["counts"]
    for what in ("documents", "bytes", "tokens"):
        total = sum(counts[outcome][what] for outcome in OUTCOMES)
        if counts["read"][what] != total:
            yield f"{name}: {counts['read'][what]:,} {what} read, but the outcomes add up to {total:,}"
    for outcome in (*UNTOKENISED, "bad"):
        if counts[outcome]["tokens"]:
            yield f"{name}: {counts[outcome]['tokens']:,} tokens {outcome}, but no such document is ever tokenised"
    if sum(source["bad_reasons"].values()) != counts["bad"]["documents"]:
        yield f"{name}: bad_reasons do not add up to {counts['bad']['documents']:,} bad documents"
    for reason in source["bad_reasons"].keys() - set(BAD_REASONS):
        yield f"{name}: bad_reasons has {reason!r}, which is none"
    for what in ("documents", "tokens"):
        in_splits = sum(split[what] for split in source["splits"].values())
        if in_splits != counts["kept"][what]:
            yield f"{name}: {counts['kept'][what]:,} {what} kept, but its splits hold {in_splits:,}"
    yield from verify_sums(name, source)


def verify_share(name: str, source: Mapping[str, Any], shares: Mapping[str, int] | None) -> Iterator[str]:
    """That a source gave its share of tokens and no more, or all it had; `shares` is settings.tokens."""
    num_beyond = source["counts"]["beyond_tokens"]["documents"]
    share = None if shares is None else shares.get(name)
    if share is None:
        if num_beyond or shares is not None:
            yield f"{name}: {num_beyond:,} documents beyond_tokens, but settings.tokens gives it no share"
        return
    taken = source["splits"].get("train", {"tokens": 0})["tokens"]
    if taken > share:
        yield f"{name}: {taken:,} training tokens, more than its share of {share:,} in settings.tokens"


def verify_paths(name: str, source: Mapping[str, Any]) -> Iterator[str]:
    """That every file has the name that its place in dataset.json gives it."""
    for split_name, split in source["splits"].items():
        if split_name not in SPLITS:
            yield f"{name}: {split_name!r} is no split: {', '.join(SPLITS)}"
        for number, shard in enumerate(split["shards"]):
            if (expected := shard_name(name, split_name, number)) != shard["path"]:
                yield f"{name} {split_name}: shard {number} should be {expected}, not {shard['path']}"
    for file in source["drops"]:
        if PurePosixPath(file["path"]).parent != PurePosixPath(name, "drops"):
            yield f"{name}: {file['path']} is not in {name}/drops"


def verify_files(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """That the dataset's folders hold nothing but what dataset.json lists."""
    claims = content["tokenizer"]
    listed = {folder / claims["file"]}
    if claims["family"] == "huggingface":
        listed.add(folder / TOKENIZER_FOLDER / TOKENIZER_CONFIG)
    for source in content["sources"].values():
        listed |= {folder / file["path"] for file in source["drops"]}
        for split in source["splits"].values():
            for path in (folder / shard["path"] for shard in split["shards"]):
                listed |= {path, index_path(path), megatron_path(path), documents_path(path)}
    listed |= {path for path, _ in list_signatures(folder, content)}
    found = set(folder.glob(f"*{TEMPORARY_SUFFIX}")) | set(folder.glob("*/*/shard-*"))
    for name in (TOKENIZER_FOLDER, SIGNATURES_FOLDER, *content["sources"]):
        found |= {path for path in (folder / name).rglob("*") if not path.is_dir()}
    for path in sorted(found - listed):
        yield f"{path}: dataset.json does not list it"
