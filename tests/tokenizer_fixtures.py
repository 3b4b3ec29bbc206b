"""What the tests of tokenizers share: two small tokenizer files, and how a model is edited."""

import base64
import re

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_training import train_sample_tokenizer

SAMPLE_TEXT = "\n".join(
    f"line {number}: The quick brown fox doesn't jump over {number * 7} lazy dogs... <s>not</s>\n\n    def f(x): return x"
    for number in range(300)
)


def as_batch(texts):
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def load_both(path):
    return load_tokenizer(path), load_tokenizer(path, engine="reference")


def edit_model(sample_path, path, edit):
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(sample_path.read_bytes())
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def set_extra_spaces_removed(model):
    model.normalizer_spec.remove_extra_whitespaces = True


def write_sample_model(path):
    """A SentencePiece model of 700 pieces."""
    path.write_bytes(train_sample_tokenizer([SAMPLE_TEXT, "\u4e2d\u6587 " * 50], vocab_size=700))
    return path


def write_ranks(path):
    """A rank file of the words of SAMPLE_TEXT."""
    words = sorted(set(re.findall(r" ?[A-Za-z]+| {2,}|[<>().]+", SAMPLE_TEXT)))
    beginnings = [word[:stop].encode() for word in words for stop in range(2, len(word) + 1)]
    tokens = dict.fromkeys([*(bytes([byte]) for byte in range(256)), *beginnings])
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


def assert_same(fast, reference, texts):
    data, offsets = as_batch(texts)
    fast_ids, fast_offsets = fast.encode_documents(data, offsets)
    ids, id_offsets = reference.encode_documents(data, offsets)
    if not (np.array_equal(fast_ids, ids) and np.array_equal(fast_offsets, id_offsets)):
        differing = [text for text in texts if fast.encode(text) != reference.encode(text)]
        pytest.fail(f"the engines differ on {min(differing, key=len)!r}")
