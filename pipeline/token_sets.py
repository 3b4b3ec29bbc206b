"""Another program's token files: which there are, of which dtype their ids are, and where their documents end.

    Megatron    X.bin with X.idx: dtype and documents by the index
    datatrove   X.ds with X.ds.index: documents by the index; without it, they end with the end-of-text id. The dtype is
                that of X.ds.metadata, whose first line is "tokenizer|bytes per id"
    OLMo        X.npy, raw ids without a header: documents end with the end-of-text id

Where no file says the dtype it is --dtype, or the smallest that fits the tokenizer, unless the file looks like
the other one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.shard import MEGATRON_DTYPE_CODES, MEGATRON_HEADER, MEGATRON_MAGIC, token_dtype
from pipeline.tokenizer import Tokenizer

SUFFIXES = (".idx", ".ds", ".npy")
NUMPY_MAGIC = b"\x93NUMPY"
DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in MEGATRON_DTYPE_CODES.items()}
DTYPES_BY_SIZE = {dtype.itemsize: dtype for dtype in DTYPES.values()}
TOKEN_SIZE = re.compile(r"^.*\|(\d+)\s*$", re.MULTILINE)
"""A line of .ds.metadata that ends with the bytes of an id."""
LOOKED_AT = 4096
"""So many halves of ids tell whether uint16 is likely."""


@dataclass(frozen=True)
class TokenSet:
    """One file of ids of another program."""

    path: Path
    dtype: np.dtype
    ends: np.ndarray | None
    """Where documents end, int64; None: where the end-of-text id stands."""
    num_empty: int = 0
    """Documents without a token, which a dataset cannot hold."""


def find_files(path: Path) -> list[Path]:
    """The token files at a path, in the order of their names: X.bin for an X.idx. Raises FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: --import takes a file or a folder")
    found = sorted(path.rglob("*")) if path.is_dir() else [path.with_suffix(".idx") if path.suffix == ".bin" else path]
    files = [file.with_suffix(".bin") if file.suffix == ".idx" else file for file in found if file.suffix in SUFFIXES]
    if not files:
        raise FileNotFoundError(f"{path} has no .idx with a .bin, no .ds and no .npy")
    return files


def open_token_set(path: Path, tokenizer: Tokenizer, *, dtype: str | None) -> TokenSet:
    """What a file says of itself, or its index does; `dtype` is --dtype.

    Raises ValueError where they do not fit together, FileNotFoundError where there is an index alone.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: its .idx is there")
    if path.suffix == ".bin":
        return open_megatron(path, dtype=dtype)
    with open(path, "rb") as file:
        if file.read(len(NUMPY_MAGIC)) == NUMPY_MAGIC:
            raise ValueError(
                f"{path} was written by numpy.save: it begins with a header, which OLMo-core would read as ids. "
                "Write the ids alone, with ndarray.tofile"
            )
    index = path.with_name(path.name + ".index")
    ends = np.fromfile(index, "<u8").astype(np.int64) if path.suffix == ".ds" and index.is_file() else None
    found = choose_dtype(path, ends, tokenizer, dtype=dtype)
    check_whole(path, found)
    return TokenSet(path, found, None) if ends is None else drop_empty(path, found, ends)


def choose_dtype(path: Path, ends: np.ndarray | None, tokenizer: Tokenizer, *, dtype: str | None) -> np.dtype:
    """The dtype of a .ds or .npy: what .metadata says, else --dtype, else the smallest that fits the tokenizer.

    Raises ValueError where --dtype is not what .metadata says, or nothing says it and the file looks otherwise.
    """
    claimed = read_metadata_dtype(path)
    if claimed is not None:
        refuse_other_dtype(path.with_name(path.name + ".metadata"), claimed, dtype=dtype)
        return claimed
    if dtype is not None:
        return np.dtype(dtype).newbyteorder("<")
    expected = token_dtype(tokenizer.vocab_size)
    other = DTYPES_BY_SIZE[6 - expected.itemsize]
    if looks_like(other, path, ends, expected=expected):
        raise ValueError(
            f"{path} says nothing of its ids' dtype, and looks like {other.name}, not {expected.name}: give --dtype "
            f"{other.name}, or --dtype {expected.name} if it is that"
        )
    return expected


def looks_like(other: np.dtype, path: Path, ends: np.ndarray | None, *, expected: np.dtype) -> bool:
    """Whether a file's ids are more likely of the other dtype: by its index, or since every second uint16 is 0."""
    num_bytes = path.stat().st_size
    if ends is not None and len(ends):
        last = int(ends[-1])
        return num_bytes == last * other.itemsize and num_bytes != last * expected.itemsize
    if other.itemsize == 2 or num_bytes == 0 or num_bytes % other.itemsize:
        return False
    return not np.fromfile(path, "<u2", count=LOOKED_AT)[1::2].any()


