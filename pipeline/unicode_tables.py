"""Which documents hold a code point that the fast and the reference byte-level encoders class differently.

GPT-2's split rule asks of each code point: letter, number, white space, or none of them. gigatoken 0.10 answers from
Unicode 17; tiktoken 0.14 and tokenizers 0.23 answer from Unicode 16. The 4,657 letters and numbers that Unicode 17
added are the only code points on which they differ: found by encoding every code point in twelve contexts with all
three, and found again, for the installed versions, by a test. White space is the same in all.

Compiled by numba: only the bytes that can begin such a character, of 64 at a time, are decoded.
"""

import numpy as np

from pipeline.compiled import VECTOR_BYTES, compiled, count_trailing_zeros, mark_equal

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
STEP_BYTES, ONE, TWO, THREE = np.uint64(VECTOR_BYTES), np.uint64(1), np.uint64(2), np.uint64(3)


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
        position, end = np.uint64(offsets[document]), np.uint64(offsets[document + 1])
        while position + STEP_BYTES <= end and not is_differing[document]:
            leads = mark_equal(data, position, LEAD_OF_3_A) | mark_equal(data, position, LEAD_OF_3_B)
            leads |= mark_equal(data, position, LEAD_OF_4)
            while leads:
                is_differing[document] |= is_in_table(data, position + count_trailing_zeros(leads), table)
                leads &= leads - ONE
            position += STEP_BYTES
        while position < end and not is_differing[document]:
            is_differing[document] = is_in_table(data, position, table)
            position += ONE


@compiled
def is_in_table(data, position, table):  # noqa: ANN001, ANN201
    """Whether a code point of the table begins at this byte."""
    lead, one, two, three = data[position], position + ONE, position + TWO, position + THREE
    if lead == LEAD_OF_4:
        code_point = (lead & 0x07) << 18 | (data[one] & 0x3F) << 12 | (data[two] & 0x3F) << 6 | data[three] & 0x3F
        return table[code_point]
    if lead in (LEAD_OF_3_A, LEAD_OF_3_B):
        return table[(lead & 0x0F) << 12 | (data[one] & 0x3F) << 6 | data[two] & 0x3F]
    return False
