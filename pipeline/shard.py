"""The bytes of a dataset: write, open, check. The one module that knows the format; numpy alone is needed to read.

A shard holds the documents of one source and split, back to back; it starts and ends with a document. Little-endian:

    shard-00000.bin            token ids, uint16 (uint32 where the vocabulary exceeds 65,536), no header
    shard-00000.bin.index      u64 per document: its end in tokens, counted from the shard's start (datatrove's index)
    shard-00000.idx            Megatron-core's IndexedDataset, version 1, one sequence per document:
                                 0  9 bytes   b"MMIDIDX\\0\\0"
                                 9  u64       version = 1
                                17  u8        dtype code: 8 = uint16, 4 = int32 (same bytes as uint32: ids < 2**31)
                                18  u64       N, number of sequences
                                26  u64       N + 1, length of the document indices
                                34  int32[N]  sequence lengths in tokens
                                    int64[N]  sequence starts in the .bin, in bytes
                                  int64[N+1]  document indices 0, 1, ..., N
    shard-00000.docs.parquet   per document, in order: raw_file, row, num_tokens, content_hash (16 bytes)

With --keep-signatures dataset.json also lists the files of signatures/, by which a later build finds duplicates of the
dataset's documents (signatures.py). No reader of tokens needs them.

Every document ends with the end-of-text id, which stands nowhere else. `dataset.json` is written last: a folder without
it is not a dataset. Sources of the layouts: megatron/core/datasets/indexed_dataset.py, datatrove/utils/dataset.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.direct import write_large
from pipeline.storage import checksum, checksum_file, open_together, read_json, write_json

FORMAT_NAME = "tokenmill dataset"
FORMAT_VERSION = 1
DATASET_FILE = "dataset.json"
SIGNATURES_FOLDER = "signatures"
REQUIRED_KEYS = ("tokenizer", "dtype", "document_rule", "content_hash", "mix", "sources")
SPLITS = ("train", "validation", "test")
# What becomes of a row, in dataset.json's counts: `read` is the sum of these, in documents, bytes and tokens.
OUTCOMES = ("kept", "excluded", "short", "contaminated", "duplicate_exact", "duplicate_near", "beyond_tokens", "bad")
LARGEST_UINT16_VOCABULARY = 65_536
PARQUET_END = b"PAR1"

MEGATRON_HEADER = struct.Struct("<9sQBQQ")
MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
MEGATRON_DTYPE_CODES = {"uint16": 8, "uint32": 4}


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype of a shard's ids: little-endian uint16 where every id fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= LARGEST_UINT16_VOCABULARY else "<u4")


@dataclass(frozen=True)
class Shard:
    """One finished shard, as dataset.json lists it. `path` is the .bin's, relative to the dataset's folder."""

    path: str
    bytes: int
    tokens: int
    documents: int
    largest_id: int
    xxh3_128: str
    docs_xxh3_128: str


def shard_name(source: str, split: str, number: int) -> str:
    """The path of a shard's .bin relative to the dataset's folder."""
    return f"{source}/{split}/shard-{number:05d}.bin"


def index_path(bin_path: Path) -> Path:
    """Where the cumulative document ends of a shard are."""
    return bin_path.with_name(bin_path.name + ".index")


def megatron_path(bin_path: Path) -> Path:
    """Where the Megatron index of a shard is."""
    return bin_path.with_suffix(".idx")


def documents_path(bin_path: Path) -> Path:
    """Where the table of a shard's documents is."""
    return bin_path.with_suffix(".docs.parquet")


def list_shard_files(bin_path: Path) -> list[Path]:
    """The four files of a shard."""
    return [bin_path, index_path(bin_path), megatron_path(bin_path), documents_path(bin_path)]


