"""Small datasets and runs for the trainer's tests, written with the pipeline's own writer."""

import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F

from model.loss import IGNORED
from model.transformer import Transformer
from pipeline.dataset import PackedDataset
from pipeline.shard import shard_name, token_dtype, write_dataset_json, write_shard
from train.checkpoint import load_weights
from train.main import main
from train.manifest import find_checkpoints, read_manifest
from train.metrics import read_metrics

BOS, EOS = 1, 2
SMALL_MODEL = [
    "--recipe", "demo", "--device", "cpu", "--hidden-size", "48", "--intermediate-size", "64", "--num-layers", "2",
    "--seq-len", "32", "--tokens-per-step", "256", "--micro-batch-size", "4", "--warmup-steps", "2",
    "--learning-rate", "1e-2", "--log-every", "1",
]  # fmt: skip


def write_dataset(
    folder: Path,
    sources: Mapping[str, list[list[int]]],
    *,
    vocab_size: int = 64,
    document_rule: str = "bos+eos",
    tokenizer: str = "sample",
    validation: Mapping[str, list[list[int]]] | None = None,
) -> Path:
    """A finished dataset of these documents per source, equal weights; ids from 3 on are text. Returns its folder."""
    listed = {}
    for source, documents in sources.items():
        splits = {"train": [documents]}
        if validation and source in validation:
            splits["validation"] = [validation[source]]
        listed[source] = {
            "splits": {
                split: {"shards": [_write(folder, source, split, shard, vocab_size, document_rule) for shard in shards]}
                for split, shards in splits.items()
            }
        }
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(b"a tokenizer")
    write_dataset_json(
        folder,
        {
            "tokenizer": {
                "name": tokenizer, "sha256": "ab" * 32, "file": "tokenizer/tokenizer.model",
                "vocab_size": vocab_size, "bos_id": BOS, "eos_id": EOS,
            },
            "dtype": token_dtype(vocab_size).name,
            "document_rule": document_rule,
            "content_hash": f"{crc32(repr(sources).encode()):032x}",
            "mix": dict.fromkeys(sources, 1.0 / len(sources)),
            "sources": listed,
        },
    )  # fmt: skip
    return folder


def counting_documents(num_documents: int, *, seed: int, vocab_size: int = 64) -> list[list[int]]:
    """Documents of 5 to 40 ids that count upwards from a random start: easy to learn."""
    generator = np.random.default_rng(seed)
    documents = []
    for _ in range(num_documents):
        start, length = int(generator.integers(0, vocab_size - 3)), int(generator.integers(5, 40))
        documents.append([3 + (start + i) % (vocab_size - 3) for i in range(length)])
    return documents


def loss_of_pieces(model: Transformer, dataset: PackedDataset, position: int) -> torch.Tensor:
    """The loss of a sample summed over its targets, each piece of a document run through the model alone."""
    tokens = torch.from_numpy(dataset.sample(position).astype(np.int64))
    targets = tokens[1:].masked_fill(~torch.from_numpy(dataset.documents(position).has_target), IGNORED)
    ends = [0, *dataset.document_ends(position).tolist()]
    return sum(
        F.cross_entropy(model(tokens[None, start:end])[0], targets[start:end], ignore_index=IGNORED, reduction="sum")
        for start, end in pairwise(ends)
    )


def compile_counted(model: Transformer) -> list:
    """Compile a model, by a backend that keeps each graph as it is. Returns the list that the graphs come into."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model.compile_blocks(backend=backend)
    return graphs


def two_sources(folder: Path) -> Path:
    """A dataset of two sources with validation text: prose 45 windows of 32, code 46. Returns its folder."""
    sources = {"prose": counting_documents(60, seed=0), "code": counting_documents(60, seed=1)}
    validation = {"prose": counting_documents(20, seed=2), "code": counting_documents(9, seed=3)}
    return write_dataset(folder, sources, validation=validation)


def train(data, out, *flags):
    return main(["--data", str(data), "--out", str(out), *SMALL_MODEL, *flags])


def weights_of(run_folder):
    newest = find_checkpoints(run_folder)[-1]
    model = Transformer(read_manifest(newest).model_config, attention_backend="sdpa")
    load_weights(newest, model)
    return list(model.parameters())


def keep_only_step(run_folder, step, new_folder):
    """A run as a kill after its checkpoint at `step` would leave it: later metrics, a half-written line, no more."""
    shutil.copytree(run_folder, new_folder)
    for checkpoint in find_checkpoints(new_folder):
        if read_manifest(checkpoint).step != step:
            shutil.rmtree(checkpoint)
    with (new_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    return new_folder


def metric_of(run_folder, name):
    return [record[name] for record in read_metrics(run_folder / "metrics.jsonl")]


def losses_of(run_folder):
    return metric_of(run_folder, "loss")


def _write(
    folder: Path, source: str, split: str, documents: list[list[int]], vocab_size: int, document_rule: str
) -> dict:
    """Write one shard and return its entry."""
    framed = [[BOS] * (document_rule == "bos+eos") + document + [EOS] for document in documents]
    lengths = np.array([len(document) for document in framed], dtype=np.int64)
    ids = np.array([token for document in framed for token in document], dtype=token_dtype(vocab_size))
    columns = {
        "raw_file": np.zeros(len(framed), dtype=np.uint32),
        "row": np.arange(len(framed), dtype=np.uint64),
        "content_hash": np.zeros(len(framed), dtype="V16"),
    }
    return write_shard(folder, shard_name(source, split, 0), ids=ids, lengths=lengths, documents=columns).__dict__
