"""Builds with more than one tokenizer, with --tokens, of huge files in parts, and of raw files that change."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_fixtures import flags, hashes, read_drops, read_shards
from conftest import write_rows

from pipeline.order import derive_key, scramble
from pipeline.tokenizer_training import train_sample_tokenizer
from pipeline.verify import main as verify_main


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """A tokenizer of another vocabulary."""
    path = tmp_path_factory.mktemp("other") / "other.model"
    path.write_bytes(train_sample_tokenizer(["the token mill grinds stone " * 50, "x = 1\n" * 50], vocab_size=300))
    return path


@pytest.fixture
def run_verify(monkeypatch, capsys):
    """The verify command as a function of its flags: its exit code."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["verify.py", *map(str, arguments)])
        try:
            verify_main()
        except SystemExit as stop:
            return stop.code
        return capsys.readouterr().out and 0

    return run


# --- several tokenizers


@pytest.mark.parametrize("more", ["", pytest.param("--tokens 3000", marks=pytest.mark.long)])
def test_several_tokenizers_give_the_datasets_that_each_gives_alone(
    raw,
    tmp_path,
    sample_model,
    other_model,
    run_build,
    run_verify,
    more,
):
    both = run_build(flags(raw, tmp_path / "both", f"{sample_model},{other_model}", more))
    assert both.code == 0, both.error
    for model in (sample_model, other_model):
        alone = tmp_path / model.stem
        assert run_build(flags(raw, alone, model, more)).code == 0
        assert hashes(tmp_path / "both" / model.stem) == hashes(alone)
        assert run_verify(tmp_path / "both" / model.stem, "--raw", raw) == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["build-log.jsonl", "other", "small"]


def test_their_order_does_not_matter_and_the_same_command_does_nothing(
    raw,
    tmp_path,
    sample_model,
    other_model,
    run_build,
):
    run_build(flags(raw, tmp_path / "out", f"{sample_model},{other_model}"))
    again = run_build(flags(raw, tmp_path / "out", f"{other_model},{sample_model}"))
    assert again.code == 0 and "nothing to do" in again.out
    other = run_build(flags(raw, tmp_path / "out", f"{other_model},{sample_model}", "--seed 2"))
    assert "seed is 0 there, 2 here" in other.error


def test_two_tokenizers_of_one_name_are_refused(raw, tmp_path, sample_model, run_build):
    twin = tmp_path / "small.model"
    twin.write_bytes(sample_model.read_bytes())
    outcome = run_build(flags(raw, tmp_path / "out", f"{sample_model},{twin}"))
    assert outcome.code == 1 and "two of these are called small" in outcome.error


@pytest.mark.long
def test_replace_removes_the_datasets_of_several_tokenizers(
    raw,
    tmp_path,
    sample_model,
    other_model,
    run_build,
):
    models = f"{sample_model},{other_model}"
    run_build(flags(raw, tmp_path / "out", models))
    before = hashes(tmp_path / "out")
    assert run_build(flags(raw, tmp_path / "out", models, "--seed 5 --replace")).code == 0
    assert hashes(tmp_path / "out").keys() != before.keys() or hashes(tmp_path / "out") != before
    (tmp_path / "out/small/thesis.tex").write_text("mine")
    assert "thesis.tex" in run_build(flags(raw, tmp_path / "out", models, "--replace")).error


# --- --tokens


def places(documents, seed=0):
    """The place of each document from its content hash, as the build computes it."""
    hashes = np.array([np.frombuffer(one, "<u8")[0] for one in documents], np.uint64)
    return scramble(hashes ^ np.uint64(derive_key("place", seed)))


def read_hashes(out, content, source, split):
    shards = content["sources"][source]["splits"].get(split, {"shards": []})["shards"]
    tables = [pq.read_table((out / shard["path"]).with_suffix(".docs.parquet")) for shard in shards]
    return [one for table in tables for one in table["content_hash"].to_pylist()]


