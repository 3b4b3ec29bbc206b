import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from sample_fixtures import MIX, small_installation

from pipeline import sample, sample_record
from pipeline.manifest import list_raw_files, load_source
from pipeline.sample import is_sample, make_sample
from pipeline.sample_files import add_markers, lay_out
from pipeline.sample_text import Installation, Place, Text
from pipeline.storage import name_temporary

ROOT = Path(__file__).parent.parent


def tree_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_rows(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    text = zstandard.open(path, "rb").read() if path.suffix == ".zst" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def all_rows(folder: Path) -> dict[str, list[dict]]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "sample.json"]
    return {path.relative_to(folder).as_posix(): read_rows(path) for path in sorted(paths)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One MB from this Python, for all kinds of sources."""
    folder = tmp_path_factory.mktemp("sample") / "raw"
    sources = (("slimpajama", 0.4), ("starcoder", 0.2), ("redpajama", 0.3), ("mine", 0.1))
    return folder, make_sample(folder, megabytes=1.0, sources=sources)


# --- the files, from the Python that runs the tests


def test_each_source_gets_its_share_and_never_more(made):
    _, report = made
    assert [source.wanted_bytes for source in report.sources] == [400_000, 200_000, 300_000, 100_000]
    for source in report.sources:
        assert 0.9 * source.wanted_bytes < source.text_bytes <= source.wanted_bytes


def test_the_report_counts_what_is_in_the_files(made):
    folder, report = made
    for source in report.sources:
        files = all_rows(folder / source.name)
        texts = [row.get("text") or row["content"] for rows in files.values() for row in rows]
        assert source.num_files == len(files)
        assert source.num_documents == len(texts)
        assert source.text_bytes == sum(len(text.encode()) for text in texts)
        assert source.file_bytes == sum(len(content) for content in tree_bytes(folder / source.name).values())


def test_every_file_is_one_that_the_manifest_names(made):
    folder, _ = made
    for name in ("slimpajama", "starcoder", "redpajama"):
        source = load_source(name)
        listed = list_raw_files(source, folder / name)
        assert listed.ignored == ()
        patterns = [pattern for patterns in source.splits.values() for pattern in patterns]
        for file in listed.files:
            assert any(Path(file.path).match(pattern) for pattern in patterns), file.path
            assert file.subset in source.subsets or name == "slimpajama"


def test_slimpajama_has_several_training_files_and_two_small_holdouts(made):
    folder, _ = made
    files = all_rows(folder / "slimpajama")
    holdouts = [f"{split}/chunk1/example_holdout_0.jsonl.zst" for split in ("test", "validation")]
    assert sorted(files) == sorted([*(f"train/chunk1/example_train_{n}.jsonl.zst" for n in range(4)), *holdouts])
    num_rows = sum(map(len, files.values()))
    assert all(1 <= len(files[path]) <= num_rows / 100 + 1 for path in holdouts)
    for rows in files.values():
        assert all(list(row) == ["text", "meta"] and list(row["meta"]) == ["redpajama_set_name"] for row in rows)


def test_slimpajama_is_mostly_prose_with_a_little_code(made):
    folder, _ = made
    rows = [row for rows in all_rows(folder / "slimpajama").values() for row in rows]
    sizes = dict.fromkeys(load_source("slimpajama").subsets, 0)
    for row in rows:
        sizes[row["meta"]["redpajama_set_name"]] += len(row["text"])
    assert 0.01 < sizes["RedPajamaGithub"] / sum(sizes.values()) < 0.08


def test_a_zst_file_is_one_frame_that_ends_with_the_file(made):
    folder, _ = made
    packed = (folder / "slimpajama/train/chunk1/example_train_0.jsonl.zst").read_bytes()
    decompressor = zstandard.ZstdDecompressor().decompressobj()
    assert decompressor.decompress(packed).endswith(b"\n")
    assert decompressor.eof and decompressor.unused_data == b""


def test_starcoder_has_the_five_columns_and_markers_in_about_half_of_the_rows():
    texts = [Text(Place("code", "a/b", f"m{number}.py", None), "pass\n") for number in range(2000)]
    (rows,) = lay_out("starcoder", texts).values()
    marked = sum(row["content"] != "pass\n" for row in rows) / len(rows)
    assert abs(marked - (1 - 0.8**3)) < 0.04  # three standard deviations
    assert list(rows[0]) == ["max_stars_repo_path", "max_stars_repo_name", "max_stars_count", "id", "content"]


def test_a_row_with_every_marker_reads_as_in_starcoder():
    texts = (Text(Place("code", "a/b", f"m{number}.py", None), "pass\n") for number in range(2000))
    contents = {add_markers(text) for text in texts}
    assert any(
        content.startswith("<reponame>a/b<filename>m") and content.endswith(".py<gh_stars>0\npass\n")
        for content in contents
    )
    assert all(content == "pass\n" or content.endswith("\npass\n") for content in contents)


def test_starcoder_is_written_as_parquet_with_its_types(made):
    folder, _ = made
    schema = pq.read_schema(folder / "starcoder/python/train-00000-of-00001.parquet")
    assert [str(kind) for kind in schema.types] == ["string", "string", "int64", "string", "string"]
    assert len(list((folder / "starcoder").iterdir())) > 1  # other languages too


def test_redpajama_has_every_subset_with_its_own_columns():
    # Texts of our own: which subsets a megabyte of this Python's text falls into depends on what is installed.
    kinds = {"code": "pass\n", "description": "A herd.", "file": "A flock.", "topic": "A book."}
    texts = [Text(Place(kind, "a/b", "m.py", None), text) for kind, text in kinds.items()]
    docstrings = ("\\frac{1}{2}", ">>> count()", *(f"Sheep {number}." for number in range(30)))
    texts += [Text(Place("docstrings", "a/b", f"m{n}.py", None), text) for n, text in enumerate(docstrings)]
    files = lay_out("redpajama", texts)
    rows = {path.split("/")[0]: rows[0] for path, rows in files.items()}
    assert sorted(rows) == ["arxiv", "c4", "common_crawl", "github", "stackexchange", "wikipedia"]
    assert list(rows.pop("common_crawl")) == ["pred_label", "pred_label_prob", "wiki_prob", "text", "source"]
    assert all(list(row) == ["text", "meta"] for row in rows.values())
    assert set(rows["arxiv"]["meta"]) == {"timestamp", "yymm", "arxiv_id", "language", "url", "source"}
    assert set(rows["wikipedia"]["meta"]) == {"title", "url", "language", "timestamp"}
    assert [path for path in files if path.endswith(".zst")] == [path for path in files if path.startswith("common_")]


def test_an_unknown_source_gets_plain_lines(made):
    folder, _ = made
    files = all_rows(folder / "mine")
    assert list(files) == ["train.jsonl"]
    assert all(list(row) == ["text"] for row in files["train.jsonl"])


def test_no_text_is_there_twice_in_any_source(made):
    folder, _ = made
    texts = []
    for rows in all_rows(folder).values():
        for row in rows:
            content = row.get("text") or row["content"]
            texts.append(
                content.split("\n", 1)[1] if content.startswith(("<reponame>", "<filename>", "<gh_")) else content
            )
    assert len(texts) == len(set(texts))


@pytest.mark.long
def test_another_folder_gets_the_same_bytes(made, tmp_path):
    folder, report = made
    again = make_sample(
        tmp_path / "deep/er", megabytes=1, sources=tuple((one.name, one.share) for one in report.sources)
    )
    assert not again.was_reused
    assert tree_bytes(tmp_path / "deep/er") == tree_bytes(folder)


def test_sample_json_says_what_the_folder_holds(made):
    folder, report = made
    record = is_sample(folder)
    assert record["request"]["megabytes"] == 1.0
    assert [source["text_bytes"] for source in record["sources"]] == [source.text_bytes for source in report.sources]
    written = {path: len(content) for path, content in tree_bytes(folder).items() if path != "sample.json"}
    assert {file["path"]: file["size_bytes"] for file in record["files"]} == written
    assert str(folder) not in (folder / "sample.json").read_text()


# --- the folder


@pytest.fixture
def small(tmp_path):
    """A function that makes a sample of a small installation in tmp_path/raw."""
    installation = small_installation(tmp_path)

    def make(megabytes: float = 0.02, sources=MIX):
        return make_sample(tmp_path / "raw", megabytes=megabytes, sources=sources, installation=installation)

    return make, tmp_path / "raw"


def test_the_same_request_reuses_the_sample(small):
    make, folder = small
    first = make()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    second = make()
    assert second.was_reused and second.sources == first.sources
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"cut")])
def test_a_damaged_sample_is_made_again(small, damage):
    make, folder = small
    make()
    before = tree_bytes(folder)
    damage(next(folder.rglob("*.parquet")))
    assert not make().was_reused
    assert tree_bytes(folder) == before


def test_another_request_replaces_the_sample_and_leaves_no_old_file_or_folder(small, tmp_path):
    make, folder = small
    make(sources=(("redpajama", 1),))
    make()
    make_sample(
        tmp_path / "other",
        megabytes=0.02,
        sources=MIX,
        installation=Installation(tmp_path / "lib", (tmp_path / "site-packages",)),
    )
    assert tree_bytes(folder) == tree_bytes(tmp_path / "other")
    assert not (folder / "redpajama").exists()


@pytest.mark.parametrize("path", ["slimpajama/mine.jsonl", "notes.txt"])
@pytest.mark.parametrize("has_sample", [True, False])
def test_a_folder_with_other_files_is_refused_and_left_alone(small, path, has_sample):
    make, folder = small
    if has_sample:
        make()
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("real data")
    before = tree_bytes(folder)
    with pytest.raises(ValueError, match=path):
        make(megabytes=0.03)
    assert tree_bytes(folder) == before


def test_a_killed_run_is_cleared_by_the_next(small, monkeypatch):
    make, folder = small
    make()
    expected = tree_bytes(folder)
    write_rows = sample.write_rows

    def write_two_then_die(path, rows, written=[]):  # noqa: B006
        written.append(path)
        if len(written) > 2:
            name_temporary(path).write_bytes(b"half")  # as a process that is killed leaves it
            raise KeyboardInterrupt
        write_rows(path, rows)

    monkeypatch.setattr(sample, "write_rows", write_two_then_die)
    with pytest.raises(KeyboardInterrupt):
        make(megabytes=0.03)
    assert is_sample(folder) is None
    monkeypatch.setattr(sample, "write_rows", write_rows)
    assert not make().was_reused
    assert tree_bytes(folder) == expected


def test_a_record_that_names_files_outside_removes_nothing_there(tmp_path):
    (tmp_path / "precious.txt").write_text("keep")
    record = {
        "format": sample_record.FORMAT,
        "files": [{"path": "../precious.txt"}, {"path": str(tmp_path / "precious.txt")}],
    }
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/sample.json").write_text(json.dumps(record))
    sample_record.clear(tmp_path / "raw", sample_record.read_record(tmp_path / "raw"))
    assert (tmp_path / "precious.txt").read_text() == "keep"


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": "other"}', b"\xff"])
def test_a_folder_with_some_other_sample_json_is_no_sample(tmp_path, content):
    (tmp_path / "sample.json").write_bytes(content)
    assert is_sample(tmp_path) is None
    assert is_sample(tmp_path / "missing") is None
    with pytest.raises(ValueError, match="sample.json"):
        make_sample(tmp_path, megabytes=1, sources=MIX)


@pytest.mark.parametrize(
    ("megabytes", "sources", "said"),
    [
        (0, MIX, "not 0"),
        (-1, MIX, "not -1"),
        (float("nan"), MIX, "not nan"),
        (1, (("slimpajama", 0.0),), "share"),
        (1, (("../up", 1.0),), "source name"),
        (1, (("a", 1.0), ("a", 1.0)), "one share for each source"),
        (1, (), "one share for each source"),
        (0.0001, MIX, "too small"),
    ],
)
def test_a_request_for_nothing_is_refused(tmp_path, megabytes, sources, said):
    installation = small_installation(tmp_path)
    with pytest.raises(ValueError, match=said):
        make_sample(tmp_path / "raw", megabytes=megabytes, sources=sources, installation=installation)
    assert not (tmp_path / "raw").exists()


# --- the command


def run(*flags: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "pipeline/sample.py"), *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.long
def test_the_command_makes_a_sample_from_any_folder_and_says_so(tmp_path):
    done = run("--megabytes", "0.2", "--mix", "tinyllama", "--folder", "here", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "slimpajama" in done.stdout and "not the real corpora" in done.stdout
    assert is_sample(tmp_path / "here")["request"]["shares"] == [["slimpajama", 0.693584], ["starcoder", 0.306416]]


def test_the_command_fails_with_one_line(tmp_path):
    done = run("--mix", "tinylama", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "nearest: tinyllama" in done.stderr


def test_a_row_of_any_text_survives_the_file(tmp_path):
    from pipeline.sample_files import write_rows

    rows = [{"text": 'a"\\\n\u2028é\U0001f600\x00</s>'}]
    write_rows(tmp_path / "a.jsonl.zst", rows)
    write_rows(tmp_path / "b.jsonl", rows)
    assert read_rows(tmp_path / "a.jsonl.zst") == read_rows(tmp_path / "b.jsonl") == rows
    assert io.BytesIO((tmp_path / "b.jsonl").read_bytes()).readline().endswith(b"\n")
