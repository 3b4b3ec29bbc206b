"""Recall and false drops on planted mutations of real text, as the benchmark measures them."""

import pytest

from benchmarks.dedup_quality import find_drops, jaccard, measure, plant, read_kinds, shingle


@pytest.mark.parametrize("count", [15, pytest.param(150, marks=pytest.mark.long)])
@pytest.mark.long
def test_near_duplicates_are_found_and_others_stay(count):
    for kind, texts in read_kinds(count).items():
        figures = measure(plant(texts, seed=count))
        assert figures["pairs 0.9 to 1"] >= count // 2, kind
        assert figures["recall 0.9 to 1"] >= 0.95, kind
        if figures["pairs 0.85 to 0.9"] >= 20:
            assert figures["recall 0.85 to 0.9"] >= 0.85, kind
        assert figures["near drops"] >= count // 2, kind
        assert figures["drops below 0.7"] <= figures["near drops"] / 1000, kind
        assert figures["drops below 0.6"] == 0, kind


@pytest.mark.long
@pytest.mark.parametrize("num_words", [250, 1000])
def test_a_shared_licence_deletes_no_file_whose_rest_is_another(num_words):
    code = read_kinds(150)["code"]
    bodies = [" ".join(text.split()[: 10 + row]) if row % 3 == 0 else text for row, text in enumerate(code)]
    words = " ".join(read_kinds(20)["prose"]).split()
    licence = "# " + " ".join(words[:num_words]) + "\n"
    texts = [licence + body for body in bodies]
    copies = [text.replace("the", "a", 1) + " end" for text in texts[:150:10]]
    drops = find_drops(texts + copies, "near")
    for row, (_, partner) in drops.items():
        rest, other = (shingle((texts + copies)[number].removeprefix(licence)) for number in (row, partner))
        assert jaccard(rest, other) > 0.5 or row >= len(texts)
    assert sum(row >= len(texts) for row in drops) >= len(copies) * 0.6
