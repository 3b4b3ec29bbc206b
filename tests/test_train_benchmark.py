"""benchmarks/train.py: its data, its table of levers on a CPU at a small size, and that it needs torch and numpy alone."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # benchmarks are scripts, not part of the installed packages

from benchmarks import train_levers
from benchmarks.losses import LOSSES
from benchmarks.train_levers import LeverSettings, measure_apart, measure_levers
from benchmarks.train_run import make_dataset
from pipeline.dataset import PackedDataset

RECIPE = """
model = "demo"
hidden_size = 48
intermediate_size = 64
num_layers = 2
seq_len = 64
micro_batch_size = 4
compile = "off"
"""

WITHOUT_PACKAGES = """
import importlib.machinery, runpy, sys
find_spec = importlib.machinery.PathFinder.find_spec
kept = {"numpy", "torch", "torchgen", *sys.stdlib_module_names, "pipeline", "model", "train", "benchmarks", "typing_extensions",
        "sympy", "mpmath", "networkx", "filelock", "fsspec", "jinja2", "markupsafe"}  # torch and what it needs

def find(cls, name, path=None, target=None):
    top = name.split(".")[0]
    return find_spec(name, path, target) if top in kept or top.startswith("_") else None

importlib.machinery.PathFinder.find_spec = classmethod(find)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_made_up_data_is_a_dataset_whose_documents_end_where_it_says(tmp_path):
    dataset = PackedDataset(make_dataset(tmp_path / "data", vocab_size=32_000, num_tokens=50_000), seq_len=256)
    tokens, ends = dataset.samples_with_ends(range(20))
    assert dataset.windows["made"].num_tokens >= 50_000 and tokens.max() < 32_000
    for row, row_ends in zip(tokens, ends, strict=True):
        assert [end for end in row_ends.tolist() if end < 256] == (
            1 + (row[:255] == dataset.eos_id).nonzero()[0]
        ).tolist()


@pytest.mark.parametrize("name", ["ours", "torch", "plain"])
def test_every_way_to_the_loss_gives_the_same_number(name):
    if name == "torch" and not hasattr(torch.nn.functional, "linear_cross_entropy"):
        pytest.skip("torch 2.13 brought linear_cross_entropy")
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(0, 50, (40,), generator=generator)
    targets[3] = -100
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(LOSSES[name](hidden.requires_grad_(), weight, targets).detach(), expected)


@pytest.mark.long
def test_the_table_of_levers_holds_what_was_measured_and_what_stood_in_the_way(tmp_path, monkeypatch, capfd):
    recipe, data = tmp_path / "own.toml", make_dataset(tmp_path / "data", vocab_size=8192, num_tokens=50_000)
    recipe.write_text(RECIPE)
    names = ("attention flash", "all logits at once", "within 24 GB, full")
    monkeypatch.setattr(train_levers, "LEVERS", {name: train_levers.LEVERS[name] for name in names})
    settings = LeverSettings(
        recipe=str(recipe),
        data=data,
        device="cpu",
        accumulation=4,
        steps=2,
        lever_steps=1,
        only=(),
        warmup=1,
        minutes=5,
        json=tmp_path / "x.json",
    )
    figures = measure_levers(settings)
    variants = figures["variants"]
    assert figures == json.loads((tmp_path / "x.json").read_text())
    assert figures["losses"]["ours"]["ms"] > 0
    assert list(variants) == ["recipe", *names]
    assert "'flash' cannot run on cpu here" in variants["attention flash"]["error"]
    assert [variants[name]["micro_batch_size"] for name in ("recipe", *names[1:])] == [4, 4, 1]
    assert all(variants[name]["tokens_per_second"] > 0 for name in ("recipe", *names[1:]))
    output = capfd.readouterr().out
    assert "64 tokens a window, on one cpu" in output and "MFU = tokens/s * " in output


@pytest.mark.long
@pytest.mark.parametrize(
    ("measure", "argument", "error"),
    [
        (os._exit, 3, "the process ended with 3"),
        (time.sleep, 60, "no end within 8 s"),
        (int, "x", "ValueError: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_what_dies_hangs_or_fails_is_a_row_that_says_so(measure, argument, error):
    assert measure_apart(measure, argument, seconds=60 if measure is not time.sleep else 8) == {"error": error}


@pytest.mark.long
def test_the_benchmark_needs_torch_and_numpy_alone():
    command = [sys.executable, "-c", WITHOUT_PACKAGES, str(REPOSITORY / "benchmarks" / "train.py")]
    flags = ["--device", "cpu", "--steps", "5", "--warmup", "1"]
    result = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert "tokens are made up" in result.stdout and "plain PyTorch takes" in result.stdout