def write_shard(
    folder: Path, name: str, *, ids: np.ndarray, lengths: np.ndarray, documents: Mapping[str, np.ndarray]
) -> Shard:
    """Write one shard's four files and return its Shard record.

    ids: the tokens of all documents, in the dataset's dtype. lengths: int64, tokens per document, each at least 1.
    documents: the columns raw_file (uint32), row (uint64) and content_hash (two uint64), one entry per document.
    Each file is whole or absent. Raises OSError where the disk refuses.
    """
    assert int(lengths.sum()) == len(ids) and (lengths > 0).all()
    bin_path = folder / name
    ends = np.cumsum(lengths, dtype="<u8")
    with open_together(list_shard_files(bin_path)) as (tokens, index, megatron, table):
        write_large(tokens.raw, ids)
        index.write(ends)
        megatron.writelines(megatron_index(ends, ids.dtype))
        write_documents(table, lengths, documents)
    return Shard(
        path=name,
        bytes=ids.nbytes,
        tokens=len(ids),
        documents=len(lengths),
        largest_id=int(ids.max()),
        xxh3_128=checksum(ids),
        docs_xxh3_128=checksum_file(documents_path(bin_path)),
    )


def megatron_index(ends: np.ndarray, dtype: np.dtype) -> list[bytes]:
    """The bytes of an .idx for documents that end at `ends` (uint64, tokens), in pieces."""
    num_documents = len(ends)
    starts = np.concatenate([[0], ends[:-1]]).astype("<i8")
    header = MEGATRON_HEADER.pack(MEGATRON_MAGIC, 1, MEGATRON_DTYPE_CODES[dtype.name], num_documents, num_documents + 1)
    lengths = np.diff(ends.astype("<i8"), prepend=0).astype("<i4")
    indices = np.arange(num_documents + 1, dtype="<i8")
    return [header, lengths.tobytes(), (starts * dtype.itemsize).tobytes(), indices.tobytes()]


def write_documents(file: BinaryIO, lengths: np.ndarray, documents: Mapping[str, np.ndarray]) -> None:
    """Write the table that leads from each document of a shard back to its raw file and row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    hashes = np.ascontiguousarray(documents["content_hash"])
    table = pa.table(
        {
            "raw_file": pa.array(documents["raw_file"], pa.uint32()),
            "row": pa.array(documents["row"], pa.uint64()),
            "num_tokens": pa.array(lengths, pa.uint32()),
            "content_hash": pa.Array.from_buffers(pa.binary(16), len(hashes), [None, pa.py_buffer(hashes)]),
        }
    )
    pq.write_table(table, file, compression="zstd")


def read_documents(bin_path: Path) -> dict[str, np.ndarray]:
    """A shard's table of documents: raw_file, row, num_tokens, content_hash (two uint64), an array of each."""
    import pyarrow.parquet as pq

    table = pq.read_table(documents_path(bin_path))
    columns = {name: table[name].to_numpy() for name in ("raw_file", "row", "num_tokens")}
    hashes = b"".join(table["content_hash"].to_pylist())
    return {**columns, "content_hash": np.frombuffer(hashes, "<u8").reshape(-1, 2)}


def open_tokens(bin_path: Path, *, dtype: np.dtype, num_tokens: int) -> np.ndarray:
    """The ids of a shard: a read-only map of the file, shape (num_tokens,). Nothing is read yet.

    Raises FileNotFoundError, or ValueError where the file's size is not what dataset.json says.
    """
    check_size(bin_path, num_tokens * dtype.itemsize)
    return np.memmap(bin_path, dtype=dtype, mode="r", shape=(num_tokens,))


def open_document_ends(bin_path: Path, *, num_documents: int) -> np.ndarray:
    """Where each document of a shard ends, in tokens: a read-only map, uint64, shape (num_documents,)."""
    check_size(index_path(bin_path), num_documents * 8)
    return np.memmap(index_path(bin_path), dtype="<u8", mode="r", shape=(num_documents,))


def check_size(path: Path, expected_bytes: int) -> None:
    """Raise where a file is missing or has another size than dataset.json says."""
    try:
        found_bytes = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} is missing: dataset.json lists it. Copy it again, or rebuild with --replace"
        ) from None
    if found_bytes != expected_bytes:
        raise ValueError(
            f"{path} has {found_bytes:,} bytes, dataset.json says {expected_bytes:,}: "
            "it was cut or changed. Copy it again, or rebuild with --replace"
        )


