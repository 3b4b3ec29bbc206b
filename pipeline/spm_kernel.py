"""SentencePiece BPE, compiled: documents in flat buffers to ids. Knows no model file; spm_tables.py makes its tables.

A document is cut where its ids cannot change (why: at the top of spm_cuts.py), into chunks of about four bytes. The ids
of a chunk depend on its bytes alone, and chunks repeat, so they are remembered, in entries that hold the whole chunk: a
hash only says where to look. Others are joined as SentencePiece does, by score; then a symbol that is no piece becomes
its bytes' pieces, or the unknown piece. A space put before a text belongs to the first chunk.

An entry for up to 7 bytes has 2 words: the bytes, with their number in the topmost; and the ids, with their number in
the topmost 16 bits. One for up to 15 bytes, or for more ids, has 4 words; one for up to 31, 8; one for up to 63, 16.
Two entries are a row. A new one is its second, so that what came first, and is frequent, stays. So the tables never
fill up nor grow.
"""

from __future__ import annotations

import numpy as np

from pipeline.compiled import compiled, count_trailing_zeros, load_word, store_word

# numba makes float64 of uint64 and int64 together, so constants have a type.
N0, N1, N2, N3, N4, N6, N7, N8, N15 = map(np.uint64, (0, 1, 2, 3, 4, 6, 7, 8, 15))
N16, N24, N31, N32, N40, N48, N56, N63, N64 = map(np.uint64, (16, 24, 31, 32, 40, 48, 56, 63, 64))
NO_ENTRY, NO_PIECE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint32(0xFFFFFFFF)
SYMBOL_BITS, SYMBOL_MASK = np.uint64(21), np.uint64((1 << 21) - 1)
HASH1, HASH2, HASH3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9)
SPACE, SPACE_MARK = np.uint32(0x20), np.uint32(0x2581)
LOOSE = np.uint32(0x80000000)  # a symbol that is a character of no piece: this and its code point
# The words of each table of chunks, 24 MiB in all, and the bits of a hash that tell rows apart, by words of its keys.
TABLE_WORDS = {1: 1 << 19, 2: 1 << 20, 4: 1 << 20, 8: 1 << 19}
TABLE_SHIFTS = tuple(np.uint64(65 - TABLE_WORDS.get(words, 1).bit_length()) for words in range(9))
MARGIN = N16  # bytes that are read behind a chunk of up to 31
SPARE_IDS = 32  # room behind the ids, since entries are written whole


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
    characters[N0], count, character = SPACE_MARK, prefix, np.uint32(0)
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
    character = np.uint64(symbol ^ LOOSE if symbol >= LOOSE else tables.others[np.uint64(symbol - tables.num_pieces)])
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
        place, at = write_symbol(tables, symbols[at], out, first, place), np.uint64(after[at])
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
def find_row(key):
    """Where the row of a key begins in the table of keys of so many words."""
    first = second = N0
    for at in range(len(key)):
        if at % 2:
            second = (second * HASH3) ^ key[at]
        else:
            first = (first * HASH3) ^ key[at]
    return (((first * HASH1) ^ (second * HASH2)) >> TABLE_SHIFTS[len(key)]) & ~np.uint64(4 * len(key) - 1)


@compiled
def recall(table, key, out, place):
    """Write the ids of the entry with this key, if there is one, at out[place]; where they end, or 0."""
    row = find_row(key)
    for entry in (row, row + np.uint64(2 * len(key))):
        differs = N0
        for at in range(len(key)):
            differs |= table[entry + np.uint64(at)] ^ key[at]
        if differs == N0:
            for at in range(len(key)):
                ids = table[entry + np.uint64(len(key) + at)]
                store_word(out, place, np.uint64(at), ids)
            return place + (ids >> N48)
    return N0


