"""Builds from a hub, a bucket and web servers, with faults: the bytes of a build from local copies, or one line."""

import bz2
import json
import lzma
from functools import partial
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from conftest import write_rows
from loopback import AWS_SECRET, Fault, Server, bucket_server
from remote_fixtures import check_same, check_secret, flags, make_texts, read_log

from pipeline.verify import main as verify
from pipeline.web import Patience


def test_a_build_from_the_hub_is_one_from_local_copies(run_build, hub, local_build, sample_model, tmp_path):
    hub.files |= {"name.py": b"raise SystemExit('run')", "more.tar": b"../evil"}  # no script is run, nothing unpacked
    outcome = run_build(flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    assert "8 raw files (2" in outcome.out and f"from hf://datasets/org/name at revision {hub.sha}" in outcome.out
    for name in hub.files:  # each once, and its card never
        assert hub.count(f"/cdn/{name}") == (name not in ("README.md", "name.py", "more.tar"))


def test_a_build_from_a_bucket_is_one_from_local_copies(
    run_build, corpus, local_build, sample_model, tmp_path, monkeypatch
):
    objects = {f"raw/notes/{name}": data for name, data in corpus[1].items()}
    with bucket_server({**objects, "raw/notes/": b"", "other/a.jsonl": b"{}"}, monkeypatch):
        outcome = run_build(flags("s3://corpus/raw/notes/:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    check_secret(AWS_SECRET, outcome, tmp_path / "out")


@pytest.mark.long
def test_a_build_from_a_bucket_of_google_is_one_from_local_copies(
    run_build, corpus, local_build, sample_model, tmp_path, monkeypatch
):
    pytest.importorskip("gcsfs", reason="gs:// needs gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="no emulator of Google's storage")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="corpus")
    server.start()
    try:
        url = f"http://127.0.0.1:{server._api._httpd.server_port}"
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        for name, data in corpus[1].items():
            put = f"{url}/upload/storage/v1/b/corpus/o"
            requests.post(put, params={"uploadType": "media", "name": f"raw/notes/{name}"}, data=data, timeout=10)
        outcome = run_build(flags("gs://corpus/raw/notes:1", tmp_path / "out", sample_model))
    finally:
        server.stop()
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)


@pytest.mark.parametrize("ranges", [True, pytest.param(False, marks=pytest.mark.long)], ids=["ranges", "no ranges"])
def test_a_huge_file_of_parquet_is_read_in_parts_wherever_it_is(run_build, sample_model, tmp_path, monkeypatch, ranges):
    monkeypatch.setattr("pipeline.ingest_plan.SMALLEST_TASK_BYTES", 4000)
    monkeypatch.setattr("pipeline.parquet_rows.FOOTER_BYTES", 100)
    table = pa.table({"text": [*make_texts(1, 300), None]})
    (tmp_path / "notes").mkdir()
    pq.write_table(table, tmp_path / "notes/rows.parquet", row_group_size=20)
    data = (tmp_path / "notes/rows.parquet").read_bytes()
    assert run_build(flags(f"{tmp_path / 'notes'}:1", tmp_path / "local", sample_model)).code == 0
    with Server({"notes/rows.parquet": data, "notes/urls.txt": b"rows.parquet"}, ranges=ranges) as server:
        outcome = run_build(flags(f"{server.url}/notes/urls.txt:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", tmp_path / "local")
    tasks = [
        event
        for event in read_log(tmp_path / "out")
        if (event["event"], event.get("stage")) == ("task finished", "ingest")
    ]
    assert (len(tasks) > 3) == ranges, len(tasks)
    assert sum(asked is None for method, path, asked in server.requests if "rows" in path and method == "GET") <= 3


STALL_SECONDS = 1.0


@pytest.fixture
def impatient(monkeypatch):
    """A stalled server is given up after a fraction of a second instead of half a minute."""
    monkeypatch.setattr("pipeline.raw_sources.Patience", partial(Patience, read_seconds=STALL_SECONDS / 3))


def list_faults(folder):
    """What goes wrong with files below a folder, once each; a stalled or cut body goes on."""
    return [
        Fault(f"{folder}train/plain-0", status=429, headers={"Retry-After": "1"}),
        Fault(f"{folder}train/plain-1", cut=1000),
        Fault(f"{folder}train/plain-2", status=500),
        Fault(f"{folder}train/plain-3", cut=70_000, stall=STALL_SECONDS),
        Fault(f"{folder}train/packed.jsonl.zst", cut=0),
        Fault(f"{folder}validation/few", status=503, headers={"Retry-After": "0"}),
    ]


@pytest.mark.long
def test_a_build_from_the_hub_through_faults_is_one_from_local_copies(
    run_build, hub, impatient, local_build, sample_model, tmp_path
):
    hub.faults = [
        Fault("/api/datasets", status=503),
        Fault("/tree/", status=429, headers={"RateLimit": '"api";r=0;t=1'}),
        Fault("/resolve/", times=2, status=429, headers={"Retry-After": "1"}),
        Fault("/cdn/train/rows.parquet", garble=True),
        *list_faults("/cdn/"),
    ]
    outcome = run_build(flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    assert not any(fault.times for fault in hub.faults)


@pytest.mark.long
def test_a_build_from_a_bucket_through_faults_is_one_from_local_copies(
    run_build, bucket, impatient, local_build, sample_model, tmp_path
):
    bucket.faults = [Fault("/corpus", status=503), *list_faults("/corpus/notes/")]
    outcome = run_build(flags("s3://corpus/notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    assert not any(fault.times for fault in bucket.faults)


def test_a_build_from_urls_through_faults_is_one_from_local_copies(run_build, web, local_build, sample_model, tmp_path):
    web.faults = [
        Fault("plain-0", status=429, headers={"Retry-After": "1"}),
        Fault("plain-1", cut=1000),
        Fault("plain-2", status=500),
        Fault("rows.parquet", cut=10),
        Fault("urls.txt", status=503, headers={"Retry-After": "0"}),
        Fault("plain-3", method="HEAD", status=405),
    ]
    outcome = run_build(flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)
    (fetched,) = [event for event in read_log(tmp_path / "out") if event["event"] == "fetched"]
    assert (fetched["files"], fetched["failures"]) == (8, 5)
    assert fetched["servers_waited_seconds"] >= 1 and fetched["workers_waited_seconds"] > 0


def test_the_second_time_nothing_is_asked_for(run_build, web, local_build, sample_model, tmp_path):
    command = flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model)
    assert run_build(command).code == 0
    web.requests.clear()
    outcome = run_build(command)
    assert (outcome.code, web.requests) == (0, []) and "nothing to do" in outcome.out


@pytest.mark.long
def test_a_small_room_is_never_overrun(run_build, web, local_build, sample_model, tmp_path):
    outcome = run_build(flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model, "--cache-gb 0"))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local_build)


@pytest.mark.long
def test_kept_raw_files_lie_where_a_build_finds_them(run_build, web, local_build, corpus, sample_model, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    command = flags(f"{web.url}/data/notes/urls.txt:1", out, sample_model, f"--keep-raw --raw {raw}")
    assert run_build(command).code == 0
    check_same(out, local_build)
    kept = {path.relative_to(raw / "notes").as_posix(): path.read_bytes() for path in raw.rglob("*.*")}
    assert kept == {name: data for name, data in corpus[1].items() if not name.endswith(".md")}
    web.requests.clear()
    again = flags("notes:1", tmp_path / "again", sample_model, f"--raw {raw}")
    assert run_build(again).code == 0 and web.requests == []
    check_same(tmp_path / "again", local_build)


def test_a_config_of_the_card_chooses_files_and_a_column_the_text(run_build, hub, sample_model, tmp_path):
    rows = [{"content": text} for text in make_texts(5, 20)]
    write_rows(tmp_path / "code/a.jsonl", rows)
    hub.files["sub/code/a.jsonl"] = (tmp_path / "code/a.jsonl").read_bytes()
    card = {"configs": [{"config_name": "code", "data_files": [{"split": "train", "path": "sub/code/*.jsonl"}]}]}
    hub.files["card.json"] = json.dumps(card).encode()
    mix = "hf://org/name?config=code&column=content&name=code:1"
    outcome = run_build(flags(f"'{mix}'", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["sources"]["code"]["raw_files"] == ["sub/code/a.jsonl"]
    assert content["sources"]["code"]["counts"]["read"]["documents"] == 20


def test_the_hubs_own_parquet_copy_has_its_splits_below_a_config(run_build, hub, sample_model, tmp_path):
    for split, number in (("train", 40), ("test", 10)):
        pq.write_table(pa.table({"text": make_texts(number, number)}), tmp_path / "a.parquet")
        hub.files[f"fr/{split}/0000.parquet"] = (tmp_path / "a.parquet").read_bytes()
    outcome = run_build(flags("hf://org/name?config=fr:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["sources"]["name"]["raw_files"] == ["test/0000.parquet", "train/0000.parquet"]
    assert content["sources"]["name"]["splits"]["test"]["documents"] == 10


def test_files_of_the_hub_in_other_packings_are_read_and_a_partial_copy_is_told(
    run_build, run_command, hub, sample_model, tmp_path
):
    texts = make_texts(3, 30)
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    hub.files = {
        "partial-train/a.jsonl.bz2": bz2.compress(b"".join(lines[:10])) + bz2.compress(b"".join(lines[10:20])),
        "partial-train/b.json.xz": lzma.compress(b"".join(lines[20:])),
    }
    outcome = run_build(
        flags("hf://org/name:1", tmp_path / "out", sample_model, f"--keep-raw --raw {tmp_path / 'raw'}")
    )
    assert outcome.code == 0, outcome.error
    assert "partial-train/a.jsonl.bz2 and its like are only the first part of their data" in outcome.out
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["sources"]["name"]["counts"]["read"]["documents"] == 30
    message, said = run_command(verify, tmp_path / "out", "--raw", tmp_path / "raw", "--fraction", 1)
    assert message == "" and "all right" in said


@pytest.mark.long
def test_files_that_are_empty_at_their_origin_are_told_and_left_out(
    run_build, hub, local_build, sample_model, tmp_path
):
    hub.files |= {"train/z.jsonl.zst": b"", "train/z.parquet": b""}
    outcome = run_build(flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    assert "2 files are empty at their origin, and not read: train/z.jsonl.zst, train/z.parquet" in outcome.out
    check_same(tmp_path / "out", local_build)


@pytest.mark.long
@pytest.mark.parametrize("place", ["hub", "urls"])
def test_odd_names_of_files_are_those_of_local_copies(run_build, hub, place, sample_model, tmp_path):
    names = [
        "a b.jsonl",
        "c#d.jsonl",
        "50%.jsonl",
        "p%20q.jsonl",
        "q?r.jsonl",
        "t+u&v=w;x.jsonl",
        "[z]*.jsonl",
        "été/x.jsonl",
    ]
    (tmp_path / "name/été").mkdir(parents=True)
    for number, name in enumerate(names):
        write_rows(tmp_path / "name" / name, [{"text": text} for text in make_texts(number, 5)])
    hub.files = {name: (tmp_path / "name" / name).read_bytes() for name in names}
    assert run_build(flags(f"{tmp_path / 'name'}:1", tmp_path / "local", sample_model)).code == 0
    hub.files |= {"cdn/urls.txt": "\n".join(map(quote, names)).encode()}
    mix = "hf://org/name:1" if place == "hub" else f"{hub.url}/cdn/urls.txt?name=name:1"
    hub.files |= {f"cdn/{name}": hub.files[name] for name in names} if place == "urls" else {}
    hub.find = lambda path: hub.files.get(path.lstrip("/") if place == "urls" else path.removeprefix("/cdn/"))
    del hub.files["cdn/urls.txt" if place == "hub" else "a b.jsonl"]
    outcome = run_build(flags(f"'{mix}'", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", tmp_path / "local")
