"""Datasets that were imported or interleaved are checked for what they say, and nothing that they do not."""

import json
import shutil

import numpy as np
import pytest

from pipeline.export import ExportArguments, export
from pipeline.finish import hash_content
from pipeline.shard import DATASET_FILE, documents_path, index_path, megatron_path, read_dataset_json
from pipeline.storage import checksum_file
from pipeline.verify import VerifyArguments, find_problems, main, refuse_raw_files_of_adopted

IDS = [1, 5, 6, 2, 1, 300, 2]
SHARD = "old/train/shard-00000.bin"


def write_import(folder, sample_model, ids):
    """A dataset imported from one .npy of `ids`."""
    (folder / "old").mkdir(parents=True)
    np.array(ids, "<u2").tofile(folder / "old/part.npy")
    export(ExportArguments(import_from=folder / "old", out=folder / "out", tokenizer=str(sample_model)))
    return folder / "out"


@pytest.fixture(scope="module")
def imported(tmp_path_factory, sample_model):
    return write_import(tmp_path_factory.mktemp("adopted"), sample_model, IDS)


@pytest.fixture
def damaged(imported, tmp_path):
    """A copy of it whose files may be changed."""
    shutil.copytree(imported, tmp_path / "copy")  # links are followed
    return tmp_path / "copy"


def problems(folder):
    return list(find_problems(VerifyArguments(dataset=folder), read_dataset_json(folder)))


def edit(folder, change):
    content = json.loads((folder / DATASET_FILE).read_text())
    change(content)
    (folder / DATASET_FILE).write_text(json.dumps(content))


def test_an_import_and_a_stream_of_it_are_all_right(imported, tmp_path, monkeypatch, capsys):
    export(ExportArguments(dataset=imported, to="megatron", out=tmp_path / "out", interleave=True))
    for folder, made_by in ((imported, "import"), (tmp_path / "out/stream", "interleave")):
        monkeypatch.setattr("sys.argv", ["verify.py", str(folder)])
        main()
        said = capsys.readouterr().out
        assert said.endswith(f"2 documents, 7 tokens (made by {made_by}: nothing is said of raw files)\n")


@pytest.mark.parametrize(
    "ids", [[1, 5, 2, 1, 8], [5, 2, 2, 1], [1, 1, 5, 2]], ids=["no EOS at the end", "BOS at the end", "two BOS"]
)
def test_documents_that_are_not_framed_as_ours_are_all_right(tmp_path, sample_model, ids):
    assert problems(write_import(tmp_path, sample_model, ids)) == []


def cut(path_of):
    def damage(folder):
        path = path_of(folder / SHARD)
        path.write_bytes(path.read_bytes()[:-2])

    return damage


def flip(folder):
    ids = np.fromfile(folder / SHARD, "<u2")
    ids[1] ^= 1
    ids.tofile(folder / SHARD)


def change_ids(index, value):
    """Another id, with checksums as if it had always been there."""

    def damage(folder):
        ids = np.fromfile(folder / SHARD, "<u2")
        ids[index] = value
        ids.tofile(folder / SHARD)

        def claim(content):
            shard = content["sources"]["old"]["splits"]["train"]["shards"][0]
            shard |= {"xxh3_128": checksum_file(folder / SHARD), "largest_id": int(ids.max())}
            content["content_hash"] = hash_content(content["sources"])

        edit(folder, claim)

    return damage


def claim(**changed):
    return lambda folder: edit(folder, lambda content: content.update(changed))


def move_boundary(folder):
    np.array([3, 7], "<u8").tofile(index_path(folder / SHARD))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut(lambda path: path), "has 12 bytes, dataset.json says 14"),
        (cut(index_path), "has 14 bytes, dataset.json says 16"),
        (cut(megatron_path), "does not agree with shard-00000.bin.index"),
        (cut(documents_path), "xxh3-128 is"),
        (flip, "xxh3-128 is"),
        (move_boundary, "does not agree with shard-00000.bin.index"),
        (change_ids(1, 60_000), "id 60000 is beyond the vocabulary of 600"),
        (change_ids(6, 9), "id 2 stands at token 6 where it should not, or is missing there"),
        (claim(content_hash="0"), "content_hash does not follow from sources"),
        (claim(made_by="hand"), "made_by is missing or of the wrong kind"),
        (claim(settings={}), "settings is no claim that this program knows"),
        (claim(mix={"other": 1.0}), "mix names"),
        (lambda folder: (folder / "old/train/shard-00009.bin").write_bytes(b""), "dataset.json does not list it"),
    ],
)
def test_what_is_wrong_is_found(damaged, damage, expected):
    assert problems(damaged) == []
    damage(damaged)
    found = problems(damaged)
    assert found and any(expected in problem for problem in found), found


def test_raw_files_are_not_asked_for(imported, tmp_path):
    arguments = VerifyArguments(dataset=imported, raw=tmp_path)
    with pytest.raises(ValueError, match=r"was not built from raw files \(made_by import\): leave --raw out"):
        refuse_raw_files_of_adopted(arguments, read_dataset_json(imported))
