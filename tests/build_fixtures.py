"""What several tests of the build share: its flags, and reading what it made."""

import numpy as np
import pyarrow.parquet as pq

from pipeline.dataset import read_dataset_json
from pipeline.shard import open_document_ends, open_tokens


def flags(raw, out, model, more=""):
    return f"--mix web:3,notes:1 --raw {raw} --out {out} --tokenizer {model} --max-bad-fraction 0.1 {more}"


def hashes(folder):
    """The bytes of every file of a dataset but the log."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "build-log.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_shards(out):
    """(source, split, raw_file, row) -> the ids of the document."""
    content = read_dataset_json(out)
    documents = {}
    for name, source in content["sources"].items():
        for split_name, split in source["splits"].items():
            for shard in split["shards"]:
                path = out / shard["path"]
                tokens = open_tokens(path, dtype=np.dtype(content["dtype"]), num_tokens=shard["tokens"])
                ends = open_document_ends(path, num_documents=shard["documents"]).tolist()
                table = pq.read_table(path.with_suffix(".docs.parquet")).to_pylist()
                for start, end, row in zip([0, *ends[:-1]], ends, table, strict=True):
                    documents[name, split_name, row["raw_file"], row["row"]] = tokens[start:end].tolist()
    return content, documents


def read_drops(out, content):
    rows = []
    for name, source in content["sources"].items():
        for file in source["drops"]:
            rows += [{"source": name, **row} for row in pq.read_table(out / file["path"]).to_pylist()]
    return rows
