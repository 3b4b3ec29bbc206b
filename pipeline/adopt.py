"""Another program's token files as a dataset, without a copy: links to the ids, and our indexes beside them.

Each file is read once: its checksum, its largest id, and the ids by which documents are told apart. token_sets.py
knows the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.finish import describe_split, hash_content
from pipeline.folders import RESERVED_NAMES
from pipeline.kernels import HASH_SEEDS, hash_documents
from pipeline.manifest import check_source_name
from pipeline.prepare import copy_tokenizer
from pipeline.shard import (
    Shard,
    documents_path,
    index_path,
    megatron_index,
    megatron_path,
    shard_name,
    write_dataset_json,
    write_documents,
)
from pipeline.storage import checksum_file, write_file
from pipeline.token_sets import TokenSet, find_files, open_token_set
from pipeline.tokenizer import Tokenizer, load_tokenizer

BLOCK_IDS = 1 << 24  # looked at together


def adopt(path: Path, out: Path, *, tokenizer_name: str, source: str | None, dtype: str | None) -> str:
    """Write the dataset; returns a line that says what is in it. `dtype`: of files that do not say theirs.

    Raises FileNotFoundError where there are no such files, ValueError where one cannot be what it is taken for.
    """
    name = source or name_source(path)
    check_source_name(name)
    if name in RESERVED_NAMES:
        raise ValueError(f"a dataset has a {name} of its own: give the source another name, with --source")
    tokenizer = load_tokenizer(tokenizer_name)
    sets = [open_token_set(file, tokenizer, dtype=dtype) for file in find_files(path)]
    refuse_mixed_dtypes(sets)
    adopted = [adopt_file(out, one, tokenizer, source=name, number=number) for number, one in enumerate(sets)]
    split = describe_split([asdict(shard) for shard, _ in adopted])
    raw_files = [str(one.path.resolve()) for one in sets]
    listed = {name: {"title": name, "raw_files": raw_files, "splits": {"train": split}, "drops": []}}
    rules = {rule for _, rule in adopted}
    content = {
        "made_by": "import",
        "tokenizer": copy_tokenizer(tokenizer, out),
        "dtype": sets[0].dtype.name,
        "document_rule": rules.pop() if len(rules) == 1 else "none",
        "content_hash": hash_content(listed),
        "mix": {name: 1.0},
        "sources": listed,
    }
    write_dataset_json(out, content)
    num_empty = sum(one.num_empty for one in sets)
    return (
        f"source {name}: {split['documents']:,} documents, {split['tokens']:,} tokens in {len(adopted)} files; "
        f"document rule {content['document_rule']}; {num_empty:,} empty documents left out"
    )


def name_source(path: Path) -> str:
    """A source's name from the folder of a path. Raises ValueError for a folder without a letter or digit of a name."""
    folder = (path if path.is_dir() else path.parent).resolve().name
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.lower()).strip("-_")
    if not name:
        raise ValueError(f"the folder's name {folder!r} makes no name of a source: give one, as --source web")
    return name


def refuse_mixed_dtypes(sets: Sequence[TokenSet]) -> None:
    """Raises ValueError where files are of two dtypes, for a dataset has one."""
    other = next((one for one in sets if one.dtype != sets[0].dtype), None)
    if other is not None:
        raise ValueError(
            f"{sets[0].path} has {sets[0].dtype.name} ids, {other.path} {other.dtype.name}: a dataset has one dtype. "
            "Import them one by one, or write one of them anew"
        )


def adopt_file(out: Path, one: TokenSet, tokenizer: Tokenizer, *, source: str, number: int) -> tuple[Shard, str]:
    """Link a file as a shard and write its indexes; returns its record and its document rule.

    Raises ValueError for an id that the tokenizer does not have.
    """
    ids = np.memmap(one.path, dtype=one.dtype, mode="r")
    largest = max(int(block.max()) for block in blocks_of(ids))
    if largest >= tokenizer.vocab_size:
        raise ValueError(
            f"{one.path} has an id {largest:,}; {tokenizer.name} has {tokenizer.vocab_size:,} ids: another tokenizer "
            f"made it, or its ids are not {one.dtype.name} (--dtype says what files do not)"
        )
    ends = find_ends(ids, tokenizer.eos_id) if one.ends is None else one.ends
    name = shard_name(source, "train", number)
    bin_path = out / name
    bin_path.parent.mkdir(parents=True, exist_ok=True)
    bin_path.symlink_to(one.path.resolve())
    write_file(index_path(bin_path), [ends.astype("<u8").tobytes()])
    write_file(megatron_path(bin_path), megatron_index(ends.astype("<u8"), one.dtype))
    lengths = np.diff(ends, prepend=0)
    hashes = hash_documents(ids.view(np.uint8), np.concatenate([[0], ends]) * ids.itemsize, np.array(HASH_SEEDS))
    columns = {"raw_file": np.full(len(ends), number, np.uint32), "row": np.arange(len(ends), dtype=np.uint64)}
    write_documents(documents_path(bin_path), lengths, {**columns, "content_hash": hashes})
    sums = (checksum_file(bin_path), checksum_file(documents_path(bin_path)))
    return Shard(name, ids.nbytes, len(ids), len(ends), largest, *sums), find_rule(ids, ends, tokenizer)


def blocks_of(ids: np.ndarray) -> Iterator[np.ndarray]:
    """The ids in blocks of BLOCK_IDS, the last one shorter."""
    for start in range(0, len(ids), BLOCK_IDS):
        yield ids[start : start + BLOCK_IDS]


def find_ends(ids: np.ndarray, eos_id: int) -> np.ndarray:
    """Where documents end by the end-of-text id: int64; what follows the last one is a document too."""
    found = [np.flatnonzero(block == eos_id) + 1 + number * BLOCK_IDS for number, block in enumerate(blocks_of(ids))]
    ends = np.concatenate(found).astype(np.int64)
    return ends if len(ends) and ends[-1] == len(ids) else np.append(ends, len(ids))


def find_rule(ids: np.ndarray, ends: np.ndarray, tokenizer: Tokenizer) -> str:
    """What frames every document: "bos+eos", "eos", or "none" where some do not end with the end-of-text id."""
    if not (ids[ends - 1] == tokenizer.eos_id).all():
        return "none"
    has_bos = tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eos_id
    return "bos+eos" if has_bos and (ids[ends - np.diff(ends, prepend=0)] == tokenizer.bos_id).all() else "eos"
