"""Other programs read our shards with their own, unmodified code: every token and every boundary is compared.

They are optional: `make test-readers` installs them into .readers and runs this. What is not there is skipped.
"""

from __future__ import annotations

import json
import sys
import types
from itertools import pairwise

import numpy as np
import pytest
import torch
from reader_fixtures import EOS, random_documents, split_documents, write_dataset

from pipeline.dataset import PackedDataset
from pipeline.export import ExportArguments, export
from pipeline.shard import index_path

SEQ_LEN = 32
VOCABULARY = 64


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """One source in three shards."""
    folder = tmp_path_factory.mktemp("readers") / "packed"
    documents = random_documents(400, seed=1, vocab_size=VOCABULARY)
    return write_dataset(folder, {"web": split_documents(documents, 3)}, vocab_size=VOCABULARY)


@pytest.fixture(scope="module")
def shards(packed):
    """For each shard its .bin, its ids as a list, and its document ends."""
    paths = sorted(packed.glob("web/train/*.bin"))
    return [
        (path, np.fromfile(path, "<u2").tolist(), np.fromfile(index_path(path), "<u8").astype(int).tolist())
        for path in paths
    ]


def ends_within(ends, start, stop):
    """The document ends after `start`, up to `stop`, counted from start."""
    return [end - start for end in ends if start < end <= stop]


def test_two_lines_of_nanogpt_read_every_token(shards):
    for path, ids, _ in shards:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        assert torch.from_numpy(data[0 : len(ids)].astype(np.int64)).tolist() == ids


# Megatron-core


def test_megatron_reads_every_document(shards):
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    for path, ids, ends in shards:
        for is_mapped in (True, False):
            dataset = indexed.IndexedDataset(str(path.with_suffix("")), multimodal=False, mmap=is_mapped)
            assert dataset.index.dtype == np.uint16
            assert [dataset[number].tolist() for number in range(len(dataset))] == [
                ids[start:end] for start, end in pairwise([0, *ends])
            ]
            assert dataset.document_indices.tolist() == list(range(len(ends) + 1))
            assert np.cumsum(dataset.sequence_lengths).tolist() == ends


def test_megatron_trains_on_every_token(packed, shards, tmp_path):
    pytest.importorskip("megatron.core.datasets.gpt_dataset")
    from megatron_config import build_gpt_dataset

    out = tmp_path / "megatron"
    export(ExportArguments(dataset=packed, to="megatron", out=out))
    blend = json.loads((out / "blend.json").read_text())["train"]
    num_tokens = sum(len(ids) for _, ids, _ in shards)
    dataset = build_gpt_dataset(
        blend[1::2], SEQ_LEN, num_samples=num_tokens // SEQ_LEN, vocab_size=VOCABULARY,
        eos_id=EOS,
    )  # fmt: skip
    documents = {tuple(ids[start:end]) for _, ids, ends in shards for start, end in pairwise([0, *ends])}
    found = []
    for number in range(len(dataset)):
        sample = dataset[number]
        tokens = [*sample["tokens"].tolist(), int(sample["labels"][-1])]
        cuts = [0, *(np.flatnonzero(np.array(tokens) == EOS) + 1).tolist()]
        for start, end in pairwise(cuts[1:]):  # what lies between two ends is a document of ours
            assert tuple(tokens[start:end]) in documents
            found.append(tuple(tokens[start:end]))
    assert len(set(found)) > 50  # windows are short: only documents of up to 31 tokens lie whole in one


# datatrove


def test_datatrove_reads_every_window_and_position(packed, shards):
    datatrove = pytest.importorskip("datatrove.utils.dataset")
    dataset = datatrove.DatatroveFolderDataset(
        str(packed / "web/train"), SEQ_LEN, filename_pattern="*.bin", token_size=2, return_positions=True, shuffle=False
    )
    number = 0
    for _, ids, ends in shards:
        for start in range(0, len(ids) - SEQ_LEN, SEQ_LEN + 1):
            item = dataset[number]
            assert item["input_ids"].tolist() == ids[start : start + SEQ_LEN + 1]
            inside = [0, *ends_within(ends, start, start + SEQ_LEN + 1)]
            fresh = np.flatnonzero(np.asarray(item["positions"]) == 0).tolist()
            assert [place for place in inside if place <= SEQ_LEN] == sorted({0, *fresh})
            number += 1
    assert number == len(dataset)


def test_datatrove_reads_what_was_exported_for_it(packed, shards, tmp_path):
    datatrove = pytest.importorskip("datatrove.utils.dataset")
    export(ExportArguments(dataset=packed, to="datatrove", out=tmp_path / "out"))
    for path, ids, _ in shards:
        file = datatrove.DatatroveFileDataset(str(tmp_path / f"out/web/train/{path.stem}.ds"), SEQ_LEN)
        assert file[0]["input_ids"].tolist() == ids[: SEQ_LEN + 1]


# OLMo-core


def open_olmo(name, shards, **settings):
    data = pytest.importorskip("olmo_core.data")
    return getattr(data, name)(
        *[str(path) for path, _, _ in shards], pad_token_id=EOS, eos_token_id=EOS, vocab_size=VOCABULARY,
        dtype=np.uint16, **settings,
    )  # fmt: skip


def test_olmo_reads_every_window_and_its_documents(shards, tmp_path):
    dataset = open_olmo("NumpyFSLDataset", shards, sequence_length=SEQ_LEN, generate_doc_lengths=True)
    dataset.work_dir = tmp_path
    dataset.prepare()
    number = 0
    for _, ids, ends in shards:
        for start in range(0, len(ids) - SEQ_LEN + 1, SEQ_LEN):
            item = dataset[number]
            assert item["input_ids"].tolist() == ids[start : start + SEQ_LEN]
            inside = ends_within(ends, start, start + SEQ_LEN)
            assert np.cumsum(item["doc_lens"]).tolist() == sorted({*inside, SEQ_LEN})
            number += 1
    assert number == len(dataset)


