"""JSON lines: what becomes of each is what Python's json module says of it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_documents import BAD_LINES, named

from pipeline.json_lines import LineFields, parse_lines
from pipeline.subsets import find_subset
from pipeline.verify_lines import BLANK, judge_line

SHORT_BAD_LINES = [line for line in BAD_LINES if len(line) < 100]
META = "meta.redpajama_set_name"
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.sampled_from('ab"\\\n\x00é中😀\u2028:{}'), max_size=60),
    st.text(st.characters(), max_size=20),  # halves of surrogate pairs too
)
NUMBERS = st.sampled_from(
    ["0", "-0", "01", "1.5", "1.", ".5", "-", "1e5", "1E+5", "2e", "1e-", "NaN", "-Infinity", "-NaN"]
)
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)
KEYS = st.sampled_from(["text", "meta", "a", 'b"text', "text ", "", "te\nxt"])
META_VALUES = st.sampled_from([{"redpajama_set_name": "A"}, '{"redpajama_set_name": "B"}', "C", None, {"other": 1}])


@st.composite
def objects(draw):
    """JSON objects with the keys in any order, repeated too, and their strings escaped or not."""
    members = []
    for key in draw(st.lists(KEYS, max_size=4)):
        value = draw(META_VALUES if key == "meta" else VALUES)
        space = draw(st.sampled_from(["", " ", "\t"]))
        spelled = json.dumps(key)
        if draw(st.booleans()):
            spelled = spelled.replace("e", "\\u0065")
        written = draw(NUMBERS) if draw(st.integers(0, 5)) == 0 else json.dumps(value, ensure_ascii=draw(st.booleans()))
        members.append(f"{spelled}{space}:{space}{written}")
    front = draw(st.sampled_from(["", " ", "\ufeff"]))
    return f"{front}{{{','.join(members)}}}".encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw):
    """Objects with a few bytes exchanged, put in or taken out."""
    line = bytearray(draw(objects()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(line)))
        line[place : place + draw(st.integers(0, 1))] = draw(
            st.sampled_from([b"", *(b'"\\:{}[]u0\x01\xff,tnN'[i : i + 1] for i in range(16))])
        )
    return bytes(line).replace(b"\n", b"")


def judge(line):
    """What the json module says of a line: its text and subset, the reason why it has none, or nothing if it is blank."""
    fate, text = judge_line(line, "text")
    if fate is not None:
        return None if fate == BLANK else fate
    meta = json.loads(line.decode("utf-8-sig")).get("meta")
    return text, find_subset(json.dumps(meta), ["redpajama_set_name"])


@settings(max_examples=400, deadline=None)
@given(
    lines=st.lists(objects() | damaged() | st.sampled_from([*SHORT_BAD_LINES, b"", b" \t\r"]), max_size=6),
    ending=st.sampled_from([b"\n", b" \r\n"]),
    is_whole=st.booleans(),
)
def test_lines_are_what_the_json_module_says(lines, ending, is_whole):
    block = ending.join(lines) + (ending if is_whole else b"")
    batch = parse_lines(bytearray(block), first_row=7, fields=LineFields("text", META))
    found = dict(
        zip(batch.rows.tolist(), zip(batch.texts.to_pylist(), batch.subsets.to_pylist(), strict=True), strict=True)
    )
    found |= {row: reason for row, reason, _ in named(batch.bad_rows)}
    rows = block.removesuffix(b"\n").split(b"\n") if block else []
    judged = {7 + row: judge(line) for row, line in enumerate(rows)}
    assert found == {row: fate for row, fate in judged.items() if fate is not None}
    assert batch.num_rows == len(rows)
    sizes = {row: num_bytes for row, _, num_bytes in named(batch.bad_rows)}
    assert sizes == {row: len(rows[row - 7]) for row in sizes}


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from('a"\\\n中😀é'), max_size=40).map(lambda text: text * 300), is_ascii=st.booleans())
def test_long_texts_are_unescaped_whole(text, is_ascii):
    line = json.dumps({"id": 1, "text": text}, ensure_ascii=is_ascii).encode()
    assert parse_lines(bytearray(line), first_row=0, fields=LineFields("text")).texts.to_pylist() == [text]


@pytest.mark.parametrize("escape", [r"\u12", r"\u12g4", r"\x41", "\\", r"\ud83d\u", "\t"])
@pytest.mark.parametrize("key", ["text", "other"])
def test_an_escape_that_json_does_not_know_is_bad_wherever_it_stands(key, escape):
    for ending in (b'"}', b'"}' + b" " * 20):
        line = f'{{"text":"a","{key}":"{escape}'.encode() + ending
        batch = parse_lines(bytearray(line), first_row=0, fields=LineFields("text"))
        assert [reason for _, reason, _ in named(batch.bad_rows)] == ["bad_json"]


def test_a_block_cut_anywhere_is_never_read_beyond_its_end():
    line = json.dumps({"text": "é\n😀" * 5, "n": [1.5e-3, None, {"a": [True, False]}]}).encode()
    for end in range(1, len(line)):
        room = bytearray(line[:end] + b'","x":"}"}]}')  # what stands behind the block would make the line whole
        batch = parse_lines(memoryview(room)[:end], first_row=0, fields=LineFields("text"))
        assert [reason for _, reason, _ in named(batch.bad_rows)] == ["bad_json"], line[:end]


def test_deep_nesting_is_no_json_and_takes_no_stack():
    deep = b'{"text":"a","b":' + b"[" * 999 + b"]" * 999 + b"}"
    assert parse_lines(bytearray(deep), first_row=0, fields=LineFields("text")).texts.to_pylist() == ["a"]
    deeper = b'{"text":"a","b":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    batch = parse_lines(bytearray(deeper), first_row=0, fields=LineFields("text"))
    assert [reason for _, reason, _ in named(batch.bad_rows)] == ["bad_json"]
