"""A dataset goes to a hub or a bucket, and is read from there: the same bytes, or one line."""

import pickle
import re
import shutil
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from build_fixtures import hashes
from build_process import BuildProcess, many_flags
from conftest import REPOSITORY, write_rows
from loopback import Fault, Server, WritableHub, bucket_server
from reader_fixtures import random_documents, split_documents, write_dataset

from pipeline.dataset import PackedDataset
from pipeline.publish import main
from pipeline.remote_dataset import bring, find_folder, open_remote
from pipeline.shard import find_lost_files, read_dataset_json
from pipeline.web import Patience


@pytest.fixture(scope="module")
def built(tmp_path_factory, sample_model):
    """A small dataset of two sources."""
    folder = tmp_path_factory.mktemp("published")
    for source in ("web", "code"):
        write_rows(folder / f"raw/{source}/a.jsonl", [{"text": f"{source} {n} " * 30} for n in range(80)])
    flags = many_flags(folder / "raw", folder / "out", sample_model, "--shard-tokens 3000 --workers 1")
    code, _, error = BuildProcess(flags, folder / "out").finish()
    assert code == 0, error
    return folder / "out"


@pytest.fixture
def publish(run_command):
    return partial(run_command, main)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # this server speaks LFS alone
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    with WritableHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def read_all(folder):
    dataset = PackedDataset(folder, seq_len=16)
    return np.array(dataset.samples(range(0, len(dataset), 7)))


def bring_all(folder):
    for source in read_dataset_json(folder)["sources"].values():
        for shard in (shard for split in source["splits"].values() for shard in split["shards"]):
            for ending in (".bin", ".bin.index", ".docs.parquet"):
                bring((folder / shard["path"]).with_suffix(ending))


@pytest.mark.long
def test_a_dataset_goes_to_the_hub_and_is_read_from_there(publish, hub, built, tmp_path):
    message, out = publish(built, "hf:org/name")
    assert message == "" and "hf://datasets/org/name holds the dataset" in out
    wanted = {name: data for name, data in hashes(built).items() if not name.startswith("work/")}
    assert {name: data for name, data in hub.files.items() if name != "README.md"} == wanted
    assert hub.commits[-1] == ["README.md", "dataset.json"]
    assert "| web | train |" in hub.files["README.md"].decode()
    folder = open_remote("hf://org/name", cache=tmp_path)
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "dataset.json",
        "origin.json",
    ]
    hub.requests.clear()
    bring_all(folder)
    assert np.array_equal(read_all(folder), read_all(built))
    assert hub.count("/tree/") <= len(wanted)  # one listing, of a few pages
    assert open_remote("hf://org/name", cache=tmp_path) == folder


@pytest.mark.long
def test_the_same_command_sends_what_is_missing_alone(publish, hub, built):
    publish(built, "hf://org/name")
    lost = next(name for name in hub.files if name.endswith(".bin"))
    del hub.files[lost], hub.files["dataset.json"]
    hub.commits.clear()
    assert publish(built, "hf://org/name")[0] == ""
    assert hub.commits == [[lost], ["dataset.json"]]
    assert hub.titles[-2:] == [f"Add {lost}", "Add dataset.json"]
    hub.commits.clear()
    assert publish(built, "hf://org/name")[0] == "" and hub.commits == []


@pytest.mark.long
def test_a_dataset_goes_to_a_bucket_and_is_read_from_there(publish, built, tmp_path, monkeypatch):
    with bucket_server({}, monkeypatch) as client:
        assert publish(built, "s3://corpus/packed")[0] == ""
        before = {one["Key"]: one["LastModified"] for one in client.list_objects_v2(Bucket="corpus")["Contents"]}
        message, out = publish(built, "s3://corpus/packed")
        assert message == "" and f"{len(before) - 2} of {len(before) - 2} files are there already" in out
        folder = open_remote("s3://corpus/packed", cache=tmp_path)
        bring_all(folder)
        assert np.array_equal(read_all(folder), read_all(built))


