"""The two engines behind a tokenizer, with one meaning: text in Arrow-like buffers to flat ids.

The reference engine calls the tokenizer's own library (sentencepiece, tiktoken, tokenizers) once per document; what it
says is right. The fast engine is gigatoken over whole batches; for SentencePiece BPE our own (spm_engine.py). None of
them knows names, files or control ids.

A batch of documents is `data`, the UTF-8 bytes as uint8, and `offsets`, n + 1 ascending int64: document i is
data[offsets[i]:offsets[i + 1]]. The first offset may be above 0, as in a slice of an Arrow column. The ids come back
the same way: flat uint32, and n + 1 int64 that begin with 0.
"""

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

# gigatoken's byte-level encoder remembers every word it meets and never forgets: 9 bytes of memory for each byte of
# random words, a third of a byte for each of code. It is opened again (0.04 s, and slow until its words are back) once
# it has grown by this much; where growth cannot be seen, after as much text as would make it grow to 0.6 GB.
_REOPEN_AFTER_GROWTH_BYTES = 192 << 20
_REOPEN_AFTER_TEXT_BYTES = 64_000_000

SPACE_MARK = "\u2581"  # how SentencePiece and the tokenizers made from it write a space


class Engine(Protocol):
    """What encodes batches of documents; see the top of this file for the buffers."""

    def encode_documents(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' ids, flat uint32, and their offsets, int64."""
        ...


class Cut(NamedTuple):
    """Where a document is cut: the end of what comes before, the start of what comes after, and how many ids the
    latter has too many at its front."""

    end: int
    start: int
    num_extra_ids: int


# The first cut of UTF-8 text at a start or later and before an end; None where there is none.
FindCut = Callable[[memoryview, int, int], Cut | None]


class NotServedError(ValueError):
    """The fast engine cannot encode exactly like this tokenizer's own library; the message says why."""


class ReferenceEngine:
    """A tokenizer's own library, one call per document."""

    def __init__(
        self, *, encode_text: Callable[[str], Sequence[int]], decode_bytes: Callable[[Sequence[int]], bytes]
    ) -> None:
        self.encode_text = encode_text
        self.decode_bytes = decode_bytes

    def encode_documents(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' ids, flat uint32, and their offsets, int64. Raises ValueError for what is not UTF-8."""
        ids = array("I")
        id_offsets = np.zeros(len(offsets), dtype=np.int64)
        for document in range(len(offsets) - 1):
            text = data[offsets[document] : offsets[document + 1]].tobytes().decode("utf-8")
            ids.extend(self.encode_text(text))
            id_offsets[document + 1] = len(ids)
        return np.array(ids, dtype=np.uint32), id_offsets


class FastEngine:
    """gigatoken on one thread, a batch at a time; no Python object per document.

    `routed_to`, for byte-level tokenizers, is the reference engine, which encodes the documents that hold a code point
    on which gigatoken's Unicode tables and the reference's differ (see unicode_tables.py).
    """

    def __init__(self, open_backend: Callable[[], Any], *, routed_to: ReferenceEngine | None) -> None:
        self._open_backend = open_backend
        self._backend = open_backend()
        self._num_bytes_since_open = self._growth_bytes = 0
        self._routed_to = routed_to
        self._differing_table: np.ndarray | None = None

    def encode_documents(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The documents' ids, flat uint32, and their offsets, int64."""
        if self._routed_to is None:
            return _encode_batch(self._backend, data, offsets)
        before = _read_resident_bytes()
        ids, id_offsets = _encode_batch(self._backend, data, offsets)
        if before is not None:
            self._growth_bytes += max(0, _read_resident_bytes() - before - ids.nbytes)
        self._num_bytes_since_open += 0 if before is not None else int(offsets[-1] - offsets[0])
        self._reopen_when_full()
        return self._correct_differing(data, offsets, ids=ids, id_offsets=id_offsets)

    def _reopen_when_full(self) -> None:
        is_grown = self._growth_bytes > _REOPEN_AFTER_GROWTH_BYTES
        if is_grown or self._num_bytes_since_open > _REOPEN_AFTER_TEXT_BYTES:
            self._backend = None  # freed first, so that two full caches never stand side by side
            self._backend = self._open_backend()
            self._num_bytes_since_open = self._growth_bytes = 0

    def _correct_differing(
        self, data: np.ndarray, offsets: np.ndarray, *, ids: np.ndarray, id_offsets: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from pipeline.unicode_tables import build_differing_table, find_differing_documents

        if self._differing_table is None:
            self._differing_table = build_differing_table()
        documents = find_differing_documents(data, offsets, table=self._differing_table)
        if not len(documents):
            return ids, id_offsets
        corrected = {
            int(document): self._routed_to.encode_documents(data, offsets[document : document + 2])[0]
            for document in documents
        }
        return _replace_documents(ids, id_offsets, replacements=corrected)


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer as its file says it is. `open_fast` raises NotServedError, or ImportError.
    find_cut: where both engines would give the same ids for a text's pieces (tokenizer_pieces.py)."""

    family: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    document_rule: str
    control_texts: tuple[str, ...]
    reference: ReferenceEngine
    open_fast: Callable[[], Engine]
    find_cut: FindCut | None = None  # None: a text of it is never cut
    notices: tuple[str, ...] = ()


def _read_resident_bytes() -> int | None:
    """How much memory this process has resident; None where the system has no such file. Takes 5 microseconds."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return None


def _encode_batch(backend: Any, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    import awkward

    layout = awkward.contents.ListOffsetArray(
        awkward.index.Index64(np.ascontiguousarray(offsets, dtype=np.int64)),
        awkward.contents.NumpyArray(np.ascontiguousarray(data), parameters={"__array__": "char"}),
        parameters={"__array__": "string"},
    )
    # One thread: a worker process has one core, and gigatoken's thread pool does not survive a fork.
    encoded = backend.encode_batch(awkward.Array(layout), parallel=False).layout
    return np.asarray(encoded.content.data), np.asarray(encoded.offsets.data)


def _replace_documents(
    ids: np.ndarray, id_offsets: np.ndarray, *, replacements: dict[int, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The batch with the ids of some documents exchanged; replacements in ascending order of the document."""
    pieces = []
    num_ids = np.diff(id_offsets)
    next_document = 0
    for document, document_ids in replacements.items():
        pieces += [ids[id_offsets[next_document] : id_offsets[document]], document_ids]
        num_ids[document] = len(document_ids)
        next_document = document + 1
    pieces.append(ids[id_offsets[next_document] :])
    return np.concatenate(pieces), np.concatenate(([0], np.cumsum(num_ids)))
