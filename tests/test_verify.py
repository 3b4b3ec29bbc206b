"""Verify finds what is wrong: each file of a dataset damaged in turn, and each claim of dataset.json made false in turn.

`built` has one source and one shard, small enough to point at a byte. `mixed` has two sources, one with validation files
of its own, duplicates within and across them, short and bad rows, and several shards.
"""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_rows
from rich.console import Console

from pipeline import verify_copies, verify_rows
from pipeline.build import BuildArguments, build
from pipeline.finish import hash_content
from pipeline.plan import hash_recipe
from pipeline.shard import documents_path, index_path, megatron_index, megatron_path
from pipeline.storage import checksum_file
from pipeline.verify import main


def text_rows(name, numbers):
    return [{"text": f"the text of {name} document {number}"} for number in numbers]


def build_in(folder, sample_model, **settings):
    arguments = {"raw": folder / "raw", "out": folder / "out", "tokenizer": str(sample_model), "workers": 1}
    build(BuildArguments(**{**arguments, "max_bad_fraction": 0.1, **settings}), Console(quiet=True))


@pytest.fixture(scope="session")
def built(tmp_path_factory, sample_model):
    """A folder with raw/ and out/: one source with a duplicate, a short and a bad row."""
    folder = tmp_path_factory.mktemp("built")
    rows = text_rows("web", range(60))
    write_rows(folder / "raw/web/a.jsonl", [*rows, rows[0], {"text": ""}, b"{"])
    build_in(folder, sample_model, mix="web:1")
    return folder


def write_two_sources(raw):
    web, notes = text_rows("web", range(80)), text_rows("notes", range(40))
    write_rows(raw / "web/a.jsonl", [*web[:50], web[7], {"text": ""}, b"{"])
    write_rows(raw / "web/b.jsonl", [web[8], *web[50:], web[51], b"", b'{"text": 7}'])
    write_rows(raw / "notes/train/n.jsonl", [*notes[:30], web[9], web[10], notes[35]])
    write_rows(raw / "notes/validation/v.jsonl", notes[30:])


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, sample_model):
    """A folder with raw/ and out/: the sources web and notes."""
    folder = tmp_path_factory.mktemp("mixed")
    write_two_sources(folder / "raw")
    build_in(folder, sample_model, mix="web:3,notes:1", shard_tokens=400, valid_fraction=0.2)
    return folder


@pytest.fixture
def copy(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "copy"))


@pytest.fixture
def mixed_copy(mixed, tmp_path):
    return Path(shutil.copytree(mixed, tmp_path / "copy"))


@pytest.fixture
def verify(capsys, monkeypatch):
    def run(flags):
        monkeypatch.setattr("sys.argv", ["verify.py", *shlex.split(flags)])
        try:
            main()
        except SystemExit as stop:
            return 1, capsys.readouterr().out + str(stop.code)
        return 0, capsys.readouterr().out

    return run


def test_a_good_dataset_is_all_right(built, verify):
    assert verify(f"{built}/out")[0] == 0
    code, said = verify(f"{built}/out --raw {built}/raw")
    assert code == 0, said
    assert "all right" in said
    assert "60 documents" in said
    assert verify(f"{built}/out --raw {built}/raw --fraction 0.5")[0] == 0


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
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    content["tokenizer"]["name"] = "llama2"
    save(tmp_path, content)
    code, said = verify(f"{tmp_path}/out")
    assert code == 1
    assert "tokenizer.name is 'llama2', but the file" in said


def test_little_memory_finds_the_same(mixed, mixed_copy, verify, monkeypatch):
    monkeypatch.setattr(verify_rows, "RECORDS_AT_ONCE", 3)
    monkeypatch.setattr(verify_copies, "DOCUMENTS_AT_ONCE", 2)
    code, said = verify(f"{mixed}/out --raw {mixed}/raw")
    assert code == 0, said
    content = json.loads((mixed_copy / "out/dataset.json").read_text())
    twice = edit_documents(mixed_copy, content, lambda table: put(table, "row", 1, table["row"][0]))
    save(mixed_copy, content)
    assert f"row {twice['row'][0]} is there twice" in verify(f"{mixed_copy}/out")[1]


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
def test_a_damaged_file_is_named(copy, verify, file, damage, expected):
    damage(copy / "out" / file)
    code, said = verify(f"{copy}/out")
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
def test_a_claim_of_the_wrong_kind_gets_one_line(copy, verify, keys, value, named):
    content = json.loads((copy / "out/dataset.json").read_text())
    put_at(content, keys, value)
    (copy / "out/dataset.json").write_text(json.dumps(content))
    code, said = verify(f"{copy}/out")
    assert code == 1
    assert f"dataset.json: {named} is missing or of the wrong kind" in said


