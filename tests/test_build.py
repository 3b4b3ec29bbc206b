"""The build by its command: nothing lost, and the same bytes however the work is cut."""

import json
import shutil
from collections import Counter

import pytest
from build_fixtures import flags, hashes, read_drops, read_shards
from conftest import write_rows

from pipeline.dataset import read_dataset_json
from pipeline.tokenizer import load_tokenizer


def test_every_row_is_in_a_shard_or_in_drops_with_its_ids(raw, tmp_path, sample_model, run_build):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    content, documents = read_shards(tmp_path / "out")
    drops = read_drops(tmp_path / "out", content)
    tokenizer = load_tokenizer(sample_model, engine="reference")
    kept = {(name, raw_file, row): ids for (name, _, raw_file, row), ids in documents.items()}
    dropped = {(drop["source"], drop["raw_file"], drop["row"]) for drop in drops}
    seen = set()
    for name, source in content["sources"].items():
        for number, path in enumerate(source["raw_files"]):
            for row, line in enumerate((raw / name / path).read_text().splitlines()):
                key, text = (name, number, row), json.loads(line)["text"]
                assert (key in kept) != (key in dropped)
                if key in kept:
                    assert kept[key] == [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
                seen.add(key)
    assert seen == kept.keys() | dropped
    reasons = Counter(drop["reason"] for drop in drops if drop["source"] == "notes")
    assert reasons == {"duplicate_exact": 3, "short": 1, "bad_text_null": 1}


def test_counts_balance_and_duplicates_name_the_document_that_stays(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model))
    content, documents = read_shards(tmp_path / "out")
    kept = {(name, raw_file, row) for name, _, raw_file, row in documents}
    for source in content["sources"].values():
        for what in ("documents", "bytes", "tokens"):
            counts = {outcome: count[what] for outcome, count in source["counts"].items()}
            assert counts.pop("read") == sum(counts.values())
    for drop in read_drops(tmp_path / "out", content):
        if drop["reason"] == "duplicate_exact":
            assert (drop["partner_source"], drop["partner_raw_file"], drop["partner_row"]) in kept
            assert drop["similarity"] == 1.0
    assert content["sources"]["notes"]["counts"]["duplicate_exact"]["documents"] == 3


def test_dedup_none_keeps_copies(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model, "--dedup none"))
    counts = read_dataset_json(tmp_path / "out")["sources"]["notes"]["counts"]
    assert (counts["duplicate_exact"]["documents"], counts["kept"]["documents"]) == (0, 43)


@pytest.mark.parametrize(
    "more",
    [
        "--workers 1",
        pytest.param("--workers 3", marks=pytest.mark.long),
        pytest.param("--engine reference", marks=pytest.mark.long),
        pytest.param("--work {}/elsewhere", marks=pytest.mark.long),
    ],
)
def test_the_bytes_do_not_depend_on_how_the_work_is_done(raw, tmp_path, sample_model, run_build, more):
    common = "--shard-tokens 3000"
    assert run_build(flags(raw, tmp_path / "one", sample_model, f"{common} --workers 2")).code == 0
    assert run_build(flags(raw, tmp_path / "two", sample_model, f"{common} {more.format(tmp_path)}")).code == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(read_dataset_json(tmp_path / "one")["sources"]["web"]["splits"]["train"]["shards"]) > 3


def test_small_memory_runs_and_small_dedup_ranges_give_the_same_bytes(
    raw, tmp_path, sample_model, run_build, monkeypatch
):
    run_build(flags(raw, tmp_path / "one", sample_model, "--workers 1"))
    monkeypatch.setattr("pipeline.token_file.RUN_BYTES", 1000)
    monkeypatch.setattr("pipeline.token_file.WRITE_BYTES", 300)
    monkeypatch.setattr("pipeline.pack.READ_BYTES", 400)
    monkeypatch.setattr("pipeline.dedup.DOCUMENTS_PER_TASK", 20)
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 512)
    run_build(flags(raw, tmp_path / "two", sample_model, "--workers 1"))
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


@pytest.mark.long
def test_documents_are_shuffled_by_the_seed_and_all_are_there(raw, tmp_path, sample_model, run_build):
    orders = []
    for seed in (0, 1):
        run_build(flags(raw, tmp_path / f"out{seed}", sample_model, f"--seed {seed} --valid-fraction 0"))
        orders.append([key for key in read_shards(tmp_path / f"out{seed}")[1] if key[0] == "web"])
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1] != sorted(orders[1])


@pytest.mark.long
def test_a_document_never_moves_between_splits(raw, tmp_path, sample_model, run_build):
    chosen = []
    for number, more in enumerate(["--valid-fraction 0.1", "--valid-fraction 0.2 --seed 7", "--valid-fraction 0.1"]):
        if number == 2:
            (raw / "web/part-1.jsonl").unlink()
        run_build(flags(raw, tmp_path / f"out{number}", sample_model, more))
        _, documents = read_shards(tmp_path / f"out{number}")
        chosen.append({tuple(ids) for (_, split, *_), ids in documents.items() if split == "validation"})
    assert 5 < len(chosen[0]) < len(chosen[1])
    assert chosen[0] < chosen[1]
    assert chosen[2] <= chosen[0]


