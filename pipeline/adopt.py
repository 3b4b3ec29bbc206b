"""Another program's token files as a dataset, without a copy: links to the ids, and our indexes beside them.

    Megatron    X.bin with X.idx: dtype and documents by the index
    datatrove   X.ds with X.ds.index: documents by the index; without it, they end with the end-of-text id
    OLMo        X.npy, raw ids without a header: documents end with the end-of-text id

Each file is read once: its checksum, its largest id, and the ids by which documents are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pipeline.finish import describe_split, hash_content
from pipeline.kernels import HASH_SEEDS, hash_documents
from pipeline.prepare import copy_tokenizer
from pipeline.shard import (
    MEGATRON_DTYPE_CODES,
    MEGATRON_HEADER,
    MEGATRON_MAGIC,
    Shard,
    documents_path,
    index_path,
    megatron_index,
    megatron_path,
    shard_name,
    token_dtype,
    write_dataset_json,
    write_documents,
)
from pipeline.storage import checksum_file, write_file
from pipeline.tokenizer import Tokenizer, load_tokenizer

SUFFIXES = (".idx", ".ds", ".npy")
NUMPY_MAGIC = b"\x93NUMPY"
DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in MEGATRON_DTYPE_CODES.items()}


@dataclass(frozen=True)
class TokenSet:
    """One file of ids of another program."""

    path: Path
    dtype: np.dtype
    ends: np.ndarray | None
    """Where documents end, int64; None: where the end-of-text id stands."""
    num_empty: int = 0
    """Documents without a token, which a dataset cannot hold."""


def adopt(path: Path, out: Path, *, tokenizer_name: str, source: str | None) -> str:
    """Write the dataset; returns a line that says what is in it.

    Raises FileNotFoundError where there are no such files, ValueError where one cannot be what it is taken for.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    sets = [open_token_set(file, tokenizer) for file in find_files(path)]
    name = source or re.sub(r"[^a-z0-9_-]+", "-", (path if path.is_dir() else path.parent).resolve().name.lower())
    adopted = [adopt_file(out, one, tokenizer, source=name, number=number) for number, one in enumerate(sets)]
    split = describe_split([asdict(shard) for shard, _ in adopted])
    raw_files = [str(one.path.resolve()) for one in sets]
    listed = {name: {"title": name, "raw_files": raw_files, "splits": {"train": split}, "drops": []}}
    rules = {rule for _, rule in adopted}
    content = {
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


def find_files(path: Path) -> list[Path]:
    """The token files at a path, in the order of their names: X.bin for an X.idx. Raises FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: --import takes a file or a folder")
    found = sorted(path.rglob("*")) if path.is_dir() else [path.with_suffix(".idx") if path.suffix == ".bin" else path]
    files = [file.with_suffix(".bin") if file.suffix == ".idx" else file for file in found if file.suffix in SUFFIXES]
    if not files:
        raise FileNotFoundError(f"{path} has no .idx with a .bin, no .ds and no .npy")
    return files


def open_token_set(path: Path, tokenizer: Tokenizer) -> TokenSet:
    """What a file says of itself, or its index does. Raises ValueError where they do not fit together."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: its .idx is there")
    if path.suffix == ".bin":
        return open_megatron(path)
    with open(path, "rb") as file:
        if file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC:
            raise ValueError(
                f"{path} was written by numpy.save: it begins with a header, which OLMo-core would read as ids. "
                "Write the ids alone, with ndarray.tofile"
            )
    dtype = token_dtype(tokenizer.vocab_size)
    check_whole(path, dtype)
    index = path.with_name(path.name + ".index")
    if path.suffix == ".ds" and index.is_file():
        ends = np.fromfile(index, dtype="<u8").astype(np.int64)
        return drop_empty(path, dtype, ends, expected=path.stat().st_size // dtype.itemsize)
    return TokenSet(path, dtype, None)


def open_megatron(path: Path) -> TokenSet:
    """A .bin by its .idx. Raises ValueError for another version or dtype, or sequences that do not lie end to end."""
    index = path.with_suffix(".idx")
    data = index.read_bytes()
    if len(data) < MEGATRON_HEADER.size or not data.startswith(MEGATRON_MAGIC):
        raise ValueError(f"{index} is not a Megatron index: it does not begin with {MEGATRON_MAGIC!r}")
    _, version, code, num_sequences, num_indices = MEGATRON_HEADER.unpack_from(data)
    if version != 1 or code not in DTYPES:
        raise ValueError(
            f"{index} has version {version} and dtype code {code}; ids are read by version 1 and code 8 (uint16) or "
            "4 (int32)"
        )
    if len(data) < MEGATRON_HEADER.size + 12 * num_sequences + 8 * num_indices:
        raise ValueError(f"{index} has {len(data):,} bytes, too few for {num_sequences:,} sequences: it was cut")
    lengths = np.frombuffer(data, "<i4", num_sequences, MEGATRON_HEADER.size).astype(np.int64)
    starts = np.frombuffer(data, "<i8", num_sequences, MEGATRON_HEADER.size + 4 * num_sequences)
    indices = np.frombuffer(data, "<i8", num_indices, MEGATRON_HEADER.size + 12 * num_sequences)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if not np.array_equal(starts, ends[:-1] * DTYPES[code].itemsize):
        raise ValueError(f"{index}: its sequences do not lie end to end from the start of {path.name}: copy them so")
    check_whole(path, DTYPES[code])
    return drop_empty(path, DTYPES[code], ends[indices[1:]], expected=path.stat().st_size // DTYPES[code].itemsize)


def check_whole(path: Path, dtype: np.dtype) -> None:
    """Raises ValueError where a file is empty or ends within an id."""
    num_bytes = path.stat().st_size
    if num_bytes == 0 or num_bytes % dtype.itemsize:
        raise ValueError(f"{path} has {num_bytes:,} bytes, which are no {dtype.name} ids: it was cut, or is not ids")


def drop_empty(path: Path, dtype: np.dtype, ends: np.ndarray, *, expected: int) -> TokenSet:
    """A token set by its document ends. Raises ValueError where they do not end where the file does."""
    lengths = np.diff(ends, prepend=0)
    if not len(ends) or ends[-1] != expected or (lengths < 0).any():
        found = ends[-1] if len(ends) else 0
        raise ValueError(f"{path} has {expected:,} ids, its index ends at {found:,}: one of them was cut or changed")
    return TokenSet(path, dtype, ends[lengths > 0], num_empty=int((lengths == 0).sum()))


def adopt_file(out: Path, one: TokenSet, tokenizer: Tokenizer, *, source: str, number: int) -> tuple[Shard, str]:
    """Link a file as a shard and write its indexes; returns its record and its document rule.

    Raises ValueError for an id that the tokenizer does not have.
    """
    ids = np.memmap(one.path, dtype=one.dtype, mode="r")
    largest = max(int(block.max()) for block in blocks_of(ids))
    if largest >= tokenizer.vocab_size:
        raise ValueError(
            f"{one.path} has an id {largest:,}; {tokenizer.name} has {tokenizer.vocab_size:,} ids: another tokenizer "
            "made it, or its ids are of another dtype"
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
    """The ids in pieces that fit into memory."""
    for start in range(0, len(ids), 1 << 24):
        yield ids[start : start + (1 << 24)]


def find_ends(ids: np.ndarray, eos_id: int) -> np.ndarray:
    """Where documents end by the end-of-text id: int64; what follows the last one is a document too."""
    found = [np.flatnonzero(block == eos_id) + 1 + number * (1 << 24) for number, block in enumerate(blocks_of(ids))]
    ends = np.concatenate(found).astype(np.int64)
    return ends if len(ends) and ends[-1] == len(ids) else np.append(ends, len(ids))


def find_rule(ids: np.ndarray, ends: np.ndarray, tokenizer: Tokenizer) -> str:
    """What frames every document: "bos+eos", "eos", or "none" where some do not end with the end-of-text id."""
    if not (ids[ends - 1] == tokenizer.eos_id).all():
        return "none"
    has_bos = tokenizer.bos_id is not None and tokenizer.bos_id != tokenizer.eos_id
    return "bos+eos" if has_bos and (ids[ends - np.diff(ends, prepend=0)] == tokenizer.bos_id).all() else "eos"
