"""--keep-signatures and --against: a later build drops what an earlier dataset holds, without its raw files."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_fixtures import hashes
from near_fixtures import change_end, draw_words, write_texts
from rich.console import Console

from pipeline.build import BuildArguments, build
from pipeline.dataset import read_dataset_json
from pipeline.explain import ExplainArguments, explain
from pipeline.pair_kernels import leave_out_held
from pipeline.publish import list_published
from pipeline.shard import documents_path, list_checksums
from pipeline.storage import checksum_file
from pipeline.verify import main as verify_main

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


@pytest.mark.parametrize("method", ["near", "exact", "slimpajama"])
def test_two_builds_keep_what_one_build_of_both_keeps(planted, old, new, sample_model, method):
    if method != "near":
        old = make(planted, f"old-{method}", sample_model, "old:1", keep_signatures=True, dedup=method)
        new = make(planted, f"new-{method}", sample_model, "new:1", against=str(old), dedup=method)
    both = make(planted, f"both-{method}", sample_model, "old:1,new:1", dedup=method)
    assert kept_hashes(old, new) == kept_hashes(both)


def test_exact_needs_content_hashes_alone(planted, old, sample_model):
    new = make(planted, "new-exactly", sample_model, "new:1", against=str(old), dedup="exact")
    held = f"{read_dataset_json(old)['content_hash'][:12]}/old"
    assert read_partners(new) == [("duplicate_exact", held)] * (COPIES + 1)
    assert read_dataset_json(new)["sources"]["new"]["overlap"][held]["documents"] == COPIES + 1


def test_validation_is_not_dropped_for_train_of_another_dataset(tmp_path, sample_model, capsys):
    rng = np.random.default_rng(3)
    train, validation = ([draw_words(rng, 104) for _ in range(6)] for _ in range(2))
    write_texts(tmp_path / "raw/old", map(" ".join, train), "train.jsonl")
    write_texts(tmp_path / "raw/old", map(" ".join, validation), "validation.jsonl")
    copies, near = [" ".join(train[0]), " ".join(validation[0])], [train[1], validation[1]]
    copies += [" ".join(change_end(words, 2)) for words in near]
    write_texts(tmp_path / "raw/new", [*copies, " ".join(draw_words(rng, 50))], "train.jsonl")
    write_texts(tmp_path / "raw/new", copies, "validation.jsonl")
    old = make(tmp_path, "old", sample_model, "old:1", keep_signatures=True)
    arguments = BuildArguments(
        mix="new:1", raw=tmp_path / "raw", out=tmp_path / "new", tokenizer=str(sample_model), workers=1,
        max_dup_fraction=1, against=str(old),
    )  # fmt: skip
    build(arguments, Console(width=200))
    said = capsys.readouterr().out
    assert "1 documents of train in --against have the text of one of validation or test here: both stay" in said
    content = read_dataset_json(tmp_path / "new")
    assert {name: split["documents"] for name, split in content["sources"]["new"]["splits"].items()} == {
        "train": 1,
        "validation": 2,  # a copy of a train document of the other dataset, and one near to such a document
    }
    held = f"{read_dataset_json(old)['content_hash'][:12]}/old"
    assert {name: counts["documents"] for name, counts in content["sources"]["new"]["overlap"].items()} == {
        held: 4,  # of validation and of train, for validation there
        "new": 2,  # of train, for the validation documents that stay
    }


@pytest.mark.long
def test_another_seed_and_another_cut_of_runs_change_nothing_of_what_stays(
    planted, old, new, sample_model, monkeypatch
):
    monkeypatch.setattr("pipeline.token_file.RUN_DOCUMENTS", 5)
    monkeypatch.setattr("pipeline.wanted_documents.SMALLEST_BATCH_BYTES", 100)
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 4096)
    again = make(planted, "old-again", sample_model, "old:1", keep_signatures=True)
    assert hashes(again) == hashes(old)
    monkeypatch.setattr("pipeline.signatures.PART_DOCUMENTS", 7)
    parts = make(planted, "old-parts", sample_model, "old:1", keep_signatures=True)
    assert len(read_dataset_json(parts)["signatures"]["parts"]) == 5
    seeded = make(planted, "new-seeded", sample_model, "new:1", against=str(parts), seed=9)
    assert kept_hashes(seeded) == kept_hashes(new)


@pytest.mark.long
def test_the_bytes_are_those_of_any_number_of_workers(planted, old, new, sample_model, monkeypatch):
    monkeypatch.setattr("pipeline.dedup.DOCUMENTS_PER_TASK", 20)
    moved = planted / "moved/elsewhere"
    shutil.copytree(old, moved)
    again = make(planted, "new-2", sample_model, "new:1", against=str(moved), keep_signatures=True, workers=2)
    assert hashes(again) == hashes(new)


def test_a_killed_build_goes_on_and_the_other_dataset_may_move(planted, old, new, sample_model, monkeypatch):
    settings = {"against": str(old), "keep_signatures": True}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.stages.pack", raise_interrupt)
        make(planted, "new-killed", sample_model, "new:1", **settings)
    moved = planted / "at/home"
    shutil.copytree(old, moved)
    make(planted, "new-killed", sample_model, "new:1", **{**settings, "against": str(moved)})
    assert hashes(planted / "new-killed") == hashes(new)


def raise_interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_dataset_that_changes_while_the_build_is_at_work_stops_it(planted, old, sample_model, monkeypatch):
    changing = planted / "changing"
    shutil.copytree(old, changing)

    def change(*arguments, **named):
        content = json.loads((changing / "dataset.json").read_text())
        (changing / "dataset.json").write_text(json.dumps({**content, "content_hash": "0" * 64}))
        return write_drops(*arguments, **named)

    from pipeline.stages import write_drops

    monkeypatch.setattr("pipeline.stages.write_drops", change)
    with pytest.raises(ValueError, match="changing changed while the build was at work"):
        make(planted, "new-changing", sample_model, "new:1", against=str(changing))
    assert not (planted / "new-changing/dataset.json").exists()


@pytest.mark.parametrize(
    ("damaged_file", "expected"),
    [
        ("signatures/old/*/signatures.bin", "signatures.bin is not the file that its dataset.json lists"),
        ("old/train/shard-00000.bin", "shard-00000.bin is not the file that its dataset.json lists"),
        ("old/train/shard-00000.bin.index", "shard-00000.bin.index does not fit the shard's documents"),
        ("old/train/shard-00000.docs.parquet", "shard-00000.docs.parquet is not the file that its dataset.json lists"),
    ],
)
def test_a_damaged_dataset_is_refused(planted, old, sample_model, tmp_path, damaged_file, expected):
    shutil.copytree(old, tmp_path / "damaged")
    (path,) = (tmp_path / "damaged").glob(damaged_file)
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ValueError, match=expected):
        make(planted, tmp_path / "out", sample_model, "new:1", against=str(tmp_path / "damaged"))


def test_verify_looks_up_what_stays_elsewhere(planted, old, new, run_command):
    assert run_command(verify_main, old)[0] == ""
    error, said = run_command(verify_main, new)
    assert error == "" and "is not looked up: --against says where that is" in said
    error, said = run_command(verify_main, new, "--against", old, "--raw", planted / "raw")
    assert error == "" and "not looked up" not in said
    assert "the build was not against it" in run_command(verify_main, old, "--against", new)[0]


def test_verify_finds_what_is_wrong_with_signatures_and_partners(planted, old, new, run_command):
    copy = planted / "wrong"
    shutil.copytree(old, copy)
    (path,) = copy.glob("old/train/*.docs.parquet")
    table = pq.read_table(path)
    rows = table.set_column(1, "row", [table["row"].to_numpy() + 1])
    pq.write_table(rows.cast(table.schema), path)
    error, said = run_command(verify_main, new, "--against", copy)
    assert "WRONG" in said and f"row 30 of {copy} stays by drops/, but is not kept there" not in said
    assert "stays by drops/, but is not kept there" in said and "1 things are wrong" in error
    shutil.rmtree(copy)
    shutil.copytree(old, copy)
    (path,) = copy.glob("signatures/old/*/hashes.bin")
    path.write_bytes(path.read_bytes()[::-1])
    assert f"{path}: xxh3-128 is " in run_command(verify_main, copy)[1]
    content = json.loads((copy / "dataset.json").read_text())
    content["signatures"]["parts"][0]["files"]["hashes.bin"]["xxh3_128"] = checksum_file(path)
    (copy / "dataset.json").write_text(json.dumps(content))
    assert "old: signatures are not of the documents that its shards hold" in run_command(verify_main, copy)[1]


def test_a_drop_is_explained_without_the_other_dataset(new, old):
    content = read_dataset_json(new)
    held = read_dataset_json(old)["content_hash"]
    (drops,) = content["sources"]["new"]["drops"]
    rows = pq.read_table(new / drops["path"]).to_pylist()
    row = next(row for row in rows if row["partner_source"] == f"{held[:12]}/old")
    answer = "\n".join(explain(ExplainArguments(dataset=new, document=f"a.jsonl:{row['row']}")))
    assert f"a.jsonl:{row['partner_row']} of old stays" in answer
    assert f"in the dataset of content hash {held}" in answer


def test_signatures_are_of_what_a_limit_leaves_and_lost_ones_are_made_again(
    planted, sample_model, run_command, monkeypatch
):
    settings = {"keep_signatures": True, "tokens": "20_000"}
    out = make(planted, "limited", sample_model, "old:1", **settings)
    assert run_command(verify_main, out)[0] == ""
    before = hashes(out)
    (path,) = out.glob("signatures/old/*/bands.bin")
    assert path in dict(list_checksums(out, read_dataset_json(out)))
    assert path in list(list_published(out, read_dataset_json(out)))
    path.unlink()
    make(planted, "limited", sample_model, "old:1", **settings)
    assert hashes(out) == before
    make(planted, "limited", sample_model, "old:1", tokens="20_000", replace=True)
    assert not (out / "signatures").exists()
    assert read_dataset_json(out)["content_hash"] == json.loads(before["dataset.json"])["content_hash"]


@pytest.mark.long
def test_each_of_several_datasets_holds_the_signatures(planted, sample_model):
    other = sample_model.with_name("other.model")
    other.write_bytes(sample_model.read_bytes())
    out = make(planted, "two", f"{sample_model},{other}", "old:1", keep_signatures=True)
    first, second = (hashes(out / name / "signatures") for name in ("small", "other"))
    assert first == second and len(first) == 4
    new = make(planted, "new-two", sample_model, "new:1", against=str(out / "other"))
    assert len(read_partners(new)) == COPIES + 1 + NEAR + TWICE


def test_a_source_of_which_too_much_is_held_stops_the_build(planted, old, sample_model):
    row = json.loads((planted / "raw/old/a.jsonl").read_bytes().splitlines()[4])
    write_texts(planted / "raw/flood", [row["text"]] * 9 + ["one more"])
    held = f"{read_dataset_json(old)['content_hash'][:12]}/old"
    beginning = row["text"][:40]
    expected = (
        f"flood loses 9 of 10 documents .* 9 documents go for a.jsonl row 4 of {held}, held by {old}, so "
        f"{planted}/raw/flood/a.jsonl row 0, which begins '{beginning}"
    )
    with pytest.raises(ValueError, match=expected):
        make(planted, "flood", sample_model, "flood:1", against=str(old), max_dup_fraction=0.5)


@pytest.mark.parametrize(
    ("against", "more", "expected"),
    [
        ("nowhere", {}, "nowhere holds no finished dataset"),
        ("plain", {}, "it keeps no signatures; build it with --keep-signatures"),
        ("old", {"dedup": "slimpajama"}, "it was built with --dedup near, this build has slimpajama"),
        ("old", {"dedup_threshold": 0.9}, "it was built with --dedup-threshold 0.8, this build has 0.9"),
        ("old", {"dedup": "none"}, "--against drops duplicates: it goes with --dedup exact, near or slimpajama"),
        ("old,old", {}, "is the same dataset as .*: name it once"),
        ("old", {"out": "old", "replace": True}, "lies in --out .*, where the build goes"),
        ("hf://org/name", {}, "it must be on this disk"),
        ("versioned", {}, "its signatures are of version 0, this program's of 3"),
    ],
)
def test_what_a_build_cannot_be_against_is_refused(planted, old, sample_model, against, more, expected):
    content = json.loads((old / "dataset.json").read_text())
    for name, changed in (("plain", None), ("versioned", {**content["signatures"], "version": 0})):
        (planted / name).mkdir(exist_ok=True)
        changed = {key: value for key, value in {**content, "signatures": changed}.items() if value is not None}
        (planted / name / "dataset.json").write_text(json.dumps(changed))
    paths = ",".join(path if "://" in path else str(planted / path) for path in against.split(","))
    settings = {"dry_run": True, **more}
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        make(planted, settings.pop("out", "refused"), sample_model, "new:1", against=paths, **settings)
    assert (old / "dataset.json").exists() and not (planted / "refused").exists()


def test_other_settings_than_those_of_the_finished_dataset_are_refused(planted, old, new, sample_model):
    with pytest.raises(ValueError, match="keep_signatures is true there, null here"):
        make(planted, "old", sample_model, "old:1")
    with pytest.raises(ValueError, match=r"against is \[.*\] there, null here"):
        make(planted, "new", sample_model, "new:1", keep_signatures=True)


def test_a_dry_run_says_what_is_held(planted, old, sample_model, capsys):
    arguments = BuildArguments(
        mix="new:1",
        raw=planted / "raw",
        out=planted / "dry",
        tokenizer=str(sample_model),
        against=str(old),
        dry_run=True,
    )
    build(arguments, Console(width=400))
    said = capsys.readouterr().out
    assert f"against: {old} holds 31 documents ({read_dataset_json(old)['content_hash'][:12]} in drops)" in said


def test_keys_that_held_documents_alone_have_are_left_out():
    ranks = np.array([3, 0, 1, 0, 1, 7, 2, 8], np.uint64)  # 0 to 2 and 7 are held
    keys = np.array([1, 2, 2, 3, 3, 3, 4, 4], np.uint64)
    packed = keys << np.uint64(4) | ranks
    left = packed.copy()
    left = left[: leave_out_held(left, 4, np.array([[0, 3], [7, 8]]))]
    assert left.tolist() == [(1 << 4) | 3, (4 << 4) | 2, (4 << 4) | 8]
