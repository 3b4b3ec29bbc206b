"""Texts -> ids framed by the document rule, in the dataset's dtype, in the memory where they stay."""

from __future__ import annotations

import numpy as np

from pipeline.kernels import frame_documents
from pipeline.tokenizer import Tokenizer
from pipeline.tokenizer_pieces import Stretch

NO_BOS = -1
SPARE_IDS = 32  # our own engine writes that much behind the ids


def encode_framed(
    tokenizer: Tokenizer, data: np.ndarray, offsets: np.ndarray, *, document_rule: str, room: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all documents back to back, each framed by the document rule, in `room`; and each one's length.

    data, offsets: as Tokenizer.encode_documents takes them. room: of the dataset's dtype, for most_framed_ids of them;
    where a tokenizer makes more, the ids come back in an array of their own. Raises ValueError where a text makes a
    control id, or an id is beyond the vocabulary.
    """
    bos_id = tokenizer.bos_id if document_rule == "bos+eos" else NO_BOS
    if tokenizer.can_frame:
        ids, ends = tokenizer.encode_and_frame(data, offsets, bos_id=bos_id, eos_id=tokenizer.eos_id, room=room)
        return ids.astype(room.dtype, copy=False), np.diff(ends, prepend=0)
    lengths = np.zeros(len(offsets) - 1, np.int64)
    num_written, is_start = 0, True
    for stretch in tokenizer.encode_stretches(data, offsets):
        framed = stretch_lengths(stretch, is_start=is_start, has_bos=bos_id != NO_BOS)
        room = make_room(room, num_written, num_more=int(framed.sum()) + 1)
        first_bad, largest = frame_stretch(stretch, bos_id, tokenizer.eos_id, room[num_written:], is_start=is_start)
        if largest >= tokenizer.vocab_size:
            raise ValueError(f"tokenizer {tokenizer.path} made an id beyond its vocabulary: {largest}")
        if first_bad >= 0:
            raise ValueError(describe_control_text(tokenizer, data, offsets, stretch.document + first_bad))
        lengths[stretch.document : stretch.document + len(framed)] += framed
        num_written, is_start = num_written + int(framed.sum()), stretch.is_end
    return room[:num_written], lengths


def most_framed_ids(offsets: np.ndarray) -> int:
    """How many ids documents can have: one a byte, a space that the model puts before each, bos, eos; and the spare."""
    return int(offsets[-1] - offsets[0]) + 3 * (len(offsets) - 1) + SPARE_IDS


def make_room(room: np.ndarray, num_written: int, *, num_more: int) -> np.ndarray:
    """`room`, or more of it. Only a tokenizer that makes text longer before it encodes it needs that."""
    if num_written + num_more <= len(room):
        return room
    return np.concatenate([room[:num_written], np.empty(2 * (num_written + num_more), room.dtype)])


def stretch_lengths(stretch: Stretch, *, is_start: bool, has_bos: bool) -> np.ndarray:
    """How many ids each document of a stretch has in it, framed: bos where it starts here, eos where it ends here."""
    return np.diff(stretch.id_offsets) + (has_bos and is_start) + stretch.is_end


def frame_stretch(
    stretch: Stretch, bos_id: int, eos_id: int, room: np.ndarray, *, is_start: bool
) -> tuple[int, np.uint32]:
    """Write a stretch's ids, framed, to the front of `room`; an eos comes after them that does not count where the
    document goes on. Returns the index of the first document that holds bos or eos itself, or -1; the largest id."""
    bos = bos_id if is_start else NO_BOS
    first_bad, largest = frame_documents(stretch.ids, stretch.id_offsets, bos, eos_id, room)
    return (0 if not is_start and (stretch.ids == bos_id).any() else first_bad), largest


def describe_control_text(tokenizer: Tokenizer, data: np.ndarray, offsets: np.ndarray, document: int) -> str:
    """What to say of a document whose text makes a control id."""
    start, end = offsets[document : document + 2].tolist()
    text = data[start : min(end, start + 240)].tobytes().decode(errors="ignore")
    return (
        f"tokenizer {tokenizer.path}: the text {text[:60]!r} makes a control id, so documents could not be told apart. "
        "Use --engine reference, or another tokenizer"
    )
