"""SentencePiece BPE, compiled: documents in flat buffers to ids. Knows no model file; spm_tables.py makes its tables.

A document is cut where its ids cannot change (why: at the top of spm_cuts.py), into chunks of about four bytes. The ids
of a chunk depend on its bytes alone, and chunks repeat, so they are remembered, in entries that hold the whole chunk: a
hash only says where to look. Others are joined as SentencePiece does, by score; then a symbol that is no piece becomes
its bytes' pieces, or the unknown piece. A space that a model puts before a text belongs to its first chunk.

An entry for up to 15 bytes has 4 words: the bytes, with their number in the topmost; the ids, with their number in the
topmost 16 bits. One for up to 31 bytes, or for more ids, has 8 words, 4 and 4. Two entries stand at one place. A new
one takes the second, so that what came first, and is frequent, stays; the tables never fill up and never grow.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled, count_trailing_zeros, load_word, store_word

# numba makes float64 of uint64 and int64 together, so constants have a type.
N0, N1, N2, N3, N4, N5, N6, N8, N15 = map(np.uint64, (0, 1, 2, 3, 4, 5, 6, 8, 15))
N16, N24, N31, N32, N40, N48, N56, N63, N64 = map(np.uint64, (16, 24, 31, 32, 40, 48, 56, 63, 64))
NO_ENTRY, NO_PIECE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint32(0xFFFFFFFF)
SYMBOL_BITS, SYMBOL_MASK = np.uint64(21), np.uint64((1 << 21) - 1)
HASH1, HASH2, HASH3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
SPACE, SPACE_MARK = np.uint32(0x20), np.uint32(0x2581)
LOOSE = np.uint32(0x80000000)  # a symbol that is a character of no piece: this and its code point
SPARE_IDS = 16  # room behind the ids, since entries are written whole


@compiled
def find_entry(table, left, right):
    """The third number of the entry that begins with two others, or NO_ENTRY."""
    key = (np.uint64(left) << SYMBOL_BITS) | np.uint64(right)
    mask = np.uint64(len(table) - 1)
    place = ((key * HASH1) >> N32) & mask
    while table[place] != NO_ENTRY:
        if table[place] >> SYMBOL_BITS == key:
            return table[place] & SYMBOL_MASK
        place = (place + N1) & mask
    return NO_ENTRY


@compiled
def find_join(tables, left, right):
    """What two symbols make: its rank, and in the lower 32 bits the piece. NO_ENTRY where they are not joined."""
    if (left | right) >= LOOSE:
        return NO_ENTRY
    piece = find_entry(tables.pairs, left, right)
    return piece if piece == NO_ENTRY else (np.uint64(tables.ranks[piece]) << N32) | piece


@compiled
def match_user_defined(tables, symbols, start, count):
    """The longest user-defined piece that begins with a character, and its length in characters; -1 and 0 if none."""
    state, found, length = N0, np.int64(-1), N0
    for at in range(start, count):
        state = find_entry(tables.user_defined, state, symbols[at])
        if state == NO_ENTRY:
            break
        if tables.user_defined_ids[state] >= 0:
            found, length = tables.user_defined_ids[state], at + N1 - start
    return found, length


@compiled
def read_characters(data, start, end, prefix, characters):
    """Write a chunk's characters, spaces as U+2581; how many. The chunk is valid UTF-8."""
    count = N0
    if prefix:
        characters[N0], count = SPACE_MARK, N1
    character = np.uint32(0)
    for position in range(start, end):
        byte = np.uint32(data[position])
        if byte & np.uint32(0xC0) == np.uint32(0x80):
            character = (character << np.uint32(6)) | (byte & np.uint32(0x3F))
            characters[count - N1] = character
            continue
        length = np.uint32(2) + np.uint32(byte >= np.uint32(0xE0)) + np.uint32(byte >= np.uint32(0xF0))
        character = byte & (np.uint32(0x7F) >> (length if byte >= np.uint32(0x80) else np.uint32(0)))
        characters[count] = SPACE_MARK if byte == SPACE else character
        count += N1
    return count


@compiled
def read_symbols(tables, data, start, end, prefix, symbols):
    """Write the symbols that a chunk begins as; how many."""
    count = read_characters(data, start, end, prefix, symbols)
    written = at = N0
    while at < count:
        piece, length = np.int64(-1), N0
        if len(tables.user_defined):
            piece, length = match_user_defined(tables, symbols, at, count)
        symbols[written] = np.uint32(piece) if length else tables.symbols[np.uint64(symbols[at])]
        written += N1
        at += max(length, N1)
    return written


