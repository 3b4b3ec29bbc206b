"""--dry-run: what it foretells is what a build makes, and it writes nothing."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import write_rows
from loopback import Fault, Server

from pipeline.dataset import read_dataset_json

WORDS = ["mill", "token", "stone", "grain", "water", "wheel", "turns", "slowly"]


def make_texts(number, seed, mean_words):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(mean_words, number) + 1
    return [" ".join(rng.choice(WORDS, count)) for count in counts]


@pytest.fixture
def raw_kinds(tmp_path):
    """A source of many packed files, one of a huge plain file, one of parquet with row groups, one of text files."""
    for number in range(12):
        path = write_rows(
            tmp_path / f"raw/packed/{number:02d}.jsonl", [{"text": text} for text in make_texts(300, number, 30)]
        )
        path.with_suffix(".jsonl.zst").write_bytes(zstandard.compress(path.read_bytes()))
        path.unlink()
    write_rows(tmp_path / "raw/plain/all.jsonl", [{"text": text} for text in make_texts(6000, 50, 40)] + [{"text": ""}])
    (tmp_path / "raw/table").mkdir()
    table = pa.table({"text": make_texts(4000, 60, 20)})
    pq.write_table(table, tmp_path / "raw/table/t.parquet", row_group_size=100)
    (tmp_path / "raw/books").mkdir()
    for number, text in enumerate(make_texts(200, 70, 200)):
        (tmp_path / f"raw/books/{number}.txt").write_text(text)
    return tmp_path / "raw"


def command(raw, out, model, more=""):
    return f"--mix packed:4,plain:3,table:2,books:1 --raw {raw} --out {out} --tokenizer {model} --dedup none {more}"


def read_columns(said, source):
    """The cells of the rows of a source, table by table."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    return [row for row in rows if row[0] == source]


def numbers(said, source):
    """Documents and tokens that are foretold of a source."""
    documents, tokens, *_ = read_columns(said, source)
    return int(documents[4].replace(",", "")), int(tokens[2].replace(",", ""))


def snapshot(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("budget", [None, 400_000])
def test_documents_and_tokens_are_foretold(raw_kinds, tmp_path, sample_model, run_build, monkeypatch, budget):
    if budget:
        monkeypatch.setattr("pipeline.forecast_pieces.SAMPLE_BYTES", budget)
        monkeypatch.setattr("pipeline.forecast_pieces.PIECE_BYTES", 20_000)
    before = snapshot(tmp_path)
    outcome = run_build(command(raw_kinds, tmp_path / "out", sample_model, "--dry-run"))
    assert outcome.code == 0, outcome.error
    assert snapshot(tmp_path) == before
    assert run_build(command(raw_kinds, tmp_path / "out", sample_model)).code == 0
    for name, source in read_dataset_json(tmp_path / "out")["sources"].items():
        kept = source["counts"]["kept"]
        allowed = 0.15 if budget else 0
        assert numbers(outcome.out, name)[0] == pytest.approx(kept["documents"], rel=allowed)
        assert numbers(outcome.out, name)[1] == pytest.approx(kept["tokens"], rel=allowed)


@pytest.mark.parametrize("budget", [None, 400_000])
@pytest.mark.long
def test_of_raw_files_elsewhere_it_fetches_a_sample_and_foretells_the_same(
    raw_kinds, tmp_path, sample_model, run_build, monkeypatch, budget
):
    if budget:
        monkeypatch.setattr("pipeline.forecast_pieces.SAMPLE_BYTES", budget)
        monkeypatch.setattr("pipeline.forecast_pieces.PIECE_BYTES", 20_000)
        monkeypatch.setattr("pipeline.forecast_fetch.LINE_BYTES", 100)
        monkeypatch.setattr("pipeline.parquet_rows.FOOTER_BYTES", 100)
        monkeypatch.setattr("pipeline.forecast_fetch.MEASURED_BYTES", 1000)
    files = {path.relative_to(raw_kinds).as_posix(): path.read_bytes() for path in raw_kinds.rglob("*.*")}
    names = ("packed", "plain", "table", "books")
    lists = {
        name: "\n".join(sorted(file[len(name) + 1 :] for file in files if file.startswith(name))) for name in names
    }
    local = run_build(command(raw_kinds, tmp_path / "out", sample_model, "--dry-run"))
    before = snapshot(tmp_path)
    with Server({**files, **{f"{name}/list": text.encode() for name, text in lists.items()}}) as server:
        server.faults = [Fault("all.jsonl", cut=100), Fault("t.parquet", status=500)]
        mix = ",".join(f"{server.url}/{name}/list?name={name}:{4 - at}" for at, name in enumerate(names))
        flags = command(raw_kinds, tmp_path / "out", sample_model, "--dry-run").replace(
            "packed:4,plain:3,table:2,books:1", f"'{mix}'"
        )
        outcome = run_build(flags)
    assert outcome.code == 0, outcome.error
    assert snapshot(tmp_path) == before
    for name in names:
        if budget and name == "packed":  # of which only heads are fetched
            assert numbers(outcome.out, name) == pytest.approx(numbers(local.out, name), rel=0.15)
        else:
            assert read_columns(outcome.out, name)[0] == read_columns(local.out, name)[0]
            assert numbers(outcome.out, name) == numbers(local.out, name)


def test_a_weight_that_asks_for_too_much_is_warned_of(raw_kinds, tmp_path, sample_model, run_build):
    outcome = run_build(command(raw_kinds, tmp_path / "out", sample_model, "--dry-run --tokens 900_000"))
    warned = [line for line in outcome.out.splitlines() if line.startswith("warning: packed has")]
    assert len(warned) == 1 and "fewer than its share of 360,000" in warned[0]
    assert "warning: plain" not in outcome.out
    assert not (tmp_path / "out").exists()


def test_without_raw_files_it_says_what_a_build_says(tmp_path, sample_model, run_build):
    outcome = run_build(command(tmp_path / "raw", tmp_path / "out", sample_model, "--dry-run"))
    assert outcome.code == 1 and "nothing to build from" in outcome.error
    assert list(tmp_path.iterdir()) == []
