"""Huge JSON lines: what becomes of them is what becomes of short ones, with far fewer copies."""

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_documents import BAD_LINES

from pipeline import json_lines, json_long_line
from pipeline.json_lines import LineFields, Lines, parse_lines
from pipeline.json_long_line import unescape_string

META = "meta.redpajama_set_name"
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from('ab"\\\n\x00é中😀\u2028:{}'), max_size=60),
    st.text(st.characters(), max_size=20),  # halves of surrogate pairs too
)
VALUES = st.one_of(TEXTS, st.none(), st.integers(), st.lists(TEXTS, max_size=2), st.dictionaries(TEXTS, TEXTS))
KEYS = st.sampled_from(["text", "meta", "a", 'b"text', "text ", ""])


@st.composite
def objects(draw):
    """JSON objects with the keys in any order, repeated too, and their strings escaped or not."""
    members = []
    for key in draw(st.lists(KEYS, max_size=4)):
        value = draw(VALUES | st.dictionaries(KEYS, TEXTS, max_size=2))
        space = draw(st.sampled_from(["", " ", "\t"]))
        is_ascii = draw(st.booleans())
        members.append(f"{json.dumps(key)}{space}:{space}{json.dumps(value, ensure_ascii=is_ascii)}")
    return f"{{{','.join(members)}}}".encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw):
    """Objects with a few bytes exchanged."""
    line = bytearray(draw(objects()))
    for _ in range(draw(st.integers(1, 3))):
        line[draw(st.integers(0, len(line) - 1))] = draw(st.sampled_from(b'"\\:{}u0\x01\xff,'))
    return bytes(line).replace(b"\n", b"")


def parse(line, fields):
    batch = parse_lines(Lines.cut(line, first_row=7), fields=fields)
    subsets = None if batch.subsets is None else batch.subsets.to_pylist()
    return batch.texts.to_pylist(), batch.rows.tolist(), subsets, batch.bad_rows, batch.num_rows


@pytest.fixture(scope="module", autouse=True)
def everything_is_long():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_long_line, "LEAST_TEXT_BYTES", 8)
        yield


@settings(max_examples=1000, deadline=None)
@given(line=objects() | damaged() | st.sampled_from(list(BAD_LINES)), ending=st.sampled_from([b"", b"\n", b" \r\n"]))
@pytest.mark.parametrize("fields", [LineFields("text"), LineFields("text", META)], ids=["text", "subset"])
def test_a_long_line_becomes_what_a_short_one_does(fields, line, ending):
    expected = parse(line + ending, fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "LONG_BYTES", 1)
        assert parse(line + ending, fields) == expected


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from('a"\\\n中😀é'), max_size=40).map(lambda text: text * 3000), is_ascii=st.booleans())
def test_a_string_of_many_pieces_is_unescaped_whole(text, is_ascii):
    inside = json.dumps(text, ensure_ascii=is_ascii).encode()
    assert unescape_string(memoryview(inside), 1) == (text.encode(), len(inside) - 1)


def test_a_long_line_is_not_given_to_the_json_module_or_pyarrow_whole(monkeypatch):
    monkeypatch.setattr(json_lines, "LONG_BYTES", 1000)
    monkeypatch.setattr(
        json_lines, "read_table", lambda block, fields: pytest.fail("pyarrow") if len(block) > 500 else None
    )
    monkeypatch.setattr(
        json_lines.json, "loads", lambda text: {"text": "x" * 8 + "0"} if len(text) < 500 else pytest.fail("json")
    )
    monkeypatch.setattr(json_long_line, "unescape", lambda piece: piece)
    line = json.dumps({"text": "a" * 5000}).encode()
    assert parse(line, LineFields("text"))[0] == ["a" * 5000]


def test_short_lines_beside_a_long_one_are_read_in_bulk(monkeypatch):
    monkeypatch.setattr(json_lines, "LONG_BYTES", 5000)
    monkeypatch.setattr(json_lines, "parse_alone", lambda *_, **__: pytest.fail("read line by line"))
    block = b'{"text":"a"}\n' * 40 + json.dumps({"text": "b" * 6000}).encode() + b"\n" + b'{"text":"c"}\n' * 3
    batch = parse_lines(Lines.cut(block, first_row=0), fields=LineFields("text"))
    assert batch.texts.to_pylist() == ["a"] * 40 + ["b" * 6000] + ["c"] * 3
    assert isinstance(batch.texts, pa.StringArray)
