"""A block of JSON lines -> the text of each line's object, compiled. Knows no file and makes no Python object.

The grammar is RFC 8259 as Python's json module reads it: NaN and Infinity are numbers, of a key that stands twice the
last counts, half of a surrogate pair is a string (but no text), and nesting beyond MOST_DEPTH is no JSON. tests compare
the two on generated lines. A line feed ends a line wherever it stands, since JSON strings hold none: so one pass over
the bytes finds lines, texts and faults, and a line's fate does not depend on its neighbours.

Strings are copied eight bytes at a time up to a quote, a backslash or a control character. Bytes above 0x7F are copied
as they stand, so the caller checks that the block is UTF-8.
"""

from __future__ import annotations

import numpy as np
from numba import njit

DOCUMENT, BAD_JSON, BAD_OBJECT, TEXT_MISSING, TEXT_NULL, TEXT_TYPE, BAD_SURROGATE, BLANK = range(8)  # a line's fate
SLACK_BYTES = 8  # what is written behind the end of a text before the next one overwrites it
MOST_DEPTH = 1000
NO_JSON = -1

LINE_FEED, QUOTE, BACKSLASH, OPEN, CLOSE, OPEN_LIST, CLOSE_LIST, COMMA, COLON = b'\n"\\{}[],:'
MINUS, PLUS, POINT, ZERO, NINE, LOWER_E, UPPER_E, LOWER_U, LOWER_N = b"-+.09eEun"

ESCAPED = np.zeros(256, np.uint8)  # what \x stands for, by x; 0: nothing
for _name, _value in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    ESCAPED[_name] = _value
HEX_VALUE = np.full(256, -1, np.int64)
for _digit in b"0123456789abcdefABCDEF":
    HEX_VALUE[_digit] = int(chr(_digit), 16)
TRUE, FALSE, NULL, NAN, INFINITY, BYTE_ORDER_MARK = (
    np.array(list(word), np.uint8) for word in (b"true", b"false", b"null", b"NaN", b"Infinity", b"\xef\xbb\xbf")
)

ONES, TOP_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
QUOTES, BACKSLASHES, SPACES = ONES * np.uint64(QUOTE), ONES * np.uint64(BACKSLASH), ONES * np.uint64(0x20)
# (1 << 8 * i) * this has i in its highest byte.
BYTE_NUMBERS = np.uint64(0x0001020304050607)


@njit(cache=True, nogil=True, inline="always")
def at(data, position):
    """data[position] without numba's care for negative indices."""
    return data[np.uint64(position)]


@njit(cache=True, nogil=True, inline="always")
def read_word(data, position):
    word = np.uint64(0)
    for byte in range(8):
        word |= np.uint64(data[np.uint64(position + byte)]) << np.uint64(8 * byte)
    return word


@njit(cache=True, nogil=True, inline="always")
def write_word(text, place, word):
    for byte in range(8):
        text[np.uint64(place + byte)] = np.uint8(word >> np.uint64(8 * byte))


@njit(cache=True, nogil=True, inline="always")
def count_plain(word):
    """How many of a word's eight bytes come before the first quote, backslash or control character.

    `x - ONES & ~x & TOP_BITS` has a bit for each zero byte of x, and wrong ones only above a right one.
    """
    quotes, backslashes = word ^ QUOTES, word ^ BACKSLASHES
    found = (word - SPACES) & ~word
    found |= (quotes - ONES) & ~quotes
    found |= (backslashes - ONES) & ~backslashes
    found &= TOP_BITS
    if found == 0:
        return np.int64(8)
    lowest = found & (~found + np.uint64(1))
    return np.int64(((lowest >> np.uint64(7)) * BYTE_NUMBERS) >> np.uint64(56))


@njit(cache=True, nogil=True)
def read_hex(data, position, end):
    """The value of four hexadecimal digits, or -1."""
    if position + 4 > end:
        return np.int64(-1)
    value = np.int64(0)
    for digit in range(4):
        part = HEX_VALUE[at(data, position + digit)]
        if part < 0:
            return np.int64(-1)
        value = value << 4 | part
    return value


