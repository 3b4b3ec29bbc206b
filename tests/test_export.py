"""Exports hold the same ids under other names or behind headers; imports wrap foreign files; streams keep the mix."""

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from loopback import Server
from reader_fixtures import EOS, random_documents, split_documents, write_dataset

from pipeline import summary
from pipeline.dataset import PackedDataset
from pipeline.dataset_card import describe_dataset
from pipeline.export import TARGETS, ExportArguments, export
from pipeline.origins import parse_origin
from pipeline.remote_dataset import open_remote
from pipeline.shard import index_path, megatron_path, read_dataset_json
from pipeline.source_shards import SourceShards


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "packed"
    sources = {
        "web": split_documents(random_documents(300, seed=1), 3),
        "code": split_documents(random_documents(90, seed=2), 2),
    }
    validation = {"web": [random_documents(20, seed=3)], "code": [random_documents(10, seed=4)]}
    return write_dataset(folder, sources, mix={"web": 0.75, "code": 0.25}, validation=validation)


@pytest.fixture
def run(packed, tmp_path):
    """Export as a function of the target and more settings; returns OUT."""

    def run(to, **settings):
        arguments = replace(ExportArguments(dataset=packed, to=to, out=tmp_path / f"out-{to}"), **settings)
        export(arguments)
        return arguments.out

    return run


def documents_of(folder, split="train"):
    """The documents of each source, in order, as lists of ids with their EOS."""
    content = read_dataset_json(folder)
    found = {}
    for source, entry in content["sources"].items():
        shards = SourceShards(folder, entry["splits"][split]["shards"], dtype=np.dtype(content["dtype"]))
        tokens = shards.read_tokens(0, shards.num_tokens).tolist()
        ends = np.cumsum([0, *shards.document_lengths(0, int(shards.first_documents[-1]))]).tolist()
        found[source] = [tokens[start:end] for start, end in pairwise(ends)]
    return found


def test_megatron_gets_links_and_a_blend_of_the_mix(run, packed):
    out = run("megatron")
    (first, *_) = sorted(out.glob("web/train/*.bin"))
    assert first.is_symlink() and first.read_bytes() == (packed / "web/train/shard-00000.bin").read_bytes()
    assert first.with_suffix(".idx").read_bytes() == (packed / "web/train/shard-00000.idx").read_bytes()
    blend = json.loads((out / "blend.json").read_text())["train"]
    weights = dict(zip(blend[1::2], map(float, blend[::2]), strict=True))
    assert all(os.path.exists(f"{prefix}.bin") for prefix in weights)
    assert sum(weight for prefix, weight in weights.items() if "/web/" in prefix) == pytest.approx(0.75)
    assert sum(weights.values()) == pytest.approx(1)


def test_olmo_gets_npy_names_and_tables_of_documents(run, packed):
    out = run("olmo")
    settings = json.loads((out / "olmo.json").read_text())
    assert settings["bos_token_id"] is None and settings["eos_token_id"] == EOS
    rows = gzip.decompress((out / "code/train/shard-00001.csv.gz").read_bytes()).decode().splitlines()
    ends = np.fromfile(index_path(packed / "code/train/shard-00001.bin"), "<u8")
    assert [int(row.split(",")[1]) for row in rows] == ends.tolist()
    assert rows[0].split(",")[0] == "0" and (out / settings["paths"][-1]).is_symlink()


def test_datatrove_and_nanotron_get_an_index_and_metadata_with_a_name(run, packed):
    out = run("datatrove")
    shard = out / "web/train/shard-00002.ds"
    assert (
        shard.with_name("shard-00002.ds.index").read_bytes()
        == index_path(packed / "web/train/shard-00002.bin").read_bytes()
    )
    num_tokens = shard.stat().st_size // 2
    assert shard.with_name("shard-00002.ds.metadata").read_text() == f"sample|2\n{num_tokens}\n{num_tokens:,} tokens\n"
    with pytest.raises(ValueError, match="nanotron loads the tokenizer by its name"):
        run("nanotron")
    out = run("nanotron", tokenizer_name="gpt2")
    assert (out / "web/train/shard-00000.ds.metadata").read_text().startswith("gpt2|2\n")


def test_nanogpt_gets_one_file_per_split_without_a_header(run, packed):
    out = run("nanogpt")
    expected = [token for documents in documents_of(packed).values() for document in documents for token in document]
    assert np.fromfile(out / "train.bin", np.uint16).tolist() == expected
    stream = run("nanogpt", out=out.with_name("one"), interleave=True)
    assert (stream / "train.bin").is_symlink()  # the stream is one shard


