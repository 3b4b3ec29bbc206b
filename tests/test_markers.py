"""StarCoder's markers: which go, which stay, and that a dataset without them verifies."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_fixtures import read_shards

from pipeline.markers import strip_markers
from pipeline.tokenizer import load_tokenizer
from pipeline.verify import main as verify

PREFIX = "<reponame>some/repo<filename>src/a.py<gh_stars>10-100\n"


@pytest.mark.parametrize(
    ("text", "subset", "left"),
    [
        (f"{PREFIX}x = 1\n", "python", "x = 1\n"),
        ("<filename>a.py\n\nx = 1\n", "python", "\nx = 1\n"),
        ("\nx = 1\n", "python", "\nx = 1\n"),
        (f"x = 1\n{PREFIX}", "python", f"x = 1\n{PREFIX}"),
        (PREFIX, "python", ""),
        ("<gh_stars>0", "python", ""),
        ("<issue_start> a", "python", "<issue_start> a"),
        ("<issue_start>username_0: a<issue_comment>b <c>", "github-issues-filtered-structured", "username_0: ab <c>"),
        ("<jupyter_code>x<jupyter_output><empty_output>", "jupyter-structured-clean-dedup", "x"),
        ("<commit_before>a<commit_msg>b<commit_after>c", "git-commits-cleaned", "abc"),
        ("é\n", None, "é\n"),
        ("", "python", ""),
    ],
)
def test_markers_go_and_nothing_else(text, subset, left):
    assert strip_markers(pa.array([text, text]), subset).to_pylist() == [left, left]


def test_a_dataset_without_markers_is_another_and_verifies(run_build, sample_model, tmp_path, monkeypatch, capsys):
    raw = tmp_path / "raw"
    texts = [f"{PREFIX if n % 2 else ''}def f_{n}(): return {n}\n" for n in range(30)]
    for folder in ("python", "go"):
        (raw / "starcoder" / folder).mkdir(parents=True)
        table = pa.table({"content": [f"# {folder}\n{text}" if n % 2 == 0 else text for n, text in enumerate(texts)]})
        pq.write_table(table, raw / "starcoder" / folder / "train-00000-of-00001.parquet")
    flags = f"--mix starcoder:1 --languages python --raw {raw} --tokenizer {sample_model} --workers 1 --dedup exact"
    documents = {}
    for name, more in (("kept", ""), ("stripped", "--strip-markers")):
        out = tmp_path / name
        outcome = run_build(f"{flags} --out {out} {more}")
        assert outcome.code == 0, outcome.error
        content, documents[name] = read_shards(out)
        assert content["sources"]["starcoder"]["raw_files"] == ["python/train-00000-of-00001.parquet"]
        monkeypatch.setattr("sys.argv", ["verify.py", str(out), "--raw", str(raw), "--fraction", "1"])
        try:
            verify()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().out
    tokenizer = load_tokenizer(str(sample_model))
    read = {
        name: {key[2:]: tokenizer.decode(ids[1:-1]) for key, ids in found.items()} for name, found in documents.items()
    }
    assert read["kept"] == {
        (0, n): table_text
        for n, table_text in enumerate(
            pq.read_table(raw / "starcoder/python/train-00000-of-00001.parquet")["content"].to_pylist()
        )
    }
    assert read["stripped"] == {key: text.removeprefix(PREFIX) for key, text in read["kept"].items()}
    assert json.loads((tmp_path / "stripped/dataset.json").read_text())["settings"]["strip_markers"] is True