@pytest.mark.parametrize("more", ["--valid-fraction 0.1", "--dedup none", "--shard-tokens 300"])
@pytest.mark.long
def test_tokens_takes_the_first_documents_in_the_order_of_places(
    raw,
    tmp_path,
    sample_model,
    run_build,
    run_verify,
    more,
):
    whole, _ = tmp_path / "whole", run_build(flags(raw, tmp_path / "whole", sample_model, more))
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, f"--tokens 6000 {more}"))
    assert outcome.code == 0, outcome.error
    content, taken = read_shards(tmp_path / "out")
    all_content, all_documents = read_shards(whole)
    shares = {"web": 4500, "notes": 1500}
    for name, source in content["sources"].items():
        tokens = source["splits"]["train"]["tokens"]
        total = all_content["sources"][name]["splits"]["train"]["tokens"]
        if total <= shares[name]:
            assert tokens == total and "all are taken" in outcome.out
            continue
        longest = max(len(ids) for (source_name, *_), ids in all_documents.items() if source_name == name)
        assert shares[name] - longest < tokens <= shares[name]
        assert f"{tokens:,} of {total:,} training tokens taken" in outcome.out
        is_left = set(read_hashes(whole, all_content, name, "train")) - set(
            read_hashes(tmp_path / "out", content, name, "train")
        )
        first_left = min(places(sorted(is_left)))
        for split in ("train", "validation"):
            expected = [one for one in read_hashes(whole, all_content, name, split) if places([one])[0] < first_left]
            assert read_hashes(tmp_path / "out", content, name, split) == expected
        left = [drop for drop in read_drops(tmp_path / "out", content) if drop["reason"] == "beyond_tokens"]
        assert source["counts"]["beyond_tokens"]["documents"] == sum(drop["source"] == name for drop in left)
    assert taken.items() <= all_documents.items()
    assert run_verify(tmp_path / "out", "--raw", raw) == 0


def test_tokens_that_leave_nothing_are_refused(raw, tmp_path, sample_model, run_build):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, "--tokens 4 --workers 1"))
    assert outcome.code == 1
    assert re.search(
        r"none of [\d,]+ training tokens taken: its share of 3 is less than its first document", outcome.out
    )
    assert "--tokens: not even the first document of any source fits" in outcome.error
    assert not (tmp_path / "out/dataset.json").exists()


@pytest.mark.long
def test_more_tokens_take_the_same_documents_and_more(raw, tmp_path, sample_model, run_build):
    documents = []
    for number in (500, 4000, 10**9):
        run_build(flags(raw, tmp_path / str(number), sample_model, f"--tokens {number}"))
        documents.append(read_shards(tmp_path / str(number))[1])
    assert documents[0].items() < documents[1].items() < documents[2].items()


def test_verify_notices_a_document_left_out_too_early(raw, tmp_path, sample_model, run_build, run_verify):
    run_build(flags(raw, tmp_path / "out", sample_model, "--tokens 4000"))
    path = tmp_path / "out/dataset.json"
    content = json.loads(path.read_text())
    content["settings"]["tokens"]["web"] = 100
    path.write_text(json.dumps(content))
    assert "things are wrong" in run_verify(tmp_path / "out")


# --- huge files


