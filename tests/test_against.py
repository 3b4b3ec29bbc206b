"""--keep-signatures and --against: a later build drops what an earlier dataset holds, without its raw files."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from near_fixtures import change_end, draw_words, write_texts
from rich.console import Console

from pipeline.build import BuildArguments, build
from pipeline.dataset import read_dataset_json
from pipeline.shard import documents_path

FRESH, COPIES, NEAR, FAR, TWICE = 12, 6, 14, 4, 5  # documents of the new source, by what they are


def plant(folder):
    """Two sources: `old`, and `new` with copies of it, texts near and less near to it, and duplicates of its own."""
    rng = np.random.default_rng(7)
    old = [draw_words(rng, 204) for _ in range(30)]
    fresh = [draw_words(rng, 150) for _ in range(FRESH)]
    new = [
        *old[:COPIES],
        *(change_end(old[6 + number], 5 + number) for number in range(NEAR)),  # 22 words changed: 0.802
        *(change_end(words, 60) for words in old[20 : 20 + FAR]),
        *fresh,
        *(change_end(words, 4) for words in fresh[:TWICE]),
    ]
    new = [new[place] for place in rng.permutation(len(new))]
    write_texts(folder / "raw/old", [*map(" ".join, old), " ".join(change_end(old[0], 3)), "two words"])
    write_texts(folder / "raw/new", [*map(" ".join, new), "two words", "two others"])
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Raw files, which stay as they are."""
    return plant(tmp_path_factory.mktemp("against"))


def make(planted, out, model, mix, **more):
    """Build a dataset; returns its folder."""
    settings = {"valid_fraction": 0, "workers": 1, "max_dup_fraction": 1, **more}
    arguments = BuildArguments(mix=mix, raw=planted / "raw", out=planted / out, tokenizer=str(model), **settings)
    build(arguments, Console(quiet=True))
    return planted / out


@pytest.fixture(scope="module")
def old(planted, sample_model):
    """The first source's dataset, with signatures."""
    return make(planted, "old", sample_model, "old:1", keep_signatures=True)


@pytest.fixture(scope="module")
def new(planted, old, sample_model):
    """The second's, against it."""
    return make(planted, "new", sample_model, "new:1", against=str(old), keep_signatures=True)


def kept_hashes(*folders):
    """The content hashes of the documents in datasets, sorted."""
    return sorted(
        content_hash
        for folder in folders
        for source in read_dataset_json(folder)["sources"].values()
        for split in source["splits"].values()
        for shard in split["shards"]
        for content_hash in pq.read_table(documents_path(folder / shard["path"]))["content_hash"].to_pylist()
    )


def read_partners(folder):
    """Reason -> partner sources of what was dropped."""
    rows = [
        row
        for source in read_dataset_json(folder)["sources"].values()
        for file in source["drops"]
        for row in pq.read_table(folder / file["path"]).to_pylist()
    ]
    return sorted((row["reason"], row["partner_source"]) for row in rows)


def test_what_a_dataset_holds_is_dropped_and_named(new, old):
    held = f"{read_dataset_json(old)['content_hash'][:12]}/old"
    copies, near = [("duplicate_exact", held)] * (COPIES + 1), [("duplicate_near", held)] * NEAR
    assert read_partners(new) == sorted([*copies, *near, *[("duplicate_near", "new")] * TWICE])


def test_two_builds_keep_what_one_build_of_both_keeps(planted, new, old, sample_model):
    both = make(planted, "both", sample_model, "old:1,new:1")
    assert kept_hashes(old, new) == kept_hashes(both)
