"""Which documents hold a code point that the fast and the reference byte-level encoders class differently.

GPT-2's split rule asks of each code point: letter, number, white space, or none of them. gigatoken 0.10 answers from
Unicode 17; tiktoken 0.14 and tokenizers 0.23 answer from Unicode 16. The 4,657 letters and numbers that Unicode 17
added are the only code points on which they differ: found by encoding every code point in twelve contexts with all
three, and found again, for the installed versions, by a test. White space is the same in all.

Compiled by numba: ASCII is passed over eight bytes at a time, and only the bytes that can begin such a character are
decoded.
"""

import numpy as np

from pipeline.compiled import compiled, load_word

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
# The first UTF-8 bytes of those code points, so that Chinese and curly quotes are never decoded.
LEAD_OF_3_A, LEAD_OF_3_B, LEAD_OF_4 = 0xE0, 0xEA, 0xF0
TOP_BITS = np.uint64(0x8080808080808080)


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
    is_differing = np.zeros(max(0, len(offsets) - 1), np.bool_)
    mark_differing(data, offsets, table, is_differing)
    return np.flatnonzero(is_differing)


@compiled
def mark_differing(data, offsets, table, is_differing):  # noqa: ANN001, ANN201 - numba infers them
    """Set is_differing for each document that holds a code point of the table."""
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        while position < end and not is_differing[document]:
            if position + 8 <= end and load_word(data, position) & TOP_BITS == 0:
                position += 8
                continue
            lead = data[np.uint64(position)]
            if lead == LEAD_OF_4:
                code_point = (lead & 0x07) << 18 | (data[position + 1] & 0x3F) << 12
                code_point |= (data[position + 2] & 0x3F) << 6 | data[position + 3] & 0x3F
                is_differing[document] = table[code_point]
            elif lead in (LEAD_OF_3_A, LEAD_OF_3_B):
                code_point = (lead & 0x0F) << 12 | (data[position + 1] & 0x3F) << 6 | data[position + 2] & 0x3F
                is_differing[document] = table[code_point]
            position += 1