@compiled
def write_symbol(tables, symbol, out, start, place):
    """Write a symbol's ids at out[place]; where they end. The ids of its chunk begin at out[start]."""
    if symbol < tables.num_pieces:
        out[place] = symbol
        return place + N1
    if tables.unknown_id >= 0:
        out[place] = tables.unknown_id
        return place if place > start and out[place - N1] == tables.unknown_id else place + N1
    number = np.uint64(symbol)
    character = number ^ np.uint64(LOOSE) if symbol >= LOOSE else tables.other_characters[number - tables.num_pieces]
    length = N1 + np.uint64(character >= 0x80) + np.uint64(character >= 0x800) + np.uint64(character >= 0x10000)
    for at in range(length):
        byte = (character >> N6 * (length - N1 - at)) & np.uint64(0x7F if length == N1 else 0x3F)
        lead = N0 if length == N1 else np.uint64(0xF00 >> length & 0xFF)
        out[place] = tables.byte_ids[byte | (lead if at == N0 else np.uint64(0x80))]
        place += N1
    return place


@compiled
def sift_down(heap, size, entry):
    """Put an entry in the place of the smallest."""
    place = N0
    while True:
        child = N2 * place + N1
        if child + N1 < size and heap[child + N1] < heap[child]:
            child += N1
        if child >= size or heap[child] >= entry:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry


@compiled
def push(heap, size, join, at):
    """Put what two neighbours make, if anything, on the heap; its new size."""
    if join == NO_ENTRY:
        return size
    entry, place = ((join >> N32) << N40) | at, size
    while place and heap[(place - N1) >> N1] > entry:
        heap[place] = heap[(place - N1) >> N1]
        place = (place - N1) >> N1
    heap[place] = entry
    return size + N1


@compiled
def join_chunk(tables, data, start, end, prefix, memory, out, place):
    """Write the ids of a chunk of any size at out[place]; where they end.

    The heap has rank and place of joinings, the least on top; one is stale if what stands there has another rank now.
    """
    symbols, pieces, before, after, heap = memory.symbols, memory.pieces, memory.before, memory.after, memory.heap
    count, size = read_symbols(tables, data, start, end, prefix, symbols), N0
    symbols[count] = LOOSE  # is joined with nothing
    for at in range(count):
        before[at], after[at] = np.uint32(at - N1), np.uint32(at + N1)
        join = find_join(tables, symbols[at], symbols[at + N1])
        pieces[at] = np.uint32(join)
        size = push(heap, size, join, at)
    while size:
        at, rank = heap[N0] & ((N1 << N40) - N1), heap[N0] >> N40
        piece = pieces[at]
        if piece == NO_PIECE or np.uint64(tables.ranks[piece]) != rank:
            size -= N1
            sift_down(heap, size, heap[size])
            continue
        joined, following = np.uint64(after[at]), np.uint64(after[np.uint64(after[at])])
        symbols[at], after[at], pieces[joined] = piece, following, NO_PIECE
        join = find_join(tables, piece, symbols[following])
        before[following], pieces[at] = at, np.uint32(join)
        if join == NO_ENTRY:
            size -= N1
        sift_down(heap, size, heap[size] if join == NO_ENTRY else ((join >> N32) << N40) | at)
        if at:
            left = np.uint64(before[at])
            join = find_join(tables, symbols[left], piece)
            pieces[left] = np.uint32(join)
            size = push(heap, size, join, left)
    first, at = place, N0
    while at < count:
        place = write_symbol(tables, symbols[at], out, first, place)
        at = np.uint64(after[at])
    return place


@compiled
def read_word(data, start, end, prefix, skipped):
    """8 bytes of a chunk after its first `skipped`, with zeros behind its end. Reads nothing behind the data's end."""
    word, first = N0, start + skipped
    if first < end and first + N8 <= np.uint64(len(data)) and not prefix:
        return load_word(data, first) & (NO_ENTRY >> (N64 - (min(end - first, N8) << N3)))
    for at in range(skipped, min(skipped + N8, end - start + prefix)):
        byte = SPACE if prefix and at == N0 else np.uint32(data[start + at - prefix])
        word |= np.uint64(byte) << (at - skipped << N3)
    return word