@pytest.mark.parametrize(
    ("target", "keys", "said"),
    [
        pytest.param(
            "s3://corpus/packed",
            True,
            "s3://corpus/packed: no answer of the bucket .* given up after 5 attempts",
            marks=pytest.mark.long,
        ),
        ("s3://corpus/packed", False, "s3://corpus/packed: there are no credentials"),
        ("hf://org/name", True, "hf://datasets/org/name: no answer of the hub"),
    ],
)
def test_a_place_that_does_not_answer_is_one_line(publish, built, target, keys, said, tmp_path, monkeypatch):
    server = Server({})
    server.http.server_close()
    monkeypatch.setattr("pipeline.publish_places.Patience", partial(Patience, wait=lambda _: None))
    for name in ("AWS_ENDPOINT_URL", "HF_ENDPOINT"):
        monkeypatch.setenv(name, server.url)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x") if keys else monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    message, _ = publish(built, target)
    assert re.search(said, message) and "\n" not in message


@pytest.mark.long
def test_a_bucket_that_is_not_there_is_one_line(publish, built, monkeypatch):
    with bucket_server({}, monkeypatch):
        assert "s3://nowhere/packed: The specified bucket does not exist" in publish(built, "s3://nowhere/packed")[0]


@pytest.mark.parametrize(
    "there", [b'{"content_hash": "0123"}', *(pytest.param(one, marks=pytest.mark.long) for one in (b"[]", b"{"))]
)
def test_a_place_with_another_dataset_is_refused_before_anything_is_sent(publish, hub, built, there, monkeypatch):
    hub.files["dataset.json"] = there
    assert "hf://datasets/org/name holds another dataset" in publish(built, "hf://org/name")[0]
    assert hub.commits == [] and hub.files == {"dataset.json": there}
    with bucket_server({"packed/dataset.json": there}, monkeypatch) as client:
        assert "s3://corpus/packed holds another dataset" in publish(built, "s3://corpus/packed")[0]
        assert len(client.list_objects_v2(Bucket="corpus")["Contents"]) == 1


def test_a_file_that_changed_is_refused(built, tmp_path):
    files = {f"packed/{name}": data for name, data in hashes(built).items()}
    with Server(files) as server:
        folder = open_remote(f"{server.url}/packed", cache=tmp_path)
        shard = read_dataset_json(folder)["sources"]["web"]["splits"]["train"]["shards"][0]["path"]
        server.faults = [Fault(shard, cut=100)]
        bring(folder / shard)
        assert (folder / shard).read_bytes() == files[f"packed/{shard}"]
        data = files[f"packed/{shard}"]
        server.files[f"packed/{shard}"] = data[:-2] + bytes([data[-2] ^ 1, data[-1]])
        (folder / shard).unlink()
        with pytest.raises(ValueError, match="dataset.json says .*: it was changed"):
            bring(folder / shard)
        assert not (folder / shard).exists()


