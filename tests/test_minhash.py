"""Words, shingles and signatures, against definitions written plainly."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.folding import BLOCK_BYTES
from pipeline.minhash import (
    BAND_ROWS,
    FUNCTIONS,
    KEY_BITS,
    NUM_BANDS,
    NUM_PERMUTATIONS,
    NUM_TRACES,
    TURNS,
    find_probability,
    list_hashes,
    list_shingles,
    shorten,
    sign_documents,
)
from pipeline.set_kernels import measure_overlap
from pipeline.word_table import ALONE, SKIPPED, build_word_table

RNG = np.random.default_rng(3)
ALPHABET = "ab Z9'\n_\u00e9E\u0301\u4e2d\u56fd\u3002\u0e01\u0e49\ud55c\u00df\U0001f600\U00020000\0"


def flatten(texts):
    parts = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), offsets


def shingles_of(text):
    data, offsets = flatten([text])
    return list_shingles(data, offsets[0], offsets[1])


def hashes_of(text):
    data, offsets = flatten([text])
    return list_hashes(data, offsets[0], offsets[1], build_word_table())


def split_words(text):
    """The words of a text, character by character."""
    words, word = [], ""
    for character in text:
        point = ord(character)
        entry = (
            int(build_word_table()[point]) if point < 0x10000 else (point | ALONE if 0x20000 <= point < 0x40000 else 0)
        )
        if entry == SKIPPED:
            continue
        if entry == 0 or entry & ALONE:
            words, word = [*words, *filter(None, [word])], ""
        if entry & ALONE:
            words.append(chr(entry & (ALONE - 1)))
        elif entry:
            word += chr(entry)
    return [*words, *filter(None, [word])]


def tuples_of(text):
    words = split_words(text)
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't STOP, said the old miller!", "don t stop said THE OLD miller"),
        ("snake_case and CamelCase = 10;", "snake case and camelcase 10"),
        ("\u00c9t\u00e9 \u00e0 la mer, Stra\u00dfe, \u0391\u03b8\u03ae\u03bd\u03b1", unicodedata.normalize("NFD", "\u00e9t\u00e9 \u00e0 la mer stra\u00dfe \u03b1\u03b8\u03ae\u03bd\u03b1")),
        ("\u6211\u4eec\u7684\u78e8\u574a\u5f88\u8001\u3002", "\u6211 \u4eec \u7684\n\u78e8\u574a, \u5f88\u8001"),
        ("a\0b\0c\0d\0e", "A B C D E"),
    ],
)  # fmt: skip
def test_case_punctuation_and_composition_change_no_shingle(one, other):
    assert len(shingles_of(one)) >= 1
    assert np.array_equal(shingles_of(one), shingles_of(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the cat sat on mats", "the cat sat on mat s"),
        ("one two three four five", "five four three two one"),
        ("\uff21\uff22 is one two three four", "AB is one two three four"),  # full width: another character
        ("Stra\u00dfe one two three four", "Strasse one two three four"),
    ],
)
def test_other_words_are_other_shingles(one, other):
    assert not np.array_equal(shingles_of(one), shingles_of(other))


def test_known_texts_have_known_words():
    assert split_words("L'\u00c9t\u00e9 na\u00efve, \u4e2d\u56fdx9 \u0e01\u0e49") == [
        "l",
        "ete",
        "naive",
        "\u4e2d",
        "\u56fd",
        "x9",
        "\u0e01",
        "\u0e49",
    ]
    assert split_words("\u0939\u093f\u0928\u094d\u0926\u0940 \ud55c\uad6d\uc5b4") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940",
        "\ud55c\uad6d\uc5b4",
    ]


@given(st.text(ALPHABET, max_size=80), st.integers(0, 5))
def test_shingles_are_the_distinct_runs_of_five_words(text, repeats):
    text = (text + " ") * (repeats + 1)
    assert len(hashes_of(text)) == max(0, len(split_words(text)) - 4)
    assert len(shingles_of(text)) == len(tuples_of(text))


def test_shingles_do_not_depend_on_where_blocks_end():
    words = RNG.choice(["mill", "stone", "\u00e9t\u00e9", "\u4e2d\u56fd\u8a9e", "extraordinarily", "x"], 3000)
    text = " ".join(words)
    assert len(text.encode()) > 8 * BLOCK_BYTES
    assert len(hashes_of(text)) == len(split_words(text)) - 4
    moved = "\n" * 777 + text
    assert np.array_equal(hashes_of(moved), hashes_of(text))
    chinese = "".join(chr(c) for c in RNG.integers(0x4E00, 0x9FA5, 5000))
    assert len(shingles_of(chinese)) == 4996


def test_the_overlap_is_jaccard_similarity():
    for _ in range(20):
        words = RNG.choice(["a", "b", "c", "d"], 60)
        other = np.where(RNG.random(60) < 0.1, "z", words)
        one, two = " ".join(words), " ".join(other)
        expected = len(tuples_of(one) & tuples_of(two)) / len(tuples_of(one) | tuples_of(two))
        assert measure_overlap(shingles_of(one), shingles_of(two)) == pytest.approx(expected)


@pytest.mark.parametrize("num_words", [5, 6, 700, 20_000])
def test_a_signature_is_of_the_values_that_bands_and_rows_choose(num_words):
    text = " ".join(f"w{number}" for number in RNG.integers(0, 5000, num_words))
    data, offsets = flatten([text])
    signatures, keys, counts = sign_documents(data, offsets)
    values = (hashes_of(text)[:, None] * FUNCTIONS[0] + FUNCTIONS[1])[:, :, None] ^ TURNS
    chosen = np.concatenate([values.min(axis=0), values.max(axis=0)], axis=1)
    assert chosen.shape == (NUM_BANDS, BAND_ROWS)
    expected, expected_keys = np.empty(NUM_PERMUTATIONS, np.uint8), np.empty(NUM_BANDS + NUM_TRACES, np.uint64)
    shorten(chosen.reshape(-1), expected, expected_keys)
    assert np.array_equal(signatures[0], expected)
    assert np.array_equal(keys[0], expected_keys)
    assert counts.tolist() == [num_words - 4]
    assert keys.max() < 1 << KEY_BITS
    assert NUM_PERMUTATIONS == NUM_BANDS * BAND_ROWS


def test_a_document_of_fewer_than_five_words_has_no_signature():
    texts = ["", "   \n", "one two three four", "\u4e2d\u56fd\u8a9e", "one two three four five", "...!!!"]
    signatures, keys, counts = sign_documents(*flatten(texts))
    assert counts.tolist() == [0, 0, 0, 0, 1, 0]
    assert not signatures[counts == 0].any()
    assert not keys[counts == 0].any()


def test_documents_do_not_touch_each_other():
    texts = ["one two three four", "five six seven eight nine ten", "", "\u4e2d" * 900, "a" * 5000]
    alone = [sign_documents(*flatten([text])) for text in texts]
    together = sign_documents(*flatten(texts))
    for place, result in enumerate(together):
        assert np.array_equal(result, np.concatenate([one[place] for one in alone]))


def test_a_document_of_16_million_characters_is_signed_in_little_memory():
    for unit in ("a", "\u4e2d", "ab "):
        data = np.frombuffer((unit * (16_000_000 // len(unit))).encode(), np.uint8)
        _, _, counts = sign_documents(data, np.array([0, len(data)]))
        assert counts[0] > 7000


def test_signatures_estimate_the_similarity():
    equal, expected = [], []
    for _ in range(60):
        words = np.array([f"w{number}" for number in RNG.integers(0, 10**6, 600)])
        other = np.where(RNG.random(600) < 0.03, "z", words)
        texts = [" ".join(words), " ".join(other)]
        signatures, _, _ = sign_documents(*flatten(texts))
        equal.append((signatures[0] == signatures[1]).mean())
        expected.append(measure_overlap(*map(shingles_of, texts)))
    errors = np.array(equal) - (np.array(expected) * 255 + 1) / 256
    assert abs(errors.mean()) < 3 * 0.05 / np.sqrt(60)
    assert np.abs(errors).max() < 4.5 * 0.045


@pytest.mark.parametrize("num_words", [6, 9, 16, 40, 150])
def test_short_documents_choose_alike_as_often_as_they_are_alike_and_share_a_band_no_less_often(num_words):
    words = np.char.add("w", RNG.integers(0, 10**9, (4000, num_words)).astype(str))
    texts = [" ".join(line) for line in words]
    altered = [f"{text.rsplit(' ', 1)[0]} other" for text in texts]
    similarity = (num_words - 5) / (num_words - 3)  # one shingle is another's on either side
    one, two = (sign_documents(*flatten(each)) for each in (texts, altered))
    is_equal = one[0] == two[0]
    assert is_equal.mean() == pytest.approx(
        (similarity * 255 + 1) / 256, abs=4 * is_equal.mean(axis=1).std() / 4000**0.5
    )
    assert is_equal.mean(axis=0) == pytest.approx(is_equal.mean(), abs=0.04)  # by each row as fairly
    shares_band = (one[1] == two[1])[:, :NUM_BANDS]
    assert shares_band.any(axis=1).mean() > find_probability(similarity) - 4 * 0.5 / 4000**0.5
    if num_words > 6:  # of three shingles one in both: bands agree once in 6,561 times, if at all
        assert 0.95 < shares_band.mean() / similarity**BAND_ROWS < 1.2


@given(st.lists(st.text("abc\u00e9", min_size=1, max_size=40), min_size=5, max_size=5, unique=True), st.integers(0, 4))
def test_words_of_any_length_count_to_their_last_letter(words, place):
    longer = [*words[:place], words[place] + "x", *words[place + 1 :]]
    other = [*words[:place], words[place][:-1] + "x", *words[place + 1 :]]
    assert len({*map(hash_of_five, (words, words[::-1], longer, other))}) == 4


def hash_of_five(words):
    (only,) = hashes_of(" ".join(words))
    return int(only)
