import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import manifest
from pipeline.manifest import Source, how_to_get, known_source_names, list_raw_files, load_source, read_manifest
from pipeline.raw_sources import choose_only
from pipeline.source_options import parse_source


def write(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"{}\n")


def splits_of(name: str, folder: Path) -> dict[str, str]:
    return {file.path: file.split for file in list_raw_files(load_source(name), folder).files}


def subsets_of(name: str, folder: Path) -> dict[str, str | None]:
    return {file.path: file.subset for file in list_raw_files(load_source(name), folder).files}


# --- manifests


def test_the_three_corpora_are_known_and_other_tables_are_not_sources():
    assert known_source_names() == ("redpajama", "redpajama-v2", "slimpajama", "starcoder")


@pytest.mark.parametrize("name", known_source_names())
def test_every_manifest_says_what_a_reader_and_a_person_need(name):
    source = load_source(name)
    assert source.title and source.licence and source.where and source.notes
    assert source.subsets == tuple(sorted(set(source.subsets)))
    assert set(source.subset_paths.values()) <= set(source.subsets)
    assert source.text_field == {"starcoder": "content", "redpajama-v2": "raw_content"}.get(name, "text")


def test_starcoder_has_its_88_language_folders_and_4_others():
    subsets = load_source("starcoder").subsets
    assert len(subsets) == 92
    assert sum(subset.startswith(("git-", "github-", "jupyter-")) for subset in subsets) == 4


def test_a_name_without_a_manifest_is_a_source_with_the_text_in_text():
    assert load_source("my-notes.v2") == Source(name="my-notes.v2")
    assert load_source("mixes") == Source(name="mixes")


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../up", "/etc", "a b", ".hidden", "-flag", "é", "a\n"])
def test_a_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ValueError, match="source name"):
        load_source(name)


GOOD = 'title = "T"\nlicence = "L"\nwhere = []\ntext_field = "text"\n[splits]\ntrain = ["*.jsonl"]\n'


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('colour = "red"\n' + GOOD, "colour"),
        ('name = "other"\n' + GOOD, "name"),
        (GOOD.replace('"text"', "3"), "text_field"),
        (GOOD.replace("[]", '"here"'), "where"),
        (GOOD.replace("[]", "[1]"), "where"),
        ('subset_from_path = "yes"\n' + GOOD, "subset_from_path"),
        ("subset_field = 1\n" + GOOD, "subset_field"),
        (GOOD.replace("train", "practice"), "splits"),
        (GOOD.replace('["*.jsonl"]', '"*.jsonl"'), "splits.train"),
        (GOOD + "[subset_paths]\na = 1\n", "subset_paths"),
        (GOOD.replace('licence = "L"\n', ""), "licence"),
        ("title = ", "not a TOML file"),
    ],
)
def test_a_wrong_manifest_names_the_file_and_the_key(tmp_path, text, key):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.toml") as caught:
        read_manifest(path)
    assert key in str(caught.value)


def test_a_good_manifest_is_read_with_tuples(tmp_path):
    (tmp_path / "fine.toml").write_text(GOOD)
    assert read_manifest(tmp_path / "fine.toml") == Source("fine", "T", "L", splits={"train": ("*.jsonl",)})


# --- listing


def test_slimpajama_as_published_has_three_splits(tmp_path):
    expected = {
        "train/chunk1/example_train_0.jsonl.zst": "train",
        "train/chunk10/example_train_5911.jsonl.zst": "train",
        "validation/chunk5/example_holdout_6161.jsonl.zst": "validation",
        "test/chunk1/example_holdout_0.jsonl.zst": "test",
    }
    write(tmp_path, *expected)
    assert splits_of("slimpajama", tmp_path) == expected


