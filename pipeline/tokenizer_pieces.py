"""Documents of any size in stretches that an engine encodes in little memory, id for id as if it had them whole.

An engine takes up to 40 bytes of memory for a byte of text. So few documents go to it at once, and a huge one goes in
pieces, cut where the tokenizer provably never joins what stands on the two sides:

GPT-2's kind splits text by `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+` before it
merges anything. What one alternative takes is of one class (letters, digits, white space, the rest), but for a
leading space and for an apostrophe with letters. So between two characters of different classes it always splits,
where the first is neither white space nor an apostrophe before a letter. What comes before the cut does not look
behind it: only white space looks ahead, and the cut follows none. What comes after it never looks back.

SentencePiece BPE merges two neighbours only into a piece of the vocabulary. Two characters that stand side by side in
no piece therefore never meet, and merges on one side do not hear of the other: each is the best of its own side. The
model puts a space before each text that it encodes. Where the cut is before a space, that one takes its place; before
a character that no piece has after a space, it becomes an id of its own, which is dropped.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.tokenizer_engines import SPACE_MARK, Cut, Engine, FindCut

STRETCH_BYTES = 10 << 20  # more than the batches of usual documents, which go to the engine as they are
PIECE_BYTES = 4 << 20  # of a document above STRETCH_BYTES
WINDOW_CHARACTERS = 1 << 14

# Where GPT-2's pattern splits, as bytes. Of other alphabets only what is safe in any version of Unicode: U+5000 to
# U+8FFF are letters, U+3001, U+3002 and U+FF0C (comma, full stop, wide comma) are neither letters nor white space.
GPT2_CUT = re.compile(
    rb"(?<=[A-Za-z])[ \t\r\n0-9!-/:-@\[-`{-~]|(?<=[0-9])[ \t\r\nA-Za-z!-/:-@\[-`{-~]"
    rb"|(?<=[!-&(-/:-@\[-`{-~])[ \t\r\nA-Za-z0-9]|(?<=')[ \t\r\n0-9]"
    rb"|(?<=[\xe5-\xe8][\x80-\xbf][\x80-\xbf])[ \t\r\n]|(?<=\xe3\x80[\x81\x82]|\xef\xbc\x8c)[ \t\r\n\xe5-\xe8]"
)


class Stretch(NamedTuple):
    """Ids of whole documents, or of a piece of one. ids: uint32; id_offsets: int64, n + 1 from 0, as engines give them.

    document: the number of the first. is_end: False where its document goes on in the next stretch.
    """

    ids: np.ndarray
    id_offsets: np.ndarray
    document: int
    is_end: bool


def encode_stretches(
    engine: Engine, find_cut: FindCut | None, data: np.ndarray, offsets: np.ndarray
) -> Iterator[Stretch]:
    """The ids of documents, in order, about STRETCH_BYTES of text or a piece of a larger document at a time."""
    first, num_documents = 0, len(offsets) - 1
    while first < num_documents:
        last = int(np.searchsorted(offsets, offsets[first] + STRETCH_BYTES, side="right")) - 1
        if last > first:
            yield Stretch(*engine.encode_documents(data, offsets[first : last + 1]), first, True)
        else:
            last = first + 1
            yield from encode_huge(engine, find_cut, data, offsets[first : last + 1], document=first)
        first = last


def encode_huge(
    engine: Engine, find_cut: FindCut | None, data: np.ndarray, offsets: np.ndarray, *, document: int
) -> Iterator[Stretch]:
    """The ids of one document, piece by piece; whole where there is no place to cut it."""
    num_extra_ids = 0
    start, end = offsets.tolist()
    text = memoryview(np.ascontiguousarray(data))
    while start < end:
        cut = find_cut(text, start + PIECE_BYTES, end) if find_cut and end - start > PIECE_BYTES else None
        piece_end = cut.end if cut else end
        ids, _ = engine.encode_documents(data, np.array([start, piece_end], np.int64))
        ids = ids[num_extra_ids:]
        yield Stretch(ids, np.array([0, len(ids)], np.int64), document, cut is None)
        _, start, num_extra_ids = cut or Cut(end, end, 0)


def join_stretches(stretches: Iterable[Stretch], *, num_documents: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids of all documents as an engine gives them: flat uint32, and int64 offsets."""
    num_ids = np.zeros(num_documents, np.int64)
    ids = []
    for stretch in stretches:
        ids.append(stretch.ids)
        num_ids[stretch.document : stretch.document + len(stretch.id_offsets) - 1] += np.diff(stretch.id_offsets)
    flat = ids[0] if len(ids) == 1 else np.concatenate([np.empty(0, np.uint32), *ids])
    return flat, np.concatenate(([0], np.cumsum(num_ids)))


def find_gpt2_cut(text: memoryview, start: int, end: int) -> Cut | None:
    """FindCut for GPT-2's pattern."""
    found = GPT2_CUT.search(text, start, end)
    return Cut(found.start(), found.start(), 0) if found else None


class SentencePieceCuts:
    """FindCut for a SentencePiece BPE model that changes no text before it merges.

    pieces: its normal pieces. has_prefix: whether it puts a space before each text.
    """

    def __init__(self, pieces: Iterable[str], *, has_prefix: bool) -> None:
        pieces = set(pieces)
        self.pairs = {piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1)}
        self.has_prefix = has_prefix
        self.is_prefix_one_id = SPACE_MARK in pieces

    def __call__(self, text: memoryview, start: int, end: int) -> Cut | None:
        """The first place to cut; see FindCut."""
        while start < end:
            window, position = read_characters(text, start, end)
            for left, right in zip(window, window[1:], strict=False):
                position += len(left.encode())
                if (cut := self.cut_between(left, right, position)) and cut.start < end:
                    return cut
            start = max(position, start + 1)
        return None

    def cut_between(self, left: str, right: str, position: int) -> Cut | None:
        """The cut between two characters, the second of which is at `position`."""
        mark = SPACE_MARK if right == " " else right
        if (SPACE_MARK if left == " " else left) + mark in self.pairs:
            return None
        if not self.has_prefix:
            return Cut(position, position, 0)
        if right == " ":
            return Cut(position, position + 1, 0)
        is_apart = self.is_prefix_one_id and SPACE_MARK + mark not in self.pairs
        return Cut(position, position, 1) if is_apart else None


def read_characters(text: memoryview, start: int, end: int) -> tuple[str, int]:
    """Some characters of UTF-8 from the first that begins at `start` or later, and where that begins."""
    while start < end and 0x80 <= text[start] < 0xC0:
        start += 1
    window = bytes(text[start : min(end, start + WINDOW_CHARACTERS)])
    return window.decode(errors="ignore"), start  # valid UTF-8 but for the last character, which may be cut
