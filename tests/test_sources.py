"""The command that says what manifests know and what can be reached; and the manifests themselves."""

from functools import partial

import pytest
from loopback import TOKEN, Hub, Server, bucket_server

from pipeline.bucket import BucketPlace
from pipeline.manifest import choose_raw_files, known_source_names, load_source
from pipeline.mix import choose_languages, parse_mix
from pipeline.origins import parse_origin
from pipeline.raw_sources import choose_origin
from pipeline.source_options import parse_source
from pipeline.sources import main
from pipeline.url_list import UrlPlace
from pipeline.web import Patience


@pytest.fixture
def run(run_command):
    return partial(run_command, main)


def test_all_manifests_are_listed_and_shown(run):
    _, listed = run("list")
    for name in known_source_names():
        assert name in listed
        message, shown = run("show", name)
        assert message == "" and load_source(name).licence.split()[0] in shown
        for origin in load_source(name).origins:
            assert origin in shown


def test_an_unknown_name_is_one_line(run):
    assert "no manifest is called 'nothing'" in run("show", "nothing")[0]
    assert "no manifest is called 'nothing'" in run("check", "nothing")[0]
    assert "needs a name" in run("check")[0]


def test_a_check_asks_for_one_file_and_fetches_none(run, monkeypatch):
    with Hub({"README.md": b"#", "data/a.jsonl": b"{}\n" * 9, "data/b.jsonl": b"{}", "z.jsonl": b"{}"}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        message, out = run("check", "hf://org/name")
        assert (message, out) == ("", "yes   hf://datasets/org/name: data/a.jsonl, 27 B, may be fetched\n")
        assert hub.count("/cdn/") == 0 and hub.count("/tree/") == 1


def test_a_check_of_a_gated_repository_tells_the_way_in(run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    with Hub({"a.jsonl": b"{}"}, gated=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        message, out = run("check", "hf://org/name")
        assert message == "error: hf://org/name cannot be reached now"
        assert out.startswith("no    hf://datasets/org/name: a.jsonl: access is gated. Accept the terms at ")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        message, out = run("check", "hf://org/name")
        assert message == "" and TOKEN not in out


def test_a_check_of_buckets_and_urls(run, monkeypatch):
    with bucket_server({"notes/a.jsonl": b"{}\n"}, monkeypatch):
        assert run("check", "s3://corpus/notes")[1] == "yes   s3://corpus/notes: a.jsonl, 3 B, may be fetched\n"
        assert "no such bucket or prefix" in run("check", "s3://nowhere/notes")[1]
    with Server({"urls.txt": b"a.jsonl\n", "a.jsonl": b"{}\n", "page.txt": b"<html>\n"}) as server:
        assert "may be fetched" in run("check", f"{server.url}/urls.txt?name=web")[1]
        assert "is no URL" in run("check", f"{server.url}/page.txt?name=web")[1]
        assert "404" in run("check", f"{server.url}/gone.txt?name=web")[1]


def test_an_object_that_is_gone_is_not_a_bucket_that_is_gone(monkeypatch):
    with bucket_server({"notes/a.jsonl": b"{}\n"}, monkeypatch) as client:
        place = BucketPlace(parse_origin("s3://corpus/notes"), patience=Patience(wait=lambda _: None))
        file = place.find_first(lambda path: True)
        client.delete_object(Bucket="corpus", Key="notes/a.jsonl")
        for ask in (place.probe, lambda file: place.open(file, 0), lambda file: next(place.read_pieces(file, 0))):
            with pytest.raises(ValueError, match=r"s3://corpus/notes: a\.jsonl is not there \(any more\)"):
                ask(file)


LAYOUTS = {
    "slimpajama": {
        "train/chunk3/example_train_7.jsonl.zst": "train",
        "validation/chunk1/example_holdout_0.jsonl.zst": "validation",
        "validation/chunk5.jsonl.zst": "validation",
        "test/chunk5/example_holdout_6161.jsonl.zst": "test",
        "data/train-00000-of-00048-ab2b35705f029d94.parquet": "train",
        "data/validation-00000-of-00001-4fb685c22a3f91ef.parquet": "validation",
        "data/test-00000-of-00001-9f769cf7ce219017.parquet": "test",
        "README.md": None,
    },
    "starcoder": {
        "python/train-00000-of-00059.parquet": "train",
        "github-issues-filtered-structured/train-00000-of-00059.parquet": "train",
        "README.md": None,
    },
    "redpajama": {
        "arxiv/arxiv_023827cd-7ee8-42e6-aa7b-661731f4c70f.jsonl": "train",
        "c4/c4-train.00000-of-01024.jsonl": "train",
        "common_crawl/2019-30/en_head_0000.json.gz.dedup.classifier.jsonl.zst": "train",
        "github/filtered_00.sampled.jsonl": "train",
        "stackexchange/stackexchange.jsonl": "train",
        "wikipedia/wiki.jsonl": "train",
        "urls/arxiv.txt": None,
        "RedPajama-Data-1T.py": None,
    },
    "redpajama-v2": {"2023-06/0000/en_head.json.gz": "train", "README.md": None},
}


@pytest.mark.parametrize("name", known_source_names())
def test_manifests_know_the_layouts_of_their_origins(name):
    listed = choose_raw_files(load_source(name), dict.fromkeys(LAYOUTS[name], 1))
    assert {file.path: file.split for file in listed.files} == {
        path: split for path, split in LAYOUTS[name].items() if split
    }
    assert all(parse_origin(origin) for origin in load_source(name).origins)


def test_lines_of_a_list_go_through_the_manifests_template():
    with Server(
        {"v1/listings/en.txt": b"2023-06/0000/en_head\n", "v1/documents/2023-06/0000/en_head.json.gz": b"x"}
    ) as server:
        origin = parse_origin(
            f"{server.url}/v1/listings/en.txt", template=f"{server.url}/v1/documents/{{line}}.json.gz"
        )
        (file,) = UrlPlace(origin, patience=Patience()).list_files().files
    assert (file.path, file.size_bytes) == ("2023-06/0000/en_head.json.gz", 1)


def test_another_list_of_a_manifest_has_its_template():
    base = "https://data.together.xyz/redpajama-data-v2/v1.0.0"
    other = choose_origin(parse_source(f"redpajama-v2?from={base}/listings/de-2023-06-tail.txt"), fetch=False)
    assert other.template == f"{base}/documents/{{line}}.json.gz"
    assert choose_origin(parse_source("redpajama-v2?from=https://elsewhere/urls.txt"), fetch=False).template is None
    assert choose_origin(parse_source("slimpajama"), fetch=False) is None
    assert choose_origin(parse_source("slimpajama"), fetch=True).address == "cerebras/SlimPajama-627B"


def test_the_hubs_partial_copies_keep_their_splits():
    paths = [
        "en/partial-train/0000.parquet",
        "partial-train/0000.parquet",
        "partial-test/0000.parquet",
        "partial-x/a.parquet",
    ]
    files = choose_raw_files(load_source("web"), dict.fromkeys(paths, 1)).files
    assert {file.path.split("/")[-2]: file.split for file in files[1:]} == {
        "partial-test": "test",
        "partial-train": "train",
        "partial-x": "train",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf://org/name", "hf://datasets/org/name"),
        ("hf://datasets/org/name@v1/a/b", "hf://datasets/org/name@v1/a/b"),
        ("hf://org/name@refs/convert/parquet/en", "hf://datasets/org/name@refs/convert/parquet/en"),
        ("hf://org/name/a", "hf://datasets/org/name/a"),
        ("https://me:hush@host/a/urls.txt?sig=hush#x", "https://host/a/urls.txt"),
        ("s3://bucket/a/", "s3://bucket/a"),
    ],
)
def test_an_origin_is_shown_without_its_secrets(text, shown):
    assert str(parse_origin(text)) == shown


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("hf://org/some-name@main", "some-name"),
        ("s3://bucket/corpora/notes/", "notes"),
        ("s3://bucket", "bucket"),
        ("/data/my notes", "my-notes"),
        ("https://host/corpora/web/urls.txt?sig=1", "web"),
        ("https://host/corpus.jsonl.zst", "corpus.jsonl.zst"),
        ("hf://org/name?name=other", "other"),
    ],
)
def test_a_place_gives_its_source_a_name(place, name):
    assert parse_source(place).name == name


def test_languages_choose_folders_of_starcoder():
    mix = choose_languages(parse_mix("starcoder:1,notes:1"), "python,git-commits-cleaned")
    assert mix.entries[0].choice.only == ("git-commits-cleaned", "python")
    assert mix.entries[1].choice.only == () and [entry.weight for entry in mix.entries] == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"--languages pyton: starcoder has no subset 'pyton'; nearest: python"):
        choose_languages(parse_mix("starcoder:1"), "pyton")
    with pytest.raises(ValueError, match="starcoder is not in the mix"):
        choose_languages(parse_mix("notes:1"), "python")


def test_only_some_subsets_of_rows_is_all_others_excluded():
    assert parse_source("slimpajama?only=RedPajamaC4+RedPajamaBook").exclude == (
        "RedPajamaArXiv",
        "RedPajamaCommonCrawl",
        "RedPajamaGithub",
        "RedPajamaStackExchange",
        "RedPajamaWikipedia",
    )
