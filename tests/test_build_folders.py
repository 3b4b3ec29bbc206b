"""What a build may write and remove: its own files alone, whoever built, was killed or builds now in the same folders."""

import os

import pytest
from build_fixtures import flags, hashes

from pipeline.storage import name_temporary


def test_work_files_stay_where_that_is_asked_for(raw, tmp_path, sample_model, run_build):
    for _ in range(2):
        assert run_build(flags(raw, tmp_path / "out", sample_model, "--keep-work")).code == 0
        assert (tmp_path / "out/work/ingest/web-00000/tokens-0.bin").exists()
    run_build(flags(raw, tmp_path / "out", sample_model))
    assert not (tmp_path / "out/work").exists()


@pytest.mark.long
def test_replace_starts_over(raw, tmp_path, sample_model, run_build):
    out = tmp_path / "out"
    run_build(flags(raw, out, sample_model))
    run_build(flags(raw, tmp_path / "fresh", sample_model, "--seed 5"))
    assert run_build(flags(raw, out, sample_model, "--seed 5 --replace")).code == 0
    assert hashes(out) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("place", ["out/notes.txt", "out/web/notes.txt", "out/web/train/notes.txt", "out/work/mine"])
def test_replace_removes_nothing_where_a_file_is_not_its_own(raw, tmp_path, sample_model, run_build, place):
    run_build(flags(raw, tmp_path / "out", sample_model))
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    before = hashes(tmp_path / "out")
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, "--seed 5 --replace"))
    assert outcome.code == 1
    assert f"holds {place.removeprefix('out/')}, which no build of ours made" in outcome.error
    assert hashes(tmp_path / "out") == before


def test_replace_does_not_take_another_json_for_a_dataset(raw, tmp_path, sample_model, run_build):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    (tmp_path / "out").mkdir()
    for content in ('{"sources": ["../precious"]}', "[1]", '{"format": "tokenmill dataset", "format_version": 1}'):
        (tmp_path / "out/dataset.json").write_text(content)
        for more in ("--replace", ""):
            outcome = run_build(flags(raw, tmp_path / "out", sample_model, more))
            assert outcome.code == 1
            assert "dataset.json" in outcome.error
        assert (tmp_path / "out/dataset.json").read_text() == content
    assert (tmp_path / "precious/file").exists()


def test_replace_leaves_anothers_work_and_the_tokenizer_that_it_needs(raw, tmp_path, sample_model, run_build):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/plan.json").write_text('{"datasets": {}, "out": "/elsewhere", "tokenizer_files": {}}')
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, f"--work {tmp_path}/work --replace"))
    assert "belongs to the build of /elsewhere" in outcome.error
    assert (tmp_path / "work/plan.json").exists()
    run_build(flags(raw, tmp_path / "out", sample_model))
    own = tmp_path / "out/tokenizer/small.model"
    outcome = run_build(flags(raw, tmp_path / "out", own, "--seed 4 --replace"))
    assert "would remove the tokenizer" in outcome.error
    assert own.exists()


@pytest.mark.parametrize("work", ["out", "", "out/web"])
def test_the_work_folder_must_be_its_own(raw, tmp_path, sample_model, run_build, work):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, f"--work {tmp_path / work}"))
    assert outcome.code == 1
    assert "must be a folder of its own" in outcome.error
    inside = run_build(flags(raw, raw / "web/out", sample_model))
    assert "lies in the raw files of web" in inside.error


def test_a_second_build_in_the_same_folder_refuses_and_names_the_first(raw, tmp_path, sample_model, run_build):
    from pipeline.folders import Folders

    folders = Folders(tmp_path / "out", tmp_path / "out/work")
    with folders.locked():
        folders.write_holder()
        outcome = run_build(flags(raw, tmp_path / "out", sample_model))
    assert outcome.code == 1
    assert f"another build is at work in {tmp_path}/out: process {os.getpid()}" in outcome.error
    assert run_build(flags(raw, tmp_path / "out", sample_model)).code == 0


def test_a_folder_with_other_files_is_never_built_into(raw, tmp_path, sample_model, run_build):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    for more in ("", "--replace"):
        outcome = run_build(flags(raw, tmp_path / "out", sample_model, more))
        assert outcome.code == 1
        assert "holds thesis.tex, which no build of ours made" in outcome.error
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["thesis.tex"]


def test_an_unfinished_build_goes_on_and_repeats_only_what_is_missing(
    raw, tmp_path, sample_model, run_build, monkeypatch
):
    run_build(flags(raw, tmp_path / "whole", sample_model, "--workers 1"))
    out = tmp_path / "out"
    dedup = [
        "dedup_stages.run_copies",
        *(f"near_stages.run_{stage}" for stage in ("marks", "band", "estimate", "judge", "resolve")),
        "dedup_stages.run_dedup",
    ]
    for stage in ("stages.begin_ingest", *dedup, "stages.run_drops", "stages.run_pack"):
        with monkeypatch.context() as patch:
            module, name = stage.split(".")
            function = getattr(__import__(f"pipeline.{module}", fromlist=[name]), name)
            calls = []

            def fail_at_second(task, function=function, calls=calls, module=module):
                calls.append(task.name)
                if len(calls) == 2 or module.endswith("_stages"):
                    raise OSError(28, "No space left on device", "disk")
                return function(task)

            patch.setattr(f"pipeline.{stage}", fail_at_second)
            outcome = run_build(flags(raw, out, sample_model, "--workers 1"))
            assert outcome.code == 1
            assert "disk: No space left on device" in outcome.error
            assert not (out / "dataset.json").exists()
    other = run_build(flags(raw, out, sample_model, "--seed 3"))
    assert "unfinished build with other settings: seed is 0 there, 3 here" in other.error
    assert run_build(flags(raw, out, sample_model, "--workers 1")).code == 0
    assert hashes(out) == hashes(tmp_path / "whole")


def test_what_a_dead_worker_left_half_written_is_not_in_the_dataset(
    raw, tmp_path, sample_model, run_build, monkeypatch
):
    from pipeline.stages import run_pack

    def die_and_try_again(task):
        half = name_temporary(tmp_path / "out" / task.shard)
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half")
        return run_pack(task)

    run_build(flags(raw, tmp_path / "whole", sample_model, "--workers 1"))
    monkeypatch.setattr("pipeline.stages.run_pack", die_and_try_again)
    assert run_build(flags(raw, tmp_path / "out", sample_model, "--workers 1")).code == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.long
def test_replace_removes_what_a_killed_build_left_half_written(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model))
    half = [name_temporary(tmp_path / "out/web/train/shard-00009.bin") for _ in range(2)]
    assert half[0] != half[1]  # in one process too: another machine may have a process of the same number
    for path in half:
        path.touch()
    assert run_build(flags(raw, tmp_path / "out", sample_model, "--replace")).code == 0
    assert not list((tmp_path / "out").rglob("*.tmp"))