@compiled
def remember(table, key, out, first, last):
    """Make an entry of the ids out[first:last], if they are few enough; whether they are."""
    ids_per_word = np.uint64(8 // out.itemsize)
    if last - first >= ids_per_word * np.uint64(len(key)):
        return False
    row = find_row(key)
    entry = row if table[row + np.uint64(len(key) - 1)] == N0 else row + np.uint64(2 * len(key))
    word = N0
    for at in range(len(key)):
        word = load_word(out, first + ids_per_word * np.uint64(at))  # what is behind the ids does no harm
        table[entry + np.uint64(at)], table[entry + np.uint64(len(key) + at)] = key[at], word
    table[entry + np.uint64(2 * len(key) - 1)] = (word & (NO_ENTRY >> N16)) | ((last - first) << N48)
    return True


@compiled
def write_chunk(tables, memory, data, start, end, prefix, out, place):
    """Write the ids of any chunk at out[place], remembered or not; where they end. prefix: spaces before it, 0 or 1."""
    size = end - start + prefix
    if size > N63:
        return join_chunk(tables, data, start, end, prefix, memory, out, place)
    word0, word1 = read_word(data, start, end, prefix, N0), read_word(data, start, end, prefix, N8)
    word2, word3 = read_word(data, start, end, prefix, N16), read_word(data, start, end, prefix, N24)
    word4, word5 = read_word(data, start, end, prefix, N32), read_word(data, start, end, prefix, N40)
    word6, word7 = read_word(data, start, end, prefix, N48), read_word(data, start, end, prefix, N56)
    mark, num_bytes = size << N56, size * np.uint64(out.itemsize)  # of the ids, if there are as many as bytes
    key1, key2, key4 = (word0 | mark,), (word0, word1 | mark), (word0, word1, word2, word3 | mark)
    key8 = (word0, word1, word2, word3, word4, word5, word6, word7 | mark)
    found = recall(memory.short, key1, out, place) if size <= N7 else N0
    found = found or (recall(memory.medium, key2, out, place) if size <= N15 else N0)
    found = found or (recall(memory.long, key4, out, place) if size <= N31 and num_bytes >= N16 else N0)
    if found := found or (recall(memory.longest, key8, out, place) if num_bytes >= N32 else N0):
        return found
    last = join_chunk(tables, data, start, end, prefix, memory, out, place)
    is_kept = size <= N7 and remember(memory.short, key1, out, place, last)
    is_kept = is_kept or (size <= N15 and remember(memory.medium, key2, out, place, last))
    is_kept = is_kept or (size <= N31 and remember(memory.long, key4, out, place, last))
    if not is_kept:
        remember(memory.longest, key8, out, place, last)
    return last


@compiled
def encode_documents(tables, memory, data, offsets, cuts, bos, eos, out, ends):
    """Write the documents' ids to `out` back to back, and where each one's end to `ends`, int64.

    bos, eos: written around each document unless negative. cuts: of spm_cuts.mark_cuts. out: uint16 or uint32.
    """
    short, medium, place = memory.short, memory.medium, N0
    for document in range(len(offsets) - 1):
        start, end = np.uint64(offsets[document]), np.uint64(offsets[document + 1])
        prefix = np.uint64(tables.has_prefix)
        out[place] = bos  # overwritten if there is none
        place += np.uint64(bos >= 0)
        for number in range(start >> N6, (end >> N6) + N1):
            word, block = cuts[number], number << N6
            if number == start >> N6:
                word &= (NO_ENTRY << (start & N63)) << N1
            if number == end >> N6:
                word &= NO_ENTRY >> (N63 - (end & N63))
            while word and (prefix or block + N64 + MARGIN > np.uint64(len(data))):
                stop = block | count_trailing_zeros(word)
                word &= word - N1
                place = write_chunk(tables, memory, data, start, stop, prefix, out, place)
                start, prefix = stop, N0
            while word:
                stop = block | count_trailing_zeros(word)
                word &= word - N1
                size = stop - start
                if size <= N7:
                    key = load_word(data, start) & ((N1 << (size << N3)) - N1) | (size << N56)
                    row = find_row((key,))
                    if short[row] == key:
                        ids = short[row + N1]
                        store_word(out, place, N0, ids)
                        place, start = place + (ids >> N48), stop
                        continue
                    if short[row + N2] == key:
                        ids = short[row + N3]
                        store_word(out, place, N0, ids)
                        place, start = place + (ids >> N48), stop
                        continue
                if size <= N15:
                    word0 = load_word(data, start) & (NO_ENTRY >> (N64 - (min(size, N8) << N3)))
                    word1 = load_word(data, start + N8) & ((N1 << ((max(size, N8) - N8) << N3)) - N1) | (size << N56)
                    found = recall(medium, (word0, word1), out, place)
                    if found:
                        place, start = found, stop
                        continue
                elif size <= N31:
                    word0, word1 = load_word(data, start), load_word(data, start + N8)
                    word2 = load_word(data, start + N16) & (NO_ENTRY >> (N64 - ((min(size, N24) - N16) << N3)))
                    word3 = load_word(data, start + N24) & ((N1 << ((max(size, N24) - N24) << N3)) - N1) | (size << N56)
                    found = recall(memory.long, (word0, word1, word2, word3), out, place)
                    if found:
                        place, start = found, stop
                        continue
                place = write_chunk(tables, memory, data, start, stop, N0, out, place)
                start = stop
        out[place] = eos
        place += np.uint64(eos >= 0)
        ends[document] = place
