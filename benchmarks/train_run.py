"""Runs that benchmarks/train.py measures: a recipe made ready, its steps one by one, and data where none is given.

Needs numpy and torch alone, so that a machine with a GPU and a bare torch can run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.config import named_size
from pipeline.shard import index_path, megatron_index, megatron_path, shard_name, token_dtype, write_dataset_json
from train.config import TrainConfig, load_recipe
from train.data import RankReader, open_dataset
from train.distributed import StopRequest, start_ranks
from train.loop import count_step, log, measure, train_step
from train.metrics import Meter
from train.run import Run, start_run

EOS = 2


def base_config(recipe: str, *, data: str, out: Path, device: str) -> TrainConfig:
    """The recipe on this data, with nothing saved or validated on the way."""
    config = replace(load_recipe(recipe), data=data, out=out, device=device, valid_every=0, log_every=10)
    return replace(config, tokenizer="any", document_rule="any", warmup_steps=0, checkpoint_every=1 << 40)


def open_run(config: TrainConfig) -> Run:
    """A run from its first step. Its model has the named size's vocabulary, or the data's where that is larger."""
    dataset = open_dataset(config.data, config.as_json())
    shape = config.model_config(dataset.vocab_size)
    shape = replace(shape, vocab_size=max(shape.vocab_size, named_size(config.model).vocab_size))
    return start_run(config, shape, dataset, placement=start_ranks(config.device))


def run_steps(run: Run, *, num_steps: int) -> Iterator[None]:
    """What train/loop.py does in each step, one step for each value."""
    stop, meter = StopRequest(), Meter()
    reader = RankReader(run.dataset, run.config, run.placement)
    for batch in meter.watch(reader.read_steps(run.manifest.position, num_steps=num_steps)):
        loss, grad_norm = train_step(run, batch, learning_rate=run.config.learning_rate / 10, stop=stop)
        count_step(run)
        if run.step % run.config.log_every == 0:
            log(run, measure(run, meter, loss=loss, grad_norm=grad_norm, learning_rate=0.0), [])
        yield


def make_dataset(folder: Path, *, vocab_size: int, num_tokens: int) -> str:
    """A dataset of one source, where none was built: documents as long as the web's (log-normal, the median 500
    tokens), ids as often as words are (Zipf). Returns its folder."""
    generator = np.random.default_rng(0)
    lengths = np.clip(np.exp(generator.normal(np.log(500), 1.2, size=2 + num_tokens // 500)), 4, 100_000).astype(int)
    ends = np.cumsum(lengths)
    ends = ends[: 1 + np.searchsorted(ends, num_tokens)]
    ids = (3 + generator.zipf(1.2, size=int(ends[-1])) % (vocab_size - 3)).astype(token_dtype(vocab_size))
    ids[ends - 1] = EOS
    name = shard_name("made", "train", 0)
    path = folder / name
    path.parent.mkdir(parents=True)
    ids.tofile(path)
    index_path(path).write_bytes(ends.astype("<u8").tobytes())
    megatron_path(path).write_bytes(b"".join(megatron_index(ends.astype("<u8"), ids.dtype)))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "none").write_bytes(b"")
    shard = {
        "path": name, "bytes": ids.nbytes, "tokens": len(ids), "documents": len(ends), "largest_id": int(ids.max()),
        "xxh3_128": "0" * 32, "docs_xxh3_128": "0" * 32,
    }  # fmt: skip
    tokenizer = {"name": "made", "sha256": "0" * 64, "file": "tokenizer/none", "vocab_size": vocab_size}
    content = {
        "tokenizer": tokenizer | {"bos_id": 1, "eos_id": EOS},
        "dtype": ids.dtype.name, "document_rule": "eos", "content_hash": "0" * 64, "mix": {"made": 1.0},
        "sources": {"made": {"splits": {"train": {"shards": [shard]}}}},
    }  # fmt: skip
    write_dataset_json(folder, content)
    return str(folder)


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Rows of words in columns, the first row above a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    print(title, lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:], sep="\n", flush=True)


def write_figures(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the figures as JSON, where a path is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
