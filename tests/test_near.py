"""Near duplicates, by the build command: what goes, for what, and what stays."""

import shlex

import numpy as np
import pytest
from build_fixtures import hashes
from near_fixtures import FEW_DOCUMENTS, build, change_end, draw_words, write_texts

from pipeline.dataset import read_dataset_json
from pipeline.verify import main as verify_main


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def run_verify(monkeypatch, arguments):
    monkeypatch.setattr("sys.argv", ["verify.py", *shlex.split(arguments)])
    verify_main()  # exits where something is wrong


def test_a_near_duplicate_goes_and_names_what_stays(tmp_path, sample_model, run_build, rng, monkeypatch):
    words = draw_words(rng, 204)
    texts = [" ".join(draw_words(rng, 200)), " ".join(words), " ".join(change_end(words, 18)), "short text"]
    write_texts(tmp_path / "raw/web", texts)
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert dropped == {("web", 2): ("duplicate_near", "web", 1, np.float32(182 / 218))}
    counts = read_dataset_json(tmp_path / "out")["sources"]["web"]["counts"]
    assert (counts["read"]["documents"], counts["kept"]["documents"], counts["duplicate_near"]["documents"]) == (
        4,
        3,
        1,
    )
    run_verify(monkeypatch, f"{tmp_path}/out --raw {tmp_path}/raw")


@pytest.mark.parametrize(("changed", "goes"), [(20, True), (21, True), (22, True), (23, False), (24, False)])
def test_the_threshold_holds_exactly(tmp_path, sample_model, run_build, rng, changed, goes):
    """200 shingles: with 22 words changed they share 178 of 222, which is 0.802; with 23, 177 of 223: 0.794."""
    pairs = []
    for _ in range(12):  # enough that some share a band
        words = draw_words(rng, 204)
        pairs += [" ".join(words), " ".join(change_end(words, changed))]
    write_texts(tmp_path / "raw/web", pairs)
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert bool(dropped) == goes
    assert all(row[1] % 2 == 1 and found[2] == row[1] - 1 for row, found in dropped.items())
    assert len(dropped) >= (8 if goes else 0)


def test_no_document_goes_through_a_chain(tmp_path, sample_model, run_build, rng):
    first = draw_words(rng, 204)
    second = change_end(first, 8)
    third = [f"{word}y" for word in second[:16]] + second[16:]
    write_texts(tmp_path / "raw/web", [" ".join(words) for words in (first, second, third)])
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert set(dropped) == {("web", 1)}  # the third is near to the second alone, which went


def test_a_copy_of_one_that_goes_names_the_one_that_stays(tmp_path, sample_model, run_build, rng, monkeypatch):
    words = draw_words(rng, 204)
    near = " ".join(change_end(words, 5))
    write_texts(tmp_path / "raw/web", [" ".join(words), near, near, near])
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    similarity = np.float32(195 / 205)
    assert {row: found[:3] for row, found in dropped.items()} == {
        ("web", row): ("duplicate_near", "web", 0) for row in (1, 2, 3)
    }
    assert all(abs(found[3] - similarity) < 0.07 for found in dropped.values())
    run_verify(monkeypatch, f"{tmp_path}/out --raw {tmp_path}/raw")


@pytest.mark.parametrize(
    ("more", "stays"), [("", "web"), ("--dedup-priority notes", "notes"), ("--dedup-priority notes,web", "notes")]
)
def test_the_source_with_priority_keeps_its_documents(tmp_path, sample_model, run_build, rng, more, stays, monkeypatch):
    words = draw_words(rng, 204)
    for name, text in (("web", words), ("notes", change_end(words, 6))):
        write_texts(tmp_path / f"raw/{name}", [" ".join(text), " ".join(draw_words(rng, 50))])
    dropped = build(run_build, tmp_path, sample_model, f"{FEW_DOCUMENTS} {more}", mix="web:1,notes:1")
    ((source, row), found) = dropped.popitem()
    assert not dropped
    assert (row, found[:3]) == (0, ("duplicate_near", stays, 0))
    assert {source, stays} == {"web", "notes"}
    run_verify(monkeypatch, f"{tmp_path}/out --raw {tmp_path}/raw")


def test_validation_is_never_dropped_for_train(tmp_path, sample_model, run_build, rng, monkeypatch):
    texts = [draw_words(rng, 104) for _ in range(30)]
    write_texts(tmp_path / "raw/web", [" ".join(words) for words in texts], "train.jsonl")
    write_texts(tmp_path / "raw/web", [" ".join(change_end(words, 3)) for words in texts], "validation.jsonl")
    dropped = build(run_build, tmp_path, sample_model)
    content = read_dataset_json(tmp_path / "out")
    assert content["sources"]["web"]["splits"]["validation"]["documents"] == 30
    assert "train" not in content["sources"]["web"]["splits"]
    assert len(dropped) == 30
    run_verify(monkeypatch, f"{tmp_path}/out --raw {tmp_path}/raw")


