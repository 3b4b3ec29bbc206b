"""Reading raw files: every row is a document or a named bad row, whatever stands around it."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import documents
from pipeline.document_batch import BAD_NAMES
from pipeline.documents import measure_unpacking, read_documents
from pipeline.endings import ROW_ENDINGS
from pipeline.json_lines import LineFields, parse_lines


def named(bad_rows):
    """The bad rows of a batch as (row, reason, bytes)."""
    return [(row, BAD_NAMES[reason], num_bytes) for row, num_bytes, reason in bad_rows.tolist()]


def read_all(path, **options):
    """(row -> text, [(row, reason)]) of a whole file."""
    texts, bad = {}, []
    for batch in read_documents(path, **{"text_field": "text", **options}):
        texts.update(zip(batch.rows.tolist(), batch.texts.to_pylist(), strict=True))
        bad += [(row, reason) for row, reason, _ in named(batch.bad_rows)]
    return texts, bad


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_texts_come_out_unchanged(tmp_path):
    hard = ["", " ", "\n", "a\x00b", "\r\n", "</s>", "\u2028", "\ufeffx", "😀", "e\u0301", "x" * 100_000]
    lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(hard))
    texts, bad = read_all(write(tmp_path / "a.jsonl", lines))
    assert texts == dict(enumerate(hard))
    assert bad == []


COMPRESS = {"": bytes, ".zst": zstandard.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", ROW_ENDINGS)
def test_every_ending_is_read(tmp_path, suffix):
    data = b'{"text":"one"}\n{"text":"two"}'
    compress = COMPRESS.get(Path(suffix).suffix, bytes)
    data = compress(data[:5]) + compress(data[5:])  # two frames: both are read
    assert read_all(write(tmp_path / f"a{suffix}", data)) == ({0: "one", 1: "two"}, [])


def test_a_text_file_is_one_document(tmp_path):
    assert read_all(write(tmp_path / "a.txt", "two\r\nlines\n")) == ({0: "two\r\nlines\n"}, [])
    assert read_all(write(tmp_path / "b.txt", b"\xff")) == ({}, [(0, "bad_utf8")])
    assert read_all(write(tmp_path / "c.txt", "")) == ({0: ""}, [])


BAD_LINES = {
    b'{"text": "\xff"}': "bad_utf8",
    b'{"text": "a"': "bad_json",
    b"<html>": "bad_json",
    b'{"text": "a"}{"text": "b"}': "bad_json",
    b'["text"]': "bad_object",
    b'{"txt": "a"}': "bad_text_missing",
    b'{"text": null}': "bad_text_null",
    b'{"text": 1}': "bad_text_type",
    b'{"text": ["a"]}': "bad_text_type",
    b'{"text": "\\ud800"}': "bad_surrogate",
    b'{"text": "\\udc00"}': "bad_surrogate",
    b"[" * 100_000: "bad_json",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20].decode("latin1"))
def test_a_bad_line_is_named_and_its_neighbours_stay(tmp_path, line):
    data = b'{"text":"before"}\n\n' + line + b'\n{"text":"after"}\n'
    assert read_all(write(tmp_path / "a.jsonl", data)) == ({0: "before", 3: "after"}, [(2, BAD_LINES[line])])


def test_blank_lines_and_two_objects_in_a_line_do_not_shift_rows(tmp_path):
    # One blank line too many and one object too many: as many rows as lines, all of them wrong.
    data = b'{"text":"a"}{"text":"b"}\n\n{"text":"c"}\n'
    assert read_all(write(tmp_path / "a.jsonl", data)) == ({2: "c"}, [(0, "bad_json")])
    # A value over two lines and two values in one.
    data = b'{"text":"a"}{"text":"b"}\n{"text":\n"c"}\n'
    assert read_all(write(tmp_path / "b.jsonl", data)) == ({}, [(0, "bad_json"), (1, "bad_json"), (2, "bad_json")])


@pytest.mark.parametrize("data", [b"{", b"{\n", b"{\n\n", b'{\n{"text":""}'])
def test_a_bad_lines_size_is_without_its_line_feed(tmp_path, data):
    first = next(read_documents(write(tmp_path / "a.jsonl", data), text_field="text"))
    assert named(first.bad_rows) == [(0, "bad_json", 1)]


def test_a_blank_line_beside_a_bad_one_is_no_row(tmp_path):
    assert read_all(write(tmp_path / "a.jsonl", b"{\n\n")) == ({}, [(0, "bad_json")])


def test_lines_may_end_with_cr_lf_and_blank_ones_may_hold_spaces(tmp_path):
    data = b'\xef\xbb\xbf{"text":"a"}\r\n \r\n\r\n{"text":"b"} \r\n'
    assert read_all(write(tmp_path / "a.jsonl", data)) == ({0: "a", 3: "b"}, [])


LINES = st.lists(
    st.one_of(
        st.text().map(lambda text: json.dumps({"text": text}).encode()),
        st.text(alphabet="ab😀é", max_size=5).map(lambda t: json.dumps({"text": t}, ensure_ascii=False).encode()),
        st.sampled_from([*BAD_LINES, b"", b"  ", b'{"a":1e999,"text":"x"}', b'{"text":"a","text":"b"}']),
        st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"")),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(lines=LINES, cuts=st.lists(st.integers(0, 12), max_size=3), ending=st.sampled_from([b"\n", b"\r\n"]))
def test_a_lines_fate_is_its_own(lines, cuts, ending):
    """However a file is cut into blocks, each line becomes the same document or bad row."""
    fields = LineFields("text")
    alone_texts, alone_bad = {}, []
    for row, line in enumerate(lines):
        batch = parse_lines(bytearray(line + ending), first_row=row, fields=fields)
        alone_texts.update(zip(batch.rows.tolist(), batch.texts.to_pylist(), strict=True))
        alone_bad += [(row, reason) for row, reason, _ in named(batch.bad_rows)]
    borders = sorted({0, len(lines), *(min(cut, len(lines)) for cut in cuts)})
    texts, bad = {}, []
    for first, last in zip(borders[:-1], borders[1:], strict=True):
        block = b"".join(line + ending for line in lines[first:last])
        batch = parse_lines(bytearray(block), first_row=first, fields=fields)
        texts.update(zip(batch.rows.tolist(), batch.texts.to_pylist(), strict=True))
        bad += [(row, reason) for row, reason, _ in named(batch.bad_rows)]
    assert texts == alone_texts
    assert sorted(bad) == sorted(alone_bad)


def test_lines_longer_than_a_block_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 64)
    texts = ["a" * 10, "b" * 1000, "", "c" * 63, "d" * 64, "é" * 200]
    data = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    assert read_all(write(tmp_path / "a.jsonl", data)) == (dict(enumerate(texts)), [])


def test_a_line_beyond_the_limit_is_refused_with_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 64)
    monkeypatch.setattr(documents, "LONGEST_LINE_BYTES", 500)
    path = write(tmp_path / "a.jsonl", b'{"text":"a"}\n' + b"x" * 1000)
    with pytest.raises(ValueError, match=r"a\.jsonl: row 1 is longer"):
        read_all(path)


def test_an_xz_file_may_be_padded_and_in_many_streams(tmp_path):
    lines = [json.dumps({"text": f"{number}" * 500}) for number in range(2000)]
    packed = [lzma.compress("\n".join([*lines[start : start + 500], ""]).encode()) for start in range(0, 2000, 500)]
    path = write(tmp_path / "a.jsonl.xz", bytes(8).join(packed) + bytes(12))
    assert len(read_all(path)[0]) == 2000 and measure_unpacking(path) == pytest.approx(
        sum(map(len, lines)) / path.stat().st_size, rel=0.05
    )


def test_an_xz_file_with_a_huge_dictionary_is_refused(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29, "preset": 0}]
    data = lzma.compress(b'{"text":"a"}\n', format=lzma.FORMAT_XZ, filters=filters)
    with pytest.raises(ValueError, match=r"a\.jsonl\.xz was packed with a huge dictionary"):
        read_all(write(tmp_path / "a.jsonl.xz", data))


@pytest.mark.parametrize(("suffix", "compress"), list(COMPRESS.items())[1:])
def test_a_broken_compressed_file_is_named_with_its_row(tmp_path, suffix, compress):
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": rng.bytes(40).hex()}).encode() for _ in range(16_000)]  # bzip2 packs 900 kB at a time
    data = compress(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"cut\.jsonl\S+ is cut short near row [1-9]\d+"):
        read_all(write(tmp_path / f"cut.jsonl{suffix}", data[: len(data) * 3 // 4]))
    with pytest.raises(ValueError, match=r"other\.jsonl\S+ is not \w+ .* near row 0"):
        read_all(write(tmp_path / f"other.jsonl{suffix}", b"not compressed at all"))
    with pytest.raises(ValueError, match="is empty"):
        read_all(write(tmp_path / f"empty.jsonl{suffix}", b""))


def test_parquet_rows_are_numbered_and_bad_ones_named(tmp_path):
    path = tmp_path / "a.parquet"
    content = pa.array([b"a", None, b"\xff", "é".encode(), b""], pa.binary())
    pq.write_table(pa.table({"content": content, "id": range(5)}), path, row_group_size=2)
    assert read_all(path, text_field="content") == (
        {0: "a", 3: "é", 4: ""},
        [(1, "bad_text_null"), (2, "bad_utf8")],
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_may_be_of_any_string_type(tmp_path, kind):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", "y", "x"], pa.string()).cast(kind)}), path)
    assert read_all(path) == ({0: "x", 1: "y", 2: "x"}, [])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_a_batch_of_parquet_rows_is_bounded_in_bytes_whatever_the_average(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("pipeline.parquet_rows.BATCH_BYTES", 5000)
    texts = [str(number) for number in range(3000)] + ["x" * 4999] * 6 + ["y" * 20_000] * 6 + ["end"]
    subsets = [str(number % 3) for number in range(len(texts))]
    table = pa.table({"meta": pa.array(subsets).dictionary_encode(), "text": pa.array(texts).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    batches = list(read_documents(tmp_path / "a.parquet", text_field="text", subset_field="meta"))
    assert [text for batch in batches for text in batch.texts.to_pylist()] == texts
    assert [subset for batch in batches for subset in batch.subsets.to_pylist()] == subsets
    assert max(batch.texts.nbytes for batch in batches) < 5000 + 4 * 20_100
    assert len(batches) < 30


def test_a_parquet_file_without_the_text_column_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a"], "text": [1]}), path)
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'content': it has body, text"):
        read_all(path, text_field="content")
    with pytest.raises(ValueError, match="column 'text' holds int64, not text"):
        read_all(path)


def test_a_cut_parquet_file_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 1000] * 100}), path)
    write(path, path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a\.parquet is cut short or not parquet"):
        read_all(path)


META = "meta.redpajama_set_name"


@pytest.mark.parametrize(
    "meta", [lambda name: {"redpajama_set_name": name}, lambda n: json.dumps({"redpajama_set_name": n})]
)
def test_subsets_are_found_in_objects_and_in_json_text(tmp_path, meta):
    rows = [{"text": "a", "meta": meta("A")}, {"text": "b"}, {"text": "c", "meta": meta("C")}]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    batches = list(read_documents(path, text_field="text", subset_field=META))
    assert [subset for batch in batches for subset in batch.subsets.to_pylist()] == ["A", None, "C"]
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "c"], "meta": [meta("A"), meta("C")]}), parquet)
    (batch,) = read_documents(parquet, text_field="text", subset_field=META)
    assert batch.subsets.to_pylist() == ["A", "C"]


def test_a_subset_in_json_text_is_the_one_that_json_means(tmp_path):
    hard = [
        '{"a":{"redpajama_set_name":"X"},"redpajama_set_name":"Y"}',
        '{"redpajama_set_name":"R\\u0065d"}',
        "{",
        "[1]",
    ]
    rows = [*({"text": "t", "meta": meta} for meta in hard), {"text": "t", "meta": None}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    (batch,) = read_documents(path, text_field="text", subset_field=META)
    assert batch.subsets.to_pylist() == ["Y", "Red", None, None, None]
    metas = pa.array([*hard, None]).dictionary_encode()
    pq.write_table(pa.table({"text": ["t"] * 5, "meta": metas}), tmp_path / "a.parquet")
    (batch,) = read_documents(tmp_path / "a.parquet", text_field="text", subset_field=META)
    assert batch.subsets.to_pylist() == ["Y", "Red", None, None, None]


def test_half_a_surrogate_in_a_subset_is_no_subset(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text":"t","meta":{"redpajama_set_name":"\\ud800"}}')
    (batch,) = read_documents(path, text_field="text", subset_field=META)
    assert batch.subsets.to_pylist() == [None]


def test_two_text_columns_are_refused(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="more than one column 'text'"):
        read_all(tmp_path / "a.parquet")


def test_a_zstd_file_with_a_long_window_says_how_to_unpack_it(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=29, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(b'{"text":"a"}\n' * 1000) + compressor.flush()
    with pytest.raises(ValueError, match="packed with zstd --long: unpack it first"):
        read_all(write(tmp_path / "a.jsonl.zst", data))


def test_an_unknown_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no reader for this ending"):
        read_documents(write(tmp_path / "a.xml", "x"), text_field="text")
