"""--dry-run beyond the common case: every shape of raw files, exact counts, disks, warnings, and what it does not touch."""

import gzip
import json
import os
import re
import tempfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from conftest import write_rows

from pipeline import build, forecast_pieces
from pipeline.dataset import read_dataset_json
from pipeline.document_batch import BAD_REASONS
from pipeline.sample import make_sample

WORDS = {
    "prose": ["the", "mill", "grinds", "grain", "and", "stones", "turn", "slowly", "in", "water"],
    "code": ["x_1", "=", "def", "f(a,", "b):", "\n    ", "{0x1F}", "==", "!=", "self._q"],
    "greek": [
        "\u03bc\u03cd\u03bb\u03bf\u03c2",
        "\u03c0\u03ad\u03c4\u03c1\u03b1",
        "\u03bd\u03b5\u03c1\u03cc",
        "\u03ba\u03b1\u03b9",
    ],
}


def texts(rng, num_texts, kind="prose", *, most_words=200):
    """Texts of very unequal length, none twice."""
    return [
        " ".join(rng.choice(WORDS[kind], rng.integers(1, most_words))) + f" {rng.integers(1 << 40)}"
        for _ in range(num_texts)
    ]


def rows_of(texts):
    return [{"text": text} for text in texts]


def write_packed(path, texts, pack):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack("".join(json.dumps(row) + "\n" for row in rows_of(texts)).encode()))


def many_small_packed(folder, rng):
    for number in range(150):
        write_packed(folder / f"{number:03}.jsonl.zst", texts(rng, 20, rng.choice(list(WORDS))), zstandard.compress)


def one_large_plain(folder, rng):
    kinds = ("prose", "code", "greek")
    write_rows(folder / "all.jsonl", rows_of(text for kind in kinds for text in texts(rng, 1500, kind)))


def large_packed(folder, rng):
    for number in range(8):
        pack = gzip.compress if number % 2 else zstandard.compress
        ending = "gz" if number % 2 else "zst"
        write_packed(folder / f"{number}.jsonl.{ending}", texts(rng, 1000, "code" if number < 3 else "prose"), pack)


def parquet_in_row_groups(folder, rng):
    folder.mkdir(parents=True)
    for number, kind in enumerate(WORDS):
        pq.write_table(pa.table({"text": texts(rng, 1500, kind)}), folder / f"{number}.parquet", row_group_size=100)


def parquet_in_one_row_group(folder, rng):
    folder.mkdir(parents=True)
    for number in range(20):
        pq.write_table(pa.table({"text": texts(rng, 400)}), folder / f"{number}.parquet")


def text_files(folder, rng):
    folder.mkdir(parents=True)
    for number, text in enumerate(texts(rng, 400, most_words=1500)):
        (folder / f"{number:03}.txt").write_text(text)


def bad_and_short_rows(folder, rng):
    rows = [row for one in texts(rng, 3000) for row in ({"text": one}, {"text": ""}, b'{"text": 1}')]
    write_rows(folder / "a.jsonl", rows)


SHAPES = [
    many_small_packed,
    one_large_plain,
    large_packed,
    parquet_in_row_groups,
    parquet_in_one_row_group,
    text_files,
    bad_and_short_rows,
]


@pytest.fixture
def small_budget(monkeypatch):
    """A sample of 300 kB in pieces of 8 KiB, since the raw files of a test are small."""
    monkeypatch.setattr(forecast_pieces, "SAMPLE_BYTES", 300_000)
    monkeypatch.setattr(forecast_pieces, "PIECE_BYTES", 8 << 10)


@pytest.fixture
def dry_run(run_build, monkeypatch):
    """Runs the command with --dry-run; returns its outcome and the forecast that it printed."""
    make_forecast, made = build.make_forecast, []

    def remember(*given):
        made.append(make_forecast(*given))
        return made[-1]

    def run(flags):
        outcome = run_build(f"{flags} --dry-run")
        return outcome, (made.pop() if made else None)

    monkeypatch.setattr(build, "make_forecast", remember)
    return run


