"""Our kernel for SentencePiece BPE says what sentencepiece says, for every kind of model that it serves."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import REPOSITORY
from hypothesis import example, given, settings
from hypothesis import strategies as st
from spm_models import OPTIONS, TEXT, build, parse, train

from pipeline.framing import most_framed_ids
from pipeline.tokenizer_sentencepiece import read_sentencepiece

PARTS = (
    *("<s>", "</s>", "<unk>", "<0x0A>", "<sep>", "<se", "fo", "fox", "foxfox", " the", "\u2581the", "aa", "aaa", "q", "  x", "\u2581\u2581x"),
    *(" ", "  ", "   ", " " * 17, "\n", "\r\n", "\t", "\x00", "\x00\x00", "\x7f", "\xa0", "\u2028", "\u3000", "\ufeff", "\ufffd"),
    *("\u2581", "\u2581 \u2581", "\u00e9", "e\u0301", "\u4e2d", "\u4e2d\u6587", "\u6587\u5b57", "\u0438\u043c\u044f", "\ud55c", "\U0001f468\u200d\U0001f469", "\U0010ffff"),
    *("'", "doesn't", "12", "1000000", "==", "+=", "(it)", "...", "quick", "brown", "x", "quickbrownfoxdogsaaaa" * 2, "aaaa" * 30),
    *("abcdefghijklmn", "abcdefghijklmno", "abcdefghijklmnop", "thethethethethethethethethethe", "thethethethethethethethethethet"),
    *("the" * 21, "the" * 21 + "t", "\u0438\u043c\u044f" * 5, "\u0438\u043c\u044f" * 10),
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(st.characters(codec="utf-8"), max_size=9), max_size=20).map("".join)
DOCUMENTS = st.lists(TEXTS, min_size=1, max_size=8)


class Pair:
    """Our engine and sentencepiece's own, of one model."""

    def __init__(self, model):
        file = read_sentencepiece(Path("small.model"), model.SerializeToString())
        self.engine, self.decode_bytes = file.open_fast(), file.reference.decode_bytes
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def check(self, texts):
        """Twice: what was remembered the first time is recalled the second."""
        data, offsets = as_batch(texts)
        expected = [self.processor.encode(text) for text in texts]
        for _ in range(2):
            ids, id_offsets = self.engine.encode_documents(data, offsets)
            bounds = zip(id_offsets, id_offsets[1:], strict=False)
            assert [ids[start:end].tolist() for start, end in bounds] == expected
        self.check_decoding(ids, id_offsets)

    def check_decoding(self, ids, id_offsets):
        """As our decoder of single documents, which is compared with sentencepiece's, too."""
        data, offsets = self.engine.decode_documents(ids, id_offsets)
        for document, (start, end) in enumerate(zip(id_offsets, id_offsets[1:], strict=False)):
            found = data[offsets[document] : offsets[document + 1]].tobytes()
            assert found == self.decode_bytes(ids[start:end].tolist())
            if "\ufffd" not in (text := found.decode(errors="replace")):
                assert text == self.processor.decode(ids[start:end].tolist())


def as_batch(texts):
    encoded = [text.encode() for text in texts]
    data = np.frombuffer(b"\xff" + b"".join(encoded), np.uint8)  # the first offset is not 0
    return data, 1 + np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def remove_characters(model):
    kept = [piece for piece in model.pieces if piece.piece not in ("q", "\u4e2d", "o")]
    del model.pieces[:]
    model.pieces.extend(kept)


def remove_the_space(model):
    kept = [piece for piece in model.pieces if piece.piece != "\u2581"]
    del model.pieces[:]
    model.pieces.extend(kept)


def make_scores_equal(model):
    for piece in model.pieces:
        piece.score = round(piece.score, -1)


def make_large(model):
    taken = {piece.piece for piece in model.pieces}
    for code_point in range(0x4E00, 0x4E00 + 70_000):
        if not 0xD800 <= code_point <= 0xDFFF and chr(code_point) not in taken:
            model.pieces.add(piece=chr(code_point), score=-1e4 - code_point, type=model.SentencePiece.NORMAL)


