"""Parts of a raw file: joined, they are the file, wherever it is cut."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_documents import BAD_LINES, named, write

from pipeline import documents
from pipeline.documents import read_documents, split_file
from pipeline.file_parts import WHOLE, Part, join_cuts, split_weighted

PIECES = st.one_of(
    st.sampled_from([b"", b" ", *BAD_LINES]),
    st.integers(0, 300).map(lambda length: json.dumps({"text": "x" * length}).encode()),
    st.text(max_size=20).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode()),
)
CONTENTS = st.lists(st.tuples(PIECES, st.sampled_from([b"\n", b"\r\n", b"\n\n"])), max_size=8)


def read_parts(path, parts):
    """(row -> text, [(row, reason, size)], number of rows) of parts read one by one, rows counted through."""
    texts, bad, first_row = {}, [], 0
    for part in parts:
        num_rows = 0
        for batch in read_documents(path, text_field="text", part=part):
            rows = (batch.rows + first_row).tolist()
            texts.update(zip(rows, batch.texts.to_pylist(), strict=True))
            bad += [(row + first_row, reason, num_bytes) for row, reason, num_bytes in named(batch.bad_rows)]
            num_rows += batch.num_rows
        first_row += num_rows
    return texts, bad, first_row


@settings(max_examples=200, deadline=None)
@given(lines=CONTENTS, last=st.sampled_from([b"", b'{"text":"last"}', b" "]), data=st.data())
def test_the_parts_of_a_jsonl_file_are_the_file(lines, last, data):
    content = b"".join(line + ending for line, ending in lines) + last
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content) + 2), max_size=6)))
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder, "a.jsonl"), content)
        whole = read_parts(path, [WHOLE])
        assert read_parts(path, join_cuts(cuts)) == whole
        assert whole[2] == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.none() | st.text(max_size=9), max_size=9), group=st.integers(1, 4), data=st.data())
def test_the_parts_of_a_parquet_file_are_the_file(texts, group, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=group)
        num_groups = pq.read_metadata(path).num_row_groups
        cuts = sorted(data.draw(st.lists(st.integers(0, num_groups + 1), max_size=4)))
        whole = read_parts(path, [WHOLE])
        assert read_parts(path, join_cuts(cuts)) == whole
        assert whole[2] == len(texts)


def test_a_line_belongs_to_the_part_it_starts_in(tmp_path):
    lines = [b'{"text":"aaaaaaaaaaaaaaaaaaaa"}', b'{"text":"b"}', b'{"text":"c"}']
    path = write(tmp_path / "a.jsonl", b"\n".join(lines))
    start_of_b = len(lines[0]) + 1
    assert read_parts(path, [Part(0, 1)]) == ({0: "a" * 20}, [], 1)
    assert read_parts(path, [Part(1, start_of_b)]) == ({}, [], 0)
    assert read_parts(path, [Part(start_of_b, start_of_b + 1)]) == ({0: "b"}, [], 1)
    assert read_parts(path, [Part(start_of_b + 1, None)]) == ({0: "c"}, [], 1)
    assert read_parts(path, [Part(1000, None)]) == ({}, [], 0)


def test_batches_without_documents_still_count_their_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 4)
    path = write(tmp_path / "a.jsonl", b'\n\n\n\n\n\nxx\n\n{"text":"a"}\n\n\n\n')
    assert read_parts(path, [WHOLE]) == ({8: "a"}, [(6, "bad_json", 2)], 12)


def test_a_file_is_split_by_its_size_alone(tmp_path):
    missing = tmp_path / "not_there.jsonl"  # so nothing is read
    assert split_file(missing, 100, 100) == [WHOLE]
    assert split_file(missing, 0, 100) == [WHOLE]
    assert split_file(missing, 101, 100) == [Part(0, 50), Part(50, None)]
    assert split_file(missing, 300, 100) == [Part(0, 100), Part(100, 200), Part(200, None)]
    assert split_file(tmp_path / "not_there.parquet", 100, 100) == [WHOLE]
    for name in ("a.jsonl.zst", "a.json.gz", "a.txt"):
        assert split_file(tmp_path / name, 1000, 1) == [WHOLE]


def test_row_groups_are_joined_until_they_make_a_part(tmp_path):
    assert split_weighted([5, 5, 20, 1, 1], 10) == [Part(0, 2), Part(2, 3), Part(3, None)]
    assert split_weighted([5, 5], 10) == [WHOLE]
    assert split_weighted([], 10) == [WHOLE]
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"{number:0999}" for number in range(9)]})
    pq.write_table(table, path, row_group_size=3, compression="none", use_dictionary=False)
    assert split_file(path, path.stat().st_size, 3000) == [Part(0, 1), Part(1, 2), Part(2, None)]


def test_a_broken_footer_is_named_where_the_file_is_split(tmp_path):
    path = write(tmp_path / "a.parquet", b"PAR1 and no footer" * 10)
    with pytest.raises(ValueError, match=r"a\.parquet is cut short or not parquet, at row 0"):
        split_file(path, path.stat().st_size, 10)


@pytest.mark.parametrize("part", [Part(0, 300), Part(300, 900), Part(2, 900), Part(2, None)])
def test_a_line_beyond_the_limit_is_named_by_its_row_in_the_file(tmp_path, monkeypatch, part):
    monkeypatch.setattr(documents, "BLOCK_BYTES", 64)
    monkeypatch.setattr(documents, "LONGEST_LINE_BYTES", 500)
    monkeypatch.setattr("pipeline.file_parts.SCAN_BYTES", 64)
    path = write(tmp_path / "a.jsonl", b'{"text":"a"}\n\n{"text":"b"}\n' + b"x" * 2000)
    with pytest.raises(ValueError, match=r"a\.jsonl: row 3 is longer"):
        read_parts(path, [part])


def test_a_damaged_row_group_is_named_by_the_row_in_the_file_where_reading_stopped(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{number:0999}" for number in range(9)]}), path, row_group_size=3)
    column = pq.read_metadata(path).row_group(2).column(0)
    start = column.dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    write(path, bytes(content))
    with pytest.raises(ValueError, match=r"a\.parquet is cut short or not parquet, at row 3"):
        read_parts(path, [Part(1, None)])
    assert read_parts(path, [Part(1, 2)])[2] == 3