def test_olmo_packs_whole_documents_of_ours(shards, tmp_path):
    pytest.importorskip("olmo_core.data")
    from olmo_core.data.types import LongDocStrategy

    dataset = open_olmo("NumpyPackedFSLDataset", shards, sequence_length=64, long_doc_strategy=LongDocStrategy.truncate)
    dataset.work_dir = tmp_path
    dataset.prepare()
    documents = {tuple(ids[start:end]) for _, ids, ends in shards for start, end in pairwise([0, *ends])}
    found = set()
    for number in range(len(dataset)):
        item = dataset[number]
        tokens = item["input_ids"][item["label_mask"]].tolist() if "label_mask" in item else item["input_ids"].tolist()
        cuts = [0, *(np.flatnonzero(np.array(tokens) == EOS) + 1).tolist()]
        found |= {tuple(tokens[start:end]) for start, end in pairwise(cuts)}
    assert found - {(EOS,)} == documents - {(EOS,)}


def test_olmos_gpt2_settings_miss_our_boundaries_and_the_exported_settings_find_them(packed, shards, tmp_path):
    utils = pytest.importorskip("olmo_core.data.utils")
    export(ExportArguments(dataset=packed, to="olmo", out=tmp_path / "out"))
    settings = json.loads((tmp_path / "out/olmo.json").read_text())
    for path, _, ends in shards:
        found = list(utils.iter_document_indices(path, eos_token_id=settings["eos_token_id"], dtype=np.uint16))
        assert [end for _, end in found] == ends
        assert [start for start, _ in found] == [0, *ends[:-1]]
        as_gpt2 = list(utils.iter_document_indices(path, eos_token_id=EOS, bos_token_id=EOS, dtype=np.uint16))
        assert len(as_gpt2) < len(ends)
        table = tmp_path / f"out/web/train/{path.stem}.npy"
        listed = list(utils.iter_document_indices(table, dtype=np.uint16))
        assert [int(end) for _, end in listed] == ends


# Formats that are copies


def test_litdata_reads_every_token(packed, shards, tmp_path):
    litdata = pytest.importorskip("litdata")
    from litdata.streaming import TokensLoader

    export(ExportArguments(dataset=packed, to="litdata", out=tmp_path / "out"))
    dataset = litdata.StreamingDataset(
        str(tmp_path / "out/web/train"), item_loader=TokensLoader(block_size=SEQ_LEN), shuffle=False
    )
    rows = [row.tolist() for row in dataset]
    expected = [
        ids[start : start + SEQ_LEN] for _, ids, _ in shards for start in range(0, len(ids) - SEQ_LEN + 1, SEQ_LEN)
    ]
    assert rows == expected


@pytest.fixture
def streaming(monkeypatch):
    """mosaicml-streaming. It imports torchvision for its picture sets, which nobody needs for ids."""
    pytest.importorskip("transformers")  # asks for torchvision too, and must find the real answer
    for name, missing in (("datasets", "VisionDataset"), ("transforms.functional", "to_tensor")):
        module = types.ModuleType(f"torchvision.{name}")
        setattr(module, missing, object)
        monkeypatch.setitem(sys.modules, f"torchvision.{name}", module)
    for name in ("torchvision", "torchvision.transforms"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return pytest.importorskip("streaming")


def test_streaming_reads_every_row(packed, streaming, tmp_path):
    export(ExportArguments(dataset=packed, to="mds", out=tmp_path / "out", seq_len=SEQ_LEN + 1, seed=4))
    dataset = streaming.StreamingDataset(local=str(tmp_path / "out/train"), shuffle=False, batch_size=1)
    ours = PackedDataset(packed, seq_len=SEQ_LEN, seed=4)
    assert len(dataset) == len(ours)
    assert all(np.array_equal(dataset[number]["tokens"], ours[number]) for number in range(len(ours)))


def test_datasets_loads_every_row(packed, tmp_path):
    datasets = pytest.importorskip("datasets")
    export(ExportArguments(dataset=packed, to="hf", out=tmp_path / "out", seq_len=SEQ_LEN + 1, seed=4))
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    ours = PackedDataset(packed, seq_len=SEQ_LEN, seed=4)
    assert np.array_equal(np.array(loaded["input_ids"]), ours.samples(range(len(ours))))


# Other programs' loaders over our reader


def test_torchs_dataloader_reads_in_our_order(packed):
    dataset = PackedDataset(packed, seq_len=SEQ_LEN, max_epochs=2)
    loader = torch.utils.data.DataLoader(dataset, batch_size=16, num_workers=2)
    read = torch.cat(list(loader))
    assert read.dtype == torch.uint16
    assert np.array_equal(read.numpy(), dataset.samples(range(len(dataset))))


def test_grain_reads_in_our_order(packed):
    grain = pytest.importorskip("grain")
    dataset = PackedDataset(packed, seq_len=SEQ_LEN)
    read = list(grain.MapDataset.source(dataset).to_iter_dataset())
    assert np.array_equal(np.stack(read), dataset.samples(range(len(dataset))))


def test_the_trainer_of_transformers_reads_in_our_order(packed, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # which its Trainer needs
    from trainer_example import OrderedTrainer, collate

    seen = []

    class Recorder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, labels):
            seen.append(input_ids)
            return {"loss": self.weight * labels.float().mean()}

    dataset = PackedDataset(packed, seq_len=SEQ_LEN)
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    OrderedTrainer(Recorder(), settings, train_dataset=dataset, data_collator=collate).train()
    assert np.array_equal(torch.cat(seen).numpy(), dataset.samples(range(24)))
