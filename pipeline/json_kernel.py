"""A block of JSON lines -> the text of each line's object, compiled. Knows no file and makes no Python object.

The grammar is RFC 8259 as Python's json module reads it: NaN and Infinity are numbers, of a key that stands twice the
last counts, half of a surrogate pair is a string (but no text), and nesting beyond MOST_DEPTH is no JSON. tests compare
the two on generated lines. A line feed ends a line wherever it stands, since JSON strings hold none: so one pass over
the bytes finds lines, texts and faults, and a line's fate does not depend on its neighbours.

Positions count in the block, places in the memory for texts. Strings are copied 64 bytes at a time up to a quote, a
backslash or a control character; strings that are not wanted too, behind the texts, where the next one overwrites them.
Bytes above 0x7F are copied as they stand, so the caller checks that the block is UTF-8.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import VECTOR_BYTES, compiled, copy_vector, count_trailing_zeros, mark_at_least, mark_equal

DOCUMENT, BAD_JSON, BAD_OBJECT, TEXT_MISSING, TEXT_NULL, TEXT_TYPE, BAD_SURROGATE, BLANK = range(8)  # a line's fate
SLACK_BYTES = VECTOR_BYTES  # what is written behind the end of a text before the next one overwrites it
MOST_DEPTH = 1000
COUNTED_BYTES = 128  # at a time; at most 255, which a byte can count to
NO_JSON = -1
OTHER, TEXT, SUBSET = range(3)  # what a key of a line's object may be

LINE_FEED, QUOTE, BACKSLASH, OPEN, CLOSE, OPEN_LIST, CLOSE_LIST, COMMA, COLON = b'\n"\\{}[],:'
MINUS, PLUS, POINT, ZERO, NINE, LOWER_E, UPPER_E, LOWER_U, LOWER_N = b"-+.09eEun"
TRUE, FALSE, NULL, NAN, INFINITY, BYTE_ORDER_MARK = (
    np.array(list(word), np.uint8) for word in (b"true", b"false", b"null", b"NaN", b"Infinity", b"\xef\xbb\xbf")
)
ESCAPED = np.zeros(256, np.uint8)  # what \x stands for, by x; 0: nothing
ESCAPED[list(b'"\\/bfnrt')] = list(b'"\\/\b\f\n\r\t')
HEX_VALUE = np.full(256, -1, np.int64)
HEX_VALUE[list(b"0123456789abcdefABCDEF")] = [int(digit, 16) for digit in "0123456789abcdefABCDEF"]


@compiled
def copy_string(data, position, end, text, place):
    """Write the string whose inside begins at `position`. Returns what is behind both, and whether it is Unicode."""
    is_unicode = True
    while True:
        while position + VECTOR_BYTES <= end:
            special = mark_equal(data, position, np.uint8(QUOTE)) | mark_equal(data, position, np.uint8(BACKSLASH))
            special |= ~mark_at_least(data, position, np.uint8(0x20))
            copy_vector(data, position, text, place)
            num_plain = np.int64(count_trailing_zeros(special)) if special else np.int64(VECTOR_BYTES)
            position += num_plain
            place += num_plain
            if special:
                break
        if position >= end:
            return NO_JSON, place, is_unicode
        byte = data[position]
        if byte == QUOTE:
            return position + 1, place, is_unicode
        if byte == BACKSLASH:
            position, place, is_whole = copy_escape(data, position, end, text, place)
            is_unicode &= is_whole
            if position == NO_JSON:
                return NO_JSON, place, is_unicode
        elif byte < 0x20:
            return NO_JSON, place, is_unicode
        else:  # of the last bytes of the block
            text[place] = byte
            position += 1
            place += 1


@compiled
def copy_escape(data, position, end, text, place):
    """Write what the backslash at `position` begins. Returns what is behind both, and whether it is Unicode."""
    if position + 1 >= end:
        return NO_JSON, place, True
    name = data[position + 1]
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
    if position + 6 <= end and data[position] == BACKSLASH and data[position + 1] == LOWER_U:
        low = read_hex(data, position + 2, end)
    if code_point >= 0xDC00 or low < 0xDC00 or low >= 0xE000:
        return position, place, False  # half of a pair
    code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00)
    return position + 6, write_utf8(text, place, code_point), True


@compiled
def read_hex(data, position, end):
    """The value of four hexadecimal digits, or -1."""
    value = np.int64(0 if position + 4 <= end else -1)
    for digit in range(4 if value == 0 else 0):
        part = HEX_VALUE[data[position + digit]]
        if part < 0:
            return np.int64(-1)
        value = value << 4 | part
    return value


@compiled
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


@compiled
def skip_spaces(data, position, end):
    """The first position that is no space, tab or carriage return: a line feed ends the line."""
    while position < end and (data[position] == 32 or data[position] == 9 or data[position] == 13):
        position += 1
    return position


@compiled
def skip_digits(data, position, end):
    """The first position that is no digit."""
    while position < end and ZERO <= data[position] <= NINE:
        position += 1
    return position


@compiled
def starts_with(data, position, end, word):
    """Whether the bytes at a position are those of a word."""
    if position + len(word) > end:
        return False
    for index in range(len(word)):
        if data[position + index] != word[index]:
            return False
    return True


@compiled
def skip_number(data, position, end):
    """Behind a number or a literal; NO_JSON where there is neither. What may follow it is the caller's to check."""
    if data[position] != MINUS:
        for literal in (TRUE, FALSE, NULL, NAN):
            if starts_with(data, position, end, literal):
                return position + len(literal)
    else:
        position += 1
    if starts_with(data, position, end, INFINITY):
        return position + len(INFINITY)
    start = position
    position = skip_digits(data, start, end)
    if position == start or (data[start] == ZERO and position > start + 1):
        return NO_JSON
    if position < end and data[position] == POINT:
        start = position + 1
        position = skip_digits(data, start, end)
        if position == start:
            return NO_JSON
    if position < end and (data[position] == LOWER_E or data[position] == UPPER_E):
        start = position + 1
        if start < end and (data[start] == PLUS or data[start] == MINUS):
            start += 1
        position = skip_digits(data, start, end)
        if position == start:
            return NO_JSON
    return position


