"""Huge documents in pieces: the ids are those of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tokenizer_pieces
from pipeline.framing import encode_framed, most_framed_ids
from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_pieces import SentencePieceCuts, find_gpt2_cut

HOSTILE = st.sampled_from(
    "aZ059'.,-_\"(){}[]<>=!\\ \t\n\r\x0b\x0c\x00\x1c\x85\xa0\u1680\u2003\u2028\u202f\u3000\ufeff\u2581é中文字、。，のア한😀\u0301"
)
RUNS = st.tuples(HOSTILE, st.integers(1, 9)).map(lambda run: run[0] * run[1])
WORDS = st.sampled_from(
    [
        "'s",
        "'ll",
        "I'll",
        "don't",
        " the",
        "  the",
        "\n\n",
        " \n ",
        "\t\t\tx",
        "</s>",
        "<s>",
        "<0x0A>",
        "1,234",
        "\r\n",
        "e\u0301",
    ]
)
TEXTS = st.lists(RUNS | WORDS | st.characters(codec="utf-8") | st.text(max_size=8), max_size=40).map("".join)


@pytest.fixture(scope="module", autouse=True)
def everything_is_huge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_pieces, "STRETCH_BYTES", 6)
        patch.setattr(tokenizer_pieces, "PIECE_BYTES", 2)
        patch.setattr(tokenizer_pieces, "WINDOW_CHARACTERS", 5)
        yield


@pytest.fixture(scope="module", params=["llama2-reference", "gpt2-fast", "gpt2-reference"])
def tokenizer(request, shared_data):
    name, engine = request.param.split("-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENMILL_TOKENIZERS", str(shared_data / "tokenizers"))
        return load_tokenizer(name, engine=engine)


def buffers(texts):
    data = np.frombuffer(b"##" + "".join(texts).encode(), np.uint8)  # the first offset is not 0
    return data, 2 + np.cumsum([0, *(len(text.encode()) for text in texts)], dtype=np.int64)


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_the_ids_of_pieces_are_those_of_the_whole(tokenizer, texts):
    data, offsets = buffers(texts)
    ids, id_offsets = tokenizer.encode_documents(data, offsets)
    expected, expected_offsets = tokenizer._reference.encode_documents(data, offsets)
    assert ids.tolist() == expected.tolist()
    assert id_offsets.tolist() == expected_offsets.tolist()
    assert ids.dtype == np.uint32


def test_prose_and_code_are_cut_everywhere(tokenizer, shared_data):
    text = (shared_data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:8_000]
    text += "def f(x):\n\treturn {'a': x[1:]}  # !!!\n\n" * 50 + "中文，字符。日本語、テスト。" * 50
    data, offsets = buffers([text])
    stretches = list(tokenizer.encode_stretches(data, offsets))
    assert len(stretches) > 1500
    assert np.concatenate([stretch.ids for stretch in stretches]).tolist() == tokenizer._reference.encode_text(text)
    assert [stretch.is_end for stretch in stretches] == [False] * (len(stretches) - 1) + [True]


@pytest.mark.parametrize("text", ["a" * 1000, "é" * 1000, " " * 1000, "\u2581" * 500, "'s" * 300, "\n" * 999])
def test_what_cannot_be_cut_is_encoded_whole(tokenizer, text):
    data, offsets = buffers([text, "", text])
    ids, id_offsets = tokenizer.encode_documents(data, offsets)
    expected = tokenizer._reference.encode_text(text)
    assert ids.tolist() == expected * 2
    assert id_offsets.tolist() == [0, len(expected), len(expected), 2 * len(expected)]


def test_short_documents_go_to_the_engine_together(tokenizer):
    data, offsets = buffers(["ab", "", "cd", "e", "x y z!", "one two three", "f", "g"])
    stretches = list(tokenizer.encode_stretches(data, offsets))
    assert [stretch.document for stretch in stretches if stretch.is_end] == [0, 4, 5, 6]
    assert len(stretches) > 4


def test_gpt2_is_cut_between_classes_and_not_within():
    def cuts(text):
        data = memoryview(text.encode())
        return [at for at in range(1, len(data)) if (cut := find_gpt2_cut(data, at, len(data))) and cut.start == at]

    assert cuts("ab12 c") == [2, 4]
    assert cuts("I'll") == [1]  # not between the apostrophe and the letters
    assert cuts("a  b") == [1]  # not within white space, nor before the letter that takes the last space
    assert cuts("!'s?x") == [3, 4]
    assert cuts("文。中") == []  # U+4E2D is below what is known to be a letter; see GPT2_CUT
    assert cuts("字。字\n") == [6, 9]


def test_a_sentencepiece_model_without_a_prefix_is_cut_before_the_space_itself():
    text = memoryview(b"ab cd")
    assert SentencePieceCuts(["ab", "\u2581c"], has_prefix=False)(text, 1, 5) == (2, 2, 0)
    assert SentencePieceCuts(["ab", "\u2581c"], has_prefix=True)(text, 1, 5) == (2, 3, 0)
    assert SentencePieceCuts(["ab", "b\u2581"], has_prefix=True)(text, 1, 5) is None
    assert SentencePieceCuts(["ab", "b\u2581", "\u2581"], has_prefix=True)(text, 1, 5) == (3, 3, 1)
    assert SentencePieceCuts(["ab", "b\u2581", "\u2581", "\u2581c"], has_prefix=True)(text, 1, 5) == (4, 4, 1)


@settings(deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), rule=st.sampled_from(["eos", "bos+eos"]))
def test_framed_pieces_are_framed_once(tokenizer, texts, rule):
    if tokenizer.bos_id is None:
        rule = "eos"
    data, offsets = buffers(texts)
    ids, lengths = encode_framed(
        tokenizer, data, offsets, document_rule=rule, room=np.empty(most_framed_ids(offsets), "<u2")
    )
    bos = [tokenizer.bos_id] if rule == "bos+eos" else []
    expected = [[*bos, *tokenizer._reference.encode_text(text), tokenizer.eos_id] for text in texts]
    assert ids.tolist() == [id_ for document in expected for id_ in document]
    assert lengths.tolist() == [len(document) for document in expected]
    assert ids.dtype == np.uint16


class FakeTokenizer:
    """Gives the stretches it is told to."""

    bos_id, eos_id, vocab_size, path = 1, 2, 100, "fake.model"
    can_frame = False

    def __init__(self, *stretches):
        self.stretches = stretches

    def encode_stretches(self, data, offsets):
        for ids, document, is_end in self.stretches:
            yield tokenizer_pieces.Stretch(np.array(ids, np.uint32), np.array([0, len(ids)]), document, is_end)


@pytest.mark.parametrize("pieces", [[[1]], [[5], [1]], [[5], [2], [6]], [[5], [6], [7, 1]]])
def test_a_control_id_in_any_piece_is_refused(pieces):
    fake = FakeTokenizer(*((ids, 0, ids is pieces[-1]) for ids in pieces))
    with pytest.raises(ValueError, match=r"fake\.model: the text 'abc' makes a control id"):
        encode_framed(fake, *buffers(["abc"]), document_rule="bos+eos", room=np.empty(70, "<u2"))


def test_an_id_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="an id beyond its vocabulary: 100"):
        encode_framed(FakeTokenizer(([100], 0, True)), *buffers(["a"]), document_rule="eos", room=np.empty(70, "<u2"))


def test_more_ids_than_bytes_find_room():
    fake = FakeTokenizer((list(range(3, 90)), 0, False), (list(range(3, 99)), 0, True), ([7] * 50, 1, True))
    ids, lengths = encode_framed(fake, *buffers(["a", "b"]), document_rule="bos+eos", room=np.empty(8, "<u2"))
    assert ids.tolist() == [1, *range(3, 90), *range(3, 99), 2, 1, *[7] * 50, 2]
    assert lengths.tolist() == [185, 52]
