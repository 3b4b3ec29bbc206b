"""Texts -> ids framed by the document rule, in the dataset's dtype, in little more memory than these ids take."""

from __future__ import annotations

import numpy as np

from pipeline.kernels import frame_documents
from pipeline.tokenizer import Tokenizer
from pipeline.tokenizer_pieces import Stretch

NO_BOS = -1


def encode_framed(
    tokenizer: Tokenizer, data: np.ndarray, offsets: np.ndarray, *, document_rule: str, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all documents back to back, each framed by the document rule, in `dtype`; and each one's length.

    data, offsets: as Tokenizer.encode_documents takes them. Raises ValueError where a text makes a control id, or an id
    is beyond the vocabulary.
    """
    bos_id = tokenizer.bos_id if document_rule == "bos+eos" else NO_BOS
    if tokenizer.can_frame:
        ids, ends = tokenizer.encode_and_frame(data, offsets, bos_id=bos_id, eos_id=tokenizer.eos_id)
        return ids.astype(dtype, copy=False), np.diff(ends, prepend=0)
    lengths = np.zeros(len(offsets) - 1, np.int64)
    out = np.empty(most_framed_ids(offsets), dtype)  # memory is taken only where it is written to
    num_written, is_start = 0, True
    for stretch in tokenizer.encode_stretches(data, offsets):
        if len(stretch.ids) and int(stretch.ids.max()) >= tokenizer.vocab_size:
            raise ValueError(f"tokenizer {tokenizer.path} made an id beyond its vocabulary: {stretch.ids.max()}")
        framed = stretch_lengths(stretch, is_start=is_start, has_bos=bos_id != NO_BOS)
        out = make_room(out, num_written, num_more=int(framed.sum()) + 1)
        first_bad = frame_stretch(stretch, bos_id, tokenizer.eos_id, out[num_written:], is_start=is_start)
        if first_bad >= 0:
            raise ValueError(describe_control_text(tokenizer, data, offsets, stretch.document + first_bad))
        lengths[stretch.document : stretch.document + len(framed)] += framed
        num_written, is_start = num_written + int(framed.sum()), stretch.is_end
    return out[:num_written], lengths


def most_framed_ids(offsets: np.ndarray) -> int:
    """How many ids documents can have: one a byte, a space that the model puts before each, bos, eos; and one spare."""
    return int(offsets[-1] - offsets[0]) + 3 * (len(offsets) - 1) + 1


def make_room(out: np.ndarray, num_written: int, *, num_more: int) -> np.ndarray:
    """`out` with room for more ids. Only a tokenizer that makes text longer before it encodes it needs that."""
    if num_written + num_more <= len(out):
        return out
    return np.concatenate([out[:num_written], np.empty(2 * (num_written + num_more), out.dtype)])


def stretch_lengths(stretch: Stretch, *, is_start: bool, has_bos: bool) -> np.ndarray:
    """How many ids each document of a stretch has in it, framed: bos where it starts here, eos where it ends here."""
    return np.diff(stretch.id_offsets) + (has_bos and is_start) + stretch.is_end


def frame_stretch(stretch: Stretch, bos_id: int, eos_id: int, out: np.ndarray, *, is_start: bool) -> int:
    """Write a stretch's ids, framed, to the front of `out`; an eos comes after them that does not count where the
    document goes on. Returns the index of the first document that holds bos or eos itself, or -1."""
    first_bad = frame_documents(stretch.ids, stretch.id_offsets, bos_id if is_start else NO_BOS, eos_id, out)
    return 0 if not is_start and (stretch.ids == bos_id).any() else first_bad


def describe_control_text(tokenizer: Tokenizer, data: np.ndarray, offsets: np.ndarray, document: int) -> str:
    """What to say of a document whose text makes a control id."""
    start, end = offsets[document : document + 2].tolist()
    text = data[start : min(end, start + 240)].tobytes().decode(errors="ignore")
    return (
        f"tokenizer {tokenizer.path}: the text {text[:60]!r} makes a control id, so documents could not be told apart. "
        "Use --engine reference, or another tokenizer"
    )