@pytest.mark.parametrize("folder", ["data/", ""])
def test_parquet_uploads_of_slimpajama_are_split_by_file_name(tmp_path, folder):
    expected = {
        f"{folder}train-00000-of-00048-ab2b35705f029d94.parquet": "train",
        f"{folder}validation-00000-of-00001-4fb685c22a3f91ef.parquet": "validation",
        f"{folder}test-00000-of-00001-9f769cf7ce219017.parquet": "test",
    }
    write(tmp_path, *expected)
    assert splits_of("slimpajama", tmp_path) == expected


def test_starcoder_folders_name_the_language(tmp_path):
    write(tmp_path, "python/train-00000-of-00059.parquet", "c-sharp/train-00044-of-00045.parquet", "data/x.parquet")
    assert subsets_of("starcoder", tmp_path) == {
        "c-sharp/train-00044-of-00045.parquet": "c-sharp",
        "data/x.parquet": None,
        "python/train-00000-of-00059.parquet": "python",
    }


def test_redpajama_names_the_subset_by_folder_or_by_the_file_of_the_flat_sample(tmp_path):
    expected = {
        "arxiv/arxiv_023bf2f4-0b1f-4c5e-9b0e-0d7a5a3c5f6b.jsonl": "arxiv",
        "c4_sample.jsonl": "c4",
        "cc_2023-06_sample.jsonl": "common_crawl",
        "common_crawl/2023-06/en_head_0000.json.gz.dedup.classifier.jsonl.zst": "common_crawl",
        "github_sample.jsonl": "github",
        "wikipedia/wiki.jsonl": "wikipedia",
    }
    write(tmp_path, *expected)
    assert subsets_of("redpajama", tmp_path) == expected
    assert set(splits_of("redpajama", tmp_path).values()) == {"train"}


def test_redpajama_v2_names_the_bucket_of_quality_by_the_file(tmp_path):
    expected = {
        "2023-06/0000/de_tail.json.gz": "tail",
        "2023-06/0000/en_head.json.gz": "head",
        "2023-06/0001/en_middle.json.gz": "middle",
    }
    write(tmp_path, *expected)
    assert subsets_of("redpajama-v2", tmp_path) == expected
    choice = parse_source("redpajama-v2?only=head")
    source = load_source("redpajama-v2")
    only = choose_only(source, list_raw_files(source, tmp_path), choice.only, where=tmp_path)
    assert [file.path for file in only.files] == ["2023-06/0000/en_head.json.gz"]
    (tmp_path / "2023-06/0000/en_head.json.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^redpajama-v2: there are no raw files of head \({tmp_path}\)"):
        choose_only(source, list_raw_files(source, tmp_path), choice.only, where=tmp_path)


def test_a_list_of_urls_beside_a_known_source_is_ignored_and_said(tmp_path):
    write(tmp_path, "arxiv/arxiv_1.jsonl", "urls.txt", "README.md", "dataset_infos.json")
    listed = list_raw_files(load_source("redpajama"), tmp_path)
    assert [file.path for file in listed.files] == ["arxiv/arxiv_1.jsonl"]
    assert listed.ignored == ("README.md", "dataset_infos.json", "urls.txt")


def test_own_files_of_every_known_ending_are_read_and_others_said(tmp_path):
    rows = [f"a{kind}{packing}" for kind in (".jsonl", ".json", ".ndjson", ".txt") for packing in ("", ".gz", ".zst")]
    write(tmp_path, *rows, "a.parquet", "a.csv", "a.parquet.gz", "a", ".hidden.jsonl", ".cache/b.jsonl")
    listed = list_raw_files(load_source("mine"), tmp_path)
    assert {file.path for file in listed.files} == {*rows, "a.parquet"}
    assert listed.ignored == ("a", "a.csv", "a.parquet.gz")


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["test.jsonl"], ["train"]),
        (["part.jsonl", "validation.jsonl"], ["train", "train"]),
        (["test.jsonl", "train.jsonl"], ["test", "train"]),
        (["train-0.jsonl", "val_0.jsonl", "valid-1.jsonl"], ["train", "validation", "validation"]),
        (["test/x.jsonl", "train/test.jsonl"], ["test", "train"]),
        (["testimony.jsonl", "train.jsonl"], ["train", "train"]),
        (["deep/test/x.jsonl", "train.jsonl"], ["train", "train"]),
        (["tests/x.jsonl", "train.jsonl"], ["train", "train"]),
    ],
)
def test_own_files_are_split_by_name_only_where_some_say_train(tmp_path, paths, expected):
    write(tmp_path, *paths)
    assert list(splits_of("mine", tmp_path).values()) == expected