def test_a_claim_that_nothing_checks_is_named(copy, verify):
    content = json.loads((copy / "out/dataset.json").read_text())
    content["sources"]["web"]["quality"] = "best"
    (copy / "out/dataset.json").write_text(json.dumps(content))
    assert "dataset.json: sources.web.quality is no claim that this program knows" in verify(f"{copy}/out")[1]


def put_at(content, keys, value):
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


# False claims, with every hash and checksum made to agree


def save(folder, content):
    """Write dataset.json with all checksums, sizes and hashes as the files and claims now are."""
    for source in content["sources"].values():
        for split in source["splits"].values():
            for shard in split["shards"]:
                path = folder / "out" / shard["path"]
                if path.is_file():
                    shard.update(xxh3_128=checksum_file(path), docs_xxh3_128=checksum_file(documents_path(path)))
        for file in source["drops"]:
            file["xxh3_128"] = checksum_file(folder / "out" / file["path"])
    content["content_hash"] = hash_content(content["sources"])
    content["recipe_hash"] = hash_recipe(content["settings"])
    (folder / "out/dataset.json").write_text(json.dumps(content))


def first_shard(folder, content, source="web", split="train"):
    return folder / "out" / content["sources"][source]["splits"][split]["shards"][0]["path"]


def edit_documents(folder, content, edit):
    """Change the table of web's first train shard."""
    path = documents_path(first_shard(folder, content))
    pq.write_table(edit(pq.read_table(path)), path)
    return pq.read_table(path).to_pydict()


def edit_drops(folder, content, edit, source="web"):
    """Change the first file of drops of a source."""
    path = folder / "out" / content["sources"][source]["drops"][0]["path"]
    pq.write_table(edit(pq.read_table(path)), path)


def put(table, column, row, value):
    """The table with one value changed."""
    values = table[column].to_pylist()
    values[row] = value.as_py() if isinstance(value, pa.Scalar) else value
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def row_of(table, reason):
    return table["reason"].to_pylist().index(reason)


def reverse_documents(folder, content):
    path = first_shard(folder, content)
    ids, ends = np.fromfile(path, "<u2"), np.fromfile(index_path(path), "<u8").astype(int)
    documents = np.split(ids, ends[:-1])[::-1]
    new_ends = np.cumsum([len(document) for document in documents]).astype("<u8")
    np.concatenate(documents).tofile(path)
    new_ends.tofile(index_path(path))
    megatron_path(path).write_bytes(b"".join(megatron_index(new_ends, np.dtype("<u2"))))
    edit_documents(folder, content, lambda table: table.take(pa.array(range(len(table) - 1, -1, -1))))


def swap_splits(folder, content):
    """The splits of web change their names, and the files with them."""
    web, splits = folder / "out/web", content["sources"]["web"]["splits"]
    web.joinpath("train").rename(web / "other")
    web.joinpath("validation").rename(web / "train")
    web.joinpath("other").rename(web / "validation")
    splits["train"], splits["validation"] = splits["validation"], splits["train"]
    for name, split in splits.items():
        for number, shard in enumerate(split["shards"]):
            shard["path"] = f"web/{name}/shard-{number:05d}.bin"


def add_to_counts(source, what, number, *outcomes):
    def change(folder, content):
        for outcome in outcomes:
            content["sources"][source]["counts"][outcome][what] += number

    return change


def claim(*keys_and_value):
    return lambda folder, content: put_at(content, keys_and_value[:-1], keys_and_value[-1])


def drops(edit, source="web"):
    return lambda folder, content: edit_drops(folder, content, edit, source)


def documents(edit):
    return lambda folder, content: edit_documents(folder, content, edit)


