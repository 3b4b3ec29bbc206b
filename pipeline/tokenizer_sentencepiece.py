"""SentencePiece models: read and checked, and written out for the fast engine where it is known to be exact.

Every model is served by sentencepiece itself; only Llama's kind (BPE, byte fallback, no normalisation) is served fast.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tokenizer_engines import SPACE_MARK, FastEngine, NotServedError, ReferenceEngine, TokenizerFile
from pipeline.tokenizer_pieces import SentencePieceCuts


def read_sentencepiece(path: Path, data: bytes) -> TokenizerFile:
    """A SentencePiece model of any kind; only Llama's kind is served fast."""
    import sentencepiece
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ValueError(f"{path}: not a SentencePiece model, or cut short; fetch it again") from None
    if not model.pieces or not model.HasField("trainer_spec"):
        raise ValueError(f"{path}: not a whole SentencePiece model ({len(model.pieces):,} pieces); fetch it again")
    counts = Counter(piece.piece for piece in model.pieces)
    if len(counts) < len(model.pieces):
        repeated, times = counts.most_common(1)[0]
        raise ValueError(f"{path}: piece {repeated!r} stands {times} times in the vocabulary; the model is not usable")
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ValueError(f"{path}: sentencepiece refuses the model: {error}") from None
    if processor.eos_id() < 0:
        raise ValueError(f"{path}: the model has no end-of-text piece; train it with eos_id set")
    bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
    reference = ReferenceEngine(encode_text=processor.encode, decode_bytes=lambda ids: _decode_pieces(model, ids))
    return TokenizerFile(
        family="sentencepiece",
        vocab_size=processor.get_piece_size(),
        bos_id=bos_id,
        eos_id=processor.eos_id(),
        document_rule="eos" if bos_id is None else "bos+eos",
        control_texts=tuple(piece.piece for piece in model.pieces if piece.type in (piece.CONTROL, piece.UNKNOWN)),
        reference=reference,
        open_fast=lambda: _open_fast_sentencepiece(model),
        find_cut=_find_cuts(model),
    )


def _find_cuts(model: Any) -> SentencePieceCuts | None:  # noqa: ANN401
    try:
        _require_served_model(model)
    except NotServedError:
        return None
    pieces = (piece.piece for piece in model.pieces if piece.type == piece.NORMAL)
    return SentencePieceCuts(pieces, has_prefix=model.normalizer_spec.add_dummy_prefix)


def _decode_pieces(model: Any, ids: Sequence[int]) -> bytes:  # noqa: ANN401
    pieces = [model.pieces[id_] for id_ in ids]
    pieces = [piece for piece in pieces if piece.type != piece.CONTROL]
    text = b"".join(_bytes_of(piece, unk_surface=model.trainer_spec.unk_surface) for piece in pieces)
    has_dummy_prefix = model.normalizer_spec.add_dummy_prefix and pieces and pieces[0].piece.startswith(SPACE_MARK)
    return text[1:] if has_dummy_prefix else text


def _bytes_of(piece: Any, *, unk_surface: str) -> bytes:  # noqa: ANN401
    if piece.type == piece.BYTE:
        return bytes([int(piece.piece[1:-1], 16)])  # "<0x0A>"
    if piece.type == piece.UNKNOWN:
        return unk_surface.encode()
    return piece.piece.replace(SPACE_MARK, " ").encode()


def _open_fast_sentencepiece(model: Any) -> FastEngine:  # noqa: ANN401
    import gigatoken

    _require_served_model(model)
    tokenizer_json = build_tokenizer_json(model)
    return FastEngine(lambda: gigatoken.Tokenizer.from_json(tokenizer_json), routed_to=None)


def _require_served_model(model: Any) -> None:  # noqa: ANN401
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    types = Counter(piece.type for piece in model.pieces)
    piece_type = model.SentencePiece
    reasons = {
        "it is not a BPE model": trainer.model_type != trainer.BPE,
        "it has no byte fallback": not trainer.byte_fallback or types[piece_type.BYTE] != 256,
        "it normalises text": bool(normalizer.precompiled_charsmap),
        "it removes extra spaces": normalizer.remove_extra_whitespaces,
        "it does not escape spaces": not normalizer.escape_whitespaces,
        "it marks spaces as suffixes": trainer.treat_whitespace_as_suffix,
        "it has user-defined or unused pieces": bool(types[piece_type.USER_DEFINED] + types[piece_type.UNUSED]),
    }
    pieces = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    mergeable = [piece for piece in pieces if len(piece) > 1]
    reasons["different pieces have equal scores"] = not _are_ties_served({piece: pieces[piece] for piece in mergeable})
    reasons["characters of longer pieces are no pieces"] = any(
        character not in pieces for piece in mergeable for character in piece
    )
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise NotServedError("; ".join(found))


def _are_ties_served(scores: dict[str, float]) -> bool:
    """Whether the pieces have scores of their own, but for runs of one character that all have the lowest score.

    SentencePiece merges the leftmost of equal scores, but a list of merges has no equals: with ties the two differ in 1
    of 54 texts under random vocabularies, without in 0 of 834,750. The exception is Llama's: runs of spaces, tied and
    merged last. There the leftmost run grows as far as it can, and so it does when longer runs stand first in the list.
    """
    counts = Counter(scores.values())
    tied = {piece: score for piece, score in scores.items() if counts[score] > 1}
    characters = {character for piece in tied for character in piece}
    return len(characters) <= 1 and set(tied.values()) <= {min(scores.values(), default=0.0)}


def build_tokenizer_json(model: Any) -> str:  # noqa: ANN401
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