def list_everything(*folders):
    """Every path below some folders, with its size and time of change."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            status = path.lstat()
            found[str(path)] = status.st_size, status.st_mtime_ns
    return found


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_build(out, name=""):
    """What a build with --keep-work left: counts of its only source, bytes of output and of work files."""
    content = read_dataset_json(out / name)
    (source,) = content["sources"].values()
    work_bytes = folder_bytes(out / "work")
    return source["counts"], folder_bytes(out) - work_bytes, work_bytes


def predicted(forecast):
    """The same counts as a forecast has them."""
    (sample,) = forecast.samples
    counts = {
        "documents": forecast.count(sample, "accepted"),
        "bytes": sample.estimate(lambda tally: tally.bytes["read"]),
        "tokens": sample.estimate_tokens(0),
        "bad": forecast.count(sample, *BAD_REASONS),
        "short": forecast.count(sample, "short"),
        "excluded": forecast.count(sample, "excluded"),
    }
    return sample, counts


def counted(counts):
    """And as dataset.json has them."""
    kept, read = counts["kept"], counts["read"]
    dropped = {name: counts[name]["documents"] for name in ("bad", "short", "excluded")}
    return {"documents": kept["documents"], "bytes": read["bytes"], "tokens": read["tokens"], **dropped}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_predictions_from_a_sample_are_near_what_the_build_counts(
    shape, tmp_path, sample_model, dry_run, run_build, small_budget
):
    shape(tmp_path / "raw/web", np.random.default_rng(1))
    flags = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1"
    flags += " --dedup none --max-bad-fraction 1"
    outcome, forecast = dry_run(flags)
    assert outcome.code == 0, outcome.error
    assert "before dedup" in outcome.out
    sample, guess = predicted(forecast)
    assert not sample.is_exact
    assert sample.read_bytes < 420_000
    assert run_build(f"{flags} --keep-work").code == 0
    counts, _, _ = measure_build(tmp_path / "out")
    assert guess == pytest.approx(counted(counts), rel=0.15)


def test_predictions_are_exact_where_all_is_read_and_so_nearly_are_disk_sizes(
    tmp_path, sample_model, dry_run, run_build
):
    folder = tmp_path / "raw/web"
    one_large_plain(folder, np.random.default_rng(2))
    write_packed(folder / "b.jsonl.gz", texts(np.random.default_rng(3), 500), gzip.compress)
    pq.write_table(pa.table({"text": texts(np.random.default_rng(4), 500)}), folder / "c.parquet", row_group_size=90)
    write_rows(folder / "d.jsonl", [{"text": ""}, b"[1]", {"text": "a"}])
    flags = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1"
    outcome, forecast = dry_run(flags)
    assert "exact (all read)" in outcome.out
    assert run_build(f"{flags} --keep-work").code == 0
    counts, output_bytes, work_bytes = measure_build(tmp_path / "out")
    sample, guess = predicted(forecast)
    assert guess == counted(counts)
    assert forecast.output_bytes(sample, 0) == pytest.approx(output_bytes, rel=0.15)
    assert forecast.work_bytes(sample) == pytest.approx(work_bytes, rel=0.15)


@pytest.mark.long
def test_each_tokenizer_is_predicted(tmp_path, sample_model, named_tokenizers, dry_run, run_build, small_budget):
    one_large_plain(tmp_path / "raw/web", np.random.default_rng(5))
    flags = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer gpt2,{sample_model} --dedup none"
    outcome, forecast = dry_run(flags)
    assert outcome.code == 0, outcome.error
    assert run_build(f"{flags} --workers 1").code == 0
    for number, name in enumerate(["gpt2", "small"]):
        counts = read_dataset_json(tmp_path / "out" / name)["sources"]["web"]["counts"]
        assert forecast.names[number] == name
        assert forecast.samples[0].estimate_tokens(number) == pytest.approx(counts["read"]["tokens"], rel=0.15)


def test_excluded_subsets_are_counted_as_such(tmp_path, sample_model, dry_run, run_build, small_budget):
    rng = np.random.default_rng(6)
    names = ["RedPajamaC4", "RedPajamaC4", "RedPajamaGithub"]
    rows = [{"text": text, "meta": {"redpajama_set_name": rng.choice(names)}} for text in texts(rng, 4000)]
    write_rows(tmp_path / "raw/slimpajama/train/chunk1/a.jsonl", rows)
    flags = f"--mix slimpajama?exclude=RedPajamaGithub:1 --raw {tmp_path}/raw --out {tmp_path}/out --workers 1"
    flags += f" --tokenizer {sample_model} --dedup none"
    _, forecast = dry_run(flags)
    assert run_build(flags).code == 0
    _, guess = predicted(forecast)
    counts = read_dataset_json(tmp_path / "out")["sources"]["slimpajama"]["counts"]
    assert guess == pytest.approx(counted(counts), rel=0.15)


def test_a_small_source_beside_a_large_one_is_read_whole(tmp_path, sample_model, dry_run, small_budget):
    one_large_plain(tmp_path / "raw/web", np.random.default_rng(7))
    write_rows(tmp_path / "raw/notes/a.jsonl", rows_of(texts(np.random.default_rng(8), 30)))
    _, forecast = dry_run(f"--mix web:1,notes:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}")
    web, notes = forecast.samples
    assert (web.is_exact, notes.is_exact) == (False, True)
    assert forecast.count(notes, "accepted") == 30
    assert sum(reading.piece.covered_bytes for reading in web.readings) > 250_000


def test_lines_longer_than_any_piece_are_predicted_too(tmp_path, sample_model, dry_run, small_budget):
    write_rows(tmp_path / "raw/web/a.jsonl", [{"text": "the mill grinds " * 40_000} for _ in range(2)])
    outcome, forecast = dry_run(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}")
    assert outcome.code == 0, outcome.error
    assert predicted(forecast)[1]["bytes"] == pytest.approx(2 * 640_000, rel=0.15)
    assert "figures are rough" in outcome.out


@pytest.mark.parametrize("tokenizer", ["sample", "gpt2"])
def test_nothing_is_written(tokenizer, tmp_path, named_tokenizers, dry_run, monkeypatch):
    one_large_plain(tmp_path / "raw/web", np.random.default_rng(9))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "here")
    before = list_everything(tmp_path)
    raw = tmp_path / "raw"
    outcome, _ = dry_run(f"--mix web:1 --raw {raw} --work {tmp_path}/work --tokenizer {tokenizer} --replace")
    assert outcome.code == 0, outcome.error
    after = list_everything(tmp_path)
    assert after.keys() == before.keys()
    temporary = str(tmp_path / "temporary")  # something was there, and is gone
    assert {path: after[path] for path in after if path != temporary} == {
        path: before[path] for path in before if path != temporary
    }


def test_a_finished_dataset_is_forecast_anew_and_left_alone(tmp_path, sample_model, dry_run, run_build):
    write_rows(tmp_path / "raw/web/a.jsonl", rows_of(texts(np.random.default_rng(10), 200)))
    flags = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1"
    assert run_build(flags).code == 0
    before = list_everything(tmp_path)
    outcome, forecast = dry_run(f"{flags} --replace --seed 4")
    assert outcome.code == 0
    assert forecast.count(forecast.samples[0], "accepted") == 200
    assert list_everything(tmp_path) == before


def test_a_weight_that_asks_for_more_than_there_is_gets_a_warning_and_its_epochs(tmp_path, sample_model, dry_run):
    for name, number in (("web", 900), ("notes", 100)):
        write_rows(tmp_path / f"raw/{name}/a.jsonl", rows_of(texts(np.random.default_rng(number), number)))
    flags = f"--mix web:0.5,notes:0.5 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}"
    outcome, forecast = dry_run(flags)
    web, notes = (sample.estimate_tokens(0) for sample in forecast.samples)
    assert forecast.find_one_epoch(0) == (2 * notes, "notes")
    assert f"the mix gives {int(2 * notes):,} tokens until its first source, notes, is used up" in outcome.out
    assert "fewer than its share" not in outcome.out
    outcome, forecast = dry_run(f"{flags} --tokens {int(4 * notes)}")
    (warning,) = [line for line in outcome.out.splitlines() if "fewer than its share" in line]
    assert f"notes has {int(notes):,}" in warning
    assert warning.endswith("reads them 2 times")
    assert forecast.find_epochs(forecast.samples[1], 0, int(4 * notes)) == 2
    assert forecast.output_bytes(forecast.samples[0], 0) < 1.2 * 2 * (2 * notes)  # its share of 2 bytes each, no more
    assert web > 2 * notes


def test_what_would_stop_the_build_or_fill_a_disk_gets_a_warning(tmp_path, sample_model, dry_run, monkeypatch):
    write_rows(tmp_path / "raw/web/a.jsonl", [*rows_of(texts(np.random.default_rng(11), 90)), *[b"{"] * 10])
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("pipeline.forecast_table.shutil.disk_usage", lambda path: usage)
    outcome, _ = dry_run(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}")
    assert outcome.code == 0
    assert "10.0% of the rows are bad; above --max-bad-fraction 0.01 the build stops" in outcome.out
    assert f"the disk of {tmp_path}/out has 1 kB free" in outcome.out


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_a_broken_raw_file_is_refused_by_its_name(name, tmp_path, sample_model, dry_run, small_budget):
    (tmp_path / "raw/web").mkdir(parents=True)
    (tmp_path / "raw/web" / name).write_bytes(os.urandom(400_000))
    outcome, _ = dry_run(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model}")
    assert outcome.code == 1
    assert re.search(rf"error: .*{name} (is not zstd|is cut short or not parquet)", outcome.error)


@pytest.mark.long
def test_a_sample_is_not_made_but_one_that_is_there_is_read(tmp_path, run_build, dry_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome, _ = dry_run("--mix web:1 --sample-mb 0.5")
    assert outcome.code == 1
    assert "pipeline/sample.py --megabytes 0.5" in outcome.error
    assert not list(tmp_path.iterdir())
    make_sample(tmp_path / "data/sample-0.5mb", megabytes=0.5, sources=(("web", 1.0),))
    outcome, forecast = dry_run("--mix web:1 --sample-mb 0.5")
    assert outcome.code == 0, outcome.error
    assert forecast.names == ["sample"]
    assert not (tmp_path / "data/packed").exists()
