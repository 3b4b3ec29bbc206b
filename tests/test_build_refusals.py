"""Builds that cannot be: mixes, numbers and raw files without a meaning, and full disks, each in one clear line."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from build_fixtures import flags, hashes, read_drops
from conftest import write_rows

from pipeline.dataset import read_dataset_json


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
    assert "a.jsonl row 98: bad_text_missing (no field 'text'; --mix names the one" in outcome.error
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
    own = run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer gpt2")
    assert "looked for: jsonl, json, ndjson, txt, csv or tsv (each also .zst, " in own.error


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


@pytest.mark.parametrize(
    "wrong", ["--workers 0", "--shard-tokens 0", "--valid-fraction 2", "--max-bad-fraction -1", "--sample-mb -3"]
)
def test_numbers_without_a_meaning_are_refused(raw, tmp_path, sample_model, run_build, wrong):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, wrong))
    assert outcome.code == 1
    assert not (Path(tmp_path) / "out").exists()
