"""Which tokenizer files the fast engine serves, which go to the reference, and which are refused, each in one line."""

import sys

import numpy as np
import pytest
import sentencepiece
from tokenizer_fixtures import SAMPLE_TEXT, assert_same, edit_model, load_both, set_extra_spaces_removed

from pipeline.tokenizer import load_tokenizer


def test_a_rank_file_that_is_not_gpt2s_is_read_with_its_rule_and_a_notice(ranks_path):
    notices = []
    assert load_tokenizer(ranks_path, notice=notices.append).engine == "fast"
    assert notices == [f"{ranks_path}: a rank file does not say how text is split; GPT-2's rule is used"]


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