EDITS = {edit.__name__: edit for edit in (remove_characters, remove_the_space, make_scores_equal, make_large)}


@pytest.fixture(scope="module", params=[*OPTIONS, *EDITS, "llama2"])
def pair(request):
    name = request.param
    if name == "llama2":
        path = request.getfixturevalue("shared_data") / "tokenizers" / "llama2" / "tokenizer.model"
        return Pair(parse(path.read_bytes()))
    model = parse(train(**OPTIONS.get(name, {})))
    if name in EDITS:
        EDITS[name](model)
    return Pair(model)


@settings(deadline=None, max_examples=35)
@given(texts=DOCUMENTS)
@example(texts=[*TEXT[:20], "", "a", "", ""])
@example(
    texts=[
        f"{before}{unit * count}{after}"
        for count in (*range(40), 64, 65, 300)
        for unit in " a\u4e2d\x00"
        for before in ("", "x")
        for after in ("", "the")
    ]
)
def test_ids_are_those_of_sentencepiece(pair, texts):
    pair.check(texts)


ALPHABET = "ab\u2581\u00e9\u4e2d"
PIECES = st.dictionaries(st.text(ALPHABET, min_size=1, max_size=5), st.integers(-6, 0), max_size=25)


@settings(deadline=None, max_examples=100)
@given(
    pieces=PIECES,
    user_defined=st.sets(st.text(ALPHABET, min_size=1, max_size=3), max_size=2),
    texts=st.lists(st.text("ab \u00e9\u4e2d\u2581", max_size=90), min_size=1, max_size=5),
    has_prefix=st.booleans(),
    has_bytes=st.booleans(),
)
def test_any_vocabulary_joins_as_sentencepiece_joins(pieces, user_defined, texts, has_prefix, has_bytes):
    normal = [(piece, score) for piece, score in pieces.items() if piece not in user_defined]
    model = build(normal, has_prefix=has_prefix, user_defined=sorted(user_defined), has_bytes=has_bytes)
    Pair(model).check(texts)


@settings(deadline=None, max_examples=20)
@given(documents=st.lists(st.lists(st.integers(0, 1 << 20), max_size=40), min_size=1, max_size=5))
def test_any_ids_are_decoded_as_one_document_after_the_other(pair, documents):
    size = pair.processor.get_piece_size()
    documents = [[id_ % (300 if id_ % 3 else size) % size for id_ in document] for document in documents]
    ids = np.array([0, *(id_ for document in documents for id_ in document)], np.uint32)
    pair.check_decoding(ids, 1 + np.cumsum([0, *map(len, documents)], dtype=np.int64))


def test_an_id_beyond_the_vocabulary_is_refused(pair):
    size = pair.processor.get_piece_size()
    with pytest.raises(ValueError, match=f"id {size} is beyond the vocabulary of {size:,} pieces"):
        pair.engine.decode_documents(np.array([1, size], np.uint32), np.array([0, 1, 2]))


@pytest.mark.parametrize("seed", range(4))
def test_what_cannot_be_cut_is_joined_as_sentencepiece_joins(seed):
    chance = np.random.default_rng(seed)
    pieces = {"".join(chance.choice(list("abc"), chance.integers(1, 7))) for _ in range(120)} | set("ab")
    model = build([(piece, -float(chance.integers(0, 40))) for piece in sorted(pieces)], has_prefix=bool(seed % 2))
    lengths = (*range(28, 36), *range(60, 68), 200, 4_095, 4_096, 4_097, 20_000)
    Pair(model).check(["".join(chance.choice(list("abc"), length)) for length in lengths])


