"""Small finished datasets of several shards, written with the pipeline's own writer from documents that a test makes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.finish import hash_content
from pipeline.shard import shard_name, token_dtype, write_dataset_json, write_shard

BOS, EOS = 1, 2

Documents = Sequence[Sequence[int]]


def random_documents(num_documents: int, *, seed: int, longest: int = 60, vocab_size: int = 64) -> list[list[int]]:
    """Documents of 1 to `longest` random ids of text, from 3 on."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, num_documents)
    return [generator.integers(3, vocab_size, length).tolist() for length in lengths]


def split_documents(documents: Documents, num_shards: int) -> list[Documents]:
    """The documents as so many shards of nearly equal count."""
    return [documents[start::num_shards] for start in range(num_shards)]


def write_dataset(
    folder: Path,
    sources: Mapping[str, Sequence[Documents]],
    *,
    mix: Mapping[str, float] | None = None,
    validation: Mapping[str, Sequence[Documents]] | None = None,
    vocab_size: int = 64,
    sha256: str = "ab" * 32,
) -> Path:
    """A finished dataset: per source its train shards, each a list of documents; EOS is put after each document."""
    listed = {}
    for source, shards in sources.items():
        splits = {"train": shards, **({"validation": validation[source]} if validation else {})}
        listed[source] = {
            "title": source,
            "licence": "none",
            "raw_files": [f"{source}-{number}.jsonl" for number in range(max(map(len, splits.values())))],
            "splits": {
                split: {"shards": [write_one(folder, source, split, *item, vocab_size) for item in enumerate(shards)]}
                for split, shards in splits.items()
            },
            "drops": [],
        }
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer/tokenizer.model").write_bytes(b"a tokenizer")
    content = {
        "tokenizer": {
            "name": "sample", "sha256": sha256, "file": "tokenizer/tokenizer.model", "vocab_size": vocab_size,
            "bos_id": BOS, "eos_id": EOS,
        },
        "dtype": token_dtype(vocab_size).name,
        "document_rule": "eos",
        "content_hash": hash_content(listed),
        "mix": dict(mix or dict.fromkeys(sources, 1.0)),
        "sources": listed,
    }  # fmt: skip
    write_dataset_json(folder, content)
    return folder


def write_one(folder: Path, source: str, split: str, number: int, documents: Documents, vocab_size: int) -> dict:
    """Write a shard whose documents are the rows of raw file `number`; returns its entry in dataset.json."""
    lengths = np.array([len(document) + 1 for document in documents], dtype=np.int64)
    ids = np.array([token for document in documents for token in (*document, EOS)], dtype=token_dtype(vocab_size))
    columns = {
        "raw_file": np.full(len(documents), number, dtype=np.uint32),
        "row": np.arange(len(documents), dtype=np.uint64),
        "content_hash": np.zeros(len(documents), dtype="V16"),
    }
    return asdict(write_shard(folder, shard_name(source, split, number), ids=ids, lengths=lengths, documents=columns))
