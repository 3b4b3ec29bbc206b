"""The code points on which byte-level engines differ: found anew for every code point, and found in documents."""

import base64

import gigatoken
import numpy as np
import pytest
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from pipeline.unicode_tables import (
    DIFFERING_RANGES,
    LEAD_OF_3_A,
    LEAD_OF_3_B,
    LEAD_OF_4,
    build_differing_table,
    find_differing_documents,
)

CONTEXT_BYTES = b"a1! '\ns"
# Each code point beside a letter, a digit, a sign, spaces, an apostrophe and line ends.
QUICK_CONTEXTS = ("a{0}a", "1{0}1", "!{0}!")
ALL_CONTEXTS = (
    *QUICK_CONTEXTS,
    " {0}",
    "  {0}x",
    "{0}  a",
    "s'{0}",
    "'s{0}",
    "a\n{0}\na",
    "{0}{0}",
    "  {0}  ",
    "x '{0}s",
)


@pytest.fixture(scope="module")
def toy_engines(tmp_path_factory):
    """Both engines with a vocabulary in which a context byte always merges with its neighbour in the same word."""
    tokens = [bytes([byte]) for byte in range(256)]
    for context in CONTEXT_BYTES:
        for byte in range(256):
            tokens += [bytes([context, byte]), bytes([byte, context])]
    ranks = {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}
    path = tmp_path_factory.mktemp("toy") / "toy.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    fast = gigatoken.Tokenizer.from_tiktoken(path, pretokenizer="gpt2", special_tokens={})
    return fast, tiktoken.Encoding("toy", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


def find_differing_code_points(engines, code_points, contexts):
    fast, reference = engines
    differing = set()
    for context in contexts:
        texts = [context.format(chr(code_point)) for code_point in code_points]
        encoded = fast.encode_batch(texts, parallel=False).to_list()
        for code_point, text, ids in zip(code_points, texts, encoded, strict=True):
            if ids != reference.encode_ordinary(text):
                differing.add(code_point)
    return differing


def all_code_points():
    return [code_point for code_point in range(0x110000) if not 0xD800 <= code_point <= 0xDFFF]


def differing_code_points():
    return [code_point for first, last in DIFFERING_RANGES for code_point in range(first, last + 1)]


@pytest.mark.long
def test_outside_the_ranges_the_engines_agree_on_every_code_point(toy_engines):
    # Blocks of 256 as one text each, a line per code point; a block that differs is looked at one by one.
    fast, reference = toy_engines
    listed = set(differing_code_points())
    for start in range(0, 0x110000, 256):
        block = [
            chr(point) for point in range(start, start + 256) if point not in listed and not 0xD800 <= point <= 0xDFFF
        ]
        text = "".join(f"a{character}a\n1{character}1\n!{character}!\n" for character in block)
        if fast.encode(text).tolist() != reference.encode_ordinary(text):
            points = find_differing_code_points(toy_engines, list(map(ord, block)), QUICK_CONTEXTS)
            pytest.fail(f"the engines differ on {[hex(point) for point in sorted(points)]}, not in DIFFERING_RANGES")


def test_inside_the_ranges_the_engines_do_differ(toy_engines):
    found = find_differing_code_points(toy_engines, differing_code_points(), QUICK_CONTEXTS)
    assert found == set(differing_code_points())


@pytest.mark.long
def test_outside_the_ranges_the_engines_agree_on_every_code_point_in_every_context(toy_engines):
    found = find_differing_code_points(toy_engines, all_code_points(), ALL_CONTEXTS)
    assert found <= set(differing_code_points())


def find_in(documents):
    data = np.frombuffer("".join(documents).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(document.encode()) for document in documents)], dtype=np.int64)
    return find_differing_documents(data, offsets, table=build_differing_table()).tolist()


def test_documents_are_found_among_empty_and_plain_ones():
    assert find_in(["", "plain", "\u4e2d\xe9\U0001f600", "", "x\ua7ce", "", "\U00010940 twice \U000323b0", ""]) == [
        4,
        6,
    ]


@pytest.mark.parametrize("code_point", [point for pair in DIFFERING_RANGES for point in pair])
def test_both_ends_of_every_range_are_found_and_their_neighbours_are_not(code_point):
    listed = set(differing_code_points())
    for near in (code_point - 1, code_point, code_point + 1):
        assert find_in(["a", chr(near)]) == ([1] if near in listed else [])


def test_only_the_documents_asked_about_are_looked_at():
    data = np.frombuffer("\ua7ce a \ua7ce".encode(), np.uint8)
    table = build_differing_table()
    assert find_differing_documents(data, np.array([3, 6]), table=table).tolist() == []
    assert find_differing_documents(data, np.array([6]), table=table).tolist() == []


def test_a_code_point_is_found_wherever_it_stands():
    for position in range(20):
        assert find_in(["z", "a" * position + "\U000323b0" + "b" * 20, "z"]) == [1]


def test_every_differing_code_point_begins_with_a_byte_that_is_decoded():
    leads = {LEAD_OF_3_A, LEAD_OF_3_B, LEAD_OF_4}
    assert {chr(code_point).encode()[0] for code_point in differing_code_points()} == leads
