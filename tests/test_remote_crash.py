"""Builds from a hub, a bucket and a web server that are killed while they fetch and ingest: the same bytes in the end."""

import os
import random
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from build_process import BuildProcess, checksums
from conftest import write_rows
from loopback import Fault, FaultyBucket, Hub, Server, bucket_server

from pipeline.web import CHUNK_BYTES

LAST_DELAY_SECONDS = 0.1
KILLS = ("fetch", "ingest", "fetch", "ingest")
INGEST_TASKS = 7


@dataclass
class Place:
    """Raw files on a server. address: of a folder in a mix. is_listing: whether a request (method, path) lists files."""

    server: Server
    address: str
    files: str
    is_listing: Callable[[str, str], bool]

    def name_mix(self, *names):
        return ",".join(f"{self.address.format(name=name)}?name={name}:1" for name in names)

    def count_listings(self):
        return sum(self.is_listing(method, path) for method, path, _ in self.server.requests)

    def count_fetched(self):
        return self.server.count(self.files)


@contextmanager
def serve_hub(files, monkeypatch):
    with Hub(files) as server:
        server.PAGE = 1000
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        yield Place(server, "hf://org/name/{name}", "/cdn/", lambda _, path: "/tree/" in path)


@contextmanager
def serve_bucket(files, monkeypatch):
    objects = {f"raw/{name}": data for name, data in files.items()}
    with bucket_server(objects, monkeypatch) as client, FaultyBucket(os.environ["AWS_ENDPOINT_URL"], client) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield Place(server, "s3://corpus/raw/{name}", "/corpus/raw/", lambda _, path: path.rstrip("/") == "/corpus")


@contextmanager
def serve_web(files, monkeypatch):
    lists = {}
    for name in files:
        lists.setdefault(f"{name.split('/')[0]}/urls.txt", []).append(name.partition("/")[2])
    files = {**files, **{path: "\n".join(lines).encode() for path, lines in lists.items()}}
    with Server({f"v1/{name}": data for name, data in files.items()}) as server:
        yield Place(
            server,
            f"{server.url}/v1/{{name}}/urls.txt",
            "/v1/",
            lambda method, path: method == "HEAD" or "urls.txt" in path,
        )


SERVERS = {"hub": serve_hub, "bucket": serve_bucket, "web": serve_web}


@pytest.fixture(params=SERVERS)
def serve(request, monkeypatch):
    """A function that puts files on a server of a kind, each kind in turn."""
    return lambda files: SERVERS[request.param](files, monkeypatch)


def read_files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def build(mix, out, model):
    flags = f"--mix {mix} --out {out} --tokenizer {model} --max-bad-fraction 0.1 --shard-tokens 25000 --workers 1"
    return BuildProcess(flags, out)


def build_here(folder, out, model):
    """The bytes of a dataset that is built from a folder itself."""
    mix = ",".join(f"{path}:1" for path in sorted(folder.iterdir()))
    code, _, error = build(mix, out, model).finish()
    assert code == 0, error
    return checksums(out)


@pytest.fixture(scope="module")
def many_here(many_raw_files, tmp_path_factory, sample_model):
    return build_here(many_raw_files, tmp_path_factory.mktemp("many") / "out", sample_model)


@pytest.mark.long
def test_a_build_killed_in_the_middle_of_a_file_goes_on_from_its_last_byte(serve, sample_model, tmp_path):
    folder, out = tmp_path / "raw", tmp_path / "out"
    rows = [{"text": f"water {number} " * 20, "padding": "x" * 50_000 * (number > 9)} for number in range(50)]
    write_rows(folder / "web/small.jsonl", rows[:10])
    write_rows(folder / "web/z-large.jsonl", rows)
    here = build_here(folder, tmp_path / "here", sample_model)
    with serve(read_files(folder)) as place:
        place.server.faults = [Fault(f"{place.files}web/z-large", cut=1_500_000, stall=60)]
        process = build(place.name_mix("web"), out, sample_model)
        parts = out / "work/raw/web"
        assert process.wait_until(lambda: any(one.stat().st_size == CHUNK_BYTES for one in parts.glob("z-large*.part")))
        process.kill()
        place.server.faults.clear()
        place.server.requests.clear()
        code, _, error = build(place.name_mix("web"), out, sample_model).finish()
        assert code == 0, error
        assert checksums(out) == here
        asked = [(path.rpartition("/")[2], start) for method, path, start in place.server.requests if method == "GET"]
        assert ("z-large.jsonl", f"bytes={CHUNK_BYTES}-") in asked and ("z-large.jsonl", None) not in asked
        assert place.count_listings() == 0


def wait_for_moment(process, place, rng, stage):
    """Wait for a moment of fetching or ingest, drawn by rng; returns whether the build still runs then."""
    if stage == "fetch":
        wanted = place.count_fetched() + rng.randrange(1, 300)
        process.wait_until(lambda: place.count_fetched() >= wanted)
    else:
        process.wait_for("ingest", rng.randrange(INGEST_TASKS))
    moment = time.monotonic() + rng.uniform(0, LAST_DELAY_SECONDS)
    return process.wait_until(lambda: time.monotonic() > moment)


@pytest.mark.long
@pytest.mark.parametrize("seed", [1])
def test_a_build_killed_at_any_moment_of_fetching_and_ingest_ends_with_the_same_bytes(
    seed, serve, many_raw_files, many_here, sample_model, tmp_path
):
    out, rng, num_kills = tmp_path / "out", random.Random(seed), 0
    with serve(read_files(many_raw_files)) as place:
        mix = place.name_mix("code", "web")
        for stage in KILLS:
            process = build(mix, out, sample_model)
            if not wait_for_moment(process, place, rng, stage):
                break
            process.kill()
            num_kills += 1
        code, _, error = build(mix, out, sample_model).finish()
        assert code == 0, error
        assert checksums(out) == many_here and not (out / "work").exists()
    assert num_kills >= 2