def test_a_sources_own_validation_files_are_used(tmp_path, sample_model, run_build):
    rows = [{"text": f"document {number}"} for number in range(200)]
    write_rows(tmp_path / "raw/web/train/a.jsonl", rows[:180])
    write_rows(tmp_path / "raw/web/validation/a.jsonl", [*rows[180:], rows[0]])
    assert run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}").code == 0
    splits = read_dataset_json(tmp_path / "out")["sources"]["web"]["splits"]
    # The copy in train goes: validation is never dropped for the sake of train.
    assert (splits["validation"]["documents"], splits["train"]["documents"]) == (21, 179)


def test_the_same_command_again_does_nothing_and_another_is_refused(raw, tmp_path, sample_model, run_build):
    out = tmp_path / "out"
    run_build(flags(raw, out, sample_model))
    before = hashes(out)
    again = run_build(flags(raw, out, sample_model, "--workers 1"))
    assert again.code == 0
    assert "nothing to do" in again.out
    other = run_build(flags(raw, out, sample_model, "--seed 5"))
    assert other.code == 1
    assert "seed is 0 there, 5 here" in other.error
    assert "--replace" in other.error
    assert hashes(out) == before
    alone = run_build(f"--mix web:1 --raw {raw} --out {out} --tokenizer {sample_model}")
    assert "holds another dataset: its sources are web, notes there, web here. Choose another" in alone.error
    write_rows(raw / "web/part-9.jsonl", [{"text": "new"}])
    assert "the raw files of web are not the same" in run_build(flags(raw, out, sample_model)).error
    shutil.rmtree(raw)
    assert "nothing to do" in run_build(flags(raw, out, sample_model)).out
    assert hashes(out) == before


@pytest.mark.long
def test_a_dataset_that_is_not_the_expected_one_is_not_finished(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "one", sample_model))
    content = read_dataset_json(tmp_path / "one")
    outcome = run_build(flags(raw, tmp_path / "two", sample_model, "--seed 1 --expect " + content["content_hash"]))
    assert outcome.code == 1
    assert "this is another dataset" in outcome.error
    assert not (tmp_path / "two/dataset.json").exists()
    for expected in (content["recipe_hash"], content["content_hash"][:12]):
        assert run_build(flags(raw, tmp_path / "three", sample_model, f"--expect {expected}")).code == 0
    assert run_build(flags(raw, tmp_path / "three", sample_model, "--expect 0123")).code == 1


def test_other_weights_rebuild_nothing(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model))
    again = run_build(flags(raw, tmp_path / "out", sample_model).replace("web:3", "web:1"))
    assert "nothing to do" in again.out
    assert "give --mix to the trainer" in again.out


def test_subsets_are_left_out_and_listed(tmp_path, sample_model, run_build):
    names = ["RedPajamaGithub", "RedPajamaC4"] * 10
    rows = [{"text": f"text {i}", "meta": {"redpajama_set_name": name}} for i, name in enumerate(names)]
    write_rows(tmp_path / "raw/slimpajama/train/chunk1/example_train_0.jsonl", rows)
    outcome = run_build(
        f"--mix slimpajama?exclude=RedPajamaGithub:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}"
    )
    assert outcome.code == 0, outcome.error
    content, documents = read_shards(tmp_path / "out")
    assert {row for *_, row in documents} == set(range(1, 20, 2))
    assert content["sources"]["slimpajama"]["counts"]["excluded"]["documents"] == 10
    assert {drop["reason"] for drop in read_drops(tmp_path / "out", content)} == {"excluded"}


def test_min_chars_counts_characters_not_bytes(tmp_path, sample_model, run_build):
    write_rows(tmp_path / "raw/web/a.jsonl", [{"text": "\u00e9" * 4}, {"text": "abcde"}, {"text": "\U0001f600" * 5}])
    run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --min-chars 5")
    _, documents = read_shards(tmp_path / "out")
    assert {row for *_, row in documents} == {1, 2}


def test_a_vocabulary_beyond_uint16_is_stored_in_four_bytes(tmp_path, run_build):
    import base64

    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [first + second for first in ranks for second in ranks]
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))
    (tmp_path / "wide.tiktoken").write_bytes(lines)
    write_rows(tmp_path / "raw/web/a.jsonl", [{"text": "some text"}])
    outcome = run_build(
        f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {tmp_path}/wide.tiktoken --valid-fraction 0"
    )
    assert outcome.code == 0, outcome.error
    assert "do not fit into uint16" in outcome.out
    content, documents = read_shards(tmp_path / "out")
    assert content["dtype"] == "uint32"
    assert next(iter(documents.values()))[-1] == 65_792
