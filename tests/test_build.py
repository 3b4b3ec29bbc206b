"""The build by its command: nothing lost, the same bytes however it is cut or killed, and clear words for bad input."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from build_fixtures import flags, hashes, read_drops, read_shards
from conftest import write_rows

from pipeline.dataset import read_dataset_json
from pipeline.storage import name_temporary
from pipeline.tokenizer import load_tokenizer


def test_every_row_is_in_a_shard_or_in_drops_with_its_ids(raw, tmp_path, sample_model, run_build):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    content, documents = read_shards(tmp_path / "out")
    drops = read_drops(tmp_path / "out", content)
    tokenizer = load_tokenizer(sample_model, engine="reference")
    kept = {(name, raw_file, row): ids for (name, _, raw_file, row), ids in documents.items()}
    dropped = {(drop["source"], drop["raw_file"], drop["row"]) for drop in drops}
    seen = set()
    for name, source in content["sources"].items():
        for number, path in enumerate(source["raw_files"]):
            for row, line in enumerate((raw / name / path).read_text().splitlines()):
                key, text = (name, number, row), json.loads(line)["text"]
                assert (key in kept) != (key in dropped)
                if key in kept:
                    assert kept[key] == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
                seen.add(key)
    assert seen == kept.keys() | dropped
    reasons = Counter(drop["reason"] for drop in drops if drop["source"] == "notes")
    assert reasons == {"duplicate_exact": 3, "short": 1, "bad_text_null": 1}


def test_counts_balance_and_duplicates_name_the_document_that_stays(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model))
    content, documents = read_shards(tmp_path / "out")
    kept = {(name, raw_file, row) for name, _, raw_file, row in documents}
    for source in content["sources"].values():
        for what in ("documents", "bytes", "tokens"):
            counts = {outcome: count[what] for outcome, count in source["counts"].items()}
            assert counts.pop("read") == sum(counts.values())
    for drop in read_drops(tmp_path / "out", content):
        if drop["reason"] == "duplicate_exact":
            assert (drop["partner_source"], drop["partner_raw_file"], drop["partner_row"]) in kept
            assert drop["similarity"] == 1.0
    assert content["sources"]["notes"]["counts"]["duplicate_exact"]["documents"] == 3


def test_dedup_none_keeps_copies(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model, "--dedup none"))
    counts = read_dataset_json(tmp_path / "out")["sources"]["notes"]["counts"]
    assert (counts["duplicate_exact"]["documents"], counts["kept"]["documents"]) == (0, 43)


@pytest.mark.parametrize(
    "more",
    [
        "--workers 1",
        pytest.param("--workers 3", marks=pytest.mark.long),
        pytest.param("--engine reference", marks=pytest.mark.long),
        pytest.param("--work {}/elsewhere", marks=pytest.mark.long),
    ],
)
def test_the_bytes_do_not_depend_on_how_the_work_is_done(raw, tmp_path, sample_model, run_build, more):
    common = "--shard-tokens 3000"
    assert run_build(flags(raw, tmp_path / "one", sample_model, f"{common} --workers 2")).code == 0
    assert run_build(flags(raw, tmp_path / "two", sample_model, f"{common} {more.format(tmp_path)}")).code == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(read_dataset_json(tmp_path / "one")["sources"]["web"]["splits"]["train"]["shards"]) > 3


def test_small_memory_runs_and_small_dedup_ranges_give_the_same_bytes(
    raw, tmp_path, sample_model, run_build, monkeypatch
):
    run_build(flags(raw, tmp_path / "one", sample_model, "--workers 1"))
    monkeypatch.setattr("pipeline.token_file.RUN_BYTES", 1000)
    monkeypatch.setattr("pipeline.token_file.WRITE_BYTES", 300)
    monkeypatch.setattr("pipeline.pack.READ_BYTES", 400)
    monkeypatch.setattr("pipeline.dedup.DOCUMENTS_PER_TASK", 20)
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 512)
    run_build(flags(raw, tmp_path / "two", sample_model, "--workers 1"))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


@pytest.mark.long
def test_documents_are_shuffled_by_the_seed_and_all_are_there(raw, tmp_path, sample_model, run_build):
    orders = []
    for seed in (0, 1):
        run_build(flags(raw, tmp_path / f"out{seed}", sample_model, f"--seed {seed} --valid-fraction 0"))
        orders.append([key for key in read_shards(tmp_path / f"out{seed}")[1] if key[0] == "web"])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1] != sorted(orders[1])


@pytest.mark.long
def test_a_document_never_moves_between_splits(raw, tmp_path, sample_model, run_build):
    chosen = []
    for number, more in enumerate(["--valid-fraction 0.1", "--valid-fraction 0.2 --seed 7", "--valid-fraction 0.1"]):
        if number == 2:
            (raw / "web/part-1.jsonl").unlink()
        run_build(flags(raw, tmp_path / f"out{number}", sample_model, more))
        _, documents = read_shards(tmp_path / f"out{number}")
        chosen.append({tuple(ids) for (_, split, *_), ids in documents.items() if split == "validation"})
    assert 5 < len(chosen[0]) < len(chosen[1])
    assert chosen[0] < chosen[1]
    assert chosen[2] <= chosen[0]


def test_a_sources_own_validation_files_are_used(tmp_path, sample_model, run_build):
    rows = [{"text": f"document {number}"} for number in range(200)]
    write_rows(tmp_path / "raw/web/train/a.jsonl", rows[:180])
    write_rows(tmp_path / "raw/web/validation/a.jsonl", [*rows[180:], rows[0]])
    assert run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}").code == 0
    splits = read_dataset_json(tmp_path / "out")["sources"]["web"]["splits"]
    # The copy in train goes: validation is never dropped for the sake of train.
    assert (splits["validation"]["documents"], splits["train"]["documents"]) == (21, 179)


def test_the_same_command_again_does_nothing_and_another_is_refused(raw, tmp_path, sample_model, run_build):
    out = tmp_path / "out"
    run_build(flags(raw, out, sample_model))
    before = hashes(out)
    again = run_build(flags(raw, out, sample_model, "--workers 1"))
    assert again.code == 0
    assert "nothing to do" in again.out
    other = run_build(flags(raw, out, sample_model, "--seed 5"))
    assert other.code == 1
    assert "seed is 0 there, 5 here" in other.error
    assert "--replace" in other.error
    assert hashes(out) == before
    write_rows(raw / "web/part-9.jsonl", [{"text": "new"}])
    assert "the raw files of web are not the same" in run_build(flags(raw, out, sample_model)).error
    shutil.rmtree(raw)
    assert "nothing to do" in run_build(flags(raw, out, sample_model)).out
    assert hashes(out) == before


@pytest.mark.long
def test_a_dataset_that_is_not_the_expected_one_is_not_finished(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "one", sample_model))
    content = read_dataset_json(tmp_path / "one")
    outcome = run_build(flags(raw, tmp_path / "two", sample_model, "--seed 1 --expect " + content["content_hash"]))
    assert outcome.code == 1
    assert "this is another dataset" in outcome.error
    assert not (tmp_path / "two/dataset.json").exists()
    for expected in (content["recipe_hash"], content["content_hash"][:12]):
        assert run_build(flags(raw, tmp_path / "three", sample_model, f"--expect {expected}")).code == 0
    assert run_build(flags(raw, tmp_path / "three", sample_model, "--expect 0123")).code == 1


def test_work_files_stay_where_that_is_asked_for(raw, tmp_path, sample_model, run_build):
    for _ in range(2):
        assert run_build(flags(raw, tmp_path / "out", sample_model, "--keep-work")).code == 0
        assert (tmp_path / "out/work/ingest/web-00000/tokens-0.bin").exists()
    run_build(flags(raw, tmp_path / "out", sample_model))
    assert not (tmp_path / "out/work").exists()


def test_other_weights_rebuild_nothing(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model))
    again = run_build(flags(raw, tmp_path / "out", sample_model).replace("web:3", "web:1"))
    assert "nothing to do" in again.out
    assert "give --mix to the trainer" in again.out


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


@pytest.mark.parametrize(
    ("mix", "expected"),
    [
        ("nowhere:1", "nowhere: no raw files in"),
        ("web:-1", "negative"),
        ("web:much", "not a number"),
        ("web:0", "every weight is 0"),
        ("web:1,web:2", "twice"),
        ("work:1", "cannot be called 'work'"),
    ],
)
def test_a_mix_without_a_meaning_is_refused(raw, tmp_path, sample_model, run_build, mix, expected):
    outcome = run_build(f"--mix={mix} --raw {raw} --out {tmp_path}/out --tokenizer {sample_model}")
    assert outcome.code == 1
    assert expected in outcome.error
    assert not (tmp_path / "out").exists()


BROKEN = {
    "cut.jsonl.zst": (b"\x28\xb5\x2f\xfd\x04\x00", "cut.jsonl.zst is cut short near row 0"),
    "not.jsonl.zst": (b"hello", "not.jsonl.zst is not zstd (or damaged) near row 0"),
    "page.jsonl": (b"<html>\n</html>\n", "page.jsonl row 0: bad_json"),
    "other.jsonl": (b'{"body": "x"}\n', "other.jsonl row 0: bad_text_missing"),
    "null.jsonl": (b'{"text": null}\n', "null.jsonl row 0: bad_text_null"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', "half.jsonl row 0: bad_surrogate"),
    "number.jsonl": (b'{"text": 5}\n', "number.jsonl row 0: bad_text_type"),
    "latin.txt": (b"\xe9t\xe9", "latin.txt row 0: bad_utf8"),
    "none.jsonl": (b"", "has no document to keep"),
    "empty.jsonl": (b'{"text": ""}\n', "has no document to keep: 1 rows in 1 files (1 short)"),
    "no.parquet": (b"PAR1", "no.parquet is cut short or not parquet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_raw_file_gets_one_clear_line(tmp_path, sample_model, run_build, name):
    (tmp_path / "raw/web").mkdir(parents=True)
    (tmp_path / "raw/web" / name).write_bytes(BROKEN[name][0])
    outcome = run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}")
    assert outcome.code == 1
    assert BROKEN[name][1] in outcome.error
    assert len(outcome.error.strip().splitlines()) == 1
    assert not (tmp_path / "out/dataset.json").exists()


def test_more_bad_rows_than_allowed_stop_the_build_and_fewer_are_listed(tmp_path, sample_model, run_build):
    write_rows(tmp_path / "raw/web/a.jsonl", [*({"text": f"t{i}"} for i in range(97)), b"{", b"{}", b"[]"])
    command = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}"
    outcome = run_build(command)
    assert outcome.code == 1
    assert "3 of 100 rows are bad (1 bad_json, 1 bad_object, 1 bad_text_missing), more than" in outcome.error
    assert "a.jsonl row 98: bad_text_missing (no field 'text')" in outcome.error
    (listed,) = (tmp_path / "out/web/drops").iterdir()
    assert pq.read_table(listed)["row"].to_pylist() == [97, 98, 99]
    outcome = run_build(f"{command} --max-bad-fraction 0.03")
    assert outcome.code == 0
    content = read_dataset_json(tmp_path / "out")
    reasons = {"bad_json": 1, "bad_text_missing": 1, "bad_object": 1}
    assert content["sources"]["web"]["bad_reasons"] == reasons
    assert Counter(drop["reason"] for drop in read_drops(tmp_path / "out", content)) == reasons


def test_a_source_of_bad_rows_alone_is_stopped_before_all_of_it_is_read(tmp_path, sample_model, run_build, monkeypatch):
    monkeypatch.setattr("pipeline.ingest_plan.SMALLEST_TASK_BYTES", 1)
    for number in range(5):
        write_rows(tmp_path / f"raw/web/{number}.jsonl", [b"{"] * 10)
    outcome = run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1")
    assert outcome.code == 1
    assert "source web: 10 of 10 rows are bad" in outcome.error


def test_an_exclusion_that_cannot_be_told_is_refused_or_said(tmp_path, sample_model, run_build):
    write_rows(tmp_path / "raw/slimpajama/train/chunk1/a.jsonl", [{"text": "a"}, {"text": "b", "meta": {}}])
    common = f"--raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}"
    outcome = run_build(f"--mix slimpajama?exclude=RedPajamaGithub:1 {common}")
    assert "2 documents name no subset" in outcome.out
    write_rows(tmp_path / "raw/redpajama/all.jsonl", [{"text": "a"}])
    outcome = run_build(f"--mix redpajama?exclude=github:1 {common} --replace")
    assert outcome.code == 1
    assert "the path all.jsonl names no subset" in outcome.error


def test_without_raw_files_each_source_says_where_it_can_be_had(tmp_path, run_build):
    outcome = run_build(f"--mix slimpajama:0.7,starcoder:0.3 --raw {tmp_path}/raw --out {tmp_path}/out")
    assert outcome.code == 1
    for expected in ("cerebras/SlimPajama-627B", "bigcode/starcoderdata", "--sample-mb", str(tmp_path / "raw")):
        assert expected in outcome.error
    assert len(outcome.error.splitlines()) < 25


def test_subsets_are_left_out_and_listed(tmp_path, sample_model, run_build):
    names = ["RedPajamaGithub", "RedPajamaC4"] * 10
    rows = [{"text": f"text {i}", "meta": {"redpajama_set_name": name}} for i, name in enumerate(names)]
    write_rows(tmp_path / "raw/slimpajama/train/chunk1/example_train_0.jsonl", rows)
    outcome = run_build(
        f"--mix slimpajama?exclude=RedPajamaGithub:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}"
    )
    assert outcome.code == 0, outcome.error
    content, documents = read_shards(tmp_path / "out")
    assert {row for *_, row in documents} == set(range(1, 20, 2))
    assert content["sources"]["slimpajama"]["counts"]["excluded"]["documents"] == 10
    assert {drop["reason"] for drop in read_drops(tmp_path / "out", content)} == {"excluded"}


def test_min_chars_counts_characters_not_bytes(tmp_path, sample_model, run_build):
    write_rows(tmp_path / "raw/web/a.jsonl", [{"text": "\u00e9" * 4}, {"text": "abcde"}, {"text": "\U0001f600" * 5}])
    run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --min-chars 5")
    _, documents = read_shards(tmp_path / "out")
    assert {row for *_, row in documents} == {1, 2}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_full_disk_is_named_and_the_build_goes_on_once_there_is_room(
    small_disk, raw, tmp_path, sample_model, run_build, workers
):
    run_build(flags(raw, tmp_path / "whole", sample_model))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * ((8 << 20) - 40_000 * workers**4))  # room for 40 kB, or for 640 kB
    common = f"--work {small_disk}/work --workers {workers}"
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, common))
    assert outcome.code == 1
    assert f"{small_disk}/work" in outcome.error
    assert "No space left on device. What was finished is kept: free some space" in outcome.error
    filler.unlink()
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, common))
    assert outcome.code == 0, outcome.error
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert list(small_disk.rglob("*")) == []


def test_a_vocabulary_beyond_uint16_is_stored_in_four_bytes(tmp_path, run_build):
    import base64

    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [first + second for first in ranks for second in ranks]
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))
    (tmp_path / "wide.tiktoken").write_bytes(lines)
    write_rows(tmp_path / "raw/web/a.jsonl", [{"text": "some text"}])
    outcome = run_build(
        f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {tmp_path}/wide.tiktoken --valid-fraction 0"
    )
    assert outcome.code == 0, outcome.error
    assert "do not fit into uint16" in outcome.out
    content, documents = read_shards(tmp_path / "out")
    assert content["dtype"] == "uint32"
    assert next(iter(documents.values()))[-1] == 65_792


@pytest.mark.parametrize(
    "wrong", ["--workers 0", "--shard-tokens 0", "--valid-fraction 2", "--max-bad-fraction -1", "--sample-mb -3"]
)
def test_numbers_without_a_meaning_are_refused(raw, tmp_path, sample_model, run_build, wrong):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, wrong))
    assert outcome.code == 1
    assert not (Path(tmp_path) / "out").exists()