def test_files_come_in_the_order_of_their_bytes_whatever_the_disk_says(tmp_path, monkeypatch):
    write(tmp_path, "b.jsonl", "a/z.jsonl", "a.jsonl", "Z.jsonl", "é.jsonl", "a-1.jsonl")
    expected = [file.path for file in list_raw_files(load_source("mine"), tmp_path).files]
    assert expected == sorted(expected, key=str.encode)
    listdir = os.listdir
    monkeypatch.setattr(manifest.os, "listdir", lambda folder: listdir(folder)[::-1])
    assert [file.path for file in list_raw_files(load_source("mine"), tmp_path).files] == expected


def test_links_are_followed_and_a_circle_of_links_ends(tmp_path):
    write(tmp_path / "elsewhere", "x.jsonl")
    write(tmp_path / "raw", "a.jsonl")
    (tmp_path / "raw/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "raw/b.jsonl").symlink_to(tmp_path / "elsewhere/x.jsonl")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "raw")
    paths = [file.path for file in list_raw_files(load_source("mine"), tmp_path / "raw").files]
    assert paths == ["a.jsonl", "b.jsonl", "linked/x.jsonl"]


def test_a_link_to_nothing_is_an_error_that_names_it(tmp_path):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(FileNotFoundError, match="gone.jsonl"):
        list_raw_files(load_source("mine"), tmp_path)


def test_a_file_that_is_no_regular_file_is_ignored(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert list_raw_files(load_source("mine"), tmp_path).ignored == ("pipe.jsonl",)


def test_a_name_that_is_not_utf8_is_an_error_that_shows_it(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"{}\n")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(ValueError, match=r"caf\\xe9"):
        list_raw_files(load_source("mine"), tmp_path)


def test_the_size_of_a_linked_file_is_that_of_the_file(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"12345")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "x.bin")
    assert list_raw_files(load_source("mine"), tmp_path).files[0].size_bytes == 5


def test_an_empty_folder_gives_no_files(tmp_path):
    assert list_raw_files(load_source("slimpajama"), tmp_path).files == ()


@pytest.mark.parametrize("name", [*known_source_names(), "mine"])
def test_a_missing_folder_says_on_a_few_lines_what_to_do(tmp_path, name):
    folder = tmp_path / "raw" / name
    with pytest.raises(FileNotFoundError) as caught:
        list_raw_files(load_source(name), folder)
    text = how_to_get(load_source(name), folder)
    assert str(caught.value) == text
    assert len(text.splitlines()) <= 7
    assert str(folder) in text and "--sample-mb" in text and "{folder}" not in text


@given(st.lists(st.sampled_from(["train", "test", "x.jsonl", "val-1.json", "deep", "data"]), min_size=1, max_size=4))
def test_a_guess_is_a_split_or_none(names):
    assert manifest.guess_split("/".join(names)) in (*manifest.SPLITS, None)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.jsonl", "a.jsonl", True),
        ("*.jsonl", "a/b.jsonl", False),
        ("**/*.jsonl", "a/b/c.jsonl", True),
        ("**/*.jsonl", "c.jsonl", True),
        ("a?.json", "ab.json", True),
        ("a.json", "axjson", False),
        ("[a].json", "[a].json", True),
    ],
)
def test_a_star_stays_within_a_name_and_two_stars_cross_folders(pattern, path, matches):
    assert bool(manifest.compile_pattern(pattern).fullmatch(path)) is matches
