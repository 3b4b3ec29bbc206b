"""The trainer as a user runs it: loss, resume, ranks, refusals."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loopback import Server
from train_fixtures import (
    SMALL_MODEL,
    counting_documents,
    keep_only_step,
    losses_of,
    train,
    two_sources,
    weights_of,
    write_dataset,
)

from pipeline.dataset import PackedDataset
from pipeline.storage import locked
from train.config import load_recipe
from train.main import main, read_config, refuse_cpu
from train.manifest import find_checkpoints, read_manifest
from train.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_sources(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(data, out, "--steps", "8", "--checkpoint-every", "3", "--keep-checkpoints", "5") == 0
    return out


def test_the_loss_falls_and_the_metrics_say_what_was_trained_on(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--steps", "40", "--valid-every", "20") == 0
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 41))
    assert records[0]["loss"] > 4 and records[-1]["loss"] < 0.7 * records[0]["loss"]
    assert {"step", "loss", "lr", "tokens", "tokens_per_second", "grad_norm", "data_seconds"} <= records[0].keys()
    assert records[-1]["tokens"] == 40 * 256 == sum(records[-1]["tokens_per_source"].values())
    assert records[19]["valid_loss"].keys() == {"prose", "code"} and "valid_loss" not in records[20]
    output = capsys.readouterr().out
    assert f"loss    {records[0]['loss']:.4f} at step 1  ->  " in output and "at step 40 (mean of the last 5)" in output


def test_utilization_is_of_the_dense_peak_of_a_known_gpu(data, tmp_path, monkeypatch, finished_run):
    monkeypatch.setattr("train.loop.device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    assert train(data, tmp_path / "run", "--steps", "3", "--valid-every", "0") == 0
    flops = read_manifest(find_checkpoints(tmp_path / "run")[-1]).model_config.flops_per_token(32)
    for record in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert record["mfu"] == pytest.approx(record["tokens_per_second"] * flops / 312e12)
    assert "mfu" not in read_metrics(finished_run / "metrics.jsonl")[0]  # on a CPU


def test_a_source_with_too_little_validation_text_is_left_out_and_named(tmp_path, capsys):
    sources = {name: counting_documents(60, seed=seed) for seed, name in enumerate(("prose", "code", "verse"))}
    validation = {"prose": counting_documents(20, seed=3), "code": [[3, 4, 5]]}
    data = write_dataset(tmp_path / "data", sources, validation=validation)
    assert train(data, tmp_path / "run", "--steps", "3") == 0
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["valid_loss"].keys() == {"prose"}
    output = capsys.readouterr().out
    assert "valid   not on code: 5 validation tokens hold no window of 33" in output
    assert "valid   not on verse: 0 validation tokens hold no window of 33" in output


def test_a_run_folder_holds_its_settings_and_its_tokenizer(finished_run):
    settings = json.loads((finished_run / "config.json").read_text())
    assert settings["steps"] == 8 and settings["recipe"] == "demo"
    assert (finished_run / "tokenizer" / "tokenizer.model").read_bytes() == b"a tokenizer"
    assert [read_manifest(path).step for path in find_checkpoints(finished_run)] == [3, 6, 8]


def test_a_resumed_run_equals_one_that_never_stopped_bit_for_bit(data, finished_run, tmp_path):
    resumed = keep_only_step(finished_run, 3, tmp_path / "resumed")
    assert train(data, resumed, "--steps", "8") == 0
    assert losses_of(resumed) == losses_of(finished_run)
    assert all(torch.equal(a, b) for a, b in zip(weights_of(resumed), weights_of(finished_run), strict=True))
    manifests = [read_manifest(find_checkpoints(run)[-1]) for run in (resumed, finished_run)]
    assert manifests[0].tokens_per_source == manifests[1].tokens_per_source
    assert manifests[0].position == 8 * 8


def test_a_finished_run_says_so_and_succeeds(data, finished_run, capsys):
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    assert train(data, finished_run, "--steps", "7") == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def test_another_micro_batch_changes_the_loss_by_rounding_alone(data, finished_run, tmp_path):
    assert train(data, tmp_path / "run", "--steps", "8", "--micro-batch-size", "2") == 0
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(finished_run), rel=1e-4)


def test_without_a_recipe_a_cpu_takes_the_demo_and_names_the_one_for_a_gpu(tmp_path, capsys):
    data = write_dataset(
        tmp_path / "data", {"prose": counting_documents(60, seed=0)}, tokenizer="llama2", vocab_size=32_000
    )
    flags = ["--data", str(data), "--out", str(tmp_path / "run"), *SMALL_MODEL[2:], "--device", "cpu", "--steps", "3"]
    assert main(flags) == 0
    assert "recipe demo: there is no GPU; on one this data would take tinyllama-1.1b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--recipe", "litellama-460m"],
            "has tokenizer sample, vocabulary 64, document rule bos+eos, recipe litellama-460m wants gpt2, 50257, eos",
        ),
        (["--document-rule", "eos"], "has document rule bos+eos, recipe demo wants eos"),
        (["--tokenizer", "sample", "--vocabulary", "65"], "has vocabulary 64, recipe demo wants 65"),
        (["--recipe", "demos"], "there is no recipe 'demos': did you mean 'demo'"),
        (["--micro-batch-size", "3"], "tokens_per_step 256 is not a multiple"),
        (["--mix", "prose:1,verse:1"], "has no source 'verse'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_a_failure(data, tmp_path, capsys, flags, message):
    assert train(data, tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_large_model_on_a_cpu_says_how_long_it_would_take_and_goes_on_only_when_asked():
    config = load_recipe("tinyllama-1.1b")
    shape = config.model_config(32_000)
    with pytest.raises(ValueError, match=r"1,100M parameters and needs a GPU.* about [\d,]+ years.*--device cpu"):
        refuse_cpu(config, shape, device_type="cpu")
    refuse_cpu(replace(config, device="cpu"), shape, device_type="cpu")
    refuse_cpu(config, shape, device_type="cuda")


def test_a_recipes_warmup_gives_way_to_a_shorter_run_and_one_that_was_asked_for_does_not(data, tmp_path, capsys):
    at = SMALL_MODEL.index("--warmup-steps")
    flags = [*SMALL_MODEL[:at], *SMALL_MODEL[at + 2 :], "--data", str(data), "--dry-run"]
    for tokens, warmup in (("--steps", "5"), 0), (("--steps", "10"), 1), (("--tokens", "2816"), 10):
        config, _ = read_config([*flags, *tokens])
        config.check()
        assert config.warmup_steps == warmup
    assert main([*flags, "--steps", "5", "--warmup-steps", "7"]) == 1
    output = capsys.readouterr()
    assert "warmup  0 steps, not 10: the run has 5" in output.out
    assert "warmup_steps 7 must be fewer than steps 5" in output.err


def test_a_recipe_with_a_point_in_its_name_has_a_folder_of_that_name(tmp_path):
    assert read_config(["--recipe", "tinyllama-1.1b"])[0].out == Path("runs/tinyllama-1.1b")
    own = tmp_path / "own-0.5b.toml"
    own.write_text('model = "demo"', encoding="utf-8")
    assert read_config(["--recipe", str(own)])[0].out == Path("runs/own-0.5b")


def test_the_settings_of_a_run_are_printed(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--steps", "3", "--dry-run") == 0
    printed = capsys.readouterr().out.split()
    assert {"seq_len=32", "steps=3", "learning_rate=0.01", "document_mask=on", "betas=[0.9,"} <= set(printed)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "use a smaller --micro-batch-size or --activation-checkpointing",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "use a smaller --micro-batch-size"),
        (RuntimeError("gloo: Connection closed by peer [::1]"), "another rank has ended"),
    ],
)
def test_what_ends_a_run_is_one_line_with_advice(data, tmp_path, capsys, monkeypatch, error, advice):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("train.main.train", fail)
    assert train(data, tmp_path / "run", "--steps", "3") == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and advice in message and message.count("\n") == 1


def test_an_error_that_nobody_knows_keeps_its_traceback(data, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("train.main.train", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(data, tmp_path / "run", "--steps", "3")


def test_a_missing_dataset_names_the_build_command(tmp_path, capsys):
    assert train(tmp_path / "nowhere", tmp_path / "run") == 1
    assert "python pipeline/build.py" in capsys.readouterr().err


def test_a_run_folder_of_another_dataset_is_refused(finished_run, tmp_path, capsys):
    other = write_dataset(tmp_path / "data", {"prose": counting_documents(60, seed=9), "code": [[3] * 200]})
    assert train(other, finished_run, "--steps", "9") == 1
    assert "was trained with the dataset" in capsys.readouterr().err


def test_another_mix_is_refused_and_the_same_one_is_taken_however_it_is_given(data, finished_run, tmp_path, capsys):
    for mix in ("prose:3,code:1", "prose:1"):
        assert train(data, finished_run, "--steps", "9", "--mix", mix) == 1
        assert "was trained with the mix {'prose': 0.5, 'code': 0.5}, not" in capsys.readouterr().err
    resumed = keep_only_step(finished_run, 6, tmp_path / "resumed")
    assert train(data, resumed, "--steps", "8", "--mix", "code:2,prose:2") == 0
    assert losses_of(resumed) == losses_of(finished_run)


def test_a_resumed_run_names_each_changed_setting(data, finished_run, tmp_path, capsys):
    resumed = keep_only_step(finished_run, 6, tmp_path / "resumed")
    flags = ("--steps", "8", "--checkpoint-every", "3", "--keep-checkpoints", "5")
    assert train(data, resumed, *flags, "--learning-rate", "5e-3", "--grad-clip", "2") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed")]
    assert "changed learning_rate 0.01 -> 0.005" in lines and "changed grad_clip 1.0 -> 2.0" in lines
    assert len(lines) == 2


def test_a_changed_document_mask_is_refused(data, finished_run, capsys):
    assert train(data, finished_run, "--steps", "9", "--document-mask", "off") == 1
    assert "was trained with document_mask on, not off" in capsys.readouterr().err


def test_a_run_resumes_only_with_the_packing_and_shuffle_that_it_began_with(
    data, finished_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for flag, value in (("--packing", "best-fit"), ("--shuffle", "block")):
        assert train(data, finished_run, "--steps", "9", flag, value) == 1
        assert f"was trained with {flag[2:]} {'concat' if flag == '--packing' else 'global'}, not {value}" in (
            capsys.readouterr().err
        )


def test_a_run_that_would_read_a_source_too_often_is_refused_before_it_begins(data, tmp_path, capsys):
    # 45 windows of prose and 46 of code, half of the samples each: 11 steps of 8 samples read 44 of each.
    for limit in ("1", "prose:1,code:7"):
        assert train(data, tmp_path / "run", "--steps", "12", "--max-epochs", limit) == 1
        error = capsys.readouterr().err
        assert f"max_epochs {limit} ends the data after 11 steps, the run has 12: use --steps 11, or" in error
    assert not (tmp_path / "run").exists()
    for limit, expected in (("two", "must be a number, or source:number"), ("verse:1", "'verse', which is not in")):
        assert train(data, tmp_path / "run", "--max-epochs", limit) == 1
        assert expected in capsys.readouterr().err
    assert train(data, tmp_path / "run", "--packing", "best-fit", "--document-mask", "off") == 1
    assert "packing best-fit needs --document-mask on" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(data, finished_run, tmp_path, capsys):
    resumed = tmp_path / "resumed"
    shutil.copytree(finished_run, resumed)
    newest, manifestless = find_checkpoints(resumed)[-1], find_checkpoints(resumed)[-2]
    (newest / "__0_0.distcp").write_bytes(b"")
    (manifestless / "checkpoint.json").write_text("{")
    assert train(data, resumed, "--steps", "8") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged")]
    assert [name in line for name, line in zip((newest.name, manifestless.name), lines, strict=True)] == [True, True]
    assert losses_of(resumed) == losses_of(finished_run)


def test_without_a_whole_checkpoint_nothing_is_trained_over_them(data, finished_run, tmp_path, capsys):
    resumed = keep_only_step(finished_run, 3, tmp_path / "resumed")
    (find_checkpoints(resumed)[0] / "__0_0.distcp").write_bytes(b"")
    metrics = (resumed / "metrics.jsonl").read_bytes()
    for _ in range(2):  # a scheduler may try again
        assert train(data, resumed, "--steps", "8") == 1
        error = capsys.readouterr().err
        assert "is whole" in error and "step-00000003 is damaged, __0_0.distcp" in error and error.count("\n") == 1
    assert (resumed / "metrics.jsonl").read_bytes() == metrics


def test_a_run_folder_takes_one_run_at_a_time_and_the_next_when_that_is_gone(data, tmp_path, capsys):
    with locked(tmp_path / "run" / "run", waits=False):
        assert train(data, tmp_path / "run", "--steps", "3") == 1
    error = capsys.readouterr().err
    assert "error: another run is training into" in error and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".run.lock"]
    assert train(data, tmp_path / "run", "--steps", "3", "--valid-every", "0") == 0


def test_storage_without_locks_is_trained_into_all_the_same(data, tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    assert train(data, tmp_path / "run", "--steps", "3", "--valid-every", "0") == 0


def test_a_folder_that_cannot_be_written_is_found_before_the_model_is_built(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.run.build_model", pytest.fail)
    (tmp_path / "file").write_bytes(b"")
    for out, cause in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        assert train(data, out, "--steps", "3") == 1
        error = capsys.readouterr().err
        assert f"{out} cannot be written: " in error and cause in error and error.count("\n") == 1


def test_a_run_says_how_often_it_reads_each_source_and_what_it_never_reads(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--steps", "20", "--mix", "prose:3,code:1") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("source")]
    dataset = PackedDataset(data, seq_len=32)
    prose, code = (dataset.windows[source] for source in ("prose", "code"))
    assert lines == [  # 20 steps of 8 samples, 120 of prose and 40 of code
        f"source  prose  share 0.75  {prose.num_windows} windows  {120 / prose.num_windows:.2f} epochs, so text is"
        f" repeated  {prose.num_unread_tokens} tokens in tails not read",
        f"source  code  share 0.25  {code.num_windows} windows  {40 / code.num_windows:.2f} epochs"
        f"  {code.num_unread_tokens} tokens in tails not read",
    ]
    assert 40 < code.num_windows < 120 and prose.num_windows < 120


def test_a_recipes_device_counts_unless_a_flag_says_otherwise(tmp_path):
    recipe = tmp_path / "own.toml"
    recipe.write_text('device = "cpu"\nmodel = "3b"\n')
    config, device_type = read_config(["--recipe", str(recipe)])
    assert (config.device, device_type) == ("cpu", "cpu")
    config, device_type = read_config(["--recipe", str(recipe), "--device", "auto"])
    assert config.device == "auto"
    recipe.write_text('device = "cuda"\n')
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU here"):
            read_config(["--recipe", str(recipe)])


@pytest.mark.parametrize(
    ("flags", "values"),
    [(["--help"], ["0.004", "warmup"]), (["--recipe", "tinyllama-1.1b", "-h"], ["0.0004", "3000001101824", "2097152"])],
)
def test_help_shows_the_values_of_the_recipe(flags, values, capsys):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert all(f"{value}" in output for value in values)


def test_threads_that_the_user_chose_are_left_alone(data, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert train(data, tmp_path / "run", "--steps", "3", "--valid-every", "0") == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.long
def test_a_run_on_a_dataset_that_lies_elsewhere_is_one_on_a_local_copy(
    data, finished_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with Server({f"packed/{name}": content for name, content in files.items()}) as server:
        address = f"{server.url}/packed"
        assert train(address, tmp_path / "run", "--steps", "8", "--checkpoint-every", "3") == 0
    assert losses_of(tmp_path / "run") == losses_of(finished_run)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == address
    assert f"data    {address}" in capsys.readouterr().out