@compiled
def recall(row, key, out, place):
    """Write the ids of an entry of a row, if one has this key, at out[place]; where they end, or 0."""
    for start in (N0, np.uint64(len(row)) >> N1):
        differs = N0
        for at in range(len(key)):
            differs |= row[start + np.uint64(at)] ^ key[at]
        if differs == N0:
            for at in range(len(key)):
                store_word(out, place + np.uint64(at * (8 // out.itemsize)), row[start + np.uint64(len(key) + at)])
            return place + (row[start + np.uint64(2 * len(key) - 1)] >> N48)
    return N0


@compiled
def remember(row, key, out, first, last):
    """Make an entry of a row of the ids out[first:last], where there is room for so many; whether there was."""
    ids_per_word = 8 // out.itemsize
    if last - first >= np.uint64(ids_per_word * len(key)):
        return False
    half = np.uint64(len(row)) >> N1
    start = half if row[np.uint64(len(key) - 1)] else N0
    for at in range(len(key)):
        row[start + np.uint64(at)], word = key[at], N0
        for id_ in range(ids_per_word):
            place = first + np.uint64(at * ids_per_word + id_)
            if place < last:
                word |= np.uint64(out[place]) << np.uint64(8 * out.itemsize * id_)
        row[start + np.uint64(len(key) + at)] = word
    row[start + half - N1] |= (last - first) << N48
    return True


@compiled
def choose_row(table, word0, word1):
    """The number of the row of a table where these words are looked for."""
    mixed = (word0 ^ (word1 * HASH2)) * HASH1
    return ((mixed ^ (mixed >> N32)) * HASH1) >> (N64 - count_trailing_zeros(np.uint64(len(table))))


@compiled
def write_chunk(tables, memory, data, start, end, prefix, out, place):
    """Write the ids of any chunk at out[place], remembered or not; where they end. prefix: spaces before it, 0 or 1."""
    size = end - start + prefix
    if size > N31:
        return join_chunk(tables, data, start, end, prefix, memory, out, place)
    word0, word1 = read_word(data, start, end, prefix, N0), read_word(data, start, end, prefix, N8)
    word2, word3 = read_word(data, start, end, prefix, N16), read_word(data, start, end, prefix, N24) | (size << N56)
    key, short_key = (word0, word1, word2, word3), (word0, word1 | (size << N56))
    row = memory.long[choose_row(memory.long, word0 ^ word2 * HASH3, word1 ^ word3 * HASH3)]
    short_row = memory.short[choose_row(memory.short, word0, short_key[1])]
    found = (recall(short_row, short_key, out, place) if size <= N15 else N0) or recall(row, key, out, place)
    if found:
        return found
    last = join_chunk(tables, data, start, end, prefix, memory, out, place)
    if size > N15 or not remember(short_row, short_key, out, place, last):
        remember(row, key, out, place, last)
    return last


@compiled
def encode_documents(tables, memory, data, offsets, cuts, bos, eos, out, ends):
    """Write the documents' ids to `out` back to back, and where each one's end to `ends`, int64.

    bos, eos: written around each document unless negative. cuts: of spm_cuts.mark_cuts. out: uint16 or uint32.
    """
    place, ids_per_word = N0, np.uint64(8 // out.itemsize)
    for document in range(len(offsets) - 1):
        start, end = np.uint64(offsets[document]), np.uint64(offsets[document + 1])
        prefix = np.uint64(tables.has_prefix)
        if bos >= 0:
            out[place] = bos
            place += N1
        for number in range(start >> N6, (end >> N6) + N1):
            word = cuts[number]
            if number == start >> N6:
                word &= (NO_ENTRY << (start & N63)) << N1
            if number == end >> N6:
                word &= NO_ENTRY >> (N63 - (end & N63))
            while word:
                stop = (number << N6) | count_trailing_zeros(word)
                word &= word - N1
                size = stop - start
                if size <= N15 and start + N16 <= np.uint64(len(data)) and not prefix:
                    word0 = load_word(data, start) & memory.masks[size, N0]
                    word1 = load_word(data, start + N8) & memory.masks[size, N1] | (size << N56)
                    row = memory.short[choose_row(memory.short, word0, word1)]
                    differs0, differs1 = (row[N0] ^ word0) | (row[N1] ^ word1), (row[N4] ^ word0) | (row[N5] ^ word1)
                    if (differs0 == N0) | (differs1 == N0):
                        entry = N4 * np.uint64(differs0 != N0)
                        store_word(out, place, row[entry + N2])
                        store_word(out, place + ids_per_word, row[entry + N3])
                        place += row[entry + N3] >> N48
                        start = stop
                        continue
                place = write_chunk(tables, memory, data, start, stop, prefix, out, place)
                start, prefix = stop, N0
        if eos >= 0:
            out[place] = eos
            place += N1
        ends[document] = place
