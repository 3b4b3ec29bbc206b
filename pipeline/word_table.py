"""What a word is, for near duplicates: which code points are letters and digits, folded, and which stand alone.

Case is folded, accents of Latin, Greek and Cyrillic letters are dropped (so that composed and decomposed forms are the
same words), all else that is no letter, mark or digit parts words. In scripts that write no spaces between words each
character is a word. The answers come from Unicode 3.2, which every Python carries unchanged, so that they do not
depend on the version of Python; a letter added since counts as a letter, and its case is not folded.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

TABLE_SIZE = 0x10000  # code points above are judged by their range, see folding.py
ALONE = 0x80000000  # added to the entry of a character that is a word by itself
SKIPPED = 0xFFFFFFFF  # the entry of a mark that is dropped and parts nothing
ACCENTS = range(0x300, 0x370)
KEPT_CATEGORIES = ("L", "M", "N")

# First and last code point of the scripts without spaces: South-East Asian, Chinese, Japanese, Yi; Hangul has spaces.
ALONE_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19FF),
    (0x1A20, 0x1AAF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3031, 0x3035),
    (0x3041, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0xA4CF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9D),
)


@functools.cache
def build_word_table() -> np.ndarray:
    """For each code point below TABLE_SIZE its folded code point, 0 where it parts words: uint32. Takes 0.1 s."""
    table = np.zeros(TABLE_SIZE, np.uint32)
    for code_point in range(TABLE_SIZE):
        if not 0xD800 <= code_point < 0xE000:
            table[code_point] = fold(code_point)
    for first, last in ALONE_RANGES:
        stretch = table[first : last + 1]
        stretch[(stretch != 0) & (stretch != SKIPPED)] |= np.uint32(ALONE)
    table.flags.writeable = False
    return table


def fold(code_point: int) -> int:
    """The entry of one code point, apart from ALONE."""
    if code_point in ACCENTS:
        return SKIPPED
    character = chr(code_point)
    category = unicodedata.ucd_3_2_0.category(character)
    if category == "Cn":  # added later: nearly always a letter
        return code_point
    if category[0] not in KEPT_CATEGORIES:
        return 0
    base, *marks = unicodedata.ucd_3_2_0.normalize("NFD", character)
    if marks and all(ord(mark) in ACCENTS for mark in marks):
        character = base
    folded = character.casefold()
    return ord(folded) if len(folded) == 1 else ord(character)
