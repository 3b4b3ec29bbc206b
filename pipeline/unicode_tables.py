"""Which documents hold a code point that the fast and the reference byte-level encoders class differently.

GPT-2's split rule asks of each code point: letter, number, white space, or none of them. gigatoken 0.10 answers from
Unicode 17; tiktoken 0.14 and tokenizers 0.23 answer from Unicode 16. The 4,657 letters and numbers that Unicode 17
added are the only code points on which they differ: found by encoding every code point in twelve contexts with all
three, and found again, for the installed versions, by a test. White space is the same in all.

numpy only: the bytes that can begin such a character are found by vector instructions, and only there is a code point
decoded: 1.6 GB/s or more on one core, whatever the language.
"""

import numpy as np

# First and last code point of each range, both included; no range spans two leading UTF-8 bytes.
DIFFERING_RANGES = (
    (0x088F, 0x088F),
    (0x0C5C, 0x0C5C),
    (0x0CDC, 0x0CDC),
    (0xA7CE, 0xA7CF),
    (0xA7D2, 0xA7D2),
    (0xA7D4, 0xA7D4),
    (0xA7F1, 0xA7F1),
    (0x10940, 0x10959),
    (0x10EC5, 0x10EC7),
    (0x11DB0, 0x11DDB),
    (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8),
    (0x16EBB, 0x16ED3),
    (0x16FF2, 0x16FF6),
    (0x187F8, 0x187FF),
    (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2),
    (0x1E6C0, 0x1E6DE),
    (0x1E6E0, 0x1E6E2),
    (0x1E6E4, 0x1E6E5),
    (0x1E6E7, 0x1E6ED),
    (0x1E6F0, 0x1E6F4),
    (0x1E6FE, 0x1E6FF),
    (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
)
_NUM_CODE_POINTS = 0x110000
_FIRST_LEAD_OF_4_BYTES = 0xF0
# The first UTF-8 bytes of those code points: 0xE0, 0xEA and 0xF0, so Chinese and curly quotes are never decoded.
_LEADS = tuple(sorted({chr(last).encode()[0] for _, last in DIFFERING_RANGES}))
# Bytes looked at in one go: keeps the index arrays small for text in which every third byte is a lead.
_CHUNK_BYTES = 1 << 22


def build_differing_table() -> np.ndarray:
    """True for each code point in DIFFERING_RANGES: bool, shape (1,114,112,)."""
    table = np.zeros(_NUM_CODE_POINTS, dtype=np.bool_)
    for first, last in DIFFERING_RANGES:
        table[first : last + 1] = True
    return table


def find_differing_documents(data: np.ndarray, offsets: np.ndarray, *, table: np.ndarray) -> np.ndarray:
    """The numbers of the documents that hold a code point of the table, ascending and each once: int64.

    data is uint8 that is valid UTF-8 between offsets[0] and offsets[-1]; document i is data[offsets[i]:offsets[i + 1]].
    """
    hits = [
        _find_differing_bytes(data, start=start, stop=min(start + _CHUNK_BYTES, offsets[-1]), table=table)
        for start in range(int(offsets[0]), int(offsets[-1]), _CHUNK_BYTES)
    ]
    positions = np.concatenate(hits) if hits else np.empty(0, dtype=np.int64)
    # "right" names the last of several documents that begin here: those before it are empty.
    return np.unique(np.searchsorted(offsets, positions, side="right") - 1)


def _find_differing_bytes(data: np.ndarray, *, start: int, stop: int, table: np.ndarray) -> np.ndarray:
    chunk = data[start:stop]
    is_lead = chunk == _LEADS[0]
    for lead in _LEADS[1:]:
        is_lead |= chunk == lead
    leads = np.flatnonzero(is_lead) + start
    if not len(leads):
        return leads
    is_of_4_bytes = data[leads] >= _FIRST_LEAD_OF_4_BYTES
    code_points = np.empty(len(leads), dtype=np.int32)
    code_points[~is_of_4_bytes] = _decode(data, leads[~is_of_4_bytes], num_bytes=3)
    code_points[is_of_4_bytes] = _decode(data, leads[is_of_4_bytes], num_bytes=4)
    return leads[table[code_points]]


def _decode(data: np.ndarray, leads: np.ndarray, *, num_bytes: int) -> np.ndarray:
    code_points = data[leads].astype(np.int32) & (0xFF >> (num_bytes + 1))
    for ahead in range(1, num_bytes):
        code_points = code_points << 6 | (data[leads + ahead] & 0x3F)
    return code_points