def test_short_documents_never_collide(tmp_path, sample_model, run_build):
    texts = [
        "",
        "   ",
        "a b c",
        "a b d",
        "...",
        "a b c d",
        "a b c d e",
        "A, b, c, d, e!",
        "\u4e2d\u56fd",
        "\u4e2d\u56fd\u4eba",
    ]
    write_texts(tmp_path / "raw/web", texts)
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert dropped == {
        ("web", 0): ("short", None, None, None),
        ("web", 7): ("duplicate_near", "web", 6, np.float32(1)),
    }


@pytest.mark.parametrize("method", ["exact", "near"])
def test_documents_without_words_have_only_copies_and_empty_ones_are_short(
    tmp_path, sample_model, run_build, method, monkeypatch
):
    texts = [
        "",
        "  ",
        "\n\n",
        "  ",
        "\u3000",
        "\0",
        "\0\0",
        "...",
        "!!!",
        "\U0001f600 " * 9,
        "\U0001f601 " * 9,
        "",
        "...",
    ]
    write_texts(tmp_path / "raw/web", texts)
    dropped = build(run_build, tmp_path, sample_model, f"{FEW_DOCUMENTS} --dedup {method}")
    short, copy = ("short", None, None, None), np.float32(1)
    assert dropped == {
        ("web", 0): short,
        ("web", 11): short,
        ("web", 3): ("duplicate_exact", "web", 1, copy),
        ("web", 12): ("duplicate_exact", "web", 7, copy),
    }
    run_verify(monkeypatch, f"{tmp_path}/out --raw {tmp_path}/raw")


def test_a_licence_in_every_file_deletes_none(tmp_path, sample_model, run_build, rng):
    licence = " ".join(draw_words(rng, 300))
    texts = [f"# {licence}\n" + " ".join(draw_words(rng, 150)) for _ in range(60)]
    write_texts(tmp_path / "raw/web", texts)
    assert build(run_build, tmp_path, sample_model, FEW_DOCUMENTS) == {}


def test_tiny_files_of_one_licence_stay_and_copies_of_them_go(tmp_path, sample_model, run_build, rng):
    """No longer file has the licence; so the forty are only told apart by what each has that no other has."""
    licence = " ".join(draw_words(rng, 100))
    texts = [f"# {licence}\n" + " ".join(draw_words(rng, 8 + number % 3)) for number in range(40)]
    changed = [f"{texts[number]} z" for number in (3, 20)]
    write_texts(tmp_path / "raw/web", [*texts, *changed])
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert {row: found[2] for (_, row), found in dropped.items()} == {40: 3, 41: 20}


@pytest.mark.parametrize("kind", ["scattered", "date", "cut"])
def test_many_changed_copies_of_one_text_go(tmp_path, sample_model, run_build, rng, kind):
    words = draw_words(rng, 200)

    def change(number):
        if kind == "scattered":
            return [f"{word}x{number}" if rng.random() < 0.01 else word for word in words]
        return [*words, f"d{number}", f"m{number}"] if kind == "date" else words[: 200 - number % 20]

    write_texts(tmp_path / "raw/web", [" ".join(words), *(" ".join(change(number)) for number in range(40))])
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert len(dropped) >= 38


def test_copies_go_where_versions_less_alike_stay(tmp_path, sample_model, run_build, rng):
    """Each version has another part of the text; what three of them have of it is no boilerplate."""
    texts, near = [], []
    for _ in range(20):
        words = draw_words(rng, 300)

        def change(share, words=words):
            return " ".join(f"{word}y" if rng.random() < share else word for word in words)

        near.append(len(texts) + 1)
        texts += [" ".join(words), change(0.006), *map(change, (0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15))]
    write_texts(tmp_path / "raw/web", texts)
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    assert {row for _, row in dropped} >= set(near)


