"""The fast engine for SentencePiece BPE models: our own kernel behind the buffers of tokenizer_engines.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.spm_cuts import BLOCK, bound_chunks, copy_tail, mark_cuts
from pipeline.spm_decode import build_piece_texts, decode_batch
from pipeline.spm_kernel import SPARE_IDS, encode_documents
from pipeline.spm_tables import USUAL_CHUNK, Memory, allocate_room, build_memory, build_tables

NO_ID = -1
USUAL_IDS = 1 << 22  # of a batch; room for more is not kept


class SentencePieceEngine:
    """Exact ids of one SentencePiece BPE model, on one thread; remembers chunks of text in 24 MiB, and keeps room for
    the ids of a batch."""

    def __init__(self, model: Any, *, say_piece: Callable[[Any], bytes]) -> None:  # noqa: ANN401 - a protobuf message
        """say_piece: the bytes that a piece stands for. Raises NotServedError where the model has too many pieces."""
        self._piece_texts = build_piece_texts(model, say_piece)
        self._cut_tables, self._join_tables = build_tables(model)
        self._memory = build_memory()
        self._dtype = np.dtype(np.uint16 if len(model.pieces) <= 1 << 16 else np.uint32)
        self._room = np.empty(0, self._dtype)
        has_space = self._join_tables.symbols[0x2581] < self._join_tables.num_pieces
        self._ids_per_byte = 1 if has_space else 3  # the mark of a space has three bytes

    def mark_cuts(self, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Where the documents may be cut: see spm_cuts.mark_cuts. Raises ValueError for what is not UTF-8."""
        cuts = np.zeros(len(data) // BLOCK + 1, np.uint64)
        if not mark_cuts(self._cut_tables, data, copy_tail(data), offsets, cuts):
            raise ValueError(f"document {find_bad_document(data, offsets)} of the batch is not UTF-8")
        return cuts

    def encode_documents(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' ids, flat uint32, and their offsets, int64. Raises ValueError for what is not UTF-8."""
        ids, ends = self._encode(data, offsets, bos_id=NO_ID, eos_id=NO_ID, room=None)
        return ids.astype(np.uint32), np.concatenate(([0], ends))

    def decode_documents(self, ids: np.ndarray, id_offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' bytes, flat uint8, and their offsets; see decode_batch."""
        return decode_batch(self._piece_texts, ids, id_offsets)

    def encode_and_frame(
        self, data: np.ndarray, offsets: np.ndarray, *, bos_id: int, eos_id: int, room: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all documents back to back, with bos and eos (unless negative) around each, and their ends, int64.

        The ids are uint16, or uint32 where the vocabulary exceeds 65,536; they lie in `room` if that is large enough
        and of this dtype, whatever the number of ids. Raises ValueError for what is not UTF-8, with the document's
        number in the batch.
        """
        ids, ends = self._encode(data, offsets, bos_id=bos_id, eos_id=eos_id, room=room)
        return (ids if room is not None and np.may_share_memory(ids, room) else ids.copy()), ends

    def _encode(
        self, data: np.ndarray, offsets: np.ndarray, *, bos_id: int, eos_id: int, room: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As encode_and_frame; ids that are not in `room` are overwritten by the next call."""
        first, last = int(offsets[0]), int(offsets[-1])
        data, offsets = data[first:last], np.asarray(offsets - first, np.int64)
        data.flags.writeable = offsets.flags.writeable = False  # so that there is one type to compile for
        cuts = self.mark_cuts(data, offsets)
        num_documents = len(offsets) - 1
        memory, longest = self._memory, bound_chunks(cuts)
        if longest > USUAL_CHUNK:
            memory = Memory(*memory[:4], *allocate_room(longest))
        most = self._ids_per_byte * (last - first + num_documents) + 2 * num_documents + SPARE_IDS
        fits = room is not None and room.dtype == self._dtype and len(room) >= most
        out, ends = room if fits else self._take_room(most), np.empty(num_documents, np.int64)
        encode_documents(self._join_tables, memory, data, offsets, cuts, bos_id, eos_id, out, ends)
        return out[: ends[-1] if num_documents else 0], ends

    def _take_room(self, num_ids: int) -> np.ndarray:
        """Room for so many ids: the same again for batches of usual size, since it lies in the processor's cache."""
        if num_ids > USUAL_IDS:
            return np.empty(num_ids, self._dtype)
        if num_ids > len(self._room):
            self._room = np.empty(num_ids, self._dtype)
        return self._room


def find_bad_document(data: np.ndarray, offsets: np.ndarray) -> int:
    """The first document that is not UTF-8."""
    for document in range(len(offsets) - 1):
        try:
            data[offsets[document] : offsets[document + 1]].tobytes().decode()
        except UnicodeDecodeError:
            return document
    raise AssertionError("every document is UTF-8")