@compiled
def read_key(data, position, end, names, text, place):
    """Behind a key, its colon and the spaces around it, or NO_JSON; and which it is of `names` (text, subset)."""
    position = skip_spaces(data, position, end)
    if position >= end or data[position] != QUOTE:
        return NO_JSON, OTHER
    position, stop, is_unicode = copy_string(data, position + 1, end, text, place)
    if position == NO_JSON:
        return NO_JSON, OTHER
    position = skip_spaces(data, position, end)
    if position >= end or data[position] != COLON:
        return NO_JSON, OTHER
    position = skip_spaces(data, position + 1, end)
    for number in range(2):
        if is_unicode and stop - place == len(names[number]) and starts_with(text, place, stop, names[number]):
            return position, TEXT + number
    return position, OTHER


@compiled
def read_value(data, position, end, names, text, place, closers):
    """The value at `position`, which is a line's: what is behind it, or NO_JSON, and its fate, where its text ends in
    `text` and the span of its subset's value (0, 0: none). closers: room for what ends each value that is open."""
    depth, fate, stop, key, subset_start, subset_end = 0, BAD_OBJECT, place, OTHER, 0, 0
    if position < end and data[position] == OPEN:
        fate = TEXT_MISSING
    while position < end:
        byte = data[position]
        start, is_whole, is_text = position, True, depth == 1 and key == TEXT
        if byte == QUOTE:
            position, behind, is_unicode = copy_string(data, position + 1, end, text, place if is_text else stop)
            if is_text:
                fate, stop = (DOCUMENT if is_unicode else BAD_SURROGATE), behind
        elif is_text:
            fate = TEXT_NULL if byte == LOWER_N else TEXT_TYPE
        if depth == 1 and key == SUBSET:
            subset_start = start
        if byte == OPEN or byte == OPEN_LIST:
            if depth == MOST_DEPTH:
                return NO_JSON, fate, stop, 0, 0
            closers[depth] = CLOSE if byte == OPEN else CLOSE_LIST
            depth += 1
            position = skip_spaces(data, position + 1, end)
            is_whole = position < end and data[position] == closers[depth - 1]
            if is_whole:
                depth -= 1
                position += 1
            elif byte == OPEN:
                position, found = read_key(data, position, end, names, text, stop)
                key = found if depth == 1 else key
        elif byte != QUOTE:
            position = skip_number(data, position, end)
        while is_whole and position != NO_JSON:  # a value ends here, and so may those around it
            if depth == 0:
                return position, fate, stop, subset_start, subset_end
            if depth == 1 and key == SUBSET:
                subset_end = position
            position = skip_spaces(data, position, end)
            byte = data[position] if position < end else LINE_FEED
            position += 1
            if byte == closers[depth - 1]:
                depth -= 1
            elif byte != COMMA:
                return NO_JSON, fate, stop, 0, 0
            elif closers[depth - 1] == CLOSE:
                is_whole = False
                position, found = read_key(data, position, end, names, text, stop)
                key = found if depth == 1 else key
            else:
                is_whole = False
                position = skip_spaces(data, position, end)
        if position == NO_JSON:
            break
    return NO_JSON, fate, stop, 0, 0


