"""SentencePiece models made for tests: trained with each option, edited, or of random pieces."""

import io

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

WORDS = "the quick brown fox doesn't jump over 12 lazy dogs , and <sep> then (it) == x += 10 ; caf\u00e9 \u4e2d\u6587 \u0438\u043c\u044f aaaa"
TEXT = [
    f"  {number} {' '.join(WORDS.split()[number % 7 :: 1 + number % 3])}...   x\u4e2d\u6587\u5b57"
    for number in range(400)
]
OPTIONS = {
    "llama": {},
    "no prefix": {"add_dummy_prefix": False},
    "unknown": {"byte_fallback": False, "character_coverage": 0.98},
    "unknown, no prefix": {"byte_fallback": False, "add_dummy_prefix": False, "character_coverage": 0.98},
    "user-defined": {
        "user_defined_symbols": ["<sep>", "fo", "fox", "\u2581the", "aa", "\u4e2d\u6587", "q", "\u2581\u2581x"]
    },
    "user-defined, unknown": {"user_defined_symbols": ["<sep>", "\u00e9", "\u00e9\u4e2d"], "byte_fallback": False},
    "digits together": {"split_digits": False, "split_by_number": False, "split_by_unicode_script": False},
    "across spaces": {"split_by_whitespace": False},
}


def train(**options):
    """The bytes of a model of Llama's kind but for the options."""
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 420,
        "hard_vocab_limit": False,
        "character_coverage": 0.99995,
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=model, **settings | options)
    return model.getvalue()


def parse(data):
    """The model as a protobuf message."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(data)
    return model


def build(pieces, *, has_prefix, user_defined=(), has_bytes=True):
    """A model of (piece, score) pairs, as a protobuf message."""
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.byte_fallback = has_bytes
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = has_prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    kind = model.SentencePiece
    rows = [("<unk>", 0, kind.UNKNOWN), ("<s>", 0, kind.CONTROL), ("</s>", 0, kind.CONTROL)]
    rows += [(f"<0x{byte:02X}>", 0, kind.BYTE) for byte in range(256) if has_bytes]
    rows += [(piece, 0, kind.USER_DEFINED) for piece in user_defined]
    rows += [(piece, score, kind.NORMAL) for piece, score in pieces]
    for piece, score, type_ in rows:
        model.pieces.add(piece=piece, score=score, type=type_)
    return model
