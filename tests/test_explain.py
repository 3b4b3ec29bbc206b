"""Every token leads back to its row, every row to what became of it; a step's samples follow from the run's settings."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from build_fixtures import read_drops
from conftest import REPOSITORY, write_rows
from rich.console import Console

from pipeline.build import BuildArguments, build
from pipeline.catalogue import Catalogue
from pipeline.dataset import PackedDataset
from pipeline.explain import ExplainArguments, explain, open_shards
from pipeline.row_search import find_in_table, find_shard, read_rows
from pipeline.shard import documents_path, read_dataset_json
from pipeline.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two sources, with duplicates of one in the other, and rows that are no documents."""
    folder, rng = tmp_path_factory.mktemp("explain") / "raw", np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(["mill", "token", "\u00e9t\u00e9", "x = 1\n"], rng.integers(5, 60))) for _ in range(150)
    ]
    write_rows(folder / "web/a.jsonl", [{"text": text} for text in texts[:60]])
    write_rows(folder / "web/b.jsonl", [{"text": text} for text in texts[60:110]])
    rows = [{"text": text} for text in [*texts[110:], texts[3], texts[3], ""]]
    write_rows(folder / "notes/n.jsonl", [*rows, b'{"text": null}'])
    return folder


@pytest.fixture(scope="module")
def built(raw, sample_model):
    """A build of them."""
    arguments = BuildArguments(
        mix="web:3,notes:1", raw=raw, out=raw.parent / "out", tokenizer=str(sample_model), shard_tokens=2000,
        valid_fraction=0.05, workers=1, max_bad_fraction=0.1,
    )  # fmt: skip
    build(arguments, Console(quiet=True))
    return raw.parent / "out"


def ask(folder, **question):
    return "\n".join(explain(ExplainArguments(dataset=folder, **question)))


def test_a_token_leads_to_its_row_and_text(built, raw, sample_model):
    tokenizer = load_tokenizer(sample_model)
    shards = open_shards(Catalogue(built), "web", "train")
    for token in np.random.default_rng(0).integers(0, shards.num_tokens, 10).tolist():
        answer = ask(built, source="web", token=token, raw=raw)
        file, row = answer.splitlines()[0].split("  ")[1].rsplit(":", 1)
        text = json.loads((raw / "web" / file).read_bytes().splitlines()[int(row)])["text"]
        assert f"text: {text[:2000]!r}" in answer
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        (place,) = [line for line in answer.splitlines() if line.startswith("  token")]
        number, id_ = place.split("number ")[1].split(" from 0, id ")
        assert ids[int(number.replace(",", ""))] == int(id_)


def test_a_kept_document_leads_to_its_shard_and_a_dropped_one_to_the_reason(built):
    content = read_dataset_json(built)
    shard = content["sources"]["notes"]["splits"]["train"]["shards"][0]
    row = pq.read_table(documents_path(built / shard["path"])).slice(3, 1).to_pylist()[0]
    answer = ask(built, document=f"n.jsonl:{row['row']}")
    assert f"notes  n.jsonl:{row['row']}\n  in {built / shard['path']}, tokens " in answer
    drops = read_drops(built, content)
    duplicate = next(drop for drop in drops if drop["partner_source"] == "web")
    name = content["sources"][duplicate["source"]]["raw_files"][duplicate["raw_file"]]
    answer = ask(built, document=f"{name}:{duplicate['row']}", source=duplicate["source"])
    partner = content["sources"]["web"]["raw_files"][duplicate["partner_raw_file"]]
    assert "not kept: duplicate_exact" in answer
    assert f"{partner}:{duplicate['partner_row']} of web stays" in answer
    assert "not kept: bad_text_null" in ask(built, document="n.jsonl:43")
    assert "has no row 999" in ask(built, document="0:999", source="notes")


