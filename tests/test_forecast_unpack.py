"""--dry-run of packed files: what is read is spread over all of each, within a budget of what is unpacked."""

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from test_forecast_more import WORDS, dry_run, predicted, small_budget, texts, write_packed

from pipeline import forecast_pieces, forecast_unpack
from pipeline.document_batch import DocumentBatch, list_bad_rows
from pipeline.file_parts import Part
from pipeline.forecast_sample import cut_texts
from pipeline.forecast_unpack import UnpackingBudget, read_stretches, spread_stretches

PACKS = {
    "zst": zstandard.compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
}
HEADS = "the beginnings were read"

__all__ = ["dry_run", "small_budget"]


def command(folder, model):
    return f"--mix web:1 --raw {folder}/raw --out {folder}/out --tokenizer {model}"


def count_exactly(dry_run, flags, monkeypatch):
    """What there is, with a budget for all of it."""
    with monkeypatch.context() as patch:
        patch.setattr(forecast_pieces, "SAMPLE_BYTES", 1 << 30)
        _, forecast = dry_run(flags)
    sample, counts = predicted(forecast)
    assert sample.is_exact
    return counts


def sorted_by_length(rng):
    return sorted(texts(rng, 3000), key=len)


def sorted_by_kind(rng):
    return [
        text
        for kind, most_words in zip(WORDS, (10, 60, 200), strict=True)
        for text in texts(rng, 800, kind, most_words=most_words)
    ]


@pytest.mark.parametrize("rows", [sorted_by_length, sorted_by_kind])
@pytest.mark.parametrize("num_files", [1, 7])
def test_sorted_packed_files_are_foretold_from_all_over_each(
    rows, num_files, tmp_path, sample_model, dry_run, small_budget, monkeypatch
):
    found = rows(np.random.default_rng(1))
    for number in range(num_files):
        part = slice(number * len(found) // num_files, (number + 1) * len(found) // num_files)
        write_packed(tmp_path / f"raw/web/{number}.jsonl.zst", found[part], zstandard.compress)
    outcome, forecast = dry_run(command(tmp_path, sample_model))
    assert HEADS not in outcome.out
    sample, guess = predicted(forecast)
    assert not sample.is_exact and sample.read_bytes < 420_000
    exact = count_exactly(dry_run, command(tmp_path, sample_model), monkeypatch)
    assert guess == pytest.approx(exact, rel=0.1)
    error = sample.find_error(lambda tally: tally.documents["accepted"])
    assert abs(guess["documents"] / exact["documents"] - 1) < error < 0.3  # 0.5, were the pieces in no order


@pytest.mark.parametrize("ending", PACKS)
def test_of_each_packing_so_much_is_unpacked_as_its_budget_allows(
    ending, tmp_path, sample_model, dry_run, small_budget, monkeypatch
):
    for number in range(6):
        rows = sorted(texts(np.random.default_rng(number), 400), key=len)
        write_packed(tmp_path / f"raw/web/{number}.jsonl.{ending}", rows, PACKS[ending])
    name = {"zst": "zstd", "gz": "gzip"}.get(ending, ending)
    exact = count_exactly(dry_run, command(tmp_path, sample_model), monkeypatch)
    monkeypatch.setitem(forecast_unpack.UNPACKED_SHARES, name, 30)
    outcome, forecast = dry_run(command(tmp_path, sample_model))
    assert HEADS not in outcome.out
    assert predicted(forecast)[1]["documents"] == pytest.approx(exact["documents"], rel=0.1)
    monkeypatch.setitem(forecast_unpack.UNPACKED_SHARES, name, 4)  # of 300 kB: two files, twice
    outcome, _ = dry_run(command(tmp_path, sample_model))
    assert f"of 4 packed files {HEADS}" in outcome.out


def test_a_packed_file_damaged_far_beyond_its_head_is_named(tmp_path, sample_model, dry_run, small_budget):
    path = tmp_path / "raw/web/a.jsonl.zst"
    write_packed(path, texts(np.random.default_rng(2), 5000), zstandard.compress)
    path.write_bytes(path.read_bytes()[:-1000])
    outcome, _ = dry_run(command(tmp_path, sample_model))
    assert outcome.code == 1 and f"{path} is cut short near row 4" in outcome.error


def test_a_file_that_unpacks_to_more_than_its_head_says_ends_the_budget(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    text = np.random.default_rng(3).bytes(3 << 20).hex().encode() + bytes(100 << 20)
    path.write_bytes(zstandard.compress(text))
    budget = UnpackingBudget(1 << 20)
    assert budget.measure(path, expected_bytes=16 << 20) is None  # 15 may be, and as many to read
    assert budget.left_bytes == 1 << 20
    assert budget.measure(path, expected_bytes=6 << 20) is None
    assert budget.left_bytes == 0
    budget = UnpackingBudget(8 << 20)
    assert budget.measure(path, expected_bytes=6 << 20).num_bytes == len(text)
    assert budget.left_bytes == pytest.approx((8 << 20) - len(text) / 15)


def test_every_byte_of_a_file_is_as_often_in_a_stretch_as_any_other():
    counts = np.zeros(1000, int)
    for number in range(2000):
        stretches = spread_stretches(1000, 160, num_stretches=8, number=number)
        assert sum(part.end - part.start for part in stretches) == pytest.approx(160, abs=1)
        assert all(one.end < two.start for one, two in zip(stretches, stretches[1:], strict=False))
        for part in stretches:
            counts[part.start : part.end] += 1
    assert counts == pytest.approx(np.full(1000, 2000 * 160 / 1000), rel=0.02)
    assert spread_stretches(1000, 160, num_stretches=8, number=0)[0] == Part(0, 20)


def test_stretches_have_the_short_lines_that_start_in_them_and_long_ones_are_all_there(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    lines = [b"%d %s\n" % (number, b"x" * int(rng.choice([0, 5, 60, 3000, 12_000]))) for number in range(2000)]
    lines[1500] = b"y" * 200_000 + b"\n"  # longer than blocks, and than the way from one stretch to the next
    lines[-1] = b"z" * 10_000
    text = b"".join(lines)
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(text))
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 1 << 15)
    for number in range(10):
        stretches = spread_stretches(len(text), len(text) // 4, num_stretches=400, number=number)
        longest_bytes = max(part.end - part.start for part in stretches)
        expected = [
            [line for line, start in zip(lines, starts, strict=True) if part.start <= start < part.end]
            for part in stretches
        ]
        short, long = zip(*read_stretches(path, stretches, longest_bytes=longest_bytes), strict=True)
        assert short[-1] == b""
        assert list(short[:-1]) == [
            b"".join(line for line in found if len(line) <= longest_bytes) for found in expected
        ]
        assert b"".join(long) == b"".join(line for line in lines if len(line) > longest_bytes)


def test_a_line_that_is_too_long_is_named_by_its_row(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 7000 + b"x" * 100_000 + b"\n"))
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 1 << 13)
    monkeypatch.setattr("pipeline.documents.LONGEST_LINE_BYTES", 50_000)
    with pytest.raises(ValueError, match="row 7000 is longer"):
        list(read_stretches(path, [Part(0, 10)], longest_bytes=10))


