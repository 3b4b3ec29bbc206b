"""Rules about RedPajama-V2's quality signals: who fails them, and files of signals that are not what they should be."""

import gzip
import json
import shutil

import pytest
from build_fixtures import hashes, read_drops, read_shards
from loopback import Fault, Server

from pipeline.documents import read_documents
from pipeline.manifest import choose_raw_files, load_source
from pipeline.mix import parse_mix
from pipeline.quality_signals import judge
from pipeline.signal_rules import is_written_rule, parse_rules
from pipeline.source_options import parse_source
from pipeline.verify import main as verify

TAG = "2023-06/0000/en_head"
WORDS = ["mill", "stone", "grain", "water", "wheel"]


def describe(row, *, words, perplexity=100.0, bullets=(0.0, 0.0), blacklist=None, tag=TAG):
    """A line of signals in the published schema."""
    spans = [[10 * number, 10 * number + 10, score] for number, score in enumerate(bullets)]
    signals = {
        "ccnet_perplexity": [[0, 20, perplexity]],
        "rps_doc_word_count": [[0, 20, words]],
        "rps_lines_start_with_bulletpoint": spans,
        "rps_doc_ut1_blacklist": [[0, 20, blacklist]],
    }
    metadata = {"cc_segment": "crawl", "cc_net_source": f"{tag}.json.gz", "snapshot_id": "2023-06"}
    return {"id": f"{tag}.json.gz/{row}", "id_int": 2**64 - 1, "metadata": metadata, "quality_signals": signals}


def document(row):
    return {"url": f"http://a/{row}", "raw_content": f"{' '.join(WORDS)} {row}", "bucket": "head", "language": "en"}