@pytest.mark.parametrize("packing", ["concat", "best-fit"])
def test_a_step_leads_to_the_documents_of_its_samples(built, tmp_path, packing, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = tmp_path / "run"
    run.mkdir()
    config = {"seq_len": 64, "seed": 5, "mix": "web:1,notes:1", "tokens_per_step": 256, "packing": packing}
    (run / "config.json").write_text(json.dumps(config))
    answer = ask(built, run=run, step=4)
    assert answer.startswith("step 4: positions 12 to 16, 4 of them shown")
    dataset = PackedDataset(built, seq_len=64, seed=5, mix={"web": 0.5, "notes": 0.5}, packing=packing)
    for position, part in zip(range(12, 16), answer.split("\nposition ")[1:], strict=True):
        assert part.startswith(f"{position}: {dataset.sources[dataset.source_indices([position])[0]]}, epoch 0")
        has_padding = not dataset.documents(position).has_target[-1] and packing == "best-fit"
        num_pieces = len(dataset.document_ends(position))
        assert part.count("    in ") in ({num_pieces, num_pieces - 1} if has_padding else {num_pieces})
    for step, fingerprint, skipped in (
        (9, read_dataset_json(built)["content_hash"], [[4, 12], [12, 16]]),
        (10, "0", []),
    ):
        checkpoint = run / f"checkpoints/step-{step}/checkpoint.json"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_text(json.dumps({"dataset": {"fingerprint": fingerprint}, "skipped": skipped}))
        if skipped:  # what a run left out is no step of it
            assert ask(built, run=run, step=1).startswith("step 1: positions 0 to 4, ")
            assert ask(built, run=run, step=2).startswith("step 2: positions 16 to 20, ")
    with pytest.raises(ValueError, match="read other data"):
        ask(built, run=run, step=3)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ({}, "ask one thing"),
        ({"token": 5}, "--token needs --source: it is one of web, notes"),
        ({"token": 10**9, "source": "web"}, "has .* tokens in train"),
        ({"token": 1, "source": "books"}, "has no source 'books'"),
        ({"step": 1}, "--step needs --run"),
        ({"step": 0, "run": Path("run")}, "its first step is 1"),
        ({"step": 1, "run": Path("run")}, "--run run: it has no config.json"),
        ({"document": "n.jsonl"}, "it is RAW_FILE:ROW"),
        ({"document": "other.jsonl:3"}, "has no raw file 'other.jsonl' in any source: .* such as a.jsonl:0"),
        ({"document": "9" * 5000 + ":3"}, "has no raw file '999"),
        ({"document": "n.jsonl:99999999999999999999999"}, "the last row that a file can have is 1,099,511,627,775"),
        ({"document": f"n.jsonl:{1 << 40}"}, "the last row that a file can have is 1,099,511,627,775"),
    ],
)
def test_a_question_without_an_answer_is_refused(built, question, expected):
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        ask(built, **question)


@pytest.mark.parametrize(
    ("config", "checkpoint", "step", "expected"),
    [
        ({}, None, 1, "config.json has seq_len None, not a whole number from 1"),
        ([], None, 1, "config.json has seq_len None"),
        ({"seq_len": 64}, None, 1, "config.json has tokens_per_step None"),
        ({"seq_len": 0, "tokens_per_step": 64}, None, 1, "config.json has seq_len 0"),
        ({"seq_len": 64, "tokens_per_step": 256}, {}, 1, "checkpoint.json has no dataset.fingerprint"),
        ({"seq_len": 64, "tokens_per_step": 256}, None, 99999999999999999999, "no run has so many steps"),
    ],
)
def test_a_run_that_cannot_be_understood_is_refused(built, tmp_path, config, checkpoint, step, expected):
    (tmp_path / "config.json").write_text(json.dumps(config))
    if checkpoint is not None:
        (tmp_path / "checkpoints/step-1").mkdir(parents=True)
        (tmp_path / "checkpoints/step-1/checkpoint.json").write_text(json.dumps(checkpoint))
    with pytest.raises(ValueError, match=expected):
        ask(built, run=tmp_path, step=step)


def test_a_raw_file_of_several_sources_is_answered_for_each(built):
    answer = ask(built, document="0:2")
    assert [line for line in answer.splitlines() if not line.startswith(" ")] == ["web  a.jsonl:2", "notes  n.jsonl:2"]
    assert ask(built, document="0:2", source="notes").startswith("notes  n.jsonl:2")


def test_a_kept_row_is_found_in_whichever_shard_it_is_with_and_without_its_text(built, raw):
    content = read_dataset_json(built)
    for source, listed in content["sources"].items():
        for split in listed["splits"]:
            shards = open_shards(Catalogue(built), source, split)
            for number, path in enumerate(shards.paths):
                raw_file, row = map(int, read_rows(path)[0])
                name = listed["raw_files"][raw_file]
                answer = ask(built, document=f"{name}:{row}", source=source)
                assert answer.startswith(f"{source}  {name}:{row}\n  in {path}, tokens 0 to ")
                told = ask(built, document=f"{name}:{row}", source=source, raw=raw)
                assert told.startswith(answer + "\n  text: ")
                text = json.loads((raw / source / name).read_bytes().splitlines()[row])["text"]
                assert find_shard(shards, text, seed=content["settings"]["seed"]) == number
                assert find_in_table(path, (raw_file, row)) == 0 and find_in_table(path, (raw_file, 10**6)) is None


def test_the_command_answers_in_lines(built):
    command = [sys.executable, str(REPOSITORY / "pipeline/explain.py"), str(built), "--document", "n.jsonl:0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("notes  n.jsonl:0\n"), result.stderr
    result = subprocess.run([*command[:3], "--token", "1"], capture_output=True, text=True)
    assert (result.returncode, result.stderr[:29]) == (1, "error: --token needs --source")
