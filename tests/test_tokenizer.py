"""Tokenizers: the fast engine says what the reference says, no text spells a control id, bad files are named."""

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_fixtures import as_batch, assert_same, edit_model, load_both, set_extra_spaces_removed

from pipeline.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
REAL_FILES = {
    "llama2": SHARED_DATA / "tokenizers" / "llama2" / "tokenizer.model",
    "gpt2": SHARED_DATA / "tokenizers" / "gpt2" / "gpt2.tiktoken",
}
# What tokenizers get wrong: control tokens, spaces, ends of lines, the space mark, joined emoji, combining marks, new
# letters of Unicode 17 (U+323B0, U+A7CE, U+10940), repeats.
HARD_PARTS = (
    *("<s>", "</s>", "<unk>", "<|endoftext|>", "<0x0A>", "<0xE2>", "[INST]"),
    *(" ", "  ", "   ", " " * 17, "\n", "\r\n", "\r", "\t", "\x00", "\x0b", "\x85", "\xa0", "\u2028", "\u3000"),
    *("\u2581", "\u2581\u2581", "\ufeff", "\ufffd", "\u200d", "e\u0301", "\xe9", "\ufb01", "\xbd", "\u0663"),
    *(
        "\U0001f468\u200d\U0001f469",
        "\U0001f1e9\U0001f1ea",
        "\u4e2d",
        "\u6587\u5b57",
        "\ud55c",
        "\u0438",
        "\u0e01\u0e33",
    ),
    *("\U000323b0", "\ua7ce", "\U00010940", "\U0002ebf0", "\U0010ffff", "\ue000"),
    *(
        "'",
        "'s",
        "'ll",
        "'T",
        "a",
        "the",
        " the",
        "ing",
        "ere",
        "...",
        "--",
        "----",
        "ww",
        "0",
        "12",
        "!",
        "_",
        "x=",
        "{}",
    ),
    *("a" * 40, "ab" * 20, "-" * 40, "0" * 9),
)


@pytest.fixture(scope="module", params=["sample", "ranks", "llama2", "gpt2"])
def both(request, sample_path, ranks_path):
    path = {"sample": sample_path, "ranks": ranks_path, **REAL_FILES}[request.param]
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return load_both(path)


def read_shared_texts(path):
    if path.suffix == ".txt":
        return [path.read_text(encoding="utf-8")]
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line)["text"] for line in data.splitlines()]


def test_the_engines_that_were_asked_for_serve(both):
    fast, reference = both
    assert (fast.engine, reference.engine) == ("fast", "reference")


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(documents=st.lists(st.lists(st.sampled_from(HARD_PARTS), max_size=25).map("".join), min_size=1, max_size=12))
def test_fast_equals_reference_on_hard_texts(both, documents):
    assert_same(*both, documents)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(documents=st.lists(st.text(st.characters(codec="utf-8"), max_size=80), min_size=1, max_size=12))
def test_fast_equals_reference_on_any_unicode(both, documents):
    assert_same(*both, documents)


def test_fast_equals_reference_on_every_run_of_spaces_and_of_one_letter(both):
    lengths = (*range(70), 127, 128, 129, 1000)
    texts = [
        f"{before}{unit * n}{after}"
        for n in lengths
        for unit in " a-\n"
        for before in ("", "x\n")
        for after in ("", "y")
    ]
    assert_same(*both, texts)


@pytest.mark.parametrize("name", ["llama2", "gpt2"])
def test_fast_equals_reference_on_all_shared_texts(name):
    files = sorted(SHARED_DATA.glob("text/*"))
    if not files:
        pytest.skip(f"{SHARED_DATA}/text is not here")
    fast, reference = load_both(REAL_FILES[name])
    for path in files:
        assert_same(fast, reference, read_shared_texts(path))


@pytest.mark.parametrize(
    ("file", "num_gpt2_ids", "num_llama_ids"),
    [
        ("tinyshakespeare.txt", 338_025, 368_633),
        ("wikitext2-valid.txt", 258_659, 298_065),
        ("wikitext2-test.txt", 295_877, 339_369),
    ],
)
def test_known_texts_have_their_known_numbers_of_ids(file, num_gpt2_ids, num_llama_ids):
    path = SHARED_DATA / "text" / file
    if not path.exists():
        pytest.skip(f"{path} is not here")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    for name, expected in (("gpt2", num_gpt2_ids), ("llama2", num_llama_ids)):
        ids, _ = load_tokenizer(REAL_FILES[name]).encode_documents(data, np.array([0, len(data)]))
        assert len(ids) == expected


