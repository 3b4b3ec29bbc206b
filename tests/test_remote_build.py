"""Builds from a hub, a bucket and web servers, with faults: the bytes of a build from local copies, or one line."""

import bz2
import gzip
import json
import lzma
import os
import random
import re
import shutil
from functools import partial
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import zstandard
from build_fixtures import hashes
from build_process import BuildProcess
from conftest import write_rows
from loopback import AWS_SECRET, TOKEN, Fault, FaultyBucket, Hub, Server, bucket_server

from pipeline.verify import main as verify
from pipeline.web import Patience

WORDS = ["mill", "stone", "grain", "water", "wheel", "flour", "sack", "weir", "été", "x=1", "</s>", "🌾"]


def make_texts(seed, number):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for _ in range(number)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Raw files of every kind, with rows that are bad and texts that are there twice: the folder, and path -> bytes."""
    folder = tmp_path_factory.mktemp("corpus") / "notes"
    for number in range(4):
        texts = make_texts(number, 40)
        padding = "x" * 50_000 * (number == 3)  # a file of more than a chunk
        rows = [{"text": text, "meta": {"n": 1, "padding": padding}} for text in [*texts, texts[0]]]
        write_rows(folder / f"train/plain-{number}.jsonl", rows)
    lines = (folder / "train/plain-0.jsonl").read_bytes()
    (folder / "train/packed.jsonl.zst").write_bytes(zstandard.compress(lines + b"{\n"))
    (folder / "train/more").mkdir()
    (folder / "train/more/packed.json.gz").write_bytes(gzip.compress(lines[:2000].rpartition(b"\n")[0], mtime=0))
    pq.write_table(pa.table({"text": make_texts(9, 50), "id": range(50)}), folder / "train/rows.parquet")
    write_rows(folder / "validation/few.jsonl", [{"text": text} for text in make_texts(11, 10)])
    (folder / "README.md").write_text("not a raw file")
    return folder, {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def flags(mix, out, model, more=""):
    return f"--mix {mix} --out {out} --tokenizer {model} --max-bad-fraction 0.1 --workers 1 {more}"


@pytest.fixture(scope="module")
def local(corpus, tmp_path_factory, sample_model):
    """The dataset that is built from the folder itself."""
    out = tmp_path_factory.mktemp("local") / "out"
    code, _, error = BuildProcess(flags(f"{corpus[0]}:1", out, sample_model), out).finish()
    assert code == 0, error
    return out


def read_log(out):
    return [json.loads(line) for line in (out / "build-log.jsonl").read_text().splitlines()]


def check_secret(secret, outcome, *folders):
    """That a secret is in nothing that was said or written."""
    written = [path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 3 and secret.encode() not in b"".join(written)
    assert secret not in outcome.out + outcome.error


def check_same(out, local):
    assert hashes(out) == hashes(local)
    assert not (out / "work").exists()


@pytest.fixture
def hub(corpus, monkeypatch):
    with Hub(corpus[1]) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        yield server


@pytest.fixture
def web(corpus):
    names = [name for name in corpus[1] if not name.endswith(".md")]
    files = {f"data/notes/{name}": corpus[1][name] for name in names}
    urls = "# the list\n\n" + "".join(f"{name}\n" for name in names)
    with Server({**files, "data/notes/urls.txt": urls.encode()}) as server:
        yield server


def test_a_build_from_the_hub_is_one_from_local_copies(run_build, hub, local, sample_model, tmp_path):
    hub.files |= {"name.py": b"raise SystemExit('run')", "more.tar": b"../evil"}  # no script is run, nothing unpacked
    outcome = run_build(flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local)
    assert "8 raw files (2" in outcome.out and f"from hf://datasets/org/name at revision {hub.sha}" in outcome.out
    for name in hub.files:  # each once, and its card never
        assert hub.count(f"/cdn/{name}") == (name not in ("README.md", "name.py", "more.tar"))


def test_a_build_from_a_bucket_is_one_from_local_copies(run_build, corpus, local, sample_model, tmp_path, monkeypatch):
    objects = {f"raw/notes/{name}": data for name, data in corpus[1].items()}
    with bucket_server({**objects, "raw/notes/": b"", "other/a.jsonl": b"{}"}, monkeypatch):
        outcome = run_build(flags("s3://corpus/raw/notes/:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local)
    check_secret(AWS_SECRET, outcome, tmp_path / "out")


@pytest.mark.long
def test_a_build_from_a_bucket_of_google_is_one_from_local_copies(
    run_build, corpus, local, sample_model, tmp_path, monkeypatch
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
    check_same(tmp_path / "out", local)


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
    run_build, hub, impatient, local, sample_model, tmp_path
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
    check_same(tmp_path / "out", local)
    assert not any(fault.times for fault in hub.faults)


@pytest.fixture
def bucket(corpus, monkeypatch):
    objects = {f"notes/{name}": data for name, data in corpus[1].items()}
    with (
        bucket_server(objects, monkeypatch) as client,
        FaultyBucket(os.environ["AWS_ENDPOINT_URL"], client) as server,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.mark.long
def test_a_build_from_a_bucket_through_faults_is_one_from_local_copies(
    run_build, bucket, impatient, local, sample_model, tmp_path
):
    bucket.faults = [Fault("/corpus", status=503), *list_faults("/corpus/notes/")]
    outcome = run_build(flags("s3://corpus/notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local)
    assert not any(fault.times for fault in bucket.faults)


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


def test_a_build_from_urls_through_faults_is_one_from_local_copies(run_build, web, local, sample_model, tmp_path):
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
    check_same(tmp_path / "out", local)
    (fetched,) = [event for event in read_log(tmp_path / "out") if event["event"] == "fetched"]
    assert (fetched["files"], fetched["failures"]) == (8, 5)
    assert fetched["servers_waited_seconds"] >= 1 and fetched["workers_waited_seconds"] > 0


def test_the_second_time_nothing_is_asked_for(run_build, web, local, sample_model, tmp_path):
    command = flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model)
    assert run_build(command).code == 0
    web.requests.clear()
    outcome = run_build(command)
    assert (outcome.code, web.requests) == (0, []) and "nothing to do" in outcome.out


@pytest.mark.long
def test_a_small_room_is_never_overrun(run_build, web, local, sample_model, tmp_path):
    outcome = run_build(flags(f"{web.url}/data/notes/urls.txt:1", tmp_path / "out", sample_model, "--cache-gb 0"))
    assert outcome.code == 0, outcome.error
    check_same(tmp_path / "out", local)


@pytest.mark.long
def test_kept_raw_files_lie_where_a_build_finds_them(run_build, web, local, corpus, sample_model, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    command = flags(f"{web.url}/data/notes/urls.txt:1", out, sample_model, f"--keep-raw --raw {raw}")
    assert run_build(command).code == 0
    check_same(out, local)
    kept = {path.relative_to(raw / "notes").as_posix(): path.read_bytes() for path in raw.rglob("*.*")}
    assert kept == {name: data for name, data in corpus[1].items() if not name.endswith(".md")}
    web.requests.clear()
    again = flags("notes:1", tmp_path / "again", sample_model, f"--raw {raw}")
    assert run_build(again).code == 0 and web.requests == []
    check_same(tmp_path / "again", local)


def test_a_gated_repository_says_what_to_do_and_a_token_opens_it(
    run_build, hub, local, sample_model, tmp_path, monkeypatch
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
    check_same(tmp_path / "out", local)
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
    run_build, web, local, small_disk, sample_model, tmp_path
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
    assert hashes(tmp_path / "out") == hashes(local)


def test_secrets_in_urls_are_written_nowhere_and_a_restart_knows_them(run_build, web, local, sample_model, tmp_path):
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
    check_same(tmp_path / "out", local)
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


@pytest.mark.long
def test_files_that_are_empty_at_their_origin_are_told_and_left_out(run_build, hub, local, sample_model, tmp_path):
    hub.files |= {"train/z.jsonl.zst": b"", "train/z.parquet": b""}
    outcome = run_build(flags("hf://org/name?name=notes:1", tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    assert "2 files are empty at their origin, and not read: train/z.jsonl.zst, train/z.parquet" in outcome.out
    check_same(tmp_path / "out", local)


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


def test_half_fetched_raw_files_are_not_taken_for_a_source(run_build, corpus, sample_model, tmp_path):
    shutil.copytree(corpus[0], tmp_path / "raw/notes")
    (tmp_path / "raw/notes/train/z.jsonl.0123abcd.part").write_bytes(b"{")
    outcome = run_build(flags("notes:1", tmp_path / "out", sample_model, f"--raw {tmp_path / 'raw'}"))
    assert outcome.code == 1 and "is half fetched" in outcome.error
