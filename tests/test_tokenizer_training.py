"""The sample tokenizer: its bytes depend on the text alone, any text trains, the fast engine serves it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_training import train_sample_tokenizer

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [f"Document {number} says: the quick brown fox, {number * 3} times.\n    return x" for number in range(200)]


def load_trained(tmp_path, texts, vocab_size):
    path = tmp_path / "sample.model"
    path.write_bytes(train_sample_tokenizer(texts, vocab_size=vocab_size))
    notices = []
    tokenizer = load_tokenizer(path, notice=notices.append)
    assert notices == []
    return tokenizer


def test_the_same_texts_give_the_same_bytes_in_another_process_and_folder(tmp_path):
    code = (
        "import sys; from pipeline.tokenizer_training import train_sample_tokenizer as train;"
        "texts = [f'Document {n} says: the quick brown fox, {n * 3} times.\\n    return x' for n in range(200)];"
        "sys.stdout.buffer.write(train(iter(texts), vocab_size=500))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, env=environment, check=True)
    assert other.stdout == train_sample_tokenizer(TEXTS, vocab_size=500)
    assert other.stderr == b""


def test_the_vocabulary_is_as_large_as_asked_where_the_text_allows_it(tmp_path):
    tokenizer = load_trained(tmp_path, TEXTS, 300)
    assert (tokenizer.vocab_size, tokenizer.engine, tokenizer.document_rule) == (300, "fast", "bos+eos")


@pytest.mark.parametrize(
    "text",
    ["a", "    ", "\t\x00\r", "\u2585 \u2585", "<s> </s>", "".join(map(chr, range(0x4E00, 0x5E00))), "\u2581\u2581 x"],
)
def test_any_text_trains_and_comes_back(tmp_path, text):
    tokenizer = load_trained(tmp_path, [text], 300)
    assert tokenizer.engine == "fast"
    assert tokenizer.vocab_size <= 300
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("\u2581", " ")


def test_no_part_of_a_long_line_is_skipped(tmp_path):
    tokenizer = load_trained(tmp_path, ["x" + "y" * 50_000 + "zebra " * 20_000], 320)
    assert len(tokenizer.encode("zebra zebra")) <= 3


def test_spaces_and_digits_are_kept_as_llama_keeps_them(tmp_path):
    tokenizer = load_trained(tmp_path, TEXTS, 500)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.path.read_bytes())
    pieces = {piece.piece for piece in model.pieces}
    assert "\u2581\u2581\u2581\u2581" in pieces
    assert not any(len(piece) > 1 and any(map(str.isdigit, piece)) for piece in pieces if not piece.startswith("<0x"))
    assert tokenizer.encode("\n")[-1] == tokenizer.encode("a\nb")[-2] == 3 + ord("\n")


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 200"):
        train_sample_tokenizer(TEXTS, vocab_size=200)


@pytest.mark.parametrize("texts", [[], [""], ["\n\n"]])
def test_no_text_is_refused(texts):
    with pytest.raises(ValueError, match="no text to train"):
        train_sample_tokenizer(texts, vocab_size=300)