FALSE_CLAIMS = {
    "name": (claim("tokenizer", "name", "llama2"), "tokenizer.name is 'llama2', but the file"),
    "family": (claim("tokenizer", "family", "tiktoken"), "tokenizer.family is tiktoken"),
    "vocab_size": (claim("tokenizer", "vocab_size", 601), "tokenizer.vocab_size is 601"),
    "small vocab_size": (claim("tokenizer", "vocab_size", 5), "is beyond the vocabulary of 5"),
    "dtype": (claim("dtype", "uint32"), "dtype uint32 for a vocabulary of 600"),
    "bos_id": (claim("tokenizer", "bos_id", 599), "tokenizer.bos_id is 599"),
    "no bos_id": (claim("tokenizer", "bos_id", None), "bos+eos, but tokenizer.bos_id is null"),
    "eos_id": (claim("tokenizer", "eos_id", 7), "id 7 stands at token"),
    "tokenizer file": (claim("tokenizer", "file", "../raw/web/a.jsonl"), "not a file of tokenizer/"),
    "settings.tokenizer": (claim("settings", "tokenizer", "0"), "settings.tokenizer is '0'"),
    "document_rule": (claim("document_rule", "eos"), "id 1 stands at token 0"),
    "settings.document_rule": (claim("settings", "document_rule", "eos"), "document_rule is bos+eos, in settings eos"),
    "seed": (claim("settings", "seed", 5), "should not stand after the one before it"),
    "shard_tokens": (claim("settings", "shard_tokens", 100), "shards, but settings.shard_tokens 100 makes"),
    "valid_fraction": (claim("settings", "valid_fraction", 0.9), "belongs to validation"),
    "dedup none": (claim("settings", "dedup", "none"), "settings.dedup is none, but 3 documents"),
    "source_order": (claim("settings", "source_order", ["notes", "web"]), "settings.source_order is not the order of sources"),
    "dedup_priority": (claim("settings", "dedup_priority", ["notes", "web"]), "which comes after it (1 such pairs)"),
    "short source_order": (claim("settings", "source_order", ["web"]), "settings.source_order names ['web']"),
    "settings.exclude": (claim("settings", "exclude", {}), "settings.exclude names []"),
    "settings.columns": (claim("settings", "columns", {}), "settings.columns names []"),
    "settings.raw_files": (claim("settings", "raw_files", {"web": "0"}), "settings.raw_files names ['web']"),
    "mix of others": (claim("mix", {"notes": -3, "zz": 9}), "mix names ['notes', 'zz'], sources ['notes', 'web']"),
    "negative weight": (claim("mix", {"notes": -3, "web": 4}), "mix gives notes the weight -3"),
    "mix without one": (claim("mix", {"web": 1}), "mix names ['web']"),
    "weights": (claim("mix", {"web": 1, "notes": 1}), "weights of mix add up to 2"),
    "sample": (claim("sample", {"a": 1}), "sample.files is missing"),
    "sample of others": (claim("sample", {"files": []}), "raw file notes/train/n.jsonl is not of the sample"),
    "no sources": (claim("sources", {}), "sources is empty"),
    "source name": (lambda folder, content: content["sources"].update({"../x": content["sources"]["web"]}), "name '../x'"),
    "raw_files gone": (claim("sources", "web", "raw_files", []), "comes from raw file 0 of 0"),
    "raw_files order": (claim("sources", "web", "raw_files", ["b.jsonl", "a.jsonl"]), "not in the order of their paths"),
    "raw_files split": (claim("sources", "web", "raw_files", ["test-a.jsonl", "train-b.jsonl"]), "belongs to test"),
    "read": (add_to_counts("web", "documents", 1, "read"), "documents read, but the outcomes add up to 86"),
    "kept": (add_to_counts("web", "tokens", 1, "read", "kept"), "tokens kept, but its splits hold"),
    "short": (add_to_counts("web", "documents", 1, "read", "short"), "drops/ lists 1 short documents, counts says 2"),
    "bad bytes": (add_to_counts("web", "bytes", 9, "read", "bad"), "bytes bad, counts says"),
    "short tokens": (add_to_counts("web", "tokens", 9, "read", "short"), "9 tokens short, but no such document"),
    "duplicate tokens": (add_to_counts("web", "tokens", 9, "read", "duplicate_exact"), "but what stays for them has"),
    "bad_reasons": (claim("sources", "web", "bad_reasons", {"bad_utf8": 2}), "drops/ lists 0 bad_utf8, bad_reasons says 2"),
    "no drops": (claim("sources", "web", "drops", []), "drops/ lists 0 short documents, counts says 1"),
    "drops documents": (claim("sources", "web", "drops", 0, "documents", 1), "documents, dataset.json says 1"),
    "drop reason": (drops(lambda t: put(t, "reason", row_of(t, "short"), "dull")), "'dull' is no reason to drop"),
    "drop row": (drops(lambda t: put(t, "row", row_of(t, "short"), 3)), "web/a.jsonl row 3 is there twice"),
    "drop file": (drops(lambda t: put(t, "raw_file", row_of(t, "short"), 9)), "a row comes from raw file 9 of 2"),
    "drop table": (drops(lambda t: t.drop_columns(["reason"])), "its columns are not raw_file"),
    "partner row": (drops(lambda t: put(t, "partner_row", row_of(t, "duplicate_exact"), 51)), "a.jsonl row 51, which is not kept"),
    "partner source": (drops(lambda t: put(t, "partner_source", row_of(t, "duplicate_exact"), "zz")), "is of 'zz', which is no source"),
    "partner file": (drops(lambda t: put(t, "partner_raw_file", row_of(t, "duplicate_exact"), 9)), "partner is of web, raw file 9 of 2"),
    "no partner": (drops(lambda t: put(t, "partner_source", row_of(t, "duplicate_exact"), None)), "a duplicate has no partner_source"),
    "similarity": (drops(lambda t: put(t, "similarity", row_of(t, "duplicate_exact"), 0.5)), "has a similarity other than 1"),
    "document row": (documents(lambda t: put(t, "row", 1, t["row"][0])), "is there twice, in shards or drops/"),
    "document file": (documents(lambda t: put(t, "raw_file", 0, 9)), "a document comes from raw file 9 of 2"),
    "document tokens": (documents(lambda t: put(t, "num_tokens", 0, 1)), "num_tokens does not agree with"),
    "content hashes": (documents(lambda t: put(t, "content_hash", 1, t["content_hash"][0])), "have one content hash"),
    "documents table": (documents(lambda t: t.drop_columns(["row"])), "its columns are not raw_file, row"),
    "table is garbage": (lambda f, c: documents_path(first_shard(f, c)).write_bytes(b"PAR1xxxx"), "not a readable parquet file"),
    "order": (reverse_documents, "should not stand after the one before it"),
    "splits": (swap_splits, "belongs to"),
    "split names": (lambda f, c: c["sources"]["web"].update(splits={"train": c["sources"]["web"]["splits"]["validation"]}), "should be web/train/shard-00000.bin"),
    "split unknown": (lambda f, c: c["sources"]["web"]["splits"].update(dev={"documents": 0, "tokens": 0, "bytes": 0, "shards": []}), "'dev' is no split"),
    "split tokens": (claim("sources", "web", "splits", "train", "tokens", 1), "tokens is not the sum over its shards"),
    "largest_id": (claim("sources", "web", "splits", "train", "shards", 0, "largest_id", 5), "dataset.json says 5"),
    "empty shard": (claim("sources", "web", "splits", "train", "shards", 0, "documents", 0), "says that it is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", FALSE_CLAIMS)
def test_a_false_claim_is_named(mixed_copy, verify, name):
    change, expected = FALSE_CLAIMS[name]
    content = json.loads((mixed_copy / "out/dataset.json").read_text())
    change(mixed_copy, content)
    save(mixed_copy, content)
    code, said = verify(f"{mixed_copy}/out")
    assert code == 1
    assert expected in said
    assert "does not follow from" not in said


@pytest.mark.parametrize("hash_name", ["content_hash", "recipe_hash"])
def test_hashes_that_do_not_follow_are_named(copy, verify, hash_name):
    content = json.loads((copy / "out/dataset.json").read_text())
    content[hash_name] = "0"
    (copy / "out/dataset.json").write_text(json.dumps(content))
    assert f"{hash_name} does not follow from" in verify(f"{copy}/out")[1]


def test_copies_that_both_stay_are_found(tmp_path, sample_model, verify):
    write_two_sources(tmp_path / "raw")
    build_in(tmp_path, sample_model, mix="web:3,notes:1", dedup="none")
    content = json.loads((tmp_path / "out/dataset.json").read_text())
    content["settings"]["dedup"] = "exact"
    save(tmp_path, content)
    code, said = verify(f"{tmp_path}/out")
    assert code == 1
    assert "have one content hash, but settings.dedup is exact" in said


# What the raw files alone can tell


RAW_CLAIMS = {
    "kept bytes": (add_to_counts("web", "bytes", 1000, "read", "kept"), "web: the documents kept have"),
    "min_chars": (claim("settings", "min_chars", 99), "kept, but it is short"),
    "raw_files digest": (claim("settings", "raw_files", {"web": "0", "notes": "0"}), "raw/web: the raw files are not those"),
    "sample": (claim("sample", {"files": [{"path": f"{p}.jsonl"} for p in ("web/a", "web/b", "notes/train/n", "notes/validation/v")]}), "sample.json, or that it has none"),
    "drop bytes": (drops(lambda t: put(put(t, "num_bytes", row_of(t, "short"), 1), "num_bytes", row_of(t, "bad_json"), 0)), "dropped as short, but with 1 bytes, and it has 0"),
    "drop reason": (drops(lambda t: put(put(t, "reason", row_of(t, "bad_json"), "bad_text_type"), "reason", row_of(t, "bad_text_type"), "bad_json")), "bad_json, but the dataset says bad_text_type"),
    "partner": (drops(lambda t: put(t, "partner_row", row_of(t, "duplicate_exact"), 6)), "dropped as duplicate_exact, but its partner has another text"),
    "row that is not there": (drops(lambda t: put(t, "row", row_of(t, "short"), 500)), "a.jsonl row 51: neither in a shard nor in drops/"),
    "row beyond the end": (drops(lambda t: put(t, "row", row_of(t, "short"), 500)), "a.jsonl: ends before row 53, but 1 more rows"),
    "blank row": (drops(lambda t: put(t, "row", row_of(t, "bad_text_type"), 32)), "b.jsonl row 32: in a shard or in drops/, but the file has no such row"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW_CLAIMS)
def test_a_claim_that_the_raw_files_disprove_is_named(mixed_copy, verify, name):
    change, expected = RAW_CLAIMS[name]
    content = json.loads((mixed_copy / "out/dataset.json").read_text())
    change(mixed_copy, content)
    if name == "drop bytes":
        content["sources"]["web"]["counts"]["short"]["bytes"] += 1
        content["sources"]["web"]["counts"]["bad"]["bytes"] -= 1
    save(mixed_copy, content)
    code, said = verify(f"{mixed_copy}/out --raw {mixed_copy}/raw")
    assert code == 1
    assert expected in said


def test_ids_that_the_reference_engine_does_not_make_are_found(copy, verify):
    content = json.loads((copy / "out/dataset.json").read_text())
    path = first_shard(copy, content)
    ids = np.fromfile(path, "<u2")
    ids[[1, 2]] = ids[[2, 1]]
    ids.tofile(path)
    save(copy, content)
    assert verify(f"{copy}/out")[0] == 0
    code, said = verify(f"{copy}/out --raw {copy}/raw")
    assert code == 1
    assert "the reference engine makes" in said
    assert "differ from id 1 on" in said


def test_a_document_that_claims_anothers_row_is_found(copy, verify):
    content = json.loads((copy / "out/dataset.json").read_text())
    edit_documents(copy, content, lambda t: put(put(t, "row", 2, t["row"][3]), "row", 3, t["row"][2]))
    save(copy, content)
    assert verify(f"{copy}/out")[0] == 0
    code, said = verify(f"{copy}/out --raw {copy}/raw")
    assert code == 1
    assert "its text is not the one that the dataset holds" in said


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
def test_raw_files_that_changed_are_found(copy, verify, line, replacement, expected):
    path = copy / "raw/web/a.jsonl"
    lines = path.read_bytes().splitlines()
    lines[line] = replacement
    path.write_bytes(b"\n".join(lines) + b"\n")
    code, said = verify(f"{copy}/out --raw {copy}/raw")
    assert code == 1
    assert expected in said
    assert "the raw files are not those of which" in said


def test_missing_folders_and_wrong_fractions_get_one_line(copy, verify, tmp_path):
    assert "holds no finished dataset" in verify(str(tmp_path / "none"))[1]
    assert f"--raw {tmp_path}/none is no folder with a folder web:" in verify(f"{copy}/out --raw {tmp_path}/none")[1]
    assert "has no folder web: name the one" in verify(f"{copy}/out --raw {copy}/raw/web")[1]
    assert "--fraction must be from 0 to 1" in verify(f"{copy}/out --raw {copy}/raw --fraction 2")[1]
    assert "--fraction must be from 0 to 1" in verify(f"{copy}/out --fraction 2")[1]
    assert "give --raw" in verify(f"{copy}/out --fraction 0.5")[1]


def test_raw_files_that_are_missing_are_named(mixed_copy, verify):
    (mixed_copy / "raw/web/b.jsonl").unlink()
    code, said = verify(f"{mixed_copy}/out --raw {mixed_copy}/raw")
    assert code == 1
    assert "raw/web/b.jsonl is missing: dataset.json lists" in said