@pytest.fixture
def many_shards(tmp_path, monkeypatch):
    """A dataset of 40 shards here, and on a server that has its address."""
    here = write_dataset(tmp_path / "here", {"web": split_documents(random_documents(1000, seed=1), 40)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server({f"packed/{name}": data for name, data in hashes(here).items()}) as server:
        yield here, server


def list_shards(dataset):
    return {path.name for path in dataset.path.rglob("*.bin")}


def test_shards_come_before_the_reader_wants_them_but_not_all_for_one_sample(many_shards):
    here, server = many_shards
    dataset, local = (PackedDataset(path, seq_len=16) for path in (f"{server.url}/packed", here))
    assert np.array_equal(dataset.sample(5), local.sample(5))
    dataset.ahead.finish()
    assert 1 <= len(list_shards(dataset)) <= 2  # of the sample, and of as many after it
    assert np.array_equal(dataset.read(8), local.read(8))
    dataset.ahead.finish()
    there = list_shards(dataset)
    wanted = {local.windows["web"].paths[shard].name for shard in find_shards(local, range(16))}
    assert there >= wanted and len(there) < 40
    server.files.clear()
    assert np.array_equal(dataset.read(8), local.read(8))  # all of it is there


def find_shards(dataset, positions):
    located = dataset.locate(positions)
    return {int(dataset.windows["web"].locate(0, located.samples[[row]])[0][0]) for row in range(len(located.samples))}


def test_a_copy_in_another_process_fetches_by_threads_of_its_own(many_shards):
    here, server = many_shards
    dataset, local = (PackedDataset(path, seq_len=16) for path in (f"{server.url}/packed", here))
    dataset.read(4)
    copied = pickle.loads(pickle.dumps(dataset))
    dataset.ahead.finish()
    assert np.array_equal(copied.samples(range(100, 130)), local.samples(range(100, 130)))
    copied.ahead.finish()
    assert copied.ahead.num_read == 30


def test_a_reader_meets_what_those_ahead_of_it_could_not_fetch(many_shards):
    here, server = many_shards
    dataset = PackedDataset(f"{server.url}/packed", seq_len=16)
    lost = sorted(find_shards(dataset, range(20)))[0]
    path = dataset.windows["web"].paths[lost].relative_to(dataset.path)
    del server.files[f"packed/{path}"]
    with pytest.raises(ValueError, match=rf"{path.name}: the server answers 404"):
        dataset.samples(range(20))


READ_ALL = """
import sys; sys.path.insert(0, {root!r})
from pipeline.dataset import PackedDataset
dataset = PackedDataset(sys.argv[1], seq_len=16)
for start in range(0, len(dataset) - 8, 8):
    dataset.samples_with_ends(range(start, start + 8))
"""


def start_reader(address):
    code = READ_ALL.format(root=str(REPOSITORY))
    return subprocess.Popen([sys.executable, "-c", code, address], stderr=subprocess.PIPE, text=True)


@pytest.mark.long
def test_ranks_of_a_machine_fetch_each_file_once(many_shards):
    _, server = many_shards
    readers = [start_reader(f"{server.url}/packed") for _ in range(3)]
    for reader in readers:
        assert (reader.communicate(timeout=60)[1], reader.returncode) == ("", 0)
    asked = [path for method, path, _ in server.requests if method == "GET"]
    assert len(asked) == len(set(asked)) == 81  # 40 shards with the ends of their documents, and dataset.json


@pytest.mark.long
def test_a_reader_that_is_killed_while_it_fetches_does_not_stop_the_others(many_shards):
    here, server = many_shards
    server.faults = [Fault(".bin", times=99, cut=100, stall=30)]
    killed = start_reader(f"{server.url}/packed")
    deadline = time.monotonic() + 30
    while not server.count(".bin") and time.monotonic() < deadline:
        time.sleep(0.01)
    other = start_reader(f"{server.url}/packed")
    killed.kill()
    server.faults.clear()
    assert (other.communicate(timeout=60)[1], other.returncode) == ("", 0)
    killed.communicate()


def test_a_dataset_opens_by_its_address_and_fetches_the_shards_that_it_reads(built, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server({f"packed/{name}": data for name, data in hashes(built).items()}) as server:
        dataset = PackedDataset(f"{server.url}/packed", seq_len=16, mix={"web": 1})
        assert not list_shards(dataset)
        here = PackedDataset(built, seq_len=16, mix={"web": 1})
        assert np.array_equal(dataset.samples(range(50)), here.samples(range(50)))
        assert {path.parts[-3] for path in dataset.path.rglob("*.bin")} == {"web"}
        assert np.array_equal(dataset.document_ends(3), here.document_ends(3))


@pytest.mark.parametrize(
    "address", ["https://user:hush@host/packed", "https://host/packed?sig=hush", "hf://org/a?t=hush"]
)
def test_an_address_with_a_secret_is_refused_without_it(tmp_path, address):
    with pytest.raises(ValueError, match="without a password and a query") as caught:
        open_remote(address, cache=tmp_path)
    assert "hush" not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_in_no_cache_is_left_alone(tmp_path):
    bring(tmp_path / "a/shard-00000.bin")
    assert find_folder(tmp_path / "a") is None and list(tmp_path.iterdir()) == []


def test_a_damaged_dataset_is_not_published(publish, hub, built, tmp_path):
    shutil.copytree(built, tmp_path / "out")
    shard = next((tmp_path / "out").rglob("*.bin"))
    shard.write_bytes(bytes(shard.stat().st_size))
    assert "is not the file that dataset.json lists" in publish(tmp_path / "out", "hf://org/name")[0]
    shard.unlink()
    assert "is gone" in publish(tmp_path / "out", "hf://org/name")[0]
    assert hub.commits == [] and find_lost_files(tmp_path / "out", read_dataset_json(tmp_path / "out"))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("hf://org/name/folder", "is published to hf://org/name or s3://bucket/prefix"),
        ("https://host/a", "is published to"),
        ("gs://bucket/a", "publishing to gs:// is not built in"),
    ],
)
def test_a_target_that_is_none_is_one_line(publish, built, target, said):
    assert said in publish(built, target)[0]
    assert "no finished dataset" in publish(built / "web", target)[0]
