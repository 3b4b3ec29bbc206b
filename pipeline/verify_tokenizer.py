"""What dataset.json says of its tokenizer, against the tokenizer's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.folders import TOKENIZER_FOLDER
from pipeline.prepare import SAMPLE_TOKENIZER, identify_tokenizer
from pipeline.shard import token_dtype
from pipeline.storage import sha256_file
from pipeline.tokenizer import Tokenizer, load_tokenizer
from pipeline.tokenizer_files import read_named_tokenizers


def verify_tokenizer(folder: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """That the tokenizer's file is the one named, is as dataset.json says, and as settings say where there are some."""
    claims, settings = content["tokenizer"], content.get("settings")
    if content["document_rule"] == "bos+eos" and claims["bos_id"] is None:
        yield "dataset.json: document_rule is bos+eos, but tokenizer.bos_id is null"
    if settings is not None and token_dtype(claims["vocab_size"]).name != content["dtype"]:
        yield f"dataset.json: dtype {content['dtype']} for a vocabulary of {claims['vocab_size']:,}"
    if settings is not None and content["document_rule"] != settings["document_rule"]:
        yield f"dataset.json: document_rule is {content['document_rule']}, in settings {settings['document_rule']}"
    path = folder / claims["file"]
    if PurePosixPath(claims["file"]) != PurePosixPath(TOKENIZER_FOLDER, path.name):
        yield f"dataset.json: tokenizer.file is {claims['file']}, not a file of {TOKENIZER_FOLDER}/"
        return
    found = sha256_file(path) if path.is_file() else "no file"
    if found != claims["sha256"]:
        yield f"{path}: sha256 is {found}, dataset.json says {claims['sha256']}"
        return
    try:
        tokenizer = load_tokenizer(path, engine="reference", sha256=found)
    except ValueError as error:
        yield str(error)
        return
    yield from verify_tokenizer_name(tokenizer, claims)
    if settings is not None:
        yield from verify_chosen_tokenizer(tokenizer, claims, settings)
    for what in ("family", "vocab_size", "bos_id", "eos_id"):
        if claims[what] != getattr(tokenizer, what):
            yield f"dataset.json: tokenizer.{what} is {claims[what]}, but {path} has {getattr(tokenizer, what)}"


def verify_chosen_tokenizer(
    tokenizer: Tokenizer, claims: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[str]:
    """That the tokenizer is the one that the build's settings ask for."""
    is_sample = claims["name"] == SAMPLE_TOKENIZER and settings["tokenizer"] == identify_tokenizer(None)
    if settings["tokenizer"] != identify_tokenizer(tokenizer) and not is_sample:
        yield f"dataset.json: settings.tokenizer is {settings['tokenizer']!r}, which is not that of {tokenizer.path}"


def verify_tokenizer_name(tokenizer: Tokenizer, claims: Mapping[str, Any]) -> Iterator[str]:
    """That a known file has its known name, no other file has one, and the name is the file's where that says one."""
    named = read_named_tokenizers()
    # A tokenizer.model or tokenizer.json was named after its folder, which the copy no longer has.
    has_own_name = tokenizer.name in named or tokenizer.path.stem != "tokenizer"
    if (has_own_name and claims["name"] != tokenizer.name) or (claims["name"] in named and not has_own_name):
        expected = tokenizer.name if has_own_name else "not that known tokenizer's"
        yield f"dataset.json: tokenizer.name is {claims['name']!r}, but the file {tokenizer.path} is {expected}"