def write_packed(path, rows):
    """Write JSON lines; bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines), mtime=0))
    return path


def write_pair(folder, documents, signals, *, tag=TAG):
    """A file of documents and its file of signals, as wget lays them out."""
    path = write_packed(folder / f"documents/{tag}.json.gz", documents)
    return path, write_packed(folder / f"quality_signals/{tag}.signals.json.gz", signals)


def fail(folder, signals, rules="rps_doc_word_count>=50", *, documents=None):
    """What each document fails, by its row."""
    path, signals = write_pair(folder, documents or [document(row) for row in range(3)], signals)
    batches = read_documents(path, text_field="raw_content")
    judged = judge(batches, path, signals, parse_rules(rules, {}), is_whole=True)
    return {
        row: failed for batch in judged for row, failed in zip(batch.rows.tolist(), batch.failed.tolist(), strict=True)
    }


def test_a_document_fails_the_first_rule_that_it_does_not_pass(tmp_path):
    signals = [
        describe(0, words=50.0, perplexity=300),
        describe(1, words=49, perplexity=301),
        describe(2, words=51, perplexity=300.5),
    ]
    assert fail(tmp_path, signals, "rps_doc_word_count>=50;ccnet_perplexity<=300") == {0: 0, 1: 1, 2: 2}
    assert fail(tmp_path, signals, "ccnet_perplexity<=300;rps_doc_word_count>=50") == {0: 0, 1: 1, 2: 1}


@pytest.mark.parametrize(
    ("rule", "failed"),
    [
        ("rps_lines_start_with_bulletpoint<=0.5", [0, 0, 1]),  # 0/2, 2/4, 3/4 of the lines
        ("rps_lines_start_with_bulletpoint<0.5", [0, 1, 1]),
        ("rps_lines_start_with_bulletpoint==0.5", [1, 0, 1]),
        ("rps_lines_start_with_bulletpoint!=.5", [0, 1, 0]),
        ("rps_doc_ut1_blacklist==null", [0, 1, 0]),
        ("rps_doc_ut1_blacklist!=null", [1, 0, 1]),
        ("rps_doc_ut1_blacklist<9", [1, 0, 1]),  # null passes no comparison with a number
        ("rps_doc_ut1_blacklist!=9", [1, 0, 1]),
    ],
)
def test_a_signal_of_lines_is_their_mean_and_null_passes_no_number(rule, failed, tmp_path):
    signals = [
        describe(0, words=9, bullets=(0, 0)),
        describe(1, words=9, bullets=(1, 0, 1, 0), blacklist=3),
        describe(2, words=9, bullets=(1.0, 1.0, 0.0, 1.0)),
    ]
    assert list(fail(tmp_path, signals, rule).values()) == failed


def test_a_document_without_lines_has_no_signal_of_them(tmp_path):
    signals = [describe(row, words=9, bullets=()) for row in range(3)]
    assert set(fail(tmp_path, signals, "rps_lines_start_with_bulletpoint>=0").values()) == {1}


def test_rows_are_matched_by_id_and_a_bad_row_needs_no_signals(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.documents.BLOCK_BYTES", 700)  # documents and signals in blocks that do not agree
    rows = [b"{" if row % 10 == 3 else b"" if row == 7 else document(row) for row in range(100)]
    kept = [row for row in range(100) if row % 10 != 3 and row != 7]
    signals = [describe(row, words=row) for row in kept]
    assert fail(tmp_path, signals, documents=rows) == {row: row < 50 for row in kept}


WRONG = {
    "a document without signals": ([0, 2], "has no signals of row 1 of .*en_head.json.gz"),
    "signals without a document": ([0, 1, 2, 3], "has signals of row 3, but .*en_head.json.gz has 3 rows"),
    "a file cut after a line": ([0, 1], "has no signals of row 2"),
    "no signals at all": ([], "has no signals of row 0"),
    "rows in another order": ([0, 2, 1], "not in order"),
    "a row twice": ([0, 1, 1, 2], "not in order, or one is there twice"),
}


@pytest.mark.parametrize(("rows", "said"), WRONG.values(), ids=WRONG)
def test_rows_that_do_not_match_are_one_line(rows, said, tmp_path):
    with pytest.raises(ValueError, match=said) as caught:
        fail(tmp_path, [describe(row, words=60) for row in rows])
    assert "Fetch both again, or build without signals=" in str(caught.value) and "\n" not in str(caught.value)


GOOD = describe(0, words=60)
BROKEN = {
    "of another file": (
        describe(0, words=60, tag="2023-06/0001/en_head"),
        "has signals of 2023-06/0001/en_head.json.gz, not of .*/2023-06/0000/en_head.json.gz",
    ),
    "no JSON": (b'{"id": ', "not a file of quality signals"),
    "an id without a row": ({**GOOD, "id": f"{TAG}.json.gz/x"}, "an id does not end with a row"),
    "an id that is none": ({**GOOD, "id": "x"}, "has no id such as"),
    "no id": ({"quality_signals": GOOD["quality_signals"]}, "has no id such as"),
    "no signals": ({"id": GOOD["id"]}, "row 0 has no signal 'rps_doc_word_count'"),
    "a score alone": (
        {**GOOD, "quality_signals": {"rps_doc_word_count": [[1.0]]}},
        r"no list of \[start, end, score\]",
    ),
    "text": ({**GOOD, "quality_signals": {"rps_doc_word_count": "many"}}, "not a file of quality signals"),
}


@pytest.mark.parametrize(("line", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_of_signals_is_one_line(line, said, tmp_path):
    with pytest.raises(ValueError, match=said) as caught:
        fail(tmp_path, [line])
    assert "\n" not in str(caught.value)


def test_a_misspelt_signal_is_told_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="row 0 has no signal 'rps_doc_wordcount'; nearest: rps_doc_word_count"):
        fail(tmp_path, [GOOD], "rps_doc_wordcount>=50")


def test_a_file_of_signals_that_breaks_off_is_one_line(tmp_path):
    path, signals = write_pair(tmp_path, [document(0)], [GOOD])
    signals.write_bytes(signals.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"signals\.json\.gz is cut short"):
        list(
            judge(read_documents(path, text_field="raw_content"), path, signals, ["ccnet_perplexity<9"], is_whole=True)
        )


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("a>=50", ("a>=50",)),
        (" a >= 50.0 ; b<0.10+b<.1", ("a>=50", "b<0.1")),
        ("a==null;a!=-1e-3", ("a==null", "a!=-0.001")),
        ("some;a<9", ("a<1", "a>0", "a<9")),
    ],
)
def test_rules_are_written_in_one_way(text, rules):
    assert parse_rules(text, {"some": ("a<1", "a>0")}) == rules
    assert all(map(is_written_rule, rules)) and not is_written_rule("a>=50.0") and not is_written_rule(5)


@pytest.mark.parametrize("text", ["", "a", "a>", "a=5", "a>=5;", "a>null", "a>=5 or b<3", "a>=inf", "a>=1e9999"])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ValueError, match=r"^signals: "):
        parse_rules(text, {})


def test_the_manifest_has_the_published_sets_and_leaves_signals_alone():
    source = load_source("redpajama-v2")
    assert len(parse_source("redpajama-v2?signals=gopher").rules) == 17
    assert parse_source("redpajama-v2?signals=c4&signals=rpv1").rules == (
        "rps_doc_num_sentences>=3",
        "rps_doc_ldnoobw_words<=0",
        "rps_doc_lorem_ipsum<=0",
        "rps_doc_ml_wikiref_score>=0.25",
    )
    paths = [f"documents/{TAG}.json.gz", f"quality_signals/{TAG}.signals.json.gz"]
    paths += [f"duplicates/{TAG}.duplicates.parquet", f"minhash/{TAG}.minhash.parquet"]
    assert [file.path for file in choose_raw_files(source, dict.fromkeys(paths, 1)).files] == paths[:1]
    with pytest.raises(ValueError, match=r"slimpajama: \?signals= is for a source with quality signals"):
        parse_mix("slimpajama?signals=gopher:1")


@pytest.fixture
def mirror(tmp_path):
    """Two files of 60 documents, with signals, as they are published."""
    for number in (0, 1):
        tag = f"2023-06/000{number}/en_{'head' if number else 'middle'}"
        documents = [document(60 * number + row) for row in range(60)]
        signals = [describe(row, words=row, perplexity=10.0 * row, tag=tag) for row in range(60)]
        write_pair(tmp_path / "mirror", documents, signals, tag=tag)
    names = "".join(f"2023-06/000{number}/en_{'head' if number else 'middle'}\n" for number in (0, 1))
    (tmp_path / "mirror/listings").mkdir()
    (tmp_path / "mirror/listings/en-2023-06-head_middle.txt").write_text(names)
    return tmp_path / "mirror"


def flags(place, out, model, rules="rps_doc_word_count>=20;ccnet_perplexity<=500", more=""):
    mix = f"redpajama-v2?from={place}&signals={rules}:1"
    return f"--mix '{mix}' --out {out} --tokenizer {model} --dedup none --workers 1 {more}"


def test_a_build_drops_what_fails_with_the_rule_as_the_reason(run_build, run_command, mirror, sample_model, tmp_path):
    raw = tmp_path / "raw/redpajama-v2"
    shutil.copytree(mirror, raw)
    outcome = run_build(flags(raw, tmp_path / "out", sample_model))
    assert outcome.code == 0, outcome.error
    assert "redpajama-v2: 40 documents fail rps_doc_word_count>=20, among those excluded" in outcome.out
    content, kept = read_shards(tmp_path / "out")
    assert sorted((raw_file, row) for _, _, raw_file, row in kept) == [
        (n, row) for n in (0, 1) for row in range(20, 51)
    ]
    drops = read_drops(tmp_path / "out", content)
    assert {drop["row"]: drop["reason"] for drop in drops} == {
        **dict.fromkeys(range(20), "rps_doc_word_count>=20"),
        **dict.fromkeys(range(51, 60), "ccnet_perplexity<=500"),
    }
    assert not any(drop["item"] or drop["partner_source"] for drop in drops)
    source = content["sources"]["redpajama-v2"]
    assert source["counts"]["excluded"]["documents"] == 58 and source["counts"]["bad"]["documents"] == 0
    assert source["failed"] == {"rps_doc_word_count>=20": 40, "ccnet_perplexity<=500": 18}
    message, said = run_command(verify, tmp_path / "out", "--raw", tmp_path / "raw", "--fraction", 1)
    assert message == "" and "all right" in said
    again = run_build(flags(raw, tmp_path / "out", sample_model))
    assert again.code == 0 and "nothing to do" in again.out, again.error
    another = run_build(flags(raw, tmp_path / "out", sample_model, "rps_doc_word_count>=21"))
    assert another.code == 1 and "signals of redpajama-v2" in another.error
    shutil.rmtree(raw / "quality_signals")
    again = run_build(flags(raw, tmp_path / "out", sample_model))
    assert again.code == 0 and "nothing to do" in again.out, again.error


def test_verify_finds_a_document_that_the_signals_do_not_drop(run_build, run_command, mirror, sample_model, tmp_path):
    raw = tmp_path / "raw/redpajama-v2"
    shutil.copytree(mirror, raw)
    assert run_build(flags(raw, tmp_path / "out", sample_model)).code == 0
    tag = "2023-06/0000/en_middle"
    words = {**{row: row for row in range(60)}, 3: 93, 30: 1}
    lines = [describe(row, words=words[row], perplexity=10.0 * row, tag=tag) for row in range(60)]
    write_packed(raw / f"quality_signals/{tag}.signals.json.gz", lines)
    message, said = run_command(verify, tmp_path / "out", "--raw", tmp_path / "raw")
    said += message
    assert "the raw files are not those of which settings.raw_files holds the digest" in said
    assert "row 3: dropped as rps_doc_word_count>=20, but it has 30 characters and is not of an excluded subset" in said
    assert "row 30: kept, but it is one that fails rps_doc_word_count>=20" in said


def test_signals_of_a_mirror_are_fetched_with_its_documents(run_build, mirror, sample_model, tmp_path):
    shutil.copytree(mirror / "documents", tmp_path / "local")
    shutil.copytree(mirror / "quality_signals", tmp_path / "local/quality_signals")
    assert run_build(flags(tmp_path / "local", tmp_path / "here", sample_model)).code == 0
    files = {path.relative_to(mirror).as_posix(): path.read_bytes() for path in mirror.rglob("*.*")}
    with Server({f"v1/{name}": data for name, data in files.items()}) as server:
        server.faults = [Fault("middle.signals.json.gz", cut=100), Fault("head.signals.json.gz", status=500)]
        place = f"{server.url}/v1/listings/en-2023-06-head_middle.txt"
        outcome = run_build(flags(place, tmp_path / "out", sample_model))
        assert outcome.code == 0, outcome.error
        assert "their quality signals (" in outcome.out
        assert hashes(tmp_path / "out") == hashes(tmp_path / "here")
        dry = run_build(flags(place, tmp_path / "dry", sample_model, more="--dry-run"))
        assert dry.code == 0 and "62" in dry.out and "58" in dry.out, dry.error  # documents, and those excluded
        del server.files["v1/quality_signals/2023-06/0001/en_head.signals.json.gz"]
        outcome = run_build(flags(place, tmp_path / "out", sample_model, more="--replace"))
        assert outcome.code == 1 and "en_head.signals.json.gz: the server answers 404" in outcome.error


def test_a_raw_file_without_signals_is_one_line(run_build, mirror, sample_model, tmp_path):
    (mirror / "quality_signals/2023-06/0001/en_head.signals.json.gz").unlink()
    outcome = run_build(flags(mirror, tmp_path / "out", sample_model))
    assert outcome.code == 1 and "\n" not in outcome.error
    assert (
        "no quality signals of 1 raw files, the first of them documents/2023-06/0001/en_head.json.gz" in outcome.error
    )
    only = flags(mirror, tmp_path / "out", sample_model, "rps_doc_word_count>=20&only=middle")
    assert run_build(only).code == 0
