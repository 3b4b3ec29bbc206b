"""SentencePiece ids back to text, compiled: flat ids to flat bytes, exact, without a Python object per document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.compiled import compiled, store_word
from pipeline.tokenizer_engines import SPACE_MARK

N0, N1, N16 = np.uint64(0), np.uint64(1), np.uint64(16)
SPARE_BYTES = 16  # room behind the text, since most pieces are written as 16 bytes


class PieceTexts(NamedTuple):
    """What each piece says: its first 16 bytes in two words; all its bytes in a row with those of the others."""

    words: np.ndarray  # uint64, two per piece
    data: np.ndarray  # uint8
    starts: np.ndarray  # int64, one more than pieces
    drops_space: np.ndarray  # bool: its first byte goes where it begins a text
    is_silent: np.ndarray  # bool: control pieces, which do not begin a text


def build_piece_texts(model: Any, say_piece: Callable[[Any], bytes]) -> PieceTexts:  # noqa: ANN401 - a protobuf message
    """The texts of a model's pieces. say_piece: the bytes that a piece stands for."""
    is_silent = np.array([piece.type == piece.CONTROL for piece in model.pieces])
    texts = [b"" if silent else say_piece(piece) for piece, silent in zip(model.pieces, is_silent, strict=True)]
    words = np.frombuffer(b"".join(text[:16].ljust(16, b"\0") for text in texts), np.uint64)
    has_prefix = model.normalizer_spec.add_dummy_prefix
    return PieceTexts(
        words=words,
        data=np.frombuffer(b"".join(texts) or b"\0", np.uint8),
        starts=np.cumsum([0, *map(len, texts)], dtype=np.int64),
        drops_space=np.array([has_prefix and piece.piece.startswith(SPACE_MARK) for piece in model.pieces]),
        is_silent=is_silent,
    )


def decode_batch(texts: PieceTexts, ids: np.ndarray, id_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents' bytes, flat uint8, and their offsets, int64, from 0. The space put before a text is left out.

    ids: uint16 or uint32; id_offsets: int64, one more than documents. Raises ValueError for an id that is no piece's.
    """
    ids = ids[id_offsets[0] : id_offsets[-1]]
    ids.flags.writeable = False  # so that there is one type to compile for
    num_pieces = len(texts.starts) - 1
    if len(ids) and int(ids.max()) >= num_pieces:
        raise ValueError(f"id {int(ids.max())} is beyond the vocabulary of {num_pieces:,} pieces")
    num_bytes = measure_ids(texts.starts, ids)
    out, ends = np.empty(num_bytes + SPARE_BYTES, np.uint8), np.empty(len(id_offsets) - 1, np.int64)
    decode_documents(texts, ids, np.asarray(id_offsets - id_offsets[0], np.int64), out, ends)
    return out[: ends[-1] if len(ends) else 0], np.concatenate(([0], ends))


@compiled
def measure_ids(starts, ids):
    """How many bytes the texts of these ids have together."""
    total = 0
    for id_ in ids:
        total += starts[np.uint64(id_) + N1] - starts[np.uint64(id_)]
    return total


@compiled
def decode_documents(texts, ids, id_offsets, out, ends):
    """Write the documents' bytes to `out` back to back, and where each one's end to `ends`."""
    place = np.uint64(0)
    for document in range(len(id_offsets) - 1):
        first = place
        is_start = True
        for at in range(id_offsets[document], id_offsets[document + 1]):
            id_ = np.uint64(ids[at])
            start, end = np.uint64(texts.starts[id_]), np.uint64(texts.starts[id_ + N1])
            if end - start <= N16:
                store_word(out, place, N0, texts.words[id_ + id_])
                store_word(out, place, N1, texts.words[id_ + id_ + N1])
            else:
                for byte in range(end - start):
                    out[place + np.uint64(byte)] = texts.data[start + np.uint64(byte)]
            place += end - start
            if is_start and not texts.is_silent[id_]:
                is_start = False
                if texts.drops_space[id_]:
                    place -= N1
                    for byte in range(first, place):
                        out[byte] = out[byte + N1]
        ends[document] = place