@compiled
def read_line(data, start, end, names, text, place, closers):
    """The line that begins at `start`, as read_value; what is behind it is its line feed or the block's end."""
    position = skip_spaces(data, start, end)
    if position >= end or data[position] == LINE_FEED:
        return position, BLANK, place, 0, 0
    if starts_with(data, start, end, BYTE_ORDER_MARK):
        position = skip_spaces(data, start + len(BYTE_ORDER_MARK), end)
    position, fate, stop, subset_start, subset_end = read_value(data, position, end, names, text, place, closers)
    if position != NO_JSON:
        position = skip_spaces(data, position, end)
        if position >= end or data[position] == LINE_FEED:
            return position, fate, stop, subset_start, subset_end
    position = start
    while position < end and data[position] != LINE_FEED:
        position += 1
    return position, BAD_JSON, place, 0, 0


@compiled
def count_lines(data):
    """How many lines a block has; the last may lack its line feed."""
    num_feeds, num_steps = 0, len(data) // COUNTED_BYTES
    for step in range(num_steps):
        feeds = np.uint8(0)  # added up in bytes, and so in vectors of them: three times as fast as in whole numbers
        for place in range(COUNTED_BYTES):
            feeds = np.uint8(feeds + np.uint8(data[step * COUNTED_BYTES + place] == LINE_FEED))
        num_feeds += feeds
    for position in range(num_steps * COUNTED_BYTES, len(data)):
        num_feeds += data[position] == LINE_FEED
    return num_feeds + (len(data) > 0 and data[len(data) - 1] != LINE_FEED)


@compiled
def read_lines(data, names, text, offsets, lines, subset, subset_offsets, bad, closers):
    """The texts of a block's lines, back to back in `text`; returns how many, and how many lines are no document.

    data, text: uint8; text needs SLACK_BYTES more than the block. names: UTF-8 of the text's key and of the subset's
    (None is wanted where subset has no room). offsets, subset_offsets: int32, of each text and of the JSON of its
    subset's value, which is empty where there is none. lines: int64, each text's line. bad: int64, (lines, 3), a line's
    number, fate and bytes. closers: uint8, room for MOST_DEPTH.
    """
    num_texts, num_bad, position, line, place, subset_place = 0, 0, 0, 0, 0, 0
    while position < len(data):
        start = position
        position, fate, stop, subset_start, subset_end = read_line(data, start, len(data), names, text, place, closers)
        if fate == DOCUMENT:
            place = stop
            if len(subset):
                for index in range(subset_start, subset_end):
                    subset[subset_place] = data[index]
                    subset_place += 1
            lines[num_texts] = line
            num_texts += 1
            offsets[num_texts], subset_offsets[num_texts] = place, subset_place
        elif fate != BLANK:
            bad[num_bad, 0], bad[num_bad, 1], bad[num_bad, 2] = line, fate, position - start
            num_bad += 1
        position += 1
        line += 1
    return num_texts, num_bad
