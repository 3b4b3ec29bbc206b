"""Tokenizers: the fast engine says what the reference says, no text spells a control id, bad files are named."""

import base64
import gzip
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_training import train_sample_tokenizer

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
SAMPLE_TEXT = "\n".join(
    f"line {number}: The quick brown fox doesn't jump over {number * 7} lazy dogs... <s>not</s>\n\n    def f(x): return x"
    for number in range(300)
)


def as_batch(texts):
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def load_both(path):
    return load_tokenizer(path), load_tokenizer(path, engine="reference")


@pytest.fixture(scope="module")
def sample_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("sample") / "sample.model"
    path.write_bytes(train_sample_tokenizer([SAMPLE_TEXT, "\u4e2d\u6587 " * 50], vocab_size=700))
    return path


@pytest.fixture(scope="module")
def ranks_path(tmp_path_factory):
    words = sorted(set(re.findall(r" ?[A-Za-z]+| {2,}|[<>().]+", SAMPLE_TEXT)))
    beginnings = [word[:stop].encode() for word in words for stop in range(2, len(word) + 1)]
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *beginnings])
    path = tmp_path_factory.mktemp("ranks") / "small.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


@pytest.fixture(scope="module", params=["sample", "ranks", "llama2", "gpt2"])
def both(request, sample_path, ranks_path):
    path = {"sample": sample_path, "ranks": ranks_path, **REAL_FILES}[request.param]
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return load_both(path)


def assert_same(fast, reference, texts):
    data, offsets = as_batch(texts)
    fast_ids, fast_offsets = fast.encode_documents(data, offsets)
    ids, id_offsets = reference.encode_documents(data, offsets)
    if not (np.array_equal(fast_ids, ids) and np.array_equal(fast_offsets, id_offsets)):
        differing = [text for text in texts if fast.encode(text) != reference.encode(text)]
        pytest.fail(f"the engines differ on {min(differing, key=len)!r}")


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


def test_a_rank_file_that_is_not_gpt2s_is_read_with_its_rule_and_a_notice(ranks_path):
    notices = []
    assert load_tokenizer(ranks_path, notice=notices.append).engine == "fast"
    assert notices == [f"{ranks_path}: a rank file does not say how text is split; GPT-2's rule is used"]


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


def edit_model(sample_path, path, edit):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(sample_path.read_bytes())
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def set_extra_spaces_removed(model):
    model.normalizer_spec.remove_extra_whitespaces = True


def set_unused(model):
    model.pieces[300].type = model.SentencePiece.UNUSED


def name_a_control_piece_like_a_character(model):
    model.pieces[1].piece = "\u00a4"
    model.trainer_spec.bos_piece = "\u00a4"


def spoil_a_score(model):
    model.pieces[300].score = float("nan")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_extra_spaces_removed, "removes extra spaces"),
        (set_unused, "unused pieces"),
        (name_a_control_piece_like_a_character, "a control piece is one character"),
        (spoil_a_score, "a score is not a number"),
    ],
)
def test_what_the_fast_engine_cannot_do_exactly_goes_to_the_reference(sample_path, tmp_path, edit, reason):
    notices = []
    tokenizer = load_tokenizer(edit_model(sample_path, tmp_path / "edited.model", edit), notice=notices.append)
    assert tokenizer.engine == "reference"
    assert len(notices) == 1
    assert reason in notices[0]
    assert tokenizer.encode("The quick  brown")


def test_a_unigram_model_is_served_by_the_reference(tmp_path):
    prefix = tmp_path / "unigram"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SAMPLE_TEXT.split("\n")),
        model_prefix=str(prefix), vocab_size=100, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    notices = []
    tokenizer = load_tokenizer(prefix.with_suffix(".model"), notice=notices.append)
    assert tokenizer.engine == "reference"
    assert "not a BPE model" in notices[0]
    assert tokenizer.decode(tokenizer.encode("quick brown fox")) == "quick brown fox"