@pytest.mark.parametrize(
    "text", ["<s>", "</s>", "<|endoftext|>", "<0x0A>", "<unk>", "a<s>b</s> <|endoftext|>\n<s></s>"]
)
def test_no_text_becomes_a_control_id(both, text):
    for tokenizer in both:
        ids = tokenizer.encode(text)
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
        assert max(ids) < tokenizer.vocab_size
        assert tokenizer.decode(ids) == text
        assert len(ids) > 1


def test_control_ids_are_no_text(both):
    for tokenizer in both:
        ids = [tokenizer.eos_id, *tokenizer.encode("a text"), tokenizer.eos_id]
        assert tokenizer.decode(ids) == "a text"


@given(text=st.lists(st.sampled_from([part for part in HARD_PARTS if "\u2581" not in part])).map("".join))
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_decoding_gives_the_text_back(both, text):
    fast, reference = both
    assert fast.decode(fast.encode(text)) == text
    assert reference.decode_bytes(fast.encode(text)) == text.encode()


def test_our_decoding_of_sentencepiece_is_its_own(sample_path):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sample_path))
    tokenizer = load_tokenizer(sample_path)
    for text in ("", " ", "a  b", "\u4e2d\u6587!", "<s> x", "\u2581\u2581"):
        ids = [1, *processor.encode(text), 0, 2]
        assert tokenizer.decode(ids) == processor.decode(ids)


def test_where_extra_spaces_are_removed_decoding_leaves_out_all_that_begin_a_text(sample_path, tmp_path):
    path = edit_model(sample_path, tmp_path / "edited.model", set_extra_spaces_removed)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    space, the = (processor.piece_to_id(piece) for piece in ("\u2581", "\u2581the"))
    for ids in ([], [space], [space, space, the, space, the], [the, space, space], [1, space, the]):
        assert load_tokenizer(path).decode(ids) == processor.decode(ids)


def test_documents_of_a_slice_begin_at_its_first_offset(both):
    data, offsets = as_batch(["skipped ", "Hello there", "", "you '\U000323b0's", "cut off"])
    for tokenizer in both:
        ids, id_offsets = tokenizer.encode_documents(data, offsets[1:5])
        documents = [ids[id_offsets[i] : id_offsets[i + 1]].tolist() for i in range(3)]
        assert documents == [tokenizer.encode(text) for text in ("Hello there", "", "you '\U000323b0's")]
        assert (ids.dtype, id_offsets.dtype, id_offsets[0]) == (np.uint32, np.int64, 0)


def test_a_batch_without_documents_or_text_has_no_ids(both):
    for tokenizer in both:
        for offsets in ([0], [0, 0, 0]):
            ids, id_offsets = tokenizer.encode_documents(np.empty(0, np.uint8), np.array(offsets, np.int64))
            assert (len(ids), id_offsets.tolist()) == (0, offsets)


def test_a_lone_surrogate_is_refused_with_its_place(both):
    for tokenizer in both:
        with pytest.raises(ValueError, match="lone surrogate '.ud800' at character 2"):
            tokenizer.encode("ab\ud800")


def test_the_document_rule_is_what_the_family_does(both):
    fast, _ = both
    expected = {"sentencepiece": ("bos+eos", 1, 2), "tiktoken": ("eos", None, fast.vocab_size - 1)}
    assert (fast.document_rule, fast.bos_id, fast.eos_id) == expected[fast.family]


@pytest.mark.parametrize("is_growth_seen", [True, False])
def test_a_full_cache_is_dropped_and_the_ids_stay_the_same(ranks_path, monkeypatch, is_growth_seen):
    resident = itertools.count(0, 1 << 20)  # a MiB more at each look
    monkeypatch.setattr(
        "pipeline.tokenizer_engines._read_resident_bytes", lambda: next(resident) if is_growth_seen else None
    )
    monkeypatch.setattr("pipeline.tokenizer_engines._REOPEN_AFTER_TEXT_BYTES", 100)
    monkeypatch.setattr("pipeline.tokenizer_engines._REOPEN_AFTER_GROWTH_BYTES", 1 << 20)
    tokenizer = load_tokenizer(ranks_path)
    tokenizer.encode("begin")
    first_backend = tokenizer._engine._backend
    text = "so many words " * 20
    assert tokenizer.encode(text) == tokenizer.encode(text)
    assert tokenizer._engine._backend is not first_backend


def test_importing_the_tokenizer_imports_nothing_but_numpy():
    code = (
        "import sys, pipeline.tokenizer;"
        "print([m for m in sys.modules if m in "
        "('torch', 'pyarrow', 'awkward', 'numba', 'sentencepiece', 'tiktoken', 'tokenizers', 'gigatoken', 'google')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "[]"
