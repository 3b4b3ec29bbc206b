"""A dataset goes to a hub or a bucket, and is read from there: the same bytes, or one line."""

import shutil
from functools import partial

import numpy as np
import pytest
from build_fixtures import hashes
from build_process import BuildProcess, many_flags
from conftest import write_rows
from loopback import Fault, Server, WritableHub, bucket_server

from pipeline.dataset import PackedDataset
from pipeline.publish import main
from pipeline.remote_dataset import FetchAhead, bring, find_folder, open_remote
from pipeline.shard import find_lost_files, read_dataset_json


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


def test_a_dataset_on_a_web_server_is_fetched_ahead_and_checked(built, tmp_path):
    files = {f"packed/{name}": data for name, data in hashes(built).items()}
    with Server(files) as server:
        folder = open_remote(f"{server.url}/packed", cache=tmp_path)
        content = read_dataset_json(folder)
        shards = [shard["path"] for shard in content["sources"]["web"]["splits"]["train"]["shards"]]
        server.faults = [Fault(shards[0], cut=100)]
        ahead = FetchAhead(folder / path for path in shards)
        ahead.thread.join()
        assert ahead.failure is None
        assert [(folder / path).read_bytes() for path in shards] == [files[f"packed/{path}"] for path in shards]
        data = files[f"packed/{shards[0]}"]
        server.files[f"packed/{shards[0]}"] = data[:-2] + bytes([data[-2] ^ 1, data[-1]])
        (folder / shards[0]).unlink()
        with pytest.raises(ValueError, match="dataset.json says .*: it was changed"):
            bring(folder / shards[0])
        assert not (folder / shards[0]).exists()


def test_a_dataset_opens_by_its_address_and_fetches_the_shards_that_it_reads(built, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server({f"packed/{name}": data for name, data in hashes(built).items()}) as server:
        dataset = PackedDataset(f"{server.url}/packed", seq_len=16, mix={"web": 1})
        assert not list(dataset.path.rglob("*.bin"))
        here = PackedDataset(built, seq_len=16, mix={"web": 1})
        assert np.array_equal(dataset.samples(range(50)), here.samples(range(50)))
        assert {path.parts[-3] for path in dataset.path.rglob("*.bin")} == {"web"}
        assert np.array_equal(dataset.document_ends(3), here.document_ends(3))


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
