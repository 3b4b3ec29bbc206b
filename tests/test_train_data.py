"""Reading for training: the same batches at every world size, boundaries of constant shape, ids as stored."""

import numpy as np
import pytest
import torch
from train_fixtures import counting_documents, write_dataset

from model.loss import IGNORED
from pipeline.dataset import PackedDataset
from train.config import TrainConfig
from train.data import (
    BOS_FILL_EVERY,
    RankReader,
    count_tokens,
    extend_hash,
    pad_document_ends,
    read_micro_batch,
    shares_of,
)
from train.distributed import Placement


@pytest.fixture
def dataset(tmp_path):
    sources = {"prose": counting_documents(40, seed=0), "code": counting_documents(40, seed=1)}
    return PackedDataset(write_dataset(tmp_path, sources), seq_len=16)


def reader_of(dataset, rank=0, world_size=1, has_mask=True):
    config = TrainConfig(
        seq_len=16, tokens_per_step=8 * 16, micro_batch_size=2, document_mask="on" if has_mask else "off"
    )
    return RankReader(dataset, config, Placement(rank, world_size, torch.device("cpu")))


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_tokens_of_a_step_do_not_depend_on_the_world_size(dataset, world_size):
    alone = torch.cat([batch.tokens for batch in reader_of(dataset).read_step(24)])
    assert alone.tolist() == dataset.samples(range(24, 32)).tolist()
    together = torch.cat(
        [
            batch.tokens
            for rank in range(world_size)
            for batch in reader_of(dataset, rank=rank, world_size=world_size).read_step(24)
        ]
    )
    assert torch.equal(alone, together)


def test_ids_stay_as_stored_until_they_are_on_the_device(dataset):
    batch = reader_of(dataset).read_step(0)[0]
    assert batch.tokens.dtype == torch.uint16
    on_device = batch.to(torch.device("cpu"))
    assert on_device.inputs.dtype == on_device.targets.dtype == torch.int64
    assert torch.equal(on_device.inputs[:, 1:], on_device.targets[:, :-1])
    assert on_device.tokens.tolist() == dataset.samples(np.array([0, 1])).tolist()


def test_boundaries_follow_each_end_of_text_in_the_inputs(dataset):
    batch = reader_of(dataset).read_step(16)[1].to(torch.device("cpu"))
    after_eos = ((batch.inputs.flatten() == dataset.eos_id).nonzero()[:, 0] + 1).tolist()
    assert sorted(set(batch.cu_seqlens.tolist())) == sorted({0, 16, 32, *after_eos})


def test_padding_and_last_tokens_of_best_fit_are_no_targets(dataset, tmp_path):
    packed = PackedDataset(dataset.path, seq_len=16, packing="best-fit", cache=tmp_path)
    batches = reader_of(packed).read_step(8)
    masks = packed.target_masks(range(8, 16))
    on_device = [batch.to(torch.device("cpu")) for batch in batches]
    assert [(batch.targets == IGNORED).tolist() for batch in on_device] == (~masks.reshape(4, 2, 16)).tolist()
    assert sum(batch.num_targets for batch in batches) == masks.sum() < 8 * 16
    assert set(on_device[0].cu_seqlens.tolist()) >= set(packed.document_ends(8).tolist())


def test_what_follows_is_asked_for_only_where_the_disk_was_waited_for(dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(dataset, "read_ahead", lambda positions: asked.extend(positions.tolist()))
    reader_of(dataset, rank=1, world_size=2).read_step(8)
    assert asked == []
    monkeypatch.setattr("pipeline.maps.WAIT_SECONDS", 0.0)
    monkeypatch.setattr("pipeline.maps.SLOW_READS", 1)
    reader_of(dataset, rank=1, world_size=2).read_step(8)
    assert asked == [20, 21, 22, 23]


def test_without_a_mask_there_are_no_boundaries(dataset):
    assert reader_of(dataset, has_mask=False).read_step(0)[0].cu_seqlens is None


def test_boundaries_repeat_the_last_end_and_have_few_lengths():
    few = pad_document_ends([np.array([4, 16]), np.array([16])], seq_len=16)
    assert few.dtype == np.int32 and few.tolist() == [0, 4, 16] + [32] * 14


@pytest.mark.parametrize(("num_documents", "length"), [(16, 17), (17, 33), (32, 33), (33, 65)])
def test_documents_have_room_for_a_power_of_two(num_documents, length):
    ends = pad_document_ends([np.arange(1, num_documents + 1)], seq_len=num_documents)
    assert ends.tolist() == [*range(num_documents), *[num_documents] * (length - num_documents)]


def test_reading_ahead_gives_each_step_once_and_in_order(dataset):
    reader = reader_of(dataset)
    ahead = [torch.cat([b.tokens for b in batch]) for batch in reader.read_steps(16, num_steps=3)]
    assert len(ahead) == 3
    for position, tokens in zip((16, 24, 32), ahead, strict=True):
        assert torch.equal(tokens, torch.cat([b.tokens for b in reader.read_step(position)]))


def test_the_tokens_of_each_source_add_up_to_the_step(dataset):
    assert count_tokens(dataset.locate(range(8)), dataset) == {"prose": 64, "code": 64}


def test_the_running_hash_tells_order_and_windows_apart(dataset):
    first, second = dataset.locate(range(8)), dataset.locate(range(8, 16))
    forwards = extend_hash(extend_hash("", first), second)
    assert forwards == extend_hash(extend_hash("", first), second)
    assert len({forwards, extend_hash(extend_hash("", second), first), extend_hash("", second)}) == 3


def test_bos_fill_makes_one_window_in_fourteen_thousand_nothing_but_bos(dataset):
    positions = np.arange(BOS_FILL_EVERY - 2, BOS_FILL_EVERY + 2)
    plain, filled = (
        read_micro_batch(dataset, positions, has_mask=True, has_bos_fill=fill).tokens.tolist() for fill in (False, True)
    )
    assert filled[1] == [dataset.bos_id] * 17
    assert filled[:1] + filled[2:] == plain[:1] + plain[2:]


def test_however_a_mix_is_written_the_samples_and_shares_are_the_same(dataset):
    for mix in ("code:3,prose:3", "prose:.5, code:.5"):
        again = PackedDataset(dataset.path, seq_len=16, mix=mix)
        assert again.samples(range(20)).tolist() == dataset.samples(range(20)).tolist()
        assert shares_of(again) == shares_of(dataset) == {"prose": 0.5, "code": 0.5}


def test_a_source_at_zero_has_no_share(dataset):
    assert shares_of(PackedDataset(dataset.path, seq_len=16, mix={"code": 0, "prose": 3})) == {"prose": 1.0}


def test_an_id_that_the_tokenizer_does_not_have_is_named_with_its_place(tmp_path):
    data = write_dataset(tmp_path, {"prose": [[3] * 40, [70] * 40]})
    with pytest.raises(ValueError, match=r"holds the id 70 at the positions 0 to 3, and its tokenizer has 64: run pip"):
        read_micro_batch(PackedDataset(data, seq_len=16), np.arange(4), has_mask=True)