def test_huge_files_are_read_in_parts_and_rows_are_numbered_all_the_same(
    tmp_path, sample_model, run_build, run_verify, monkeypatch
):
    rng = np.random.default_rng(3)
    rows = [{"text": f"{number} " + "mill " * int(rng.integers(0, 80))} for number in range(900)]
    rows[7], rows[400], rows[700] = b"", b"{", {"text": "long " * 20_000}
    write_rows(tmp_path / "raw/web/big.jsonl", rows)
    texts = [row["text"] for row in rows if isinstance(row, dict)]
    table = pa.table({"text": [f"table {text}" for text in texts]})
    pq.write_table(table, tmp_path / "raw/web/big.parquet", row_group_size=50)
    command = f"--mix web:1 --raw {tmp_path}/raw --tokenizer {sample_model} --workers"
    assert run_build(f"{command} 1 --out {tmp_path}/whole").code == 0
    monkeypatch.setattr("pipeline.ingest_plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("pipeline.ingest_plan.LARGEST_TASK_BYTES", 2000)
    outcome = run_build(f"{command} 2 --out {tmp_path}/parts --keep-work")
    assert outcome.code == 0, outcome.error
    assert len(list((tmp_path / "parts/work/ingest").iterdir())) > 10
    whole, parts = read_shards(tmp_path / "whole"), read_shards(tmp_path / "parts")
    assert parts[1] == whole[1]
    dropped = [{(drop["raw_file"], drop["row"]): drop["reason"] for drop in read_drops(tmp_path / name, content)}
               for name, content in (("whole", whole[0]), ("parts", parts[0]))]  # fmt: skip
    assert dropped[0] == dropped[1] == {(0, 400): "bad_json"}
    assert parts[0]["sources"]["web"]["counts"] == whole[0]["sources"]["web"]["counts"]
    assert run_verify(tmp_path / "parts", "--raw", tmp_path / "raw") == 0


def test_a_bad_row_in_a_later_part_is_named_by_its_row_in_the_file(tmp_path, sample_model, run_build, monkeypatch):
    monkeypatch.setattr("pipeline.ingest_plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("pipeline.ingest_plan.LARGEST_TASK_BYTES", 2000)
    write_rows(tmp_path / "raw/web/big.jsonl", [{"text": "good " * 40}] * 200 + [b"{"] * 40)
    outcome = run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1")
    assert outcome.code == 1 and "big.jsonl row 200: bad_json" in outcome.error


def test_bad_rows_at_the_start_of_a_huge_table_stop_no_build_that_has_few(
    tmp_path, sample_model, run_build, monkeypatch
):
    monkeypatch.setattr("pipeline.ingest_plan.SMALLEST_TASK_BYTES", 2000)
    monkeypatch.setattr("pipeline.ingest_plan.LARGEST_TASK_BYTES", 2000)
    texts = [None] * 20 + [f"{number} " + "mill " * (number % 80) for number in range(3980)]
    (tmp_path / "raw/web").mkdir(parents=True)
    pq.write_table(pa.table({"text": texts}), tmp_path / "raw/web/big.parquet", row_group_size=200)  # 10 % of the first
    outcome = run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1")
    assert outcome.code == 0, outcome.error
    assert read_shards(tmp_path / "out")[0]["sources"]["web"]["counts"]["bad"]["documents"] == 20


# --- what changes between two runs


def test_a_changed_raw_file_redoes_its_own_tasks_and_that_is_said(raw, tmp_path, sample_model, run_build, monkeypatch):
    monkeypatch.setattr("pipeline.ingest_plan.SMALLEST_TASK_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.run_pack", lambda task: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_build(flags(raw, tmp_path / "out", sample_model, "--workers 1"))
    rows = (raw / "web/part-3.jsonl").read_bytes().splitlines()
    (raw / "web/part-3.jsonl").write_bytes(b"\n".join(rows[::-1]) + b"\n")
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, "--workers 1"))
    assert outcome.code == 0
    assert "raw files of web have changed since this build began" in outcome.out
    assert run_build(flags(raw, tmp_path / "fresh", sample_model)).code == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")
    redone = [line for line in outcome.out.splitlines() if "done again" in line]
    assert "part-3.jsonl): what it reads has changed" in redone[0]
    assert not any(f"part-{number}" in redone[0] for number in (0, 1, 2, 4)) and "n.jsonl" not in redone[0]


@pytest.mark.parametrize(
    "lost",
    [
        "web/train/shard-00000.bin",
        pytest.param("notes/train/shard-00000.idx", marks=pytest.mark.long),
        pytest.param("notes/drops/*.parquet", marks=pytest.mark.long),
    ],
)
def test_a_finished_dataset_that_lost_a_file_is_built_again(raw, tmp_path, sample_model, run_build, lost):
    run_build(flags(raw, tmp_path / "out", sample_model))
    before = hashes(tmp_path / "out")
    (path,) = (tmp_path / "out").glob(lost)
    path.write_bytes(path.read_bytes()[:-1]) if path.suffix == ".idx" else path.unlink()
    outcome = run_build(flags(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0 and path.name in outcome.out and "building it again" in outcome.out
    assert hashes(tmp_path / "out") == before


def test_a_lost_file_without_raw_files_is_named(raw, tmp_path, sample_model, run_build):
    run_build(flags(raw, tmp_path / "out", sample_model))
    (tmp_path / "out/web/train/shard-00000.bin").unlink()
    raw.rename(tmp_path / "gone")
    outcome = run_build(flags(raw, tmp_path / "out", sample_model))
    assert outcome.code == 1 and "shard-00000.bin is gone, and so are raw files" in outcome.error
    assert (tmp_path / "out/dataset.json").exists()