@pytest.mark.long
def test_the_bytes_do_not_depend_on_memory_workers_or_runs(tmp_path, sample_model, run_build, rng, monkeypatch):
    texts = []
    for _ in range(40):
        words = draw_words(rng, 104)
        texts += [" ".join(change_end(words, int(count))) for count in rng.integers(0, 16, 8)]
    order = rng.permutation(len(texts))
    for number in range(4):
        write_texts(tmp_path / "raw/web", [texts[place] for place in order[number::4]], f"{number}.jsonl")
    build(run_build, tmp_path, sample_model)
    expected = hashes(tmp_path / "out")
    counts = read_dataset_json(tmp_path / "out")["sources"]["web"]["counts"]
    assert counts["duplicate_near"]["documents"] > 150
    monkeypatch.setattr("pipeline.token_file.RUN_DOCUMENTS", 30)
    monkeypatch.setattr("pipeline.wanted_documents.SMALLEST_BATCH_BYTES", 1000)
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 4096)
    monkeypatch.setattr("pipeline.candidates.FEW_KEYS", 10)
    for name in ("BYTES_PER_KEY", "BYTES_PER_LONE_KEY"):
        monkeypatch.setattr(f"pipeline.candidates.{name}", 1 << 22)
    monkeypatch.setattr("pipeline.estimate.BYTES_PER_PAIR", 1 << 20)
    monkeypatch.setattr("pipeline.estimate.PAIRS_AT_ONCE", 30)
    monkeypatch.setattr("pipeline.resolve.EDGES_AT_ONCE", 30)
    monkeypatch.setattr("pipeline.compare.EDGES_PER_TASK", 20)
    monkeypatch.setattr("pipeline.compare.SHINGLES_AT_ONCE", 500)
    monkeypatch.setattr("pipeline.dedup.DOCUMENTS_PER_TASK", 50)
    build(run_build, tmp_path, sample_model, "--memory 0.1 --replace")
    assert hashes(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("--dedup-priority web,web", "'web' is there twice"),
        ("--dedup-priority pile", "'pile' is no source of the mix (web)"),
        ("--dedup-threshold 0.2", "--dedup-threshold must be from 0.5 to 1, found 0.2"),
        ("--memory 0", "--memory must be 0.1 or more, found 0"),
        ("--dedup exact --dedup-threshold 0.9", "--dedup-threshold is of --dedup near: it changes nothing with exact"),
        ("--dedup none --dedup-priority web", "--dedup-priority says which of several duplicates stays"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(tmp_path, sample_model, run_build, more, expected):
    write_texts(tmp_path / "raw/web", ["one text of a few words"])
    outcome = run_build(f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} {more}")
    assert outcome.code == 1
    assert expected in outcome.error


def test_all_planted_pairs_of_real_articles_are_found(shared_data, tmp_path, sample_model, run_build):
    lines = [line.split(" ", 1) for line in (shared_data / "dedup/articles_1000.txt").read_text().splitlines()]
    write_texts(tmp_path / "raw/web", [text for _, text in lines])
    dropped = build(run_build, tmp_path, sample_model, FEW_DOCUMENTS)
    found = {frozenset((lines[row][0], lines[entry[2]][0])) for (_, row), entry in dropped.items()}
    pairs = (shared_data / "dedup/articles_1000.pairs").read_text().splitlines()
    assert found == {frozenset(pair.split()) for pair in pairs}


def test_a_source_that_would_lose_too_much_stops_the_build(tmp_path, sample_model, run_build, rng):
    words = draw_words(rng, 104)
    near = [" ".join(change_end(words, 2 + number % 3)) + f" z{number}" for number in range(30)]
    write_texts(tmp_path / "raw/web", [" ".join(words), *near, *(" ".join(draw_words(rng, 50)) for _ in range(5))])
    command = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} {FEW_DOCUMENTS}"
    outcome = run_build(command)
    assert outcome.code == 1
    assert "web loses 30 of 36 documents (83.3%) as duplicates" in outcome.error
    assert (
        f"30 documents go for {tmp_path}/raw/web/a.jsonl row 0, which begins {' '.join(words)[:30]!r}"[:-1]
        in outcome.error
    )
    assert not (tmp_path / "out/dataset.json").exists()
    outcome = run_build(f"{command} --dedup-report")
    assert outcome.code == 0, outcome.error
    assert "web loses 30 of 36 documents (83.3%) as duplicates" in outcome.out
    assert "30 documents go for" in outcome.out


def test_a_subset_that_would_lose_too_much_stops_the_build(tmp_path, sample_model, run_build, rng):
    words = draw_words(rng, 104)
    write_texts(tmp_path / "raw/redpajama/arxiv", [" ".join(draw_words(rng, 104)) for _ in range(40)])
    write_texts(tmp_path / "raw/redpajama/github", [" ".join(words)] * 10)
    command = f"--mix redpajama:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} {FEW_DOCUMENTS}"
    outcome = run_build(command)
    assert outcome.code == 1
    assert "loses 9 of 10 documents (90.0%)" in outcome.error
    assert "loses 9 of 50" not in outcome.error
    assert run_build(f"{command} --max-dup-fraction 0.9").code == 0


def test_the_overlap_of_sources_is_counted(tmp_path, sample_model, run_build, rng):
    texts = [draw_words(rng, 104) for _ in range(6)]
    joined = [" ".join(words) for words in texts]
    write_texts(tmp_path / "raw/web", [*joined, joined[0]])
    near = [" ".join(change_end(words, 4)) for words in texts[:3]]
    write_texts(tmp_path / "raw/notes", [*near, joined[4], " ".join(draw_words(rng, 60))])
    build(run_build, tmp_path, sample_model, FEW_DOCUMENTS, mix="web:1,notes:1")
    sources = read_dataset_json(tmp_path / "out")["sources"]
    assert sources["web"]["overlap"] == {"web": {"documents": 1, "bytes": len(joined[0])}}
    num_bytes = sum(map(len, [*near, joined[4]]))
    assert sources["notes"]["overlap"] == {"web": {"documents": 4, "bytes": num_bytes}}
