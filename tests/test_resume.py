"""What a build finds when it starts: another build, files that are gone, cut or changed, folders it may not use."""

import os
import re
import shutil
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from build_fixtures import flags, hashes
from build_process import BuildProcess, many_flags

from pipeline.folders import Folders
from pipeline.ingest import run_ingest
from pipeline.pack import run_pack


class Killed(BaseException):
    """What a test raises where `kill -9` would strike: nobody catches it."""


@contextmanager
def killed_at(monkeypatch, place, *, call=1):
    """In the block, the function of this name dies when it is called for the nth time."""
    module, _, name = place.rpartition(".")
    function, calls = getattr(sys.modules[module], name), []

    def die(*arguments, **named):
        calls.append(arguments)
        if len(calls) == call:
            raise Killed
        return function(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, die)
        yield


def one_worker(raw, out, model, more=""):
    return flags(raw, out, model, f"--workers 1 {more}")


# --- two builds at once


def test_a_build_that_is_refused_leaves_the_folders_of_the_one_at_work(raw, tmp_path, sample_model, run_build):
    folders = Folders(tmp_path / "out", tmp_path / "out/work")
    with folders.locked():
        (tmp_path / "out/work/ingest/web-00000.1.tmp").mkdir(parents=True)
        outcome = run_build(flags(raw, tmp_path / "out", sample_model))
        assert "another build is at work" in outcome.error
        assert (tmp_path / "out/work/ingest/web-00000.1.tmp").is_dir()
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_second_build_names_the_first_and_goes_on_at_once_when_that_is_killed(
    many_raw_files, tmp_path, sample_model, run_build
):
    arguments = many_flags(many_raw_files, tmp_path / "out", sample_model, "--workers 1")
    first = BuildProcess(arguments, tmp_path / "out")
    assert first.wait_for("ingest", 1)
    os.kill(first.process.pid, signal.SIGSTOP)
    second = run_build(arguments)
    first.kill()
    assert second.code == 1
    assert f"another build is at work in {tmp_path}/out: process {first.process.pid} on " in second.error
    third = run_build(arguments)
    assert third.code == 0 and "going on with the unfinished build" in third.out


def test_a_second_build_with_another_work_folder_names_the_first_too(raw, tmp_path, sample_model, run_build):
    folders = Folders(tmp_path / "out", tmp_path / "elsewhere")
    with folders.locked():
        folders.write_holder()
        for more in ("", f"--work {tmp_path}/third"):
            outcome = run_build(one_worker(raw, tmp_path / "out", sample_model, more))
            assert f"at work in {tmp_path}/out: process {os.getpid()} on " in outcome.error
        outcome = run_build(one_worker(raw, tmp_path / "other", sample_model, f"--work {tmp_path}/elsewhere"))
        assert f"at work in {tmp_path}/elsewhere: process {os.getpid()} on " in outcome.error


@pytest.mark.parametrize(("first", "second"), [("", "w"), pytest.param("w", "v", marks=pytest.mark.long)])
def test_an_unfinished_build_says_where_its_work_files_are(
    raw, tmp_path, sample_model, run_build, monkeypatch, first, second
):
    first, second = (f"--work {tmp_path}/{name}" if name else "" for name in (first, second))
    with killed_at(monkeypatch, "pipeline.stages.run_pack", call=3):
        run_build(one_worker(raw, tmp_path / "out", sample_model, first))
    work = tmp_path / "w" if first else tmp_path / "out/work"
    said = f"an unfinished build, whose work files are in {work}: --work {work} goes on with it"
    for more in ("", "--replace"):
        assert said in run_build(one_worker(raw, tmp_path / "out", sample_model, f"{second} {more}")).error
    assert run_build(one_worker(raw, tmp_path / "out", sample_model, f"--work {work}")).code == 0
    assert not work.exists() and not list(tmp_path.rglob("holder.json"))


def test_an_unfinished_build_whose_work_folder_is_gone_says_so(raw, tmp_path, sample_model, run_build, monkeypatch):
    with killed_at(monkeypatch, "pipeline.stages.run_pack", call=3):
        run_build(one_worker(raw, tmp_path / "out", sample_model, f"--work {tmp_path}/w"))
    shutil.rmtree(tmp_path / "w")
    outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert f"whose work files are in {tmp_path}/w, but gone" in outcome.error


def test_an_unfinished_build_may_be_moved(raw, tmp_path, sample_model, run_build, monkeypatch):
    run_build(one_worker(raw, tmp_path / "whole", sample_model))
    leave_unfinished(raw, tmp_path / "out", sample_model, run_build, monkeypatch)
    (tmp_path / "out").rename(tmp_path / "moved")
    outcome = run_build(one_worker(raw, tmp_path / "moved", sample_model))
    assert outcome.code == 0 and "going on" in outcome.out and "done again" not in outcome.out
    assert hashes(tmp_path / "moved") == hashes(tmp_path / "whole")


