"""Updates: equal to those of plain PyTorch, and never applied where a number is not finite."""

import copy
import json
import math

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from train_fixtures import counting_documents, loss_of_pieces, write_dataset

import train.ledger
import train.loop
import train.main
from model.transformer import Transformer
from pipeline.dataset import PackedDataset
from train.checkpoint import load_weights
from train.config import TrainConfig
from train.distributed import start_ranks, stop_ranks
from train.manifest import find_checkpoints, read_manifest
from train.metrics import read_metrics
from train.optim import build_optimizer, clip_gradients, update_weights

# Epsilon is near the clipped gradients, so that their scale tells in the update.
FLAGS = [
    "--recipe",
    "demo",
    "--device",
    "cpu",
    "--hidden-size",
    "24",
    "--intermediate-size",
    "32",
    "--num-layers",
    "2",
    "--seq-len",
    "32",
    "--tokens-per-step",
    "128",
    "--micro-batch-size",
    "2",
    "--steps",
    "4",
    "--warmup-steps",
    "2",
    "--learning-rate",
    "1e-2",
    "--min-lr-fraction",
    "0.1",
    "--weight-decay",
    "0.5",
    "--adam-eps",
    "1e-3",
    "--grad-clip",
    "0.1",
    "--valid-every",
    "0",
    "--seed",
    "3",
]
LEARNING_RATES = [0.005, 0.01, 0.0055, 0.001]
"""Half the peak, the peak, halfway between peak and minimum, the minimum."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    sources = {"prose": counting_documents(60, seed=0), "code": counting_documents(60, seed=1)}
    return write_dataset(tmp_path_factory.mktemp("dataset"), sources)


def run(data, out, *flags):
    return train.main.main(["--data", str(data), "--out", str(out), *FLAGS, *flags])


def plain_updates(data, model_config, *, without=None, packing="concat"):
    """Losses, gradient norms and final weights of the same four steps in float64, with nothing of train/.

    The update of step `without` is left out.
    """
    model = Transformer(model_config, attention_backend="sdpa")
    model.init_weights(3)
    model = model.double()
    weights = list(model.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim == 2], "weight_decay": 0.5},
        {"params": [weight for weight in weights if weight.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-3)
    dataset = PackedDataset(data, seq_len=32, seed=3, packing=packing)
    losses, norms = [], []
    for step, learning_rate in enumerate(LEARNING_RATES):
        positions = range(4 * step, 4 * step + 4)
        num_targets = dataset.target_masks(positions).sum()
        loss = sum(loss_of_pieces(model, dataset, position) for position in positions) / num_targets
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in weights))
        for weight in weights:
            weight.grad *= min(1.0, 0.1 / norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        if step + 1 != without:
            optimizer.step()
        losses.append(float(loss.detach()))
        norms.append(norm)
    return losses, norms, weights


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_updates_equal_those_of_plain_pytorch(data, tmp_path, monkeypatch, packing):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(data, tmp_path / "run", "--packing", packing) == 0
    newest = find_checkpoints(tmp_path / "run")[-1]
    model = Transformer(read_manifest(newest).model_config, attention_backend="sdpa")
    load_weights(newest, model)
    losses, norms, weights = plain_updates(data, model.config, packing=packing)
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert min(norms) > 1  # so that all are clipped
    assert [record["lr"] for record in records] == pytest.approx(LEARNING_RATES)
    assert [record["loss"] for record in records] == pytest.approx(losses, rel=1e-5)
    assert [record["grad_norm"] for record in records] == pytest.approx(norms, rel=1e-4)
    for ours, plain in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours.double(), plain, atol=1e-5, rtol=0)
    assert train.ledger.main([str(tmp_path / "run")]) == 0


def break_a_number(monkeypatch, what, *, at_calls):
    """Make the loss, or a gradient alone, infinite at some steps."""
    calls = iter(range(1, 100))

    def is_now(name):
        return what == name and next(calls) in at_calls

    def sum_over_ranks(loss):
        return loss + math.inf if is_now("loss") else loss

    def clip(model, max_norm):
        if is_now("gradient"):
            model.norm.weight.grad[0] = math.nan
        return clip_gradients(model, max_norm)

    monkeypatch.setattr(train.loop, "sum_over_ranks", sum_over_ranks)
    monkeypatch.setattr(train.loop, "clip_gradients", clip)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_update_from_numbers_that_are_not_finite_is_skipped_counted_and_not_logged(
    data, tmp_path, monkeypatch, capsys, what
):
    break_a_number(monkeypatch, what, at_calls={3})
    assert run(data, tmp_path / "run") == 0
    assert "skipped the update of step 3: its loss or gradient is not finite" in capsys.readouterr().out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [(record["step"], record["skipped_updates"]) for record in records] == [(1, 0), (2, 0), (4, 1)]
    newest = find_checkpoints(tmp_path / "run")[-1]
    model = Transformer(read_manifest(newest).model_config, attention_backend="sdpa")
    load_weights(newest, model)
    for ours, plain in zip(model.parameters(), plain_updates(data, model.config, without=3)[2], strict=True):
        torch.testing.assert_close(ours.double(), plain, atol=1e-5, rtol=0)


def test_after_many_in_a_row_the_run_goes_back_and_leaves_out_the_data_since(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    break_a_number(monkeypatch, "gradient", at_calls={5, 6})
    assert run(data, out, "--steps", "7", "--max-bad-steps", "2", "--checkpoint-every", "3") == 0
    output = capsys.readouterr().out
    assert "back    the loss or its gradient was not finite in 2 steps in a row, up to step 6" in output
    assert "step-00000003 without the samples 12 to 23" in output
    manifest = read_manifest(find_checkpoints(out)[-1])
    assert manifest.skipped == [[12, 24]] and manifest.position == 24 + 4 * 4
    assert [record["step"] for record in read_metrics(out / "metrics.jsonl")] == list(range(1, 8))
    assert sum(manifest.tokens_per_source.values()) == 7 * 128
    assert train.ledger.main([str(out)]) == 0
    assert "left out  positions 12 to 23" in capsys.readouterr().out


def test_going_back_that_does_not_help_ends_the_run(data, tmp_path, monkeypatch, capsys):
    break_a_number(monkeypatch, "loss", at_calls=range(3, 100))
    assert run(data, tmp_path / "run", "--max-bad-steps", "1", "--checkpoint-every", "2") == 1
    captured = capsys.readouterr()
    assert captured.out.count("\nback ") == 3
    assert "--learning-rate below 0.01 goes on from" in captured.err and captured.err.count("\n") == 1
    assert [path.name for path in find_checkpoints(tmp_path / "run")] == ["step-00000002"]


def test_without_a_checkpoint_numbers_that_are_not_finite_at_the_end_are_an_error(data, tmp_path, monkeypatch, capsys):
    break_a_number(monkeypatch, "gradient", at_calls={3, 4})
    assert run(data, tmp_path / "run", "--log-every", "4") == 1
    error = capsys.readouterr().err
    assert "error: the loss or its gradient was not finite in 2 steps in a row, up to step 4" in error
    assert "starts again, since nothing was saved yet" in error and error.count("\n") == 1
    assert find_checkpoints(tmp_path / "run") == []


def test_weights_that_an_update_made_infinite_are_not_saved(data, tmp_path, capsys):
    assert run(data, tmp_path / "run", "--steps", "1", "--warmup-steps", "0", "--learning-rate", "1e40",
               "--min-lr-fraction", "1") == 1  # fmt: skip
    assert "the weights are not finite after step 1" in capsys.readouterr().err
    assert find_checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_skipped_update_changes_neither_weights_nor_moments(is_sharded):
    start_ranks("cpu")
    try:
        model = torch.nn.Linear(4, 3)
        if is_sharded:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = build_optimizer(model, TrainConfig())
        states = []
        for factor, is_skipped in ((1.0, False), (math.nan, True), (1.0, False)):
            (model(torch.ones(2, 4)).sum() * factor).backward()
            update_weights(optimizer, learning_rate=0.1, is_skipped=torch.tensor(is_skipped))
            states.append(copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]]))
    finally:
        stop_ranks(in_order=True)
    after_first, after_skipped, after_third = map(str, states)
    assert after_first == after_skipped != after_third


@pytest.mark.long
def test_all_code_is_compiled_before_the_first_step_is_done(data, tmp_path, monkeypatch):
    sources = {"prose": counting_documents(60, seed=0)}
    data = write_dataset(tmp_path / "data", sources, validation=sources)
    count, graphs = train.loop.count_step, []

    def count_step(run):
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        count(run)

    monkeypatch.setattr(train.loop, "count_step", count_step)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert run(data, tmp_path / "run", "--compile", "on", "--valid-every", "1", "--valid-windows", "5") == 0
    assert graphs == [4, 4, 4, 4]  # a block and the loss, with gradients and without