def test_llmc_gets_a_header_and_an_eos_before_the_first_document(run, packed):
    out = run("llmc")
    data = (out / "web_train_000001.bin").read_bytes()
    header = np.frombuffer(data, "<i4", 256)
    assert header[:3].tolist() == [20240520, 1, (len(data) - 1024) // 2] and not header[3:].any()
    ids = np.frombuffer(data, "<u2", offset=1024)
    assert ids[0] == EOS and ids[1:].tobytes() == (packed / "web/train/shard-00001.bin").read_bytes()
    assert (out / "code_val_000000.bin").is_file()


def test_litdata_gets_chunks_of_whole_documents(run, packed, monkeypatch):
    monkeypatch.setattr("pipeline.export_copies.LITDATA_CHUNK_BYTES", 2000)
    out = run("litdata") / "code/train"
    index = json.loads((out / "index.json").read_text())
    read = []
    for chunk in index["chunks"]:
        data = (out / chunk["filename"]).read_bytes()
        (num_items,) = np.frombuffer(data, "<u4", 1)
        offsets = np.frombuffer(data, "<u4", num_items + 1, 4)
        assert offsets[0] == 4 * (num_items + 2) and offsets[-1] == len(data)
        read += [np.frombuffer(data[start:end], "<u2").tolist() for start, end in pairwise(offsets)]
        assert chunk["dim"] * 2 == chunk["chunk_bytes"] <= 2000 and chunk["chunk_size"] == num_items
    assert read == documents_of(packed)["code"] and len(index["chunks"]) > 2


def test_rows_for_hf_and_mds_are_the_samples_in_order(run, packed, monkeypatch):
    monkeypatch.setattr("pipeline.export_copies.PARQUET_ROWS", 100)
    monkeypatch.setattr("pipeline.export_copies.MDS_SHARD_BYTES", 4000)
    dataset = PackedDataset(packed, seq_len=15, seed=5, max_epochs=1)
    expected = dataset.samples(range(len(dataset)))
    out = run("hf", seq_len=16, seed=5)
    files = sorted((out / "data").glob("train-*.parquet"))
    assert np.array_equal(
        np.concatenate([np.stack(pq.read_table(file)["input_ids"].to_numpy()) for file in files]), expected
    )
    assert [file.name for file in files][-1] == f"train-{len(files) - 1:05d}-of-{len(files):05d}.parquet"
    out = run("mds", seq_len=16, seed=5) / "train"
    rows = []
    for shard in json.loads((out / "index.json").read_text())["shards"]:
        data = (out / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"] <= 5000
        offsets = np.frombuffer(data, "<u4", shard["samples"] + 1, 4)
        rows += [np.frombuffer(data[start:end], "<u2") for start, end in pairwise(offsets)]
    assert np.array_equal(np.stack(rows), expected)


def test_the_stream_keeps_every_document_whole_and_the_mix_all_along(run, packed, monkeypatch):
    monkeypatch.setattr("pipeline.interleave.SHARD_TOKENS", 1500)
    out = run("megatron", interleave=True, mix="web:0.6,code:0.4")
    stream = documents_of(out / "stream")["interleaved"]
    originals = documents_of(packed)
    code = [document for document in stream if document in originals["code"]]
    web = [document for document in stream if document in originals["web"]]
    assert web == originals["web"][: len(web)] and code == originals["code"][: len(code)]
    assert len(web) + len(code) == len(stream)
    assert len(code) == len(originals["code"])  # it ends where the first source does
    assert len(list((out / "stream/interleaved/train").glob("*.bin"))) > 2
    total, of_code = 0, 0
    for document in stream:
        assert abs(of_code - 0.4 * total) <= 62
        total += len(document)
        of_code += len(document) * (document in originals["code"])
    assert documents_of(out / "stream", "validation")["interleaved"]


def test_a_stream_ends_after_its_tokens_and_names_its_raw_files(run):
    out = run("olmo", interleave=True, tokens="2k")
    content = read_dataset_json(out / "stream")
    split = content["sources"]["interleaved"]["splits"]["train"]
    assert 2000 <= split["tokens"] < 2200
    raw_files = content["sources"]["interleaved"]["raw_files"]
    table = pq.read_table(out / "stream/interleaved/train/shard-00000.docs.parquet").to_pydict()
    assert {raw_files[number].split("/")[0] for number in table["raw_file"]} == {"web", "code"}
    with pytest.raises(ValueError, match="with this mix source 'code' ends after"):
        run("olmo", out=out.with_name("more"), interleave=True, tokens="1e6")


def test_copies_instead_of_links_for_storage_without_links(run):
    assert not any(path.is_symlink() for path in run("megatron", copy=True).rglob("*"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"to": "tar"}, "--to tar: it is one of megatron, olmo"),
        ({"to": None}, "--to is missing: it is one of megatron, olmo"),
        ({"to": "megatron", "mix": "web?exclude=a:1,code:1"}, "has no source 'web.exclude=a': it has web, code"),
        ({"to": "mds"}, "rows need --seq-len"),
        ({"to": "olmo", "splits": "test"}, "has no split test: it has train, validation"),
        ({"to": "olmo", "tokens": 5}, "--tokens is the length of the stream"),
        ({"to": "olmo", "dataset": None}, "no dataset is named"),
        ({"to": "olmo", "interleave": True, "mix": "books:1"}, "has no source 'books'"),
        ({"to": "megatron", "mix": "web:1,nope:1"}, "has no source 'nope': it has web, code"),
        (
            {"to": "nanogpt", "mix": "web:1"},
            "--mix changes nothing of nanogpt: it is for megatron, mds, hf, or for --in",
        ),
        ({"to": "olmo", "seed": 0}, "--seed changes nothing of olmo: it is for mds, hf"),
        ({"to": "llmc", "seq_len": 8}, "--seq-len changes nothing of llmc: it is for mds, hf"),
        ({"to": "hf", "tokenizer_name": "gpt2"}, "--tokenizer-name changes nothing of hf"),
        ({"to": "olmo", "dtype": "uint16"}, "--dtype is for --import alone"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(run, tmp_path, settings, expected):
    with pytest.raises(ValueError, match=expected):
        run(**settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "left"), [({}, r" \((\d+) rows left out: .* ends\)"), ({"mix": "web:1"}, "()")])
@pytest.mark.parametrize("to", ["mds", "hf"])
def test_the_summary_counts_the_rows_that_were_written(packed, tmp_path, to, settings, left):
    out = tmp_path / "out"
    said = export(ExportArguments(dataset=packed, to=to, out=out, seq_len=16, splits="train", **settings))
    mix = {"web": 1.0} if settings else None
    dataset = PackedDataset(packed, seq_len=15, mix=mix, max_epochs=1)
    found = re.fullmatch(rf"{out}: (\S+) rows, (\S+) tokens of train{left} for {to}", said)
    assert found and [int(number.replace(",", "")) for number in found.groups()[:2]] == [
        len(dataset),
        len(dataset) * 16,
    ]
    of_all = dataset.num_windows("web") + dataset.num_windows("code")
    assert len(dataset) + int(found[3] or 0) == of_all


NEEDED = {"mds": {"seq_len": 8}, "hf": {"seq_len": 8}, "nanotron": {"tokenizer_name": "x"}}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("suffix", [".bin", ".bin.index", ".idx"])
def test_a_dataset_that_was_cut_is_not_exported(tmp_path, to, suffix):
    folder = write_dataset(tmp_path / "packed", {"web": [[[5] * 40] * 3]})
    path = folder / f"web/train/shard-00000{suffix}"
    size = path.stat().st_size
    os.truncate(path, size - 2)
    with pytest.raises(ValueError, match=rf"shard-00000{suffix} has {size - 2} bytes, not {size}\. Copy it again"):
        export(ExportArguments(dataset=folder, to=to, out=tmp_path / "out", **NEEDED.get(to, {})))


def test_what_a_dataset_elsewhere_has_not_sent_yet_is_fetched_first(packed, tmp_path):
    files = {f"packed/{path.relative_to(packed)}": path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    with Server(files) as server:
        folder = open_remote(f"{server.url}/packed", cache=tmp_path / "cache")
        assert not list(folder.rglob("*.bin"))
        export(ExportArguments(dataset=folder, to="nanogpt", out=tmp_path / "out", splits="train"))
    expected = [token for documents in documents_of(packed).values() for document in documents for token in document]
    assert np.fromfile(tmp_path / "out/train.bin", np.uint16).tolist() == expected


def test_an_export_never_touches_a_folder_that_is_there(run):
    run("megatron")
    with pytest.raises(FileExistsError, match="is there already"):
        run("megatron")


@pytest.mark.parametrize("target", TARGETS)
def test_ids_of_four_bytes_are_exported_or_refused(target, tmp_path):
    folder = write_dataset(tmp_path / "packed", {"web": [[[70_000, 5] * 40] * 3]}, vocab_size=100_000)
    arguments = ExportArguments(dataset=folder, to=target, out=tmp_path / "out", **NEEDED.get(target, {}))
    if target in ("nanogpt", "llmc"):
        with pytest.raises(ValueError, match="reads uint16 ids only"):
            export(arguments)
    else:
        export(arguments)
        assert any((tmp_path / "out").rglob("*"))


# Imports


@pytest.fixture
def adopt(tmp_path, sample_model):
    def adopt(path, name="adopted", **settings):
        arguments = ExportArguments(import_from=path, out=tmp_path / name, tokenizer=str(sample_model), **settings)
        return tmp_path / name, export(arguments)

    return adopt


def test_what_was_imported_has_a_summary_and_a_card(run, adopt, run_command):
    out, _ = adopt(run("megatron", splits="train") / "web")
    message, shown = run_command(summary.main, out)
    assert message == "" and "made by import: nothing is said of raw files" in shown
    assert "300" in shown and "duplicate" not in shown
    card = describe_dataset(read_dataset_json(out), parse_origin("hf://org/name"))
    assert "| web | train | 300 |" in card and "made by import" in card and "documents read" not in card


@pytest.mark.parametrize("to", ["megatron", "datatrove", "olmo"])
def test_what_was_exported_can_be_imported_without_a_copy(run, adopt, packed, to):
    exported = run(to, splits="train")
    out, said = adopt(exported / "web")
    assert "300 documents" in said and "document rule eos" in said
    assert documents_of(out)["web"] == documents_of(packed)["web"]
    assert all(path.is_symlink() for path in out.glob("web/train/*.bin"))
    samples = PackedDataset(out, seq_len=15).samples(range(50))
    original = PackedDataset(packed, seq_len=15, mix={"web": 1}).samples(range(50))
    assert np.array_equal(samples, original)


def test_documents_of_several_sequences_and_empty_ones_are_read_by_megatrons_index(tmp_path, adopt):
    ids = np.array([5, 6, 7, 8, 2, 9, 2], "<i4")
    (tmp_path / "old").mkdir()
    ids.tofile(tmp_path / "old/a.bin")
    lengths, starts, indices = [3, 2, 0, 2], [0, 12, 20, 20], [0, 2, 3, 4]
    header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + b"\x04" + np.array([4, 4], "<u8").tobytes()
    arrays = [np.array(lengths, "<i4"), np.array(starts, "<i8"), np.array(indices, "<i8")]
    (tmp_path / "old/a.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
    out, said = adopt(tmp_path / "old/a.bin")
    assert documents_of(out)["old"] == [[5, 6, 7, 8, 2], [9, 2]]
    assert "1 empty documents left out" in said and read_dataset_json(out)["dtype"] == "uint32"


def test_documents_end_with_eos_where_there_is_no_index(tmp_path, adopt):
    (tmp_path / "old").mkdir()
    np.array([1, 5, 2, 1, 6, 7, 2, 1, 8], "<u2").tofile(tmp_path / "old/part.npy")
    out, said = adopt(tmp_path / "old")
    assert documents_of(out)["old"] == [[1, 5, 2], [1, 6, 7, 2], [1, 8]]
    assert "document rule none" in said


def break_index(code=8, cut=0, shift=0):
    def write(folder):
        np.array([5, 2, 6, 2], "<u2").tofile(folder / "a.bin")
        arrays = [np.array([2, 2], "<i4"), np.array([shift, 4 + shift], "<i8"), np.array([0, 1, 2], "<i8")]
        header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([code]) + np.array([2, 3], "<u8").tobytes()
        data = header + b"".join(array.tobytes() for array in arrays)
        (folder / "a.idx").write_bytes(data[: len(data) - cut])

    return write


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (break_index(code=6), "dtype code 6; ids are read by"),
        (break_index(cut=5), "too few for 2 sequences: it was cut"),
        (break_index(shift=2), "do not lie end to end"),
        (lambda folder: (folder / "a.idx").write_bytes(b"nothing"), "a.bin is missing"),
        (lambda folder: np.save(folder / "a.npy", np.array([5, 2])), "was written by numpy.save"),
        (lambda folder: (folder / "a.npy").write_bytes(b"123"), "has 3 bytes, which are no uint16 ids"),
        (lambda folder: (folder / "a.ds").write_bytes(b""), "has 0 bytes, which are no uint16 ids"),
        (lambda folder: np.array([60_000, 2], "<u2").tofile(folder / "a.ds"), "has an id 60,000; small has 600 ids"),
        (lambda folder: (folder / "a.txt").write_bytes(b"text"), "has no .idx with a .bin, no .ds and no .npy"),
    ],
)
def test_foreign_files_that_are_not_what_they_seem_are_refused(tmp_path, adopt, write, expected):
    (tmp_path / "old").mkdir()
    write(tmp_path / "old")
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        adopt(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_command_exports_and_imports(packed, tmp_path, sample_model):
    def run_command(*arguments):
        command = [sys.executable, str(REPOSITORY / "pipeline/export.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    result = run_command(packed, "--to", "olmo", "--out", "olmo")
    assert result.returncode == 0 and "tokens of train, validation for olmo" in result.stdout
    result = run_command("--import", "olmo", "--tokenizer", sample_model, "--out", "again")
    assert result.returncode == 0 and "source olmo:" in result.stdout
    result = run_command("--import", "olmo", "--out", "third")
    assert (
        result.returncode == 1 and result.stderr == "error: --import needs --tokenizer: ids mean nothing without it\n"
    )
    assert megatron_path(tmp_path / "again/olmo/train/shard-00000.bin").is_file()