@njit(cache=True, nogil=True)
def write_utf8(text, place, code_point):
    """Write a character; returns the place behind it."""
    if code_point < 0x80:
        text[place] = code_point
        return place + 1
    num_more = 1 if code_point < 0x800 else 2 if code_point < 0x10000 else 3
    mark = 0xC0 if num_more == 1 else 0xE0 if num_more == 2 else 0xF0
    text[place] = mark | code_point >> (6 * num_more)
    for byte in range(1, num_more + 1):
        text[place + byte] = 0x80 | (code_point >> (6 * (num_more - byte))) & 0x3F
    return place + num_more + 1


@njit(cache=True, nogil=True)
def copy_escape(data, position, end, text, place):
    """Write what the backslash at `position` begins. Returns what is behind both, and whether it is Unicode."""
    if position + 1 >= end:
        return NO_JSON, place, True
    name = at(data, position + 1)
    if name != LOWER_U:
        text[place] = ESCAPED[name]
        return (position + 2 if ESCAPED[name] else NO_JSON), place + 1, True
    code_point = read_hex(data, position + 2, end)
    if code_point < 0:
        return NO_JSON, place, True
    position += 6
    if code_point < 0xD800 or code_point >= 0xE000:
        return position, write_utf8(text, place, code_point), True
    low = np.int64(-1)
    if position + 6 <= end and at(data, position) == BACKSLASH and at(data, position + 1) == LOWER_U:
        low = read_hex(data, position + 2, end)
    if code_point >= 0xDC00 or low < 0xDC00 or low >= 0xE000:
        return position, place, False  # half of a pair
    code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00)
    return position + 6, write_utf8(text, place, code_point), True


@njit(cache=True, nogil=True)
def copy_string(data, position, end, text, place):
    """Write the string whose inside begins at `position`. Returns what is behind both, and whether it is Unicode."""
    is_unicode = True
    while True:
        while position + 8 <= end:
            word = read_word(data, position)
            write_word(text, place, word)
            num_plain = count_plain(word)
            position += num_plain
            place += num_plain
            if num_plain < 8:
                break
        if position >= end:
            return NO_JSON, place, is_unicode
        byte = at(data, position)
        if byte == QUOTE:
            return position + 1, place, is_unicode
        if byte == BACKSLASH:
            position, place, is_whole = copy_escape(data, position, end, text, place)
            is_unicode &= is_whole
            if position == NO_JSON:
                return NO_JSON, place, is_unicode
        elif byte < 0x20:
            return NO_JSON, place, is_unicode
        else:  # of the last eight bytes of the block
            text[place] = byte
            position += 1
            place += 1


@njit(cache=True, nogil=True)
def skip_string(data, position, end):
    """Behind the string whose inside begins at `position`, or NO_JSON."""
    while True:
        while position + 8 <= end:
            num_plain = count_plain(read_word(data, position))
            position += num_plain
            if num_plain < 8:
                break
        if position >= end:
            return NO_JSON
        byte = at(data, position)
        if byte == QUOTE:
            return position + 1
        if byte == BACKSLASH:
            if position + 1 >= end:
                return NO_JSON
            name = at(data, position + 1)
            if name == LOWER_U:
                if read_hex(data, position + 2, end) < 0:
                    return NO_JSON
                position += 6
            elif ESCAPED[name]:
                position += 2
            else:
                return NO_JSON
        elif byte < 0x20:
            return NO_JSON
        else:
            position += 1


@njit(cache=True, nogil=True)
def skip_spaces(data, position, end):
    while position < end and (at(data, position) == 32 or at(data, position) == 9 or at(data, position) == 13):
        position += 1
    return position


@njit(cache=True, nogil=True)
def skip_digits(data, position, end):
    while position < end and ZERO <= at(data, position) <= NINE:
        position += 1
    return position


@njit(cache=True, nogil=True)
def skip_literal(data, position, end):
    """Behind true, false, null, NaN or Infinity, or NO_JSON."""
    for literal in (TRUE, FALSE, NULL, NAN, INFINITY):
        if starts_with(data, position, end, literal):
            return position + len(literal)
    return NO_JSON


@njit(cache=True, nogil=True)
def starts_with(data, position, end, word):
    if position + len(word) > end:
        return False
    for index in range(len(word)):
        if at(data, position + index) != word[index]:
            return False
    return True