def test_of_a_text_a_share_is_cut_at_characters():
    texts = ["\u00e4\u20ac\U0001f600" * 1000, "plain " * 500, ""]
    bad_rows = list_bad_rows(np.array([3]), np.array([1000]), 0)
    batch = DocumentBatch(pa.array(texts), np.arange(3, dtype=np.uint64), bad_rows=bad_rows, num_rows=4)
    cut = cut_texts(batch, 0.25)
    cut.texts.validate(full=True)
    assert all(found in text for found, text in zip(cut.texts.to_pylist(), texts, strict=True))
    assert [len(found.encode()) for found in cut.texts.to_pylist()] == pytest.approx([2250, 750, 0], abs=3)
    assert cut.bad_rows["num_bytes"].tolist() == [250] and cut.num_rows == 4


@pytest.mark.parametrize("num_files", [1, 4])
def test_packed_files_of_few_huge_lines_are_foretold(num_files, tmp_path, sample_model, dry_run, small_budget):
    rng = np.random.default_rng(5)
    for number in range(num_files):
        rows = [rng.bytes(200_000).hex() for _ in range(1 + number)]
        write_packed(tmp_path / f"raw/web/{number}.jsonl.zst", rows, zstandard.compress)
    outcome, forecast = dry_run(command(tmp_path, sample_model))
    assert HEADS not in outcome.out
    num_rows = num_files * (num_files + 1) // 2
    sample, guess = predicted(forecast)
    assert not sample.is_exact
    assert guess["documents"] == pytest.approx(num_rows, rel=0.02)
    assert guess["bytes"] == pytest.approx(num_rows * 400_000, rel=0.02)


def test_a_head_that_is_packed_far_better_than_the_rest_does_not_stop_it(
    tmp_path, sample_model, dry_run, small_budget, monkeypatch
):
    monkeypatch.setattr("pipeline.documents.MEASURED_BYTES", 1000)
    rows = ["a" * 1000] * 2500 + texts(np.random.default_rng(6), 2500)
    write_packed(tmp_path / "raw/web/a.jsonl.zst", rows, zstandard.compress)
    outcome, forecast = dry_run(command(tmp_path, sample_model))
    assert HEADS not in outcome.out
    sample, guess = predicted(forecast)
    assert not sample.is_exact
    assert guess["documents"] == pytest.approx(5000, rel=0.1)
