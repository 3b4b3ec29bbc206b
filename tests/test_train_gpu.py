"""The trainer on one GPU: the numbers of a CPU, no waiting for the device, one compilation, checkpoints, a signal."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_fixtures import SMALL_MODEL, losses_of, two_sources

from train.data import RankReader, open_dataset
from train.distributed import StopRequest, start_ranks, stop_ranks
from train.loop import train_step
from train.main import main, read_config
from train.manifest import find_checkpoints, read_manifest
from train.run import start_run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ROOT = Path(__file__).resolve().parent.parent
MODEL = [{"48": "192"}.get(word, word) for word in SMALL_MODEL if word not in ("--device", "cpu")]
"""The small model with heads of 32, which FlashAttention takes."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_sources(tmp_path_factory.mktemp("dataset"))


def train(data, out, *flags, device="cuda"):
    return main(["--data", str(data), "--out", str(out), *MODEL, "--device", device, *flags])


@pytest.fixture(scope="module")
def cpu_losses(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cpu"
    assert train(data, out, "--steps", "6", device="cpu") == 0
    return losses_of(out)


@pytest.mark.parametrize(
    "flags",
    [
        ("--attention", "varlen"), ("--attention", "sdpa", "--compile", "off"), ("--attention", "varlen", "--compile", "off"),
        ("--micro-batch-size", "2", "--sharding", "full"), ("--micro-batch-size", "2", "--sharding", "replicate"),
        ("--activation-checkpointing", "selective"), ("--activation-checkpointing", "full"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_losses_in_bfloat16_are_those_of_a_cpu(data, tmp_path, flags, cpu_losses):
    assert train(data, tmp_path / "run", "--steps", "6", *flags) == 0
    assert losses_of(tmp_path / "run") == pytest.approx(cpu_losses, rel=0.02)


def test_a_resumed_run_goes_on_from_a_checkpoint_as_one_run_would(data, tmp_path):
    assert train(data, tmp_path / "whole", "--steps", "8", "--checkpoint-every", "3") == 0
    first = ("--steps", "8", "--checkpoint-every", "3", "--keep-checkpoints", "9")
    assert train(data, tmp_path / "parts", *first) == 0
    for checkpoint in find_checkpoints(tmp_path / "parts"):
        if read_manifest(checkpoint).step > 3:
            checkpoint.rename(checkpoint.with_name(checkpoint.name + ".gone"))
    assert train(data, tmp_path / "parts", *first) == 0
    # FlashAttention's backward pass adds in the order in which its blocks happen to end.
    assert losses_of(tmp_path / "parts") == pytest.approx(losses_of(tmp_path / "whole"), rel=0.01)


def test_steps_between_logs_neither_wait_for_the_gpu_nor_compile(data, tmp_path, monkeypatch):
    flags = ["--data", str(data), "--out", str(tmp_path / "run"), *MODEL, "--device", "cuda", "--valid-every", "0"]
    config, _ = read_config([*flags, "--steps", "20", "--micro-batch-size", "2"])
    dataset = open_dataset(str(data), config.as_json())
    try:
        run = start_run(config, config.model_config(dataset.vocab_size), dataset, placement=start_ranks("cuda"))
        reader, stop = RankReader(dataset, config, run.placement), StopRequest()
        batches = list(reader.read_steps(0, num_steps=8))
        for batch in batches[:2]:
            train_step(run, batch, learning_rate=1e-3, stop=stop)
        torch.cuda.synchronize()
        monkeypatch.setattr("torch._dynamo.config.error_on_recompile", True)
        torch.cuda.set_sync_debug_mode("error")
        for batch in batches[2:]:
            loss, _ = train_step(run, batch, learning_rate=1e-3, stop=stop)
        torch.cuda.set_sync_debug_mode("default")
        assert 0 < loss.item() < 5
    finally:
        torch.cuda.set_sync_debug_mode("default")
        stop_ranks(in_order=False)


def test_a_signal_saves_and_the_same_command_goes_on(data, tmp_path):
    out = tmp_path / "run"
    flags = ["--data", str(data), "--out", str(out), *MODEL, "--device", "cuda", "--steps", "100000"]
    flags += ["--valid-every", "50", "--checkpoint-every", "100000"]
    command = [sys.executable, str(ROOT / "train" / "main.py"), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step") and "   60/" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
    assert process.returncode == 0 and "stopped by SIGTERM after step" in rest
    (checkpoint,) = find_checkpoints(out)
    step = read_manifest(checkpoint).step
    assert step >= 60 and f"after step {step:,}" in rest
    assert train(data, out, "--steps", str(step + 3), "--valid-every", "0") == 0
    assert len(losses_of(out)) == step + 3