@njit(cache=True, nogil=True)
def skip_number(data, position, end):
    """Behind a number, or a literal; NO_JSON where there is neither. What may follow it is the caller's to check."""
    start = position
    if position < end and at(data, position) == MINUS:
        position += 1
    whole = position
    position = skip_digits(data, position, end)
    if position == whole:
        is_sign = position > start
        behind = skip_literal(data, position, end)
        return NO_JSON if is_sign and behind != position + len(INFINITY) else behind  # only -Infinity has a sign
    if at(data, whole) == ZERO and position > whole + 1:
        return NO_JSON
    if position < end and at(data, position) == POINT:
        fraction = position + 1
        position = skip_digits(data, fraction, end)
        if position == fraction:
            return NO_JSON
    if position < end and (at(data, position) == LOWER_E or at(data, position) == UPPER_E):
        position += 1
        if position < end and (at(data, position) == PLUS or at(data, position) == MINUS):
            position += 1
        exponent = position
        position = skip_digits(data, position, end)
        if position == exponent:
            return NO_JSON
    return position


@njit(cache=True, nogil=True)
def skip_key(data, position, end):
    """Behind a key, its colon and the spaces around it, or NO_JSON."""
    position = skip_spaces(data, position, end)
    if position >= end or at(data, position) != QUOTE:
        return NO_JSON
    position = skip_string(data, position + 1, end)
    if position == NO_JSON:
        return NO_JSON
    position = skip_spaces(data, position, end)
    if position >= end or at(data, position) != COLON:
        return NO_JSON
    return skip_spaces(data, position + 1, end)


@njit(cache=True, nogil=True)
def skip_value(data, position, end, closers):
    """Behind the value at `position`, or NO_JSON. closers: room for what ends each value that is open."""
    depth = 0
    while True:
        if position >= end:
            return NO_JSON
        byte = at(data, position)
        is_whole = True
        if byte == QUOTE:
            position = skip_string(data, position + 1, end)
        elif byte == OPEN or byte == OPEN_LIST:
            if depth == MOST_DEPTH:
                return NO_JSON
            closers[depth] = CLOSE if byte == OPEN else CLOSE_LIST
            depth += 1
            position = skip_spaces(data, position + 1, end)
            if position >= end or at(data, position) != closers[depth - 1]:  # it is not empty
                is_whole = False
                if byte == OPEN:
                    position = skip_key(data, position, end)
        else:
            position = skip_number(data, position, end)
        if position == NO_JSON:
            return NO_JSON
        while is_whole:  # a value ends here, and so may those around it
            if depth == 0:
                return position
            position = skip_spaces(data, position, end)
            if position >= end:
                return NO_JSON
            byte, closer = at(data, position), closers[depth - 1]
            position += 1
            if byte == closer:
                depth -= 1
            elif byte != COMMA:
                return NO_JSON
            else:
                is_whole = False
                if closer == CLOSE:
                    position = skip_key(data, position, end)
                else:
                    position = skip_spaces(data, position, end)
                if position == NO_JSON:
                    return NO_JSON


@njit(cache=True, nogil=True)
def is_key(data, start, end, name, text, place):
    """Whether the key whose quote is at `start` is `name`. text: room to unescape it, from `place` on."""
    is_plain = True
    for position in range(start + 1, end):
        byte = at(data, position)
        if byte == QUOTE:
            return is_plain and position == start + 1 + len(name) and starts_with(data, start + 1, position, name)
        if byte == BACKSLASH:
            break
    _, stop, is_unicode = copy_string(data, start + 1, end, text, place)
    return is_unicode and stop - place == len(name) and starts_with(text, place, stop, name)


