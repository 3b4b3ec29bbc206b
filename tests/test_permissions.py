"""Folders and files that a build may not use: one clear line."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from build_fixtures import flags

NOBODY = 65534


@contextmanager
def without_the_rights_of_root():
    """In the block, file modes count for this process too."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def place(raw, sample_model):
    """A folder that anybody may reach, with raw files and a tokenizer that anybody may read."""
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(raw, folder / "raw")
    shutil.copyfile(sample_model, folder / "small.model")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("closed", "mode", "named"),
    [
        ("raw/web/part-0.jsonl", 0o000, "raw/web/part-0.jsonl"),
        ("raw/web", 0o000, "raw/web"),
        ("small.model", 0o000, "small.model"),
        ("out", 0o500, "out"),
        ("work", 0o500, "work"),
        (".", 0o555, "out"),
    ],
)
def test_what_may_not_be_read_or_written_is_named_in_one_line(place, run_build, closed, mode, named):
    command = flags(place / "raw", place / "out", place / "small.model", f"--workers 1 --work {place}/work")
    run_build(command.replace("/out ", "/once "))  # what is imported on the way may not be readable below
    shutil.rmtree(place / "once", ignore_errors=True)
    if closed in ("out", "work"):
        (place / closed).mkdir()
    (place / closed).chmod(mode)
    with without_the_rights_of_root():
        outcome = run_build(command)
    assert outcome.code == 1
    assert len(outcome.error.splitlines()) == 1
    assert str(place / named) in outcome.error and "Permission denied" in outcome.error
    assert not (place / "out/dataset.json").exists()


def test_an_output_folder_below_a_file_is_named(raw, tmp_path, sample_model, run_build):
    (tmp_path / "file").touch()
    outcome = run_build(flags(raw, tmp_path / "file/out", sample_model))
    assert outcome.code == 1
    assert f"{tmp_path}/file" in outcome.error and "Not a directory" in outcome.error