def list_files(folder: Path, content: Mapping[str, Any]) -> Iterator[tuple[Path, int | None]]:
    """The files that a dataset has by its dataset.json, and their bytes where these are known."""
    yield folder / content["tokenizer"]["file"], None
    for source in content["sources"].values():
        yield from ((folder / file["path"], None) for file in source["drops"])
        for shard in (shard for split in source["splits"].values() for shard in split["shards"]):
            yield from zip(list_shard_files(folder / shard["path"]), list_sizes(shard), strict=True)
    yield from ((path, file["bytes"]) for path, file in list_signatures(folder, content))


def list_checksums(folder: Path, content: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The files of a dataset whose xxh3-128 dataset.json knows, each with it."""
    for source in content["sources"].values():
        yield from ((folder / drops["path"], drops["xxh3_128"]) for drops in source.get("drops", ()))
        for shard in (shard for split in source["splits"].values() for shard in split["shards"]):
            path = folder / shard["path"]
            yield path, shard["xxh3_128"]
            yield documents_path(path), shard["docs_xxh3_128"]
    yield from ((path, file["xxh3_128"]) for path, file in list_signatures(folder, content))


def list_signatures(folder: Path, content: Mapping[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of signatures/, and of each its bytes and xxh3_128; none where they were not kept."""
    for part in content.get("signatures", {}).get("parts", []):
        yield from ((folder / part["path"] / name, file) for name, file in part["files"].items())


def find_lost_files(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Which files of a finished dataset are gone or cut, by their sizes and ends alone; one text each."""
    lost = []
    for path, size in list_files(folder, content):
        if not path.is_file():
            lost.append(f"{path} is gone")
        elif size is not None and path.stat().st_size != size:
            lost.append(f"{path} has {path.stat().st_size:,} bytes, not {size:,}")
        elif path.suffix == ".parquet" and read_end(path) != PARQUET_END:
            lost.append(f"{path} is cut short")
    return lost


def read_end(path: Path) -> bytes:
    """The last bytes of a file, as many as PARQUET_END has."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - len(PARQUET_END)))
        return file.read()


def list_sizes(shard: Mapping[str, Any]) -> list[int | None]:
    """The bytes of a shard's files, in the order of list_shard_files; None: not known."""
    documents = shard["documents"]
    megatron = MEGATRON_HEADER.size + 4 * documents + 8 * documents + 8 * (documents + 1)
    return [shard["bytes"], 8 * documents, megatron, None]


def write_dataset_json(folder: Path, content: Mapping[str, Any]) -> None:
    """Finish a dataset. Everything that it lists must be on disk already."""
    write_json(folder / DATASET_FILE, {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **content})


def describe_missing(folder: Path) -> str:
    """What to say of a folder that is no dataset: which ones are in it, or how one is made."""
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{DATASET_FILE}"))
    if inside:
        return f"{folder} is no dataset itself (no {DATASET_FILE}); name one of those in it: {', '.join(inside)}"
    return (
        f"{folder} holds no finished dataset (no {DATASET_FILE}). Build one: "
        f"python pipeline/build.py --mix slimpajama:0.7,starcoder:0.3 --out {folder}"
    )


def read_dataset_json(folder: Path | str) -> dict[str, Any]:
    """What a finished dataset says about itself.

    Raises FileNotFoundError where there is no finished dataset, ValueError where it is of a newer format or damaged.
    """
    path = Path(folder) / DATASET_FILE
    if not path.is_file():
        raise FileNotFoundError(describe_missing(Path(folder)))
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise ValueError(f"{path} is not a tokenmill dataset: its format is not {FORMAT_NAME!r}")
    if content.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {content.get('format_version')}, this program reads {FORMAT_VERSION}: "
            "update tokenmill"
        )
    missing = [key for key in REQUIRED_KEYS if key not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is damaged. Copy it again, or rebuild with --replace")
    return content
