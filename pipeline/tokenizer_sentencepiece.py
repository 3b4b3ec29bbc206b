"""SentencePiece models: read and checked.

Every model is served by sentencepiece itself; BPE models that do not normalise text (Llama's, Mistral's, our own) are
served fast, by our own kernel.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.tokenizer_engines import SPACE_MARK, Engine, NotServedError, ReferenceEngine, TokenizerFile
from pipeline.tokenizer_pieces import SentencePieceCuts


def read_sentencepiece(path: Path, data: bytes) -> TokenizerFile:
    """A SentencePiece model of any kind; BPE models that do not normalise text are served fast."""
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
        open_fast=lambda: _open_fast(model),
        find_cut=_find_cuts(model),
    )


def _find_cuts(model: Any) -> SentencePieceCuts | None:  # noqa: ANN401
    types = {piece.type for piece in model.pieces}
    if _list_refusals(model) or not model.trainer_spec.byte_fallback or model.SentencePiece.USER_DEFINED in types:
        return None
    pieces = (piece.piece for piece in model.pieces if piece.type == piece.NORMAL)
    return SentencePieceCuts(pieces, has_prefix=model.normalizer_spec.add_dummy_prefix)


def _open_fast(model: Any) -> Engine:  # noqa: ANN401
    if reasons := _list_refusals(model):
        raise NotServedError("; ".join(reasons))
    from pipeline.spm_engine import SentencePieceEngine

    return SentencePieceEngine(
        model, say_piece=lambda piece: _bytes_of(piece, unk_surface=model.trainer_spec.unk_surface)
    )


def _list_refusals(model: Any) -> list[str]:  # noqa: ANN401
    """Why only sentencepiece itself can serve a model: nothing where it is BPE over the text's own characters."""
    trainer, normalizer, kind = model.trainer_spec, model.normalizer_spec, model.SentencePiece
    controls = [piece for piece in model.pieces if piece.type in (kind.CONTROL, kind.UNKNOWN, kind.BYTE)]
    reasons = {
        "it is not a BPE model": trainer.model_type != trainer.BPE,
        "it normalises text": bool(normalizer.precompiled_charsmap),
        "it removes extra spaces": normalizer.remove_extra_whitespaces,
        "it does not escape spaces": not normalizer.escape_whitespaces,
        "it marks spaces as suffixes": trainer.treat_whitespace_as_suffix,
        "it has unused pieces": any(piece.type == kind.UNUSED for piece in model.pieces),
        "a control piece is one character": any(len(piece.piece) == 1 for piece in controls),
        "a score is not a number": any(math.isnan(piece.score) for piece in model.pieces),
    }
    return [reason for reason, is_so in reasons.items() if is_so]


def _decode_pieces(model: Any, ids: Sequence[int]) -> bytes:  # noqa: ANN401
    """A space that begins the text was put there, or, where extra spaces are removed, all that begin it."""
    pieces = [model.pieces[id_] for id_ in ids]
    pieces = [piece for piece in pieces if piece.type != piece.CONTROL]
    texts = [_bytes_of(piece, unk_surface=model.trainer_spec.unk_surface) for piece in pieces]
    removes_all = model.normalizer_spec.remove_extra_whitespaces
    if model.normalizer_spec.add_dummy_prefix or removes_all:
        for at, piece in enumerate(pieces):
            if not piece.piece.startswith(SPACE_MARK):
                break
            texts[at] = texts[at][1:]
            if texts[at] or not removes_all:
                break
    return b"".join(texts)


def _bytes_of(piece: Any, *, unk_surface: str) -> bytes:  # noqa: ANN401
    if piece.type == piece.BYTE:
        return bytes([int(piece.piece[1:-1], 16)])  # "<0x0A>"
    if piece.type == piece.UNKNOWN:
        return unk_surface.encode()
    return piece.piece.replace(SPACE_MARK, " ").encode()