def read_metadata_dtype(path: Path) -> np.dtype | None:
    """The dtype that the .metadata beside a .ds says; None where it says none. Raises ValueError for a strange one."""
    metadata = path.with_name(path.name + ".metadata")
    if path.suffix != ".ds" or not metadata.is_file():
        return None
    found = TOKEN_SIZE.search(metadata.read_text(encoding="utf-8", errors="replace"))
    if found is None:
        return None
    if int(found[1]) not in DTYPES_BY_SIZE:
        raise ValueError(f"{metadata} says {found[1]} bytes per id: ids are read of 2 (uint16) or 4 (uint32)")
    return DTYPES_BY_SIZE[int(found[1])]


def refuse_other_dtype(where: Path, claimed: np.dtype, *, dtype: str | None) -> None:
    """Raises ValueError where --dtype is not what a file says."""
    if dtype not in (None, claimed.name):
        raise ValueError(f"--dtype {dtype}: {where} says {claimed.name}. Leave --dtype out")


def open_megatron(path: Path, *, dtype: str | None) -> TokenSet:
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
    refuse_other_dtype(index, DTYPES[code], dtype=dtype)
    if len(data) < MEGATRON_HEADER.size + 12 * num_sequences + 8 * num_indices:
        raise ValueError(f"{index} has {len(data):,} bytes, too few for {num_sequences:,} sequences: it was cut")
    lengths = np.frombuffer(data, "<i4", num_sequences, MEGATRON_HEADER.size).astype(np.int64)
    starts = np.frombuffer(data, "<i8", num_sequences, MEGATRON_HEADER.size + 4 * num_sequences)
    indices = np.frombuffer(data, "<i8", num_indices, MEGATRON_HEADER.size + 12 * num_sequences)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    if (lengths < 0).any() or not np.array_equal(starts, ends[:-1] * DTYPES[code].itemsize):
        raise ValueError(f"{index}: its sequences do not lie end to end from the start of {path.name}: copy them so")
    check_whole(path, DTYPES[code])
    check_indices(index, indices, num_sequences=num_sequences)
    return drop_empty(path, DTYPES[code], ends[indices[1:]])


def check_indices(index: Path, indices: np.ndarray, *, num_sequences: int) -> None:
    """Raises ValueError where an .idx's document indices do not go from 0 to its sequences' number without a fall."""
    if not len(indices) or indices[0] != 0 or indices[-1] != num_sequences or (np.diff(indices) < 0).any():
        few = ", ".join(map(str, indices[:3].tolist()))
        last = indices[-1] if len(indices) else "none"
        raise ValueError(
            f"{index}: its {len(indices):,} document indices ({few}, ..., {last}) do not rise from 0 to its "
            f"{num_sequences:,} sequences: it was changed, or written wrongly"
        )


def check_whole(path: Path, dtype: np.dtype) -> None:
    """Raises ValueError where a file is empty or ends within an id."""
    num_bytes = path.stat().st_size
    if num_bytes == 0 or num_bytes % dtype.itemsize:
        raise ValueError(f"{path} has {num_bytes:,} bytes, which are no {dtype.name} ids: it was cut, or is not ids")


def drop_empty(path: Path, dtype: np.dtype, ends: np.ndarray) -> TokenSet:
    """A token set by its document ends. Raises ValueError where they fall, or do not end where the file does."""
    lengths, num_ids = np.diff(ends, prepend=0), path.stat().st_size // dtype.itemsize
    if (lengths < 0).any():
        number = int(np.flatnonzero(lengths < 0)[0])
        raise ValueError(f"{path}: by its index document {number:,} ends before it begins: the index was changed")
    if not len(ends) or ends[-1] != num_ids:
        found = ends[-1] if len(ends) else 0
        raise ValueError(
            f"{path} has {num_ids:,} {dtype.name} ids, its index ends at {found:,}: one of them was cut or changed"
        )
    return TokenSet(path, dtype, ends[lengths > 0], num_empty=int((lengths == 0).sum()))