def test_datasets_of_one_tokenizer_and_of_several_are_not_taken_for_each_other(raw, tmp_path, sample_model, run_build):
    (tmp_path / "twin.model").write_bytes(sample_model.read_bytes())
    models = {"one": sample_model, "two": f"{sample_model},{tmp_path}/twin.model"}
    for name, model in models.items():
        run_build(one_worker(raw, tmp_path / name, model))
    said = "a dataset that these flags do not make (with several tokenizers each has a folder of its own)"
    for name, model in (("one", models["two"]), ("two", models["one"])):
        outcome = run_build(one_worker(raw, tmp_path / name, model))
        assert outcome.code == 1 and said in outcome.error
        assert re.search(rf"{tmp_path}/{name} holds (twin/|small/)?dataset.json, ", outcome.error)


# --- killed between two steps


def test_a_replacement_killed_while_it_removes_or_builds_goes_on(raw, tmp_path, sample_model, run_build, monkeypatch):
    out, again = tmp_path / "out", one_worker(raw, tmp_path / "out", sample_model, "--seed 5 --replace")
    run_build(one_worker(raw, tmp_path / "fresh", sample_model, "--seed 5"))
    run_build(one_worker(raw, out, sample_model))
    unlink = Path.unlink
    with killed_at(monkeypatch, "pipeline.removal.remove_work"), monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, **how: None if path.suffix == ".idx" else unlink(path, **how))
        run_build(again)
    assert list(out.rglob("*.idx")) and not (out / "dataset.json").exists()
    other = run_build(one_worker(raw, out, sample_model, "--seed 7"))
    assert "unfinished build with other settings: seed is 0 there, 7 here" in other.error
    with killed_at(monkeypatch, "pipeline.stages.run_pack", call=2):
        run_build(again)
    with killed_at(monkeypatch, "pipeline.stages.run_pack", call=2):
        run_build(again)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "work/records/ingest").iterdir()}
    with killed_at(monkeypatch, "pipeline.build.write_dataset_json"):
        run_build(again)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert run_build(again).code == 0
    assert hashes(out) == hashes(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("place", "call"),
    [("pipeline.build.write_dataset_json", 2), ("pipeline.build.remove_work", 1), ("shutil.rmtree", 1)],
)
def test_a_build_killed_between_its_last_steps_is_finished_by_the_same_command(
    raw, tmp_path, sample_model, run_build, monkeypatch, place, call
):
    (tmp_path / "twin.model").write_bytes(sample_model.read_bytes())
    models = f"{sample_model},{tmp_path}/twin.model"
    run_build(one_worker(raw, tmp_path / "whole", models))
    with killed_at(monkeypatch, place, call=call):
        run_build(one_worker(raw, tmp_path / "out", models))
    assert run_build(one_worker(raw, tmp_path / "out", models)).code == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_a_build_killed_as_it_begins_leaves_nothing_in_the_way(raw, tmp_path, sample_model, run_build, monkeypatch):
    with killed_at(monkeypatch, "pipeline.output.write_json"):
        run_build(one_worker(raw, tmp_path / "out", sample_model))
    (tmp_path / "out/work").mkdir(parents=True, exist_ok=True)
    (tmp_path / "out/work/plan.json.123.tmp").write_text("{")
    assert run_build(one_worker(raw, tmp_path / "out", sample_model)).code == 0
    assert not (tmp_path / "out/work").exists()


def test_a_build_that_goes_on_copies_no_tokenizer_that_is_there(raw, tmp_path, sample_model, run_build, monkeypatch):
    leave_unfinished(raw, tmp_path / "out", sample_model, run_build, monkeypatch)
    (copy,) = (tmp_path / "out/work/tokenizer").rglob("*.model")
    with killed_at(monkeypatch, "pipeline.stages.run_pack"):
        before = copy.stat().st_ino, copy.stat().st_mtime_ns
        run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert (copy.stat().st_ino, copy.stat().st_mtime_ns) == before
    copy.write_bytes(b"other")
    assert run_build(one_worker(raw, tmp_path / "out", sample_model)).code == 0


# --- files that are gone, cut or changed


