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
def test_a_shared_licence_deletes_no_file_whose_rest_is_another():
    kinds = read_kinds(40)
    for row, (_, partner) in find_drops(kinds["licence"], "near").items():
        rest, other = (shingle(kinds["code"][number]) for number in (row, partner))
        assert jaccard(rest, other) > 0.5  # a header of 250 words counts like any other text
