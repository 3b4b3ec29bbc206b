"""Generating: from a run's folder alone, with the tokenizer that it keeps."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_fixtures import write_dataset

from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_training import train_sample_tokenizer
from train.generate import (
    GenerateConfig,
    choose_token,
    find_checkpoint,
    find_tokenizer,
    generate,
    load_model,
)
from train.main import main
from train.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["the cat sat on the mat and the dog sat on the log. "] * 40


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run on a dataset of one sentence, whose dataset is gone."""
    folder = tmp_path_factory.mktemp("generate")
    model_file = folder / "sample.model"
    model_file.write_bytes(train_sample_tokenizer(TEXTS, vocab_size=300))
    tokenizer = load_tokenizer(model_file, engine="reference")
    documents = [tokenizer.encode(text) for text in TEXTS]
    data = write_dataset(folder / "data", {"prose": documents}, vocab_size=tokenizer.vocab_size)
    shutil.copyfile(model_file, data / "tokenizer" / "tokenizer.model")
    flags = "--recipe demo --device cpu --hidden-size 48 --num-layers 2 --seq-len 32 --tokens-per-step 512 --steps 60"
    assert main(["--data", str(data), "--out", str(folder / "run"), *flags.split(), "--learning-rate", "1e-2"]) == 0
    shutil.rmtree(data)
    return folder / "run"


def test_a_trained_model_goes_on_with_what_it_saw(run_folder):
    result = subprocess.run(
        [sys.executable, str(ROOT / "train" / "generate.py"), str(run_folder), "--prompt", "the cat sat",
         "--max-tokens", "24", "--temperature", "0"],
        cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert re.search(r"\nthe cat sat on the mat and the", result.stdout)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint: train one"):
        find_checkpoint(tmp_path, reads_weights=False)


def test_a_prompt_longer_than_the_windows_of_training_is_refused(run_folder):
    checkpoint = find_checkpoint(run_folder, reads_weights=True)
    manifest = read_manifest(checkpoint)
    model = load_model(checkpoint, manifest)
    with pytest.raises(ValueError, match="the prompt has 33 tokens, training had 32 at a time"):
        generate(model, [manifest.first_id, *[5] * 32], manifest=manifest, config=GenerateConfig(run_folder))
    config = GenerateConfig(run_folder, max_tokens=1000, temperature=0)
    assert len(generate(model, [manifest.first_id, *[5] * 30], manifest=manifest, config=config)) <= 1


def test_tokens_are_drawn_from_the_likeliest_alone():
    logits = torch.tensor([0.0, 5.0, 1.0, 4.9])
    generator = torch.Generator().manual_seed(0)
    drawn = {choose_token(logits, temperature=1.0, top_k=2, generator=generator) for _ in range(50)}
    assert drawn == {1, 3}
    assert choose_token(logits, temperature=0, top_k=0, generator=generator) == 1


class Favourites:
    """Stands for a model of 8 ids whose logits are given, one row per token that is asked for."""

    config = SimpleNamespace(num_layers=1)
    embedding = SimpleNamespace(weight=torch.zeros(1))

    def __init__(self, rows):
        self.rows = iter(rows)

    def __call__(self, tokens, *, cache):
        return torch.tensor(next(self.rows)).expand(1, tokens.shape[1], 8)


MANIFEST = SimpleNamespace(dataset={"vocab_size": 6, "eos_id": 2}, config={"seq_len": 32})


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_padded_ids_of_the_vocabulary_are_never_written(temperature):
    model = Favourites([[0.0, 0, 0, 0, 0, 50, 99, 99]] * 3)
    config = GenerateConfig(Path(), max_tokens=3, temperature=temperature)
    assert generate(model, [1], manifest=MANIFEST, config=config) == [5, 5, 5]


def test_writing_ends_where_the_model_ends_the_text():
    model = Favourites([[0.0, 0, 0, 50, 0, 0, 0, 0], [0.0, 0, 50, 0, 0, 0, 0, 0], [0.0, 0, 0, 50, 0, 0, 0, 0]])
    config = GenerateConfig(Path(), max_tokens=3, temperature=0)
    assert generate(model, [1], manifest=MANIFEST, config=config) == [3]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "--temperature must be from 0 to .*, not -0.1"),
        ({"temperature": float("nan")}, "--temperature must be from 0 to .*, not nan"),
        ({"top_k": -1}, "--top-k must be from 0 to .*, not -1"),
        ({"max_tokens": -5}, "--max-tokens must be from 0 to .*, not -5"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"seed": 2**64}, "--seed must be from 0"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_value(setting, message):
    with pytest.raises(ValueError, match=message):
        GenerateConfig(Path(), **setting).check()


def test_a_missing_copy_of_the_tokenizer_is_named(run_folder, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run_folder, moved)
    checkpoint = find_checkpoint(moved, reads_weights=True)
    shutil.rmtree(moved / "tokenizer")
    with pytest.raises(FileNotFoundError, match=r"tokenizer.model is missing: copy it from .*data/tokenizer"):
        find_tokenizer(checkpoint, read_manifest(checkpoint))
