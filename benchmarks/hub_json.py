"""Tokenizers in the form that other programs read: tokenizer.json, with the same ids and no added tokens."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from pipeline.tokenizer import Tokenizer
from pipeline.tokenizer_engines import SPACE_MARK

END_OF_TEXT = "<|endoftext|>"


def build_hub_json(tokenizer: Tokenizer) -> str:
    """A tokenizer as the tokenizer.json that the Hugging Face libraries read, of old versions too."""
    if tokenizer.family == "tiktoken":
        return json.dumps(convert_ranks(read_ranks(tokenizer.path)))
    if tokenizer.family == "huggingface":
        return tokenizer.path.read_text(encoding="utf-8")
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer.path.read_bytes())
    settings = json.loads(build_tokenizer_json(model))
    settings["model"]["merges"] = [" ".join(pair) for pair in settings["model"]["merges"]]
    return json.dumps(settings)


def build_tokenizer_json(model: Any) -> str:  # noqa: ANN401 - a protobuf message
    """The model in the form that gigatoken reads: no added tokens, and merges between normal pieces only.

    So no text can become a control, byte or unknown piece. (With <s> as an added token, as gigatoken's own converter
    has it, HTML's <s> becomes the begin-of-text id.)
    """
    normal_ids = {piece.piece: id_ for id_, piece in enumerate(model.pieces) if piece.type == piece.NORMAL}
    merges = []
    for id_, piece in enumerate(model.pieces):
        if piece.piece not in normal_ids:
            continue
        text, score = piece.piece, piece.score
        for cut in range(1, len(text)):
            if text[:cut] in normal_ids and text[cut:] in normal_ids:
                merges.append((-score, -len(text), id_, cut, text[:cut], text[cut:]))
    merges.sort()
    normalizers = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}]
    if model.normalizer_spec.add_dummy_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE_MARK})
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "BPE",
                "unk_token": model.trainer_spec.unk_piece,
                "fuse_unk": True,
                "byte_fallback": True,
                "vocab": {piece.piece: id_ for id_, piece in enumerate(model.pieces)},
                "merges": [merge[4:] for merge in merges],
            },
        }
    )


def read_ranks(path: Path) -> dict[bytes, int]:
    """The byte strings of a tiktoken rank file and their ranks."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def convert_ranks(ranks: dict[bytes, int]) -> dict[str, Any]:
    """tiktoken ranks as a byte-level BPE tokenizer.json with GPT-2's split rule."""
    letters = spell_bytes()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    pairs = (find_pair(token, ranks) for token in sorted(ranks, key=ranks.get) if len(token) > 1)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {names[token]: rank for token, rank in ranks.items()} | {END_OF_TEXT: len(ranks)}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [f"{names[left]} {names[right]}" for left, right in pairs]}
    settings = ("added_tokens", "normalizer", "post_processor", "decoder")
    return {
        "version": "1.0",
        **dict.fromkeys(settings),
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "model": model,
    }


def spell_bytes() -> list[str]:
    """How byte-level vocabularies write each byte: as itself where it can be seen, else from U+0100 on."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = iter(range(0x100, 0x200))
    return [chr(byte) if byte in seen else chr(next(unseen)) for byte in range(256)]


def find_pair(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two pieces that are merged into a token last: what the merges before its own make of its bytes."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in zip(pieces, pieces[1:], strict=False)]
        place = joined.index(min(joined))
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces[0], pieces[1]
