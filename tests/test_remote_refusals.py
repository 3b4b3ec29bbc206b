"""Builds from elsewhere that cannot go on say so in one line, without a secret; and go on once they can."""

import re
import shutil

import pytest
from build_fixtures import hashes
from loopback import AWS_SECRET, TOKEN, Fault
from remote_fixtures import check_same, check_secret, flags


def test_a_bucket_that_refuses_or_changes_is_one_line(run_build, bucket, sample_model, tmp_path):
    command = flags("s3://corpus/notes:1", tmp_path / "out", sample_model)
    bucket.faults = [Fault("/corpus/notes/train/rows.parquet", times=9, status=403)]
    outcome = run_build(command)
    assert outcome.code == 1 and "\n" not in outcome.error
    assert "train/rows.parquet may not be read with these credentials" in outcome.error
    assert "Signature" not in outcome.error
    check_secret(AWS_SECRET, outcome, tmp_path / "out")
    bucket.faults, bucket.find = [], lambda path: b"another content"
    outcome = run_build(command)
    assert outcome.code == 1 and "\n" not in outcome.error
    assert "it has changed since it was listed" in outcome.error


def test_a_gated_repository_says_what_to_do_and_a_token_opens_it(
    run_build, hub, local_build, sample_model, tmp_path, monkeypatch
):
    hub.gated = True
    command = flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model)
    outcome = run_build(command)
    assert outcome.code == 1
    assert "access is gated. Accept the terms at" in outcome.error and "hf auth login" in outcome.error
    assert "\n" not in outcome.error and not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    outcome = run_build(command)
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    check_secret(TOKEN, outcome, tmp_path / "out")


def test_other_bytes_than_listed_are_one_line_and_the_token_is_in_no_work_file(
    run_build, hub, sample_model, tmp_path, monkeypatch
):
    hub.gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults = [Fault("/cdn/train/plain-3", times=9, garble=True)]
    outcome = run_build(flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 1 and "\n" not in outcome.error
    assert "notes: train/plain-3.jsonl: its bytes are sha256:" in outcome.error
    check_secret(TOKEN, outcome, tmp_path / "out")


@pytest.mark.parametrize(
    ("mix", "said"),
    [
        ("hf://org/other:1", "there is no such data set, or it is private or gated"),
        ("hf://org/name@v9:1", "no such data set|knows no revision|404"),
        ("hf://org/name/nowhere:1", "there are no files|404"),
        ("hf://org/name?config=fr:1", "no such config, nor a folder of that name; it has none by its card"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(mix, said, run_build, hub, sample_model, tmp_path):
    outcome = run_build(flags(mix, tmp_path / "out", sample_model))
    assert outcome.code == 1 and not (tmp_path / "out").exists()
    assert re.search(said, outcome.error), outcome.error


def test_a_hub_without_raw_files_leads_to_its_parquet_copy(run_build, hub, sample_model, tmp_path):
    hub.files = {"a.xml": b"<text/>", "script.py": b"raise SystemExit"}
    outcome = run_build(flags("hf://org/name:1", tmp_path / "out", sample_model))
    assert outcome.code == 1 and "none of its 2 files is a raw file" in outcome.error
    assert outcome.error.endswith("Try the hub's own copy in parquet: @refs/convert/parquet")


def test_a_file_that_changes_while_it_is_built_stops_with_one_line(run_build, web, sample_model, tmp_path):
    web.faults = [Fault("plain-2", times=99, method="HEAD", status=405)]
    web.etags["data/notes/train/plain-2.jsonl"] = "first"
    original = web.find_etag
    asked = []

    def find_etag(path, data):
        if "plain-2" in path:
            asked.append(path)
            return "first" if len(asked) == 1 else "second"
        return original(path, data)

    web.find_etag = find_etag
    outcome = run_build(flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model))
    assert outcome.code == 1 and "\n" not in outcome.error
    assert "notes: train/plain-2.jsonl: it has changed since it was listed" in outcome.error
    assert "What was finished is kept" in outcome.error


def test_a_disk_that_is_full_while_files_are_fetched_is_named_and_the_build_goes_on(
    run_build, web, local_build, small_disk, sample_model, tmp_path
):
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (7 << 20))  # what is left is less than one of the files
    command = flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model, f"--work {small_disk}/work")
    outcome = run_build(command)
    assert outcome.code == 1 and "\n" not in outcome.error
    assert f"notes: {small_disk}/work/raw/notes/" in outcome.error  # whichever file comes to the end of it first
    assert outcome.error.count("No space left on device. What was finished is kept: free some space") == 1
    filler.unlink()
    outcome = run_build(command)
    assert outcome.code == 0, outcome.error
    assert hashes(tmp_path / "out") == hashes(local_build)


def test_secrets_in_urls_are_written_nowhere_and_a_restart_knows_them(
    run_build, web, local_build, sample_model, tmp_path
):
    lines = web.files["data/notes/urls.txt"].decode().replace("plain-1.jsonl", "plain-1.jsonl?sig=hush")
    web.files["data/notes/urls.txt"] = lines.encode()
    address = web.url.replace("http://", "http://user:hush@")
    command = flags(f"'{address}/data/notes/urls.txt?token=hush&name=notes:1'", tmp_path / "out", sample_model)
    web.faults = [Fault("plain-3", times=9, garble=True), Fault("plain-3", times=9, cut=9, status=404)]
    outcome = run_build(command)
    assert outcome.code == 1
    check_secret("hush", outcome, tmp_path / "out")
    web.faults = []
    web.requests.clear()
    outcome = run_build(command)
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    check_secret("hush", outcome, tmp_path / "out")
    assert web.count("urls.txt") == 1 and web.count("", method="HEAD") == 0


@pytest.mark.parametrize(
    "mix",
    [
        "http://me:hush@host/urls.txt?sig=hush",
        "http://me:hush@host/urls.txt?sig=hush&name=web:x",
        "http://me:hush@/urls.txt?sig=hush:1",
        "ftp://me:hush@host/urls.txt:1",
        "http://me:hush@host:99/web/urls.txt?sig=hush&name=web:1,,",
        "http://me:hush@host/web/urls.txt?config=en&sig=hush:1",
    ],
)
def test_a_mix_that_is_refused_is_shown_without_its_secrets(run_build, tmp_path, mix):
    outcome = run_build(f"--mix '{mix}' --out {tmp_path / 'out'}")
    assert outcome.code == 1 and "error: " in outcome.error and "hush" not in outcome.error + outcome.out


def test_half_fetched_raw_files_are_not_taken_for_a_source(run_build, corpus, sample_model, tmp_path):
    shutil.copytree(corpus[0], tmp_path / "raw/notes")
    (tmp_path / "raw/notes/train/z.jsonl.0123abcd.part").write_bytes(b"{")
    outcome = run_build(flags("notes:1", tmp_path / "out", sample_model, f"--raw {tmp_path / 'raw'}"))
    assert outcome.code == 1 and "is half fetched" in outcome.error