def test_without_gigatoken_the_reference_serves_and_says_so(ranks_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    notices = []
    tokenizer = load_tokenizer(ranks_path, notice=notices.append)
    assert tokenizer.engine == "reference"
    assert "gigatoken is not installed" in notices[-1]


def test_an_engine_that_differs_is_refused_with_the_text_and_the_way_out(sample_path, monkeypatch):
    monkeypatch.setattr(
        "pipeline.spm_engine.SentencePieceEngine.encode_documents",
        lambda self, data, offsets: (np.zeros(len(offsets) - 1, np.uint32), np.arange(len(offsets))),
    )
    with pytest.raises(ValueError, match="Hello, world.*--engine reference"):
        load_tokenizer(sample_path)


def test_a_vocabulary_beyond_uint16_keeps_its_ids(tmp_path, sample_path):
    def drop_chinese(model):
        kept = [piece for piece in model.pieces if not any(ord(character) >= 0x4E00 for character in piece.piece)]
        del model.pieces[:]
        model.pieces.extend(kept)

    def edit(model):
        drop_chinese(model)
        for code_point in range(0x4E00, 0x4E00 + 70_000):
            if not 0xD800 <= code_point <= 0xDFFF:
                piece = model.pieces.add()
                piece.piece, piece.score, piece.type = chr(code_point), -1e4 - code_point, piece.NORMAL

    fast, reference = load_both(edit_model(sample_path, tmp_path / "large.model", edit))
    ids = fast.encode("\U00015f00")
    assert fast.vocab_size > 65_536
    assert max(ids) > 65_536
    assert ids == reference.encode("\U00015f00")


@pytest.mark.parametrize("longest_first", [True, False])
def test_runs_of_spaces_with_one_score_are_served_fast_and_exactly(sample_path, tmp_path, longest_first):
    def tie_runs(model):
        kept = [piece for piece in model.pieces if set(piece.piece) != {"\u2581"} or len(piece.piece) == 1]
        del model.pieces[:]
        model.pieces.extend(kept)
        for length in sorted((2, 3, 5, 8, 16), reverse=longest_first):
            piece = model.pieces.add()
            piece.piece, piece.score, piece.type = "\u2581" * length, -1e9, piece.NORMAL

    fast, reference = load_both(edit_model(sample_path, tmp_path / "runs.model", tie_runs))
    assert fast.engine == "fast"
    assert_same(
        fast,
        reference,
        [f"{before}{' ' * n}{after}" for n in range(90) for before in ("", "a\n") for after in ("", "the")],
    )


def no_eos(model):
    model.trainer_spec.eos_id = -1
    model.pieces[2].piece, model.pieces[2].type = "zz", model.SentencePiece.NORMAL


def repeat_a_piece(model):
    model.pieces[300].piece = model.pieces[301].piece


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (no_eos, "edited.model: the model has no end-of-text piece"),
        (repeat_a_piece, "edited.model: piece .* stands 2 times"),
    ],
)
def test_an_unusable_sentencepiece_model_is_named_with_its_fault(sample_path, tmp_path, edit, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(edit_model(sample_path, tmp_path / "edited.model", edit))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.model", b"", "is empty"),
        ("text.model", b"hello, this is no model at all", "not a SentencePiece model"),
        ("nothing.model", b"\x12\x00", "not a whole SentencePiece model"),
        ("empty.tiktoken", b"", "is empty"),
        ("text.tiktoken", b"IQ== 0\nhello world, no\n", "text.tiktoken, line 2: not `base64 rank` but b'hello world"),
        ("cut.tiktoken", b"IQ== 0\nIg== 1\nIw", "cut.tiktoken, line 3"),
        ("gap.tiktoken", b"IQ== 0\nIg== 2\n", "leave gaps or lack single bytes"),
        ("cut.json", b'{"model": {"type": "BP', "not JSON, or cut short"),
        ("other.json", b'{"a": 1}', "has no model"),
        ("words.txt", b"a b c", "ends in .model, .tiktoken, .json"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        load_tokenizer(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_cut_sentencepiece_model_is_refused_wherever_it_is_cut(sample_path, tmp_path):
    data = sample_path.read_bytes()
    path = tmp_path / "cut.model"
    for size_bytes in range(1, len(data), 97):
        path.write_bytes(data[:size_bytes])
        with pytest.raises(ValueError, match=r"cut\.model"):
            load_tokenizer(path)


def test_an_unknown_engine_is_refused(sample_path):
    with pytest.raises(ValueError, match="engine is 'quick'; it is one of fast, reference"):
        load_tokenizer(sample_path, engine="quick")


def test_importing_the_tokenizer_imports_nothing_but_numpy():
    code = (
        "import sys, pipeline.tokenizer;"
        "print([m for m in sys.modules if m in "
        "('torch', 'pyarrow', 'awkward', 'numba', 'sentencepiece', 'tiktoken', 'tokenizers', 'gigatoken', 'google')])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout.strip() == "[]"
