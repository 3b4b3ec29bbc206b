"""The commands beside the training: dry run, ledger, plot, export; each on a real run."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_fixtures import SMALL_MODEL, train, two_sources, write_dataset

from model.config import named_size
from train import export, ledger, plot
from train.config import TrainConfig, load_recipe
from train.main import estimate_memory, estimate_times, main, plot_schedule
from train.manifest import find_checkpoints, read_manifest
from train.metrics import flatten, open_watchers

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_sources(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(data, out, "--steps", "4", "--valid-every", "2") == 0
    return out


def test_a_dry_run_shows_schedule_epochs_memory_and_time_and_trains_nothing(data, tmp_path, capsys):
    flags = ["--data", str(data), "--out", str(tmp_path / "run"), *SMALL_MODEL, "--dry-run"]
    assert main(flags) == 0
    output = capsys.readouterr().out
    assert "1,600 of 256 tokens, 409,600 in all" in output  # the demo's budget
    assert "142.22 epochs, so text is repeated" in output
    assert "lr 5.00e-03 at step 1, 1.00e-02 at step 2, 1.00e-03 at step 1,600" in output
    assert "GiB  in all, estimated" in output and "days at 45% of the dense peak" in output
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_large_recipe_needs_no_gpu_but_refuses_data_that_does_not_fit(data, tmp_path, capsys):
    fitting = write_dataset(tmp_path / "data", {"prose": [[3] * 5000]}, tokenizer="llama2", vocab_size=32_000)
    assert main(["--data", str(fitting), "--recipe", "tinyllama-1.1b", "--dry-run"]) == 0
    assert "1,430,512 of 2,097,152 tokens, 3,000,001,101,824 in all" in capsys.readouterr().out
    assert main(["--data", str(data), "--recipe", "tinyllama-1.1b", "--seq-len", "32", "--dry-run"]) == 1
    assert "wants llama2" in capsys.readouterr().err


@pytest.mark.parametrize(("sharding", "num_parts"), [("full", 8), ("hybrid", 4), ("replicate", 1)])
def test_a_dry_run_counts_memory_as_the_ranks_will_hold_it(data, monkeypatch, capsys, sharding, num_parts):
    for name, number in (("WORLD_SIZE", "8"), ("LOCAL_WORLD_SIZE", "4")):  # two machines
        monkeypatch.setenv(name, number)
    flags = ["--data", str(data), "--recipe", "demo", "--model", "160m", "--seq-len", "32", "--sharding", sharding]
    assert main([*flags, "--tokens-per-step", "2048", "--dry-run"]) == 0
    num_bytes = 16 * replace(named_size("160m"), vocab_size=64).num_parameters() / num_parts
    assert f"memory  {num_bytes / 2**30:7.2f} GiB  weights, gradients, AdamW's moments" in capsys.readouterr().out


def test_the_schedule_is_drawn_as_high_as_it_is():
    lines = plot_schedule(load_recipe("tinyllama-1.1b"))
    assert lines[0].startswith("lr 4.00e-04 |") and lines[7].startswith("lr 5.00e-05 |")
    widths = [line.count("#") for line in lines[:8]]
    assert widths == sorted(widths) and widths[7] > 40  # it falls, and ends at a tenth of the peak


def test_memory_and_time_follow_the_formulas():
    config = load_recipe("tinyllama-1.1b")
    shape = config.model_config(32_000)
    sums, kept = "weights, gradients, AdamW's moments", "gradients of the other ranks' weights, between micro-batches"
    whole, parts = (estimate_memory(config, shape, device=torch.device("cpu"), ranks=ranks) for ranks in (1, 8))
    assert (whole[sums], whole[kept]) == (16 * 1_100_048_384, 0)
    assert (parts[sums], parts[kept]) == (2 * 1_100_048_384, 3.5 * 1_100_048_384)
    single = replace(config, tokens_per_step=2048 * config.micro_batch_size * 8)  # one micro-batch a step
    assert estimate_memory(single, shape, device=torch.device("cpu"), ranks=8)[kept] == 0
    (line, *_) = estimate_times(config, shape, device_name="cpu", ranks=1)
    # 0.45 * 989.4e12 / 7,313,817,600
    assert line.startswith("1 x H200: 60,875 tokens/s, 570.4 days")


@pytest.mark.parametrize(("gib", "num_parts", "kept_gib"), [(24, 8, 0.0), (80, 8, 3.59), (200, 1, 0.0)])
def test_memory_is_counted_as_the_gpu_that_is_here_will_hold_it(monkeypatch, gib, num_parts, kept_gib):
    # 1.1B weights are gathered for each micro-batch, once a step, and whole on each rank: 6.6 GB and 17.6 GB are a tenth.
    monkeypatch.setattr("train.distributed.memory_bytes", lambda device: gib * 2**30)
    config = load_recipe("tinyllama-1.1b")
    weights, kept, *_ = estimate_memory(
        config, config.model_config(32_000), device=torch.device("cuda"), ranks=8
    ).values()
    assert weights == 16 * 1_100_048_384 / num_parts and kept / 2**30 == pytest.approx(kept_gib, abs=0.01)


def test_the_ledger_agrees_with_a_run_and_lists_a_steps_windows(data, finished_run, capsys):
    assert ledger.main([str(finished_run)]) == 0
    manifest = read_manifest(find_checkpoints(finished_run)[-1])
    assert f"samples   as recorded, {manifest.samples_hash}  4 steps, 1,024 tokens" in capsys.readouterr().out
    assert ledger.main([str(finished_run), "--step", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and lines[0].startswith("position 8  ") and "/train/shard-00000.bin document " in lines[0]
    assert ledger.main([str(finished_run), "--step", "5"]) == 1
    assert "the checkpoint has the steps 1 to 4" in capsys.readouterr().err


def test_the_ledger_notices_other_samples_and_another_dataset(data, finished_run, tmp_path, capsys):
    manifest = read_manifest(find_checkpoints(finished_run)[-1])
    dataset = ledger.PackedDataset(data, seq_len=manifest.config["seq_len"], seed=manifest.config["seed"] + 1)
    with pytest.raises(ValueError, match="it was trained on other samples than they say"):
        ledger.check(manifest, dataset)
    other = write_dataset(tmp_path / "data", {"prose": [[3] * 500], "code": [[4] * 500]})
    assert ledger.main([str(finished_run), "--data", str(other)]) == 1
    assert "the run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_the_documents_of_a_sample_are_those_that_it_touches(data, tmp_path, packing):
    dataset = ledger.PackedDataset(data, seq_len=32, packing=packing, cache=tmp_path)
    of_shard = dataset.windows["prose"].ends(0)
    ends = [0, *of_shard.view(0, len(of_shard)).tolist()]
    tokens = dataset.windows["prose"].tokens(0).view(0, ends[-1])
    for sample in range(dataset.num_windows("prose")):
        line = ledger.describe_sample(dataset, "prose", 0, sample)
        name, *parts = line.split("  prose/train/shard-00000.bin document ")
        assert name == f"prose epoch 0 sample {sample}" and parts
        read, done = dataset.window("prose", sample), 0
        for part in parts:  # each piece stands where the line says, the pieces one after the other
            document, first = (int(word) for word in part.split(" from token "))
            start = ends[document] + first
            num_tokens = min(ends[document + 1] - start, 32 - done)
            assert read[done : done + num_tokens].tolist() == tokens[start : start + num_tokens].tolist()
            done += num_tokens
        assert done == 32 or packing == "best-fit"


def test_curves_are_drawn_as_a_picture(finished_run, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    picture = tmp_path / "loss.png"
    assert plot.main([str(finished_run), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    curves = plot.curves_of(plot.read_metrics(finished_run / "metrics.jsonl"))
    assert curves["train"][0] == [256, 512, 768, 1024] and curves["valid code"][0] == [512, 1024]
    assert plot.main([str(tmp_path), "--out", str(picture)]) == 1
    assert "holds no metrics" in capsys.readouterr().err


def test_an_exported_run_computes_in_transformers_what_it_computes_here(finished_run, tmp_path, capsys):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    out = tmp_path / "exported"
    assert export.main([str(finished_run), "--out", str(out)]) == 0
    theirs = transformers.LlamaForCausalLM.from_pretrained(out)
    checkpoint = find_checkpoints(finished_run)[-1]
    ours = export.load_model(checkpoint, read_manifest(checkpoint))
    tokens = torch.arange(3, 35)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), atol=1e-5, rtol=0)
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (1, 2)
    assert json.loads((out / "training.json").read_text())["tokens"] == 1024
    assert export.main([str(finished_run), "--out", str(out)]) == 1
    assert "exists: name a new folder" in capsys.readouterr().err


@pytest.mark.long
def test_metrics_and_traces_reach_tensorboard_and_the_profiler(data, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    flags = ("--checkpoint-every", "10", "--log-to", "tensorboard", "--valid-every", "0")
    assert train(data, out, "--steps", "13", "--profile", "2", *flags) == 0
    shutil.rmtree(find_checkpoints(out)[-1])  # as if killed after step 13: 11 to 13 are done again
    assert train(data, out, "--steps", "15", *flags) == 0
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 16))
    (trace,) = (out / "profile").glob("rank-0.*.json.gz")
    assert trace.stat().st_size > 1000


def read_offline_run(path):
    """The records of a file that wandb wrote offline: LevelDB's log format, blocks of 32 KiB after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 < len(content):
        if 32768 - offset % 32768 < 7:
            offset += 32768 - offset % 32768
            continue
        size, kind = int.from_bytes(content[offset + 4 : offset + 6], "little"), content[offset + 6]
        parts += content[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.long
def test_a_resumed_run_goes_on_in_the_same_run_of_wandb_with_its_settings(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    flags = ("--checkpoint-every", "4", "--log-to", "wandb", "--valid-every", "3")
    assert train(data, out, "--steps", "6", *flags) == 0
    shutil.rmtree(find_checkpoints(out)[-1])  # as if killed after step 6: 5 and 6 are done again
    assert train(data, out, "--steps", "8", *flags) == 0
    steps, identities = [], set()
    for path in sorted(out.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        for record in read_offline_run(path):
            if record.HasField("run"):
                identities.add((record.run.run_id, record.run.display_name))
                settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert settings["learning_rate"] == 1e-2 and settings["recipe"] == "demo"
            if record.HasField("history"):
                found = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                steps.append(int(found["step"]))
                assert ("valid_loss/prose" in found) == (steps[-1] in (3, 6, 8)) and "loss" in found
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    assert identities == {((out / "wandb-id").read_text(), "run")}


def test_only_the_first_rank_writes_metrics_elsewhere(tmp_path):
    config = TrainConfig(out=tmp_path, log_to=("tensorboard", "wandb"))
    with ExitStack() as stack:
        assert open_watchers(config, first_step=1, rank=1, stack=stack) == []
    assert list(tmp_path.iterdir()) == []


def test_a_logger_that_is_not_installed_is_named_with_the_extra(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(data, tmp_path / "run", "--steps", "3", "--log-to", "wandb") == 1
    error = capsys.readouterr().err
    assert "error: --log-to wandb: " in error and "pip install 'tokenmill[log]'" in error


@pytest.mark.long
def test_wandb_without_a_login_names_the_way_without_one(data, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    flags = ["--data", str(data), "--out", str(tmp_path / "run"), *SMALL_MODEL, "--steps", "3", "--log-to", "wandb"]
    result = subprocess.run(
        [sys.executable, str(ROOT / "train" / "main.py"), *flags],
        env=environment | {"HOME": str(tmp_path)},  # its .netrc holds no key
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1 and "or set WANDB_MODE=offline" in result.stderr


def test_inner_numbers_get_their_path_as_a_name():
    assert flatten({"step": 3, "valid_loss": {"prose": 2.0}}) == {"step": 3, "valid_loss/prose": 2.0}
