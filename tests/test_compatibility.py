"""The README's table of other readers says what the export does and what the tests try."""

import re

import pytest
from conftest import REPOSITORY

from pipeline.export import TARGETS

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ROWS = {
    row[0].strip(" `"): [cell.strip() for cell in row[1:]]
    for row in (
        line.strip("|").split("|")
        for line in README.splitlines()
        if re.match(r"\| `[a-z]+` \| (a )?(links|link|copies)[ ,]", line)
    )
}
INSTALLED = (REPOSITORY / "tests/other_readers.txt").read_text()
TESTS = (REPOSITORY / "tests/test_other_readers.py").read_text()
IMPORTS = {
    "megatron-core": "megatron.core.datasets.indexed_dataset", "ai2-olmo-core": "olmo_core.data",
    "datatrove": "datatrove.utils.dataset", "litdata": "litdata", "mosaicml-streaming": "streaming", "datasets": "datasets",
}  # fmt: skip


def test_every_target_has_a_row():
    assert list(ROWS) == list(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_links_and_copies_are_called_so(target):
    is_link = TARGETS[target].__module__ == "pipeline.export_views"
    assert ("link" in ROWS[target][0]) == is_link


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_called_tested_is(target):
    reader = ROWS[target][1]
    if reader in ("", "numpy"):
        assert reader == "" or "np.memmap" in TESTS
        return
    assert re.search(rf"^{reader}==", INSTALLED, re.MULTILINE)
    assert f'importorskip("{IMPORTS[reader]}")' in TESTS or f'"{IMPORTS[reader]}"' in TESTS


def test_the_lines_for_the_trainer_are_those_that_are_tested():
    example = (REPOSITORY / "tests/trainer_example.py").read_text()
    for line in example[example.index("def collate") :].splitlines():
        assert line.split("  #")[0] in README, line


def test_named_files_of_an_export_are_made():
    names = {name for row in ROWS.values() for name in re.findall(r"`(\.?[a-z.]+\.(?:json|gz)|\.metadata)`", row[0])}
    views = (REPOSITORY / "pipeline/export_views.py").read_text()
    assert names and all(name in views for name in names)
