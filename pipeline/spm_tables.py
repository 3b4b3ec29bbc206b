"""A SentencePiece BPE model as tables for the compiled loops. Knows no text and no engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline.spm_cuts import CutTables, hash_pair
from pipeline.spm_kernel import HASH1, LOOSE, SYMBOL_BITS, TABLE_WORDS
from pipeline.tokenizer_engines import SPACE_MARK, NotServedError

MOST_SYMBOLS = 1 << int(SYMBOL_BITS)
NUM_CODE_POINTS = 0x110000
BITS_PER_BRIDGE = 64  # so that one pair in 64 is taken for a bridge that is none
FEWEST_BRIDGE_WORDS = 1 << 10
NO_ENTRY = (1 << 64) - 1

LARGE_PAGE_WORDS = 1 << 18  # 2 MiB
USUAL_CHUNK = 1 << 12  # bytes; room for larger ones is made when they are met


class JoinTables(NamedTuple):
    """What a model joins; made by spm_tables.py. A symbol is a piece's id, the number of pieces and more for other
    characters of pieces, or LOOSE and a code point."""

    pairs: np.ndarray  # uint64, hashed: left symbol, right symbol, the piece that they make, 21 bits each
    ranks: np.ndarray  # uint32 per piece: 0 is joined first; equal where scores are
    symbols: np.ndarray  # uint32 per code point
    others: np.ndarray  # uint32: code points of the symbols after the pieces
    byte_ids: np.ndarray  # uint32, 256
    unknown_id: np.int64  # -1: unknown characters become bytes
    user_defined: np.ndarray  # uint64, hashed like pairs: state, character, next state
    user_defined_ids: np.ndarray  # int64 per state: the piece that ends in it, or -1
    has_prefix: bool  # a space before each text
    num_pieces: np.uint32


class Memory(NamedTuple):
    """The chunks remembered, and room to work in. Of one worker; never shared by threads."""

    short: np.ndarray  # uint64, a power of 2: rows of two entries of 2 words
    medium: np.ndarray  # of 4 words
    long: np.ndarray  # of 8 words
    longest: np.ndarray  # of 16 words
    symbols: np.ndarray  # uint32, as many as a chunk has bytes and a few more; so the next three
    pieces: np.ndarray
    before: np.ndarray
    after: np.ndarray
    heap: np.ndarray  # uint64, twice as many


def build_tables(model: Any) -> tuple[CutTables, JoinTables]:  # noqa: ANN401
    """The tables of a model that changes no text before it joins characters. Takes about 0.3 s for 32,000 pieces.

    Raises NotServedError where it has more than a million pieces.
    """
    kind = model.SentencePiece
    normal = {piece.piece: id_ for id_, piece in enumerate(model.pieces) if piece.type == kind.NORMAL}
    user_defined = {piece.piece: id_ for id_, piece in enumerate(model.pieces) if piece.type == kind.USER_DEFINED}
    symbols = dict(normal)
    for character in sorted({character for piece in normal for character in piece} - symbols.keys()):
        symbols[character] = len(model.pieces) + len(symbols) - len(normal)
    if len(symbols) + len(model.pieces) > MOST_SYMBOLS:
        raise NotServedError("it has too many pieces")
    joins = [
        (symbols[piece[:at]], symbols[piece[at:]], id_, piece[at - 1 : at + 1])
        for piece, id_ in normal.items()
        for at in range(1, len(piece))
        if piece[:at] in symbols and piece[at:] in symbols
    ]
    bridged = {pair for *_, pair in joins} | {
        piece[at : at + 2] for piece in user_defined for at in range(len(piece) - 1)
    }
    is_piece = np.zeros(1 << 21, bool)  # what is not UTF-8 may look like any number of 21 bits
    is_piece[[ord(piece) for piece in (*normal, *user_defined) if len(piece) == 1]] = True
    is_piece[ord(" ")] = is_piece[ord(SPACE_MARK)]
    fuses_unknown = not model.trainer_spec.byte_fallback
    cut_tables = build_cut_tables(bridged, is_piece=is_piece if fuses_unknown else None)
    states, state_ids = build_states(user_defined)
    tables = JoinTables(
        pairs=build_entries([join[:3] for join in joins]),
        ranks=rank_scores(model),
        symbols=build_symbols(symbols),
        others=np.array([*(ord(text) for text in list(symbols)[len(normal) :]), 0], np.uint32),
        byte_ids=find_byte_ids(model),
        unknown_id=find_unknown_id(model) if fuses_unknown else -1,
        user_defined=build_entries(states),
        user_defined_ids=state_ids,
        has_prefix=bool(model.normalizer_spec.add_dummy_prefix),
        num_pieces=np.uint32(len(model.pieces)),
    )
    return cut_tables, tables


def build_cut_tables(bridged: set[str], *, is_piece: np.ndarray | None) -> CutTables:
    """What spm_cuts.py knows of pairs of characters."""
    num_words = FEWEST_BRIDGE_WORDS
    while num_words * 64 < len(bridged) * BITS_PER_BRIDGE:
        num_words *= 2
    bridges, cuts = np.zeros(num_words, np.uint64), np.zeros(1 << 16, np.uint8)
    if is_piece is None:
        cuts.reshape(256, 256)[:128, :128] = 1
    else:
        cuts.reshape(256, 256)[:128, :128] = is_piece[:128, None] | is_piece[None, :128]
    for pair in bridged:
        left, right = ((" ", SPACE_MARK) if character == SPACE_MARK else (character,) for character in pair)
        for first in left:
            for second in right:
                word, bit = hash_pair(first, second, num_words)
                bridges[word] |= np.uint64(1 << bit)
                if max(first, second) < "\x80":
                    cuts[ord(first) + 256 * ord(second)] = 0
    return CutTables(cuts, bridges, np.empty(0, bool) if is_piece is None else is_piece)


def build_entries(entries: list[tuple[int, int, int]]) -> np.ndarray:
    """A hash table for spm_kernel.find_entry, at most half full."""
    size = 2
    while size < 2 * len(entries):
        size *= 2
    table = np.full(size, NO_ENTRY, np.uint64)
    keys = [(left << int(SYMBOL_BITS)) | right for left, right, _ in entries]
    places = ((np.array(keys, np.uint64) * HASH1) >> np.uint64(32)) & np.uint64(size - 1)
    for key, place, (*_, third) in zip(keys, places.tolist(), entries, strict=True):
        while table[place] != NO_ENTRY:
            place = (place + 1) & (size - 1)
        table[place] = (key << int(SYMBOL_BITS)) | third
    return table


def build_states(pieces: dict[str, int]) -> tuple[list[tuple[int, int, int]], np.ndarray]:
    """The pieces as a tree of states, from 0, with a character on each edge; and which piece ends in each state."""
    edges: dict[tuple[int, int], int] = {}
    ids = [-1]
    for piece, id_ in pieces.items():
        state = 0
        for character in piece:
            key = (state, ord(character))
            if key not in edges:
                edges[key] = len(ids)
                ids.append(-1)
            state = edges[key]
        ids[state] = id_
    if len(ids) > MOST_SYMBOLS:
        raise NotServedError("its user-defined pieces have too many characters")
    return [(*key, state) for key, state in edges.items()], np.array(ids, np.int64)


def rank_scores(model: Any) -> np.ndarray:  # noqa: ANN401
    """For each piece how many higher scores there are: uint32. SentencePiece compares scores as float32."""
    scores = np.array([piece.score for piece in model.pieces], np.float32)
    return np.unique(-scores, return_inverse=True)[1].astype(np.uint32)


def build_symbols(symbols: dict[str, int]) -> np.ndarray:
    """The symbol of each code point: uint32."""
    table = np.arange(NUM_CODE_POINTS, dtype=np.uint32) | LOOSE
    for text, symbol in symbols.items():
        if len(text) == 1:
            table[ord(text)] = symbol
    return table


def find_byte_ids(model: Any) -> np.ndarray:  # noqa: ANN401
    """The piece of each byte: uint32, 256; zeros where the model has none."""
    ids = np.zeros(256, np.uint32)
    for id_, piece in enumerate(model.pieces):
        if piece.type == piece.BYTE:
            ids[int(piece.piece[1:-1], 16)] = id_  # "<0x0A>"
    return ids


def find_unknown_id(model: Any) -> int:  # noqa: ANN401
    """The id of the unknown piece."""
    return next(id_ for id_, piece in enumerate(model.pieces) if piece.type == piece.UNKNOWN)


def build_memory() -> Memory:
    """Room for chunks to be remembered: 24 MiB, taken as it is used."""
    return Memory(*allocate_tables(), *allocate_room(USUAL_CHUNK))


def allocate_room(num_bytes: int) -> tuple[np.ndarray, ...]:
    """Room to join a chunk of so many bytes in: 32 bytes for each, taken as it is used."""
    return *(np.empty(num_bytes + 2, np.uint32) for _ in range(4)), np.empty(2 * (num_bytes + 2), np.uint64)


def allocate_tables() -> Iterator[np.ndarray]:
    """Zeros for the four tables, in one piece that begins where a large page of memory does: so they need few."""
    memory = np.zeros(sum(TABLE_WORDS.values()) + LARGE_PAGE_WORDS, np.uint64)
    start = -memory.ctypes.data // 8 % LARGE_PAGE_WORDS
    for num_words in TABLE_WORDS.values():
        yield memory[start : start + num_words]
        start += num_words