def leave_unfinished(raw, out, model, run_build, monkeypatch):
    """An unfinished build: two shards are packed."""
    with killed_at(monkeypatch, "pipeline.stages.run_pack", call=3):
        run_build(one_worker(raw, out, model))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("work/ingest/web-00000/tokens-0.bin", "tokens-0.bin is gone"),
        ("work/dedup/places-00000.kept.bin", "places-00000.kept.bin is gone"),
        ("work/records/drops/web-00000.json", ""),
        ("web/train/shard-00000.docs.parquet", "shard-00000.docs.parquet is gone"),
        ("notes/drops/drops-00000.parquet", "drops-00000.parquet is gone"),
        ("work/tasks.json", ""),
        ("holder.json", ""),
    ],
)
def test_an_unfinished_build_makes_again_what_it_lost(raw, tmp_path, sample_model, run_build, monkeypatch, lost, said):
    run_build(one_worker(raw, tmp_path / "whole", sample_model))
    leave_unfinished(raw, tmp_path / "out", sample_model, run_build, monkeypatch)
    (tmp_path / "out" / lost).unlink()
    outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0 and said in outcome.out and ("done again" in outcome.out) == bool(said)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ("work/ingest/web-00000/documents.bin", "documents.bin has 1 bytes"),
        ("web/train/shard-00000.bin", "shard-00000.bin has 1 bytes"),
        ("work/records/pack/web-train-00000.json", "web-train-00000.json is damaged"),
    ],
)
def test_an_unfinished_build_makes_again_what_was_cut(raw, tmp_path, sample_model, run_build, monkeypatch, cut, said):
    run_build(one_worker(raw, tmp_path / "whole", sample_model))
    leave_unfinished(raw, tmp_path / "out", sample_model, run_build, monkeypatch)
    os.truncate(tmp_path / "out" / cut, 1)
    outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0 and said in outcome.out
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.parametrize(
    "cut", ["web/train/shard-00000.docs.parquet", "notes/drops/drops-00000.parquet", "tokenizer/small.model"]
)
def test_a_finished_dataset_makes_again_what_has_no_size_of_record(raw, tmp_path, sample_model, run_build, cut):
    run_build(one_worker(raw, tmp_path / "out", sample_model))
    before = hashes(tmp_path / "out")
    path = tmp_path / "out" / cut
    path.unlink() if path.suffix == ".model" else os.truncate(path, path.stat().st_size - 1)
    outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0 and path.name in outcome.out and "building it again" in outcome.out
    assert hashes(tmp_path / "out") == before


@pytest.mark.parametrize("tokenizer", ["small", "sample"])
@pytest.mark.parametrize("more", [0, 7])
def test_a_raw_file_that_changes_between_two_runs_is_read_again(
    raw, tmp_path, sample_model, run_build, monkeypatch, tokenizer, more
):
    model = sample_model if tokenizer == "small" else "sample"
    leave_unfinished(raw, tmp_path / "out", model, run_build, monkeypatch)
    path = raw / "notes/n.jsonl"
    path.write_bytes(path.read_bytes().replace(b"mill", b"mull") + b'{"text": "more"}\n' * more)
    outcome = run_build(one_worker(raw, tmp_path / "out", model))
    assert outcome.code == 0 and "raw files of notes have changed" in outcome.out
    said = next(line for line in outcome.out.splitlines() if "done again" in line)
    assert "task notes-00000" in said
    assert ("task web-00000" in said) == (tokenizer == "sample")  # its ids follow from all raw files
    run_build(one_worker(raw, tmp_path / "fresh", model))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


@pytest.mark.parametrize(("more", "changed"), [("", {"notes"}), ("--dedup-priority notes,web", {"notes", "web"})])
def test_shards_are_packed_again_where_their_own_documents_change(
    raw, tmp_path, sample_model, run_build, monkeypatch, more, changed
):
    with killed_at(monkeypatch, "pipeline.build.write_dataset_json"):
        run_build(one_worker(raw, tmp_path / "out", sample_model, more))
    with (raw / "notes/n.jsonl").open("ab") as file:  # a copy of a document of web: one of the two goes
        file.write(max((raw / "web/part-1.jsonl").read_bytes().splitlines(), key=len) + b"\n")
    packed = set()

    def note_and_pack(task):
        packed.add(task.source)
        return run_pack(task)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.run_pack", note_and_pack)
        assert run_build(one_worker(raw, tmp_path / "out", sample_model, more)).code == 0
    run_build(one_worker(raw, tmp_path / "fresh", sample_model, more))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")
    assert packed == changed


def test_a_raw_file_that_grows_while_it_is_read_stops_the_build_once(
    raw, tmp_path, sample_model, run_build, monkeypatch
):
    def read_and_write(task):
        record = run_ingest(task)
        with (raw / "notes/n.jsonl").open("a") as file:
            file.write('{"text": "more"}\n')
        return record

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.begin_ingest", read_and_write)
        outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert outcome.code == 1
    assert f"{raw}/notes/n.jsonl had " in outcome.error and "something writes to it" in outcome.error
    outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0 and "raw files of notes have changed" in outcome.out
    run_build(one_worker(raw, tmp_path / "fresh", sample_model))
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


@pytest.mark.parametrize("seconds", [0, 4_070_908_800])  # 1970 and 2099
def test_clocks_that_are_wrong_change_nothing(raw, tmp_path, sample_model, run_build, monkeypatch, seconds):
    run_build(one_worker(raw, tmp_path / "whole", sample_model))
    leave_unfinished(raw, tmp_path / "out", sample_model, run_build, monkeypatch)
    for path in tmp_path.rglob("*"):
        os.utime(path, (seconds, seconds))
    outcome = run_build(one_worker(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0 and "done again" not in outcome.out
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
