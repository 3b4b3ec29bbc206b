"""Checkpoints: found by number, complete or absent, kept or dropped, refused for another run."""

import json
import resource
from dataclasses import replace

import pytest
import torch

import train.checkpoint as checkpoint
from model.config import named_size
from model.transformer import Transformer
from train.checkpoint import Saver, choose_checkpoint, load_weights
from train.config import TrainConfig
from train.distributed import AlikeError, start_ranks, stop_ranks
from train.manifest import Manifest, find_checkpoint, find_checkpoints, list_changes, read_manifest, refuse_other_run
from train.optim import build_optimizer

CONFIG = replace(named_size("demo"), vocab_size=64, hidden_size=24, intermediate_size=32, num_layers=1)
MANIFEST = Manifest(
    step=1, position=8, tokens=128, tokens_per_source={"prose": 128}, dataset={"fingerprint": "ab" * 16},
    skipped=[[0, 4]], samples_hash="cd" * 32, mix={"prose": 1.0}, model=CONFIG.__dict__, config=TrainConfig().as_json(), files={},
)  # fmt: skip


@pytest.fixture
def model():
    start_ranks("cpu")
    model = Transformer(CONFIG, attention_backend="sdpa")
    model.init_weights(0)
    yield model
    stop_ranks(in_order=True)


def save(run_folder, model, step, **settings):
    config = TrainConfig(out=run_folder, keep_checkpoints=2, **settings)
    saver = Saver(config, model=model, optimizer=build_optimizer(model, config), last_step=-1)
    try:
        saver.save(replace(MANIFEST, step=step))
        saver.wait()
    finally:
        saver.close()
    return run_folder / "checkpoints" / f"step-{step:08d}"


def test_the_newest_checkpoint_is_the_largest_number_and_not_the_last_name(tmp_path):
    for step in (999_999_999, 1_000_000_000, 5):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text("{}")
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000005", "step-999999999", "step-1000000000"]


def test_a_folder_without_a_manifest_and_a_temporary_one_are_no_checkpoints(tmp_path):
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000002.tmp").mkdir()
    assert find_checkpoints(tmp_path) == []


def test_only_the_newest_checkpoints_are_kept(tmp_path, model):
    for step in (1, 2, 3):
        save(tmp_path, model, step)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_multiples_of_keep_every_are_kept_for_good(tmp_path, model):
    for step in (2, 3, 4, 5, 6):
        save(tmp_path, model, step, keep_every=2)
    assert [read_manifest(path).step for path in find_checkpoints(tmp_path)] == [2, 4, 5, 6]


def test_what_is_saved_is_the_state_when_it_was_asked_for(tmp_path, model):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    config = TrainConfig(out=tmp_path)
    saver = Saver(config, model=model, optimizer=build_optimizer(model, config), last_step=-1)
    saver.save(MANIFEST)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)  # the next update, while the checkpoint is being written
    saver.wait()
    saver.close()
    again = Transformer(CONFIG, attention_backend="sdpa")
    load_weights(tmp_path / "checkpoints" / "step-00000001", again)
    assert all(torch.equal(a, b) for a, b in zip(before, again.parameters(), strict=True))


def test_a_disk_that_takes_no_more_leaves_the_previous_checkpoint_and_says_what_to_do(tmp_path, model):
    first = save(tmp_path, model, 1)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(
            AlikeError, match=r"step-00000002 could not be written \(rank 0: .*the same command goes on"
        ):
            save(tmp_path, model, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert find_checkpoints(tmp_path) == [first] and choose_checkpoint(tmp_path) == (first, [])


def test_a_save_that_dies_half_way_leaves_the_previous_checkpoint(tmp_path, model, monkeypatch):
    first = save(tmp_path, model, 1)

    def write_half_and_die(state, checkpoint_id, process_group):
        (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.dcp, "save", write_half_and_die)
        save(tmp_path, model, 2)
    assert find_checkpoints(tmp_path) == [first]
    save(tmp_path, model, 2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]


def test_weights_come_back_in_one_process_with_what_the_manifest_says(tmp_path, model):
    folder = save(tmp_path, model, 7)
    manifest = read_manifest(folder)
    assert manifest == replace(MANIFEST, step=7, files=manifest.files)
    again = Transformer(manifest.model_config, attention_backend="sdpa")
    load_weights(folder, again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": MANIFEST.model | {"num_layers": 9}}, "trained with a model with num_layers 1, not 9"),
        ({"dataset": {"fingerprint": "cd" * 16}}, "trained with the dataset (ab){16}, not cdcd"),
        ({"config": MANIFEST.config | {"seed": 5}}, "trained with seed 0, not 5"),
        ({"config": MANIFEST.config | {"document_mask": "off"}}, "trained with document_mask on, not off"),
        ({"mix": {"prose": 0.5, "code": 0.5}}, r"trained with the mix {'prose': 1.0}, not {'prose': 0.5, 'code': 0.5}"),
    ],
)
def test_another_run_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        refuse_other_run(MANIFEST, current=replace(MANIFEST, **change), run_folder="runs/demo")


def cut_short(folder):
    shard = folder / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])


def fill_with_zeros(folder):
    shard = folder / "__0_0.distcp"
    shard.write_bytes(bytes(shard.stat().st_size))


def rename_a_key(folder):
    path = folder / "checkpoint.json"
    path.write_text(path.read_text().replace('"num_layers"', '"layers"'))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "__0_0.distcp is not the .* bytes of the manifest"),
        (
            lambda folder: (folder / "__0_0.distcp").write_bytes(b""),
            "__0_0.distcp is not the .* bytes of the manifest",
        ),
        (fill_with_zeros, "__0_0.distcp is not the .* bytes of the manifest"),
        (lambda folder: (folder / ".metadata").unlink(), ".metadata is missing"),
        (lambda folder: (folder / "checkpoint.json").write_text('{"step": '), "checkpoint.json is not a manifest"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), "checkpoint.json is not a manifest"),
        (rename_a_key, "checkpoint.json does not have the sha256 that it names"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_its_file_and_the_one_before_it_is_used(
    tmp_path, model, damage, message, capsys
):
    folder = save(tmp_path, model, 7)
    damage(folder)
    for path in (folder, tmp_path):
        with pytest.raises(ValueError, match=rf"step-00000007 is damaged, {message}"):
            find_checkpoint(path, reads_weights=True)
    earlier = save(tmp_path, model, 6)
    assert find_checkpoint(tmp_path, reads_weights=True) == earlier
    assert f"step-00000007 is damaged, {message.partition(' ')[0]}" in capsys.readouterr().err
    assert find_checkpoint(tmp_path, reads_weights=False) == folder
    chosen, complaints = choose_checkpoint(tmp_path)
    assert chosen == earlier and len(complaints) == 1 and "step-00000007 is damaged" in complaints[0]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000006",
        "step-00000007.damaged",
    ]


def test_a_checkpoint_of_an_older_format_is_refused_with_both_numbers(tmp_path, model):
    folder = save(tmp_path, model, 7)
    (folder / "checkpoint.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(ValueError, match="has format 1, this code reads 3"):
        read_manifest(folder)


def test_changed_settings_are_listed_but_not_the_text_of_the_mix():
    current = replace(MANIFEST, config=MANIFEST.config | {"learning_rate": 5e-4, "steps": 9, "mix": "prose:1"})
    assert list_changes(MANIFEST, current=current) == ["steps None -> 9", "learning_rate 0.001 -> 0.0005"]
