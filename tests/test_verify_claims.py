"""Verify finds each claim of a dataset.json that was made false, with every hash and checksum made to agree."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from verify_fixtures import build_in, claim, edit_documents, falsify, first_shard, put, save, write_two_sources

from pipeline.shard import documents_path, index_path, megatron_index, megatron_path


def edit_drops(folder, content, edit, source="web"):
    """Change the first file of drops of a source."""
    path = folder / "out" / content["sources"][source]["drops"][0]["path"]
    pq.write_table(edit(pq.read_table(path)), path)


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


def drops(edit, source="web"):
    return lambda folder, content: edit_drops(folder, content, edit, source)


def move_a_dropped_byte(folder, content):
    """From a row of bad JSON to one that is short, in the lists and in the counts."""
    edit_drops(
        folder,
        content,
        lambda t: put(put(t, "num_bytes", row_of(t, "short"), 1), "num_bytes", row_of(t, "bad_json"), 0),
    )
    add_to_counts("web", "bytes", 1, "short")(folder, content)
    add_to_counts("web", "bytes", -1, "bad")(folder, content)


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
def test_a_false_claim_is_named(two_copy, verify, name):
    change, expected = FALSE_CLAIMS[name]
    falsify(two_copy, change)
    code, said = verify(f"{two_copy}/out")
    assert code == 1
    assert expected in said
    assert "does not follow from" not in said


@pytest.mark.parametrize("hash_name", ["content_hash", "recipe_hash"])
def test_hashes_that_do_not_follow_are_named(one_copy, verify, hash_name):
    content = json.loads((one_copy / "out/dataset.json").read_text())
    content[hash_name] = "0"
    (one_copy / "out/dataset.json").write_text(json.dumps(content))
    assert f"{hash_name} does not follow from" in verify(f"{one_copy}/out")[1]


def test_copies_that_both_stay_are_found(tmp_path, sample_model, verify):
    write_two_sources(tmp_path / "raw")
    build_in(tmp_path, sample_model, mix="web:3,notes:1", dedup="none")
    falsify(tmp_path, claim("settings", "dedup", "exact"))
    code, said = verify(f"{tmp_path}/out")
    assert code == 1
    assert "have one content hash, but settings.dedup is exact" in said


# What the raw files alone can tell


RAW_CLAIMS = {
    "kept bytes": (add_to_counts("web", "bytes", 1000, "read", "kept"), "web: the documents kept have"),
    "min_chars": (claim("settings", "min_chars", 99), "kept, but it is short"),
    "raw_files digest": (claim("settings", "raw_files", {"web": "0", "notes": "0"}), "raw/web: the raw files are not those"),
    "sample": (claim("sample", {"files": [{"path": f"{p}.jsonl"} for p in ("web/a", "web/b", "notes/train/n", "notes/validation/v")]}), "sample.json, or that it has none"),
    "drop bytes": (move_a_dropped_byte, "dropped as short, but with 1 bytes, and it has 0"),
    "drop reason": (drops(lambda t: put(put(t, "reason", row_of(t, "bad_json"), "bad_text_type"), "reason", row_of(t, "bad_text_type"), "bad_json")), "bad_json, but the dataset says bad_text_type"),
    "partner": (drops(lambda t: put(t, "partner_row", row_of(t, "duplicate_exact"), 6)), "dropped as duplicate_exact, but its partner has another text"),
    "row that is not there": (drops(lambda t: put(t, "row", row_of(t, "short"), 500)), "a.jsonl row 51: neither in a shard nor in drops/"),
    "row beyond the end": (drops(lambda t: put(t, "row", row_of(t, "short"), 500)), "a.jsonl: ends before row 53, but 1 more rows"),
    "blank row": (drops(lambda t: put(t, "row", row_of(t, "bad_text_type"), 32)), "b.jsonl row 32: in a shard or in drops/, but the file has no such row"),
}  # fmt: skip


@pytest.mark.parametrize("name", RAW_CLAIMS)
def test_a_claim_that_the_raw_files_disprove_is_named(two_copy, verify, name):
    change, expected = RAW_CLAIMS[name]
    falsify(two_copy, change)
    code, said = verify(f"{two_copy}/out --raw {two_copy}/raw")
    assert code == 1
    assert expected in said


def test_ids_that_the_reference_engine_does_not_make_are_found(one_copy, verify):
    content = json.loads((one_copy / "out/dataset.json").read_text())
    path = first_shard(one_copy, content)
    ids = np.fromfile(path, "<u2")
    ids[[1, 2]] = ids[[2, 1]]
    ids.tofile(path)
    save(one_copy, content)
    assert verify(f"{one_copy}/out")[0] == 0
    code, said = verify(f"{one_copy}/out --raw {one_copy}/raw")
    assert code == 1
    assert "the reference engine makes" in said
    assert "differ from id 1 on" in said


def test_a_document_that_claims_anothers_row_is_found(one_copy, verify):
    content = json.loads((one_copy / "out/dataset.json").read_text())
    edit_documents(one_copy, content, lambda t: put(put(t, "row", 2, t["row"][3]), "row", 3, t["row"][2]))
    save(one_copy, content)
    assert verify(f"{one_copy}/out")[0] == 0
    code, said = verify(f"{one_copy}/out --raw {one_copy}/raw")
    assert code == 1
    assert "its text is not the one that the dataset holds" in said
