"""Verify finds what is wrong: each file of a dataset damaged in turn, claims of the wrong kind, raw files that changed.

`one_source` is small enough to point at a byte, `two_sources` has several shards (conftest.py). Claims that are false:
test_verify_claims.py.
"""

import json

import pytest
from conftest import write_rows
from verify_fixtures import build_in, claim, edit_documents, falsify, put, put_at, save, text_rows, write_two_sources

from pipeline import verify_copies, verify_rows


def test_a_good_dataset_is_all_right(one_source, verify):
    assert verify(f"{one_source}/out")[0] == 0
    code, said = verify(f"{one_source}/out --raw {one_source}/raw")
    assert code == 0, said
    assert "all right" in said
    assert "60 documents" in said
    assert verify(f"{one_source}/out --raw {one_source}/raw --fraction 0.5")[0] == 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dedup": "none"},
        {"document_rule": "eos", "seed": 5},
        {"min_chars": 25, "valid_fraction": 0.0},
        {"valid_fraction": 1.0},
    ],
)
def test_good_datasets_of_two_sources_are_all_right(tmp_path, sample_model, verify, settings):
    write_two_sources(tmp_path / "raw")
    build_in(tmp_path, sample_model, mix="web:3,notes:1", shard_tokens=300, **settings)
    for flags in ("", f"--raw {tmp_path}/raw"):
        code, said = verify(f"{tmp_path}/out {flags}")
        assert code == 0, said
        assert "shards  web" in said


def test_a_good_dataset_without_an_excluded_subset_is_all_right(tmp_path, sample_model, verify):
    subsets = ("RedPajamaGithub", "RedPajamaC4")
    rows = [{**row, "meta": {"redpajama_set_name": subsets[i % 2]}} for i, row in enumerate(text_rows("s", range(40)))]
    write_rows(tmp_path / "raw/slimpajama/train/chunk1/a.jsonl", [*rows[:30], rows[1], rows[0]])
    write_rows(tmp_path / "raw/slimpajama/validation/chunk1/b.jsonl", rows[30:])
    build_in(tmp_path, sample_model, mix="slimpajama?exclude=RedPajamaGithub:1")
    code, said = verify(f"{tmp_path}/out --raw {tmp_path}/raw")
    assert code == 0, said
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    assert content["sources"]["slimpajama"]["counts"]["excluded"]["documents"] == 21
    content["settings"]["exclude"]["slimpajama"] = ["RedPajamaC4"]
    save(tmp_path, content)
    code, said = verify(f"{tmp_path}/out --raw {tmp_path}/raw")
    assert "row 1: kept, but it is excluded" in said
    assert "row 0: dropped as excluded, but" in said


def test_a_known_tokenizer_keeps_its_name(tmp_path, named_tokenizers, verify):
    write_two_sources(tmp_path / "raw")
    build_in(tmp_path, "gpt2", mix="web:3,notes:1")
    assert verify(f"{tmp_path}/out --raw {tmp_path}/raw")[0] == 0
    falsify(tmp_path, claim("tokenizer", "name", "llama2"))
    code, said = verify(f"{tmp_path}/out")
    assert code == 1
    assert "tokenizer.name is 'llama2', but the file" in said


def test_little_memory_finds_the_same(two_sources, two_copy, verify, monkeypatch):
    monkeypatch.setattr(verify_rows, "RECORDS_AT_ONCE", 3)
    monkeypatch.setattr(verify_copies, "DOCUMENTS_AT_ONCE", 2)
    code, said = verify(f"{two_sources}/out --raw {two_sources}/raw")
    assert code == 0, said
    content = json.loads((two_copy / "out/dataset.json").read_text())
    twice = edit_documents(two_copy, content, lambda table: put(table, "row", 1, table["row"][0]))
    save(two_copy, content)
    assert f"row {twice['row'][0]} is there twice" in verify(f"{two_copy}/out")[1]


# Damaged files


def change_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "expected"),
    [
        ("web/train/shard-00000.bin", lambda path: change_byte(path, 6), "shard-00000.bin: xxh3-128 is"),
        ("web/train/shard-00000.bin", lambda path: path.write_bytes(path.read_bytes()[:-2]), "dataset.json says"),
        ("web/train/shard-00000.bin", lambda path: path.unlink(), "shard-00000.bin is missing"),
        ("web/train/shard-00000.bin.index", lambda path: change_byte(path, 8), "shard-00000.bin"),
        ("web/train/shard-00000.idx", lambda path: change_byte(path, 40), "shard-00000.idx: does not agree"),
        ("web/train/shard-00000.idx", lambda path: path.unlink(), "shard-00000.idx: does not agree"),
        ("web/train/shard-00000.docs.parquet", lambda path: change_byte(path, 90), "docs.parquet: xxh3-128"),
        ("web/drops/drops-00000.parquet", lambda path: change_byte(path, 90), "drops-00000.parquet: xxh3-128"),
        ("web/drops/drops-00000.parquet", lambda path: path.unlink(), "drops-00000.parquet: xxh3-128 is no file"),
        ("tokenizer/small.model", lambda path: change_byte(path, 90), "small.model: sha256 is"),
        ("web/train/shard-00001.bin", lambda path: path.touch(), "shard-00001.bin: dataset.json does not list it"),
        ("web/drops/x.parquet.tmp", lambda path: path.touch(), "x.parquet.tmp: dataset.json does not list it"),
        ("dataset.json.tmp", lambda path: path.touch(), "dataset.json.tmp: dataset.json does not list it"),
        ("dataset.json", lambda path: path.write_bytes(b"{"), "is not JSON"),
        ("dataset.json", lambda path: path.write_bytes(b"[]"), "is not a tokenmill dataset"),
    ],
)
def test_a_damaged_file_is_named(one_copy, verify, file, damage, expected):
    damage(one_copy / "out" / file)
    code, said = verify(f"{one_copy}/out")
    assert code == 1
    assert expected in said