@njit(cache=True, nogil=True)
def read_object(data, position, end, names, text, place, closers):
    """The object whose `{` is at `position`: what is behind it, its fate, where its text ends in `text` and the span of
    its subset's value (0, 0: none). names: the keys of the text and of the subset."""
    fate, stop, subset_start, subset_end = TEXT_MISSING, place, np.int64(0), np.int64(0)
    position = skip_spaces(data, position + 1, end)
    if position < end and at(data, position) == CLOSE:
        return position + 1, fate, stop, subset_start, subset_end
    while True:
        key = skip_spaces(data, position, end)
        position = skip_key(data, position, end)
        if position == NO_JSON or position >= end:
            break
        start = position
        if is_key(data, key, end, names[0], text, stop):
            if at(data, position) == QUOTE:
                position, stop, is_unicode = copy_string(data, position + 1, end, text, place)
                fate = DOCUMENT if is_unicode else BAD_SURROGATE
            else:
                fate = TEXT_NULL if at(data, position) == LOWER_N else TEXT_TYPE
                position = skip_value(data, position, end, closers)
        else:
            position = skip_value(data, position, end, closers)
            if position != NO_JSON and len(names[1]) and is_key(data, key, end, names[1], text, stop):
                subset_start, subset_end = start, position
        if position == NO_JSON:
            break
        position = skip_spaces(data, position, end)
        if position >= end:
            break
        byte = at(data, position)
        position += 1
        if byte == CLOSE:
            return position, fate, stop, subset_start, subset_end
        if byte != COMMA:
            break
    return NO_JSON, BAD_JSON, place, subset_start, subset_end


@njit(cache=True, nogil=True)
def read_line(data, start, end, names, text, place, closers):
    """The line that begins at `start`, as read_object; what is behind it, or NO_JSON, comes first."""
    nothing = np.int64(0)
    position = skip_blanks(data, start, end)
    if position >= end or at(data, position) == LINE_FEED:
        return position, BLANK, place, nothing, nothing
    is_marked = starts_with(data, start, end, BYTE_ORDER_MARK)
    position = skip_spaces(data, start + len(BYTE_ORDER_MARK) if is_marked else start, end)
    if position < end and at(data, position) == OPEN:
        position, fate, stop, subset_start, subset_end = read_object(data, position, end, names, text, place, closers)
    else:
        position = skip_value(data, position, end, closers)
        fate, stop, subset_start, subset_end = BAD_OBJECT, place, nothing, nothing
    if position != NO_JSON:
        position = skip_spaces(data, position, end)
    if position == NO_JSON or (position < end and at(data, position) != LINE_FEED):
        return NO_JSON, BAD_JSON, place, nothing, nothing
    return position, fate, stop, subset_start, subset_end


@njit(cache=True, nogil=True)
def skip_blanks(data, position, end):
    """Behind white space, vertical tabs and form feeds too, which may fill a blank line and nothing else."""
    while position < end:
        byte = at(data, position)
        if byte != 32 and (byte < 9 or byte > 13 or byte == LINE_FEED):
            break
        position += 1
    return position


@njit(cache=True, nogil=True)
def count_lines(data):
    """How many lines a block has; the last may lack its line feed."""
    num_feeds = 0
    for byte in data:
        num_feeds += byte == LINE_FEED
    return num_feeds + (len(data) > 0 and data[len(data) - 1] != LINE_FEED)


@njit(cache=True, nogil=True)
def read_lines(data, names, text, offsets, lines, subset, subset_offsets, bad):
    """The texts of a block's lines, back to back in `text`; returns how many, and how many lines are no document.

    data, text, subset: uint8; the latter two need SLACK_BYTES more than the block. names: UTF-8 of the text's key and
    the subset's (empty: none is wanted). offsets, subset_offsets: int32, of each text and of the JSON of its subset's
    value, which is empty where there is none. lines: int64, each text's line. bad: int64, (lines, 3), a line's number,
    fate and bytes.
    """
    end, position, line, num_texts, num_bad, place, subset_place = len(data), 0, 0, 0, 0, 0, 0
    closers = np.empty(MOST_DEPTH, np.uint8)
    while position < end:
        start = position
        position, fate, stop, subset_start, subset_end = read_line(data, start, end, names, text, place, closers)
        if fate == DOCUMENT:
            lines[num_texts] = line
            place = stop
            for index in range(subset_start, subset_end):
                subset[subset_place] = data[index]
                subset_place += 1
            num_texts += 1
            offsets[num_texts], subset_offsets[num_texts] = place, subset_place
        elif fate != BLANK:
            position = start if position == NO_JSON else position
            while position < end and at(data, position) != LINE_FEED:
                position += 1
            bad[num_bad, 0], bad[num_bad, 1], bad[num_bad, 2] = line, fate, position - start
            num_bad += 1
        position += 1
        line += 1
    return num_texts, num_bad