@pytest.mark.parametrize(
    "bad",
    [
        *(
            b"\x80",
            b"\xbf",
            b"\xc0\x80",
            b"\xc1\xbf",
            b"\xe0\x80\x80",
            b"\xe0\x9f\xbf",
            b"\xed\xa0\x80",
            b"\xed\xbf\xbf",
        ),
        *(b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xfe"),
        *(
            b"\xc3",
            b"\xe4\xb8",
            b"\xe4",
            b"\xf0\x9f\x98",
            b"\xf0\x9f",
            b"\xf0",
            b"\xc3a",
            b"\xe4\xb8a",
            b"\xf0\x9f\x98 ",
        ),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_document(pair, bad):
    for before in (b"", b"abc ", b"a" * 63, b"a" * 64, "\u4e2d".encode() * 30):
        for after in (b"", b"\x98\x80", b"the end" * 20):
            texts = [b"good", b"", before + bad, after]
            data = np.frombuffer(b"".join(texts), np.uint8)
            with pytest.raises(ValueError, match="document 2 of the batch is not UTF-8"):
                pair.engine.encode_documents(data, np.cumsum([0, *map(len, texts)]))


@settings(deadline=None, max_examples=60)
@given(
    text=st.text("a \x7f\x80\u07ff\u0800\u4e2d\ud7ff\ue000\uffff\U00010000\U0010ffff", min_size=1, max_size=99),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=2),
    ends=st.lists(st.integers(0, 400), max_size=3),
)
def test_what_is_refused_is_what_python_cannot_decode(pair, text, changes, ends):
    data = bytearray(text.encode())
    for place, byte in changes:
        data[place % len(data)] = byte
    offsets = np.array(sorted({0, len(data), *(end % len(data) for end in ends)}))
    documents = [bytes(data[start:end]) for start, end in zip(offsets, offsets[1:], strict=False)]
    bad = [number for number, document in enumerate(documents) if not is_utf8(document)]
    try:
        pair.engine.encode_documents(np.frombuffer(data, np.uint8), offsets)
        assert not bad
    except ValueError as error:
        assert str(error) == f"document {bad[0]} of the batch is not UTF-8"


def is_utf8(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.long
def test_every_code_point_is_read():
    characters = [chr(code_point) for code_point in range(0x110000) if not 0xD800 <= code_point <= 0xDFFF]
    Pair(parse(train())).check(["".join(characters[start : start + 500]) for start in range(0, len(characters), 500)])


GUARDED = """
import ctypes, mmap, sys
import numpy as np
sys.path.insert(0, {root!r})
sys.path.insert(0, {root!r} + "/tests")
from spm_models import build
from pipeline.tokenizer_sentencepiece import read_sentencepiece
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 2 * page)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
assert ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address + page), page, 0) == 0
model = build([(text, 0) for text in ("a", "b", "ab", "\\u2581")], has_prefix=True)
engine = read_sentencepiece("small.model", model.SerializeToString()).open_fast()
for text in (*("ab" * 40 for _ in range(2)), "a b ab", "\\u4e2d", "\\u4e2d a\\u00e9" * 20, "ab " * 60, "\\U0001f600", "a" * 15, "b " * 9):
    for bad in (b"", b"\\xf0", b"\\xe4\\xb8"):
        encoded = text.encode() + bad
        for length in range(len(encoded) + 1):
            data = np.frombuffer(memory, np.uint8, page)[page - length:]
            ctypes.memmove(address + page - length, encoded, length)
            try:
                engine.encode_documents(data, np.array([0, length]))
            except ValueError:
                pass
print("read to the end")
"""


def test_nothing_behind_the_end_of_the_data_is_read():
    code = GUARDED.format(root=str(REPOSITORY))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "read to the end"), result.stderr


def test_framed_ids_lie_where_they_are_to_stay():
    engine = Pair(parse(train())).engine
    data, offsets = as_batch(TEXT[:3])
    room = np.empty(most_framed_ids(offsets), np.uint16)
    ids, ends = engine.encode_and_frame(data, offsets, bos_id=1, eos_id=2, room=room)
    assert np.shares_memory(ids, room)
    apart, apart_ends = engine.encode_and_frame(data, offsets, bos_id=1, eos_id=2, room=room[:9].copy())
    assert apart.tolist() == ids.tolist() and apart_ends.tolist() == ends.tolist()
