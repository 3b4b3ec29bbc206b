"""tokenizer.json: the two kinds that are served fast, what is not, and how the control tokens are found."""

import json
import random
import sys

import numpy as np
import pytest
import tokenizers
from conftest import REPOSITORY
from sentencepiece import sentencepiece_model_pb2

sys.path.insert(0, str(REPOSITORY))  # benchmarks are scripts, not part of the installed packages

from benchmarks.hub_json import build_tokenizer_json
from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_training import train_sample_tokenizer

SAMPLE_TEXTS = [f"The quick brown fox doesn't jump over {number} lazy dogs...\n  x = y" for number in range(100)]
PARTS = (
    *(
        "<|endoftext|>",
        "<s>",
        "</s>",
        "<unk>",
        "<extra>",
        " ",
        "  ",
        "\n",
        "\t",
        "\x00",
        "'s",
        "'",
        "the",
        " quick",
        "1",
    ),
    *("\u4e2d", "\xe9", "\u2581", "\U0001f468\u200d\U0001f469", "\U000323b0", "\ua7ce", "\U00010940", "...", "fox" * 9),
)


def added(id_, content, *, special, normalized=False):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized}
    return {"id": id_, "content": content, "special": special, **flags}


@pytest.fixture(scope="module")
def gpt2_kind():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLE_TEXTS, trainer)
    settings = json.loads(tokenizer.to_str())
    num_pieces = len(settings["model"]["vocab"])
    # Special tokens on both sides of the plain one: its id must not move when they are taken out of the text's reach.
    settings["added_tokens"] = [
        added(num_pieces, "<|endoftext|>", special=True),
        added(num_pieces + 1, "<extra>", special=False),
        added(num_pieces + 2, "<|pad|>", special=True),
    ]
    return settings


@pytest.fixture(scope="module")
def llama_kind():
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(train_sample_tokenizer(SAMPLE_TEXTS, vocab_size=500))
    settings = json.loads(build_tokenizer_json(model))
    settings["added_tokens"] = [added(id_, text, special=True) for id_, text in enumerate(("<unk>", "<s>", "</s>"))]
    settings["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return settings


def write(tmp_path, settings, config=None):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(settings))
    if config is not None:
        path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    return path


def assert_served_exactly(path):
    fast, reference = load_tokenizer(path), load_tokenizer(path, engine="reference")
    assert (fast.engine, reference.engine) == ("fast", "reference")
    chance = random.Random(0)
    texts = ["".join(chance.choices(PARTS, k=chance.randint(0, 20))) for _ in range(2000)]
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(text.encode()) for text in texts)], dtype=np.int64)
    for fast_array, array in zip(
        fast.encode_documents(data, offsets), reference.encode_documents(data, offsets), strict=True
    ):
        np.testing.assert_array_equal(fast_array, array)
    return fast


def test_byte_level_bpe_is_served_fast_and_exactly(gpt2_kind, tmp_path):
    tokenizer = assert_served_exactly(write(tmp_path, gpt2_kind))
    num_pieces = len(gpt2_kind["model"]["vocab"])
    assert (tokenizer.document_rule, tokenizer.bos_id, tokenizer.eos_id) == ("eos", None, num_pieces)
    assert tokenizer.vocab_size == num_pieces + 3
    assert tokenizer.encode("<extra>") == [num_pieces + 1]
    assert len(tokenizer.encode("<|endoftext|>")) > 1
    assert tokenizer.decode([*tokenizer.encode("a \u4e2d <|pad|>"), tokenizer.eos_id]) == "a \u4e2d <|pad|>"


def test_llamas_kind_is_served_fast_and_exactly(llama_kind, tmp_path):
    tokenizer = assert_served_exactly(write(tmp_path, llama_kind))
    assert (tokenizer.document_rule, tokenizer.bos_id, tokenizer.eos_id) == ("bos+eos", 1, 2)
    assert tokenizer.decode([1, *tokenizer.encode("quick <s> fox"), 2]) == "quick <s> fox"


def test_the_config_beside_it_names_the_control_tokens(gpt2_kind, tmp_path):
    path = write(tmp_path, gpt2_kind, {"eos_token": {"content": "<|pad|>"}, "bos_token": "<extra>"})
    tokenizer = load_tokenizer(path)
    num_pieces = len(gpt2_kind["model"]["vocab"])
    assert (tokenizer.bos_id, tokenizer.eos_id) == (num_pieces + 1, num_pieces + 2)
    assert len(tokenizer.encode("<extra>")) > 1  # a control token now, whatever the file says


def test_without_a_known_end_of_text_the_candidates_are_listed(gpt2_kind, tmp_path):
    tokens = [added(400, "<stop>", special=True), added(401, "<|pad|>", special=True)]
    path = write(tmp_path, {**gpt2_kind, "added_tokens": tokens})
    with pytest.raises(ValueError, match=r"eos_token in tokenizer_config.json .*<stop>, <\|pad\|>"):
        load_tokenizer(path)


def test_an_end_of_text_that_text_can_spell_is_refused(gpt2_kind, tmp_path):
    word = max(gpt2_kind["model"]["vocab"], key=lambda piece: (piece.isalpha() and piece.isascii(), len(piece)))
    path = write(tmp_path, gpt2_kind, {"eos_token": word})
    with pytest.raises(ValueError, match=f"{word}.* becomes a control id"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "split rule"),
        ({"normalizer": {"type": "NFC"}}, "normalises"),
        (
            {"added_tokens": [added(400, "</s>", special=True), added(401, "X", special=False, normalized=True)]},
            "conditions",
        ),
    ],
)
def test_other_kinds_are_served_by_the_reference_with_a_notice(gpt2_kind, tmp_path, change, reason):
    notices = []
    tokenizer = load_tokenizer(write(tmp_path, {**gpt2_kind, **change}), notice=notices.append)
    assert tokenizer.engine == "reference"
    assert reason in notices[0]


def test_a_unigram_file_is_served_by_the_reference(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    settings = {**json.loads(tokenizer.to_str()), "added_tokens": [added(3, "</s>", special=True)]}
    loaded = load_tokenizer(write(tmp_path, settings))
    assert (loaded.engine, loaded.eos_id, loaded.encode("ab")) == ("reference", 3, [1, 2])


def test_a_file_that_the_library_refuses_is_named(gpt2_kind, tmp_path):
    path = write(tmp_path, {**gpt2_kind, "model": {"type": "Other"}})
    with pytest.raises(ValueError, match=r"tokenizer\.json: the tokenizers library refuses it"):
        load_tokenizer(path)
