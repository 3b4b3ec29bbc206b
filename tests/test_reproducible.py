"""The same bytes, whoever builds them, wherever and with how many hands; and nothing of the building machine in them."""

import os
import re
import shutil
import socket
import time

import pytest
from build_fixtures import flags, hashes
from build_process import BuildProcess, checksums, many_flags


def copy_in_order(folder, target, *, backwards):
    """A copy of raw files, made in another order: a folder may list its files in the order of their making."""
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), reverse=backwards):
        copied = target / path.relative_to(folder)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    return target


@pytest.mark.parametrize(
    ("hash_seed", "more"),
    [
        pytest.param("0", "--workers 1 --work {}/work", marks=pytest.mark.long),
        pytest.param("1", "--workers 5", marks=pytest.mark.long),
        ("random", "--workers 2"),
    ],
)
def test_the_bytes_are_the_same_for_any_workers_hash_seed_order_and_place(
    many_raw_files, whole, tmp_path, sample_model, hash_seed, more
):
    raw = copy_in_order(many_raw_files, tmp_path / f"raw-{hash_seed}", backwards=hash_seed != "0")
    arguments = many_flags(raw, tmp_path / "out", sample_model, more.format(tmp_path))
    build = BuildProcess(arguments, tmp_path / "out", env={**os.environ, "PYTHONHASHSEED": hash_seed})
    code, _, error = build.finish()
    assert code == 0, error
    assert checksums(tmp_path / "out") == checksums(whole)


def test_no_file_names_the_building_machine_its_folders_or_the_day(many_raw_files, whole):
    machine = [
        str(many_raw_files),
        str(whole),
        socket.gethostname(),
        os.path.expanduser("~"),
        time.strftime("%Y-%m-%d"),
    ]
    for name, data in hashes(whole).items():
        # A host's name of two letters stands among ids by chance.
        sure = [text for text in machine if len(text) > 4 or name.endswith(".json")]
        assert not [text for text in sure if text.encode() in data], name
    content = (whole / "dataset.json").read_text()
    assert not re.search(r'": "/|\d{4}-\d\d-\d\dT', content)


def test_files_are_found_in_any_order(raw, tmp_path, sample_model, run_build, monkeypatch):
    listdir = os.listdir
    for name in ("sorted", "backwards"):
        monkeypatch.setattr("os.listdir", lambda path, name=name: sorted(listdir(path), reverse=name == "backwards"))
        assert run_build(flags(raw, tmp_path / name, sample_model, "--workers 1")).code == 0
    assert hashes(tmp_path / "sorted") == hashes(tmp_path / "backwards")