# A dataset.json of the wrong shape


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("settings",), None, "settings"),
        (("sources",), None, "sources"),
        (("sources",), [], "sources"),
        (("mix",), None, "mix"),
        (("dtype",), "float99", "dtype"),
        (("document_rule",), "xyz", "document_rule"),
        (("settings", "dedup"), "fuzzy", "settings.dedup"),
        (("settings", "shard_tokens"), 0, "settings.shard_tokens"),
        (("settings", "valid_fraction"), 2.0, "settings.valid_fraction"),
        (("tokenizer", "eos_id"), -1, "tokenizer.eos_id"),
        (("sources", "web", "splits"), None, "sources.web.splits"),
        (("sources", "web", "splits", "train", "shards", 0, "tokens"), "many", "sources.web.splits.train.shards[0].tokens"),
        (("sources", "web", "counts", "kept", "bytes"), True, "sources.web.counts.kept.bytes"),
        (("sources", "other"), {}, "sources.other.title"),
    ],
)  # fmt: skip
def test_a_claim_of_the_wrong_kind_gets_one_line(one_copy, verify, keys, value, named):
    content = json.loads((one_copy / "out/dataset.json").read_text())
    put_at(content, keys, value)
    (one_copy / "out/dataset.json").write_text(json.dumps(content))
    code, said = verify(f"{one_copy}/out")
    assert code == 1
    assert f"dataset.json: {named} is missing or of the wrong kind" in said


def test_a_claim_that_nothing_checks_is_named(one_copy, verify):
    content = json.loads((one_copy / "out/dataset.json").read_text())
    content["sources"]["web"]["quality"] = "best"
    (one_copy / "out/dataset.json").write_text(json.dumps(content))
    assert "dataset.json: sources.web.quality is no claim that this program knows" in verify(f"{one_copy}/out")[1]


@pytest.mark.parametrize(
    ("line", "replacement", "expected"),
    [
        (0, b'{"text": "another text"}', "row 0: its text is not the one"),
        (60, b'{"text": "another text"}', "row 60: dropped as duplicate_exact, but its partner has another text"),
        (61, b'{"text": "long"}', "row 61: dropped as short, but it has 4 characters"),
        (62, b'{"text": "fine"}', "row 62: dropped as bad_json, but it is a document"),
        (5, b"{", "row 5: bad_json, but the dataset says a document"),
        (5, b"", "row 5: in a shard or in drops/, but the file has no such row"),
    ],
)
def test_raw_files_that_changed_are_found(one_copy, verify, line, replacement, expected):
    path = one_copy / "raw/web/a.jsonl"
    lines = path.read_bytes().splitlines()
    lines[line] = replacement
    path.write_bytes(b"\n".join(lines) + b"\n")
    code, said = verify(f"{one_copy}/out --raw {one_copy}/raw")
    assert code == 1
    assert expected in said
    assert "the raw files are not those of which" in said


def test_missing_folders_and_wrong_fractions_get_one_line(one_copy, verify, tmp_path):
    assert "holds no finished dataset" in verify(str(tmp_path / "none"))[1]
    assert (
        f"--raw {tmp_path}/none is no folder with a folder web:" in verify(f"{one_copy}/out --raw {tmp_path}/none")[1]
    )
    assert "has no folder web: name the one" in verify(f"{one_copy}/out --raw {one_copy}/raw/web")[1]
    assert "--fraction must be from 0 to 1" in verify(f"{one_copy}/out --raw {one_copy}/raw --fraction 2")[1]
    assert "--fraction must be from 0 to 1" in verify(f"{one_copy}/out --fraction 2")[1]
    assert "give --raw" in verify(f"{one_copy}/out --fraction 0.5")[1]


def test_raw_files_that_are_missing_are_named(two_copy, verify):
    (two_copy / "raw/web/b.jsonl").unlink()
    code, said = verify(f"{two_copy}/out --raw {two_copy}/raw")
    assert code == 1
    assert "raw/web/b.jsonl is missing: dataset.json lists" in said
