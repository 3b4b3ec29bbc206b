"""--decontaminate: which documents have a span of words in common with evaluation texts, and what is said of it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_rows
from hypothesis import given
from hypothesis import strategies as st
from near_fixtures import write_texts
from test_minhash import ALPHABET, flatten, split_words

from pipeline.contamination import MOST_SPANS, describe_rule, keep_spans, open_contamination
from pipeline.dataset import read_dataset_json
from pipeline.evaluation_files import find_evaluation_files, list_strings, read_texts
from pipeline.explain import main as explain_main
from pipeline.folding import fold_documents
from pipeline.span_kernels import CHUNK_BYTES, SPAN_WORDS, SpanList, find_spans, list_spans
from pipeline.verify import main as verify_main
from pipeline.verify_raw import verify_raw_files

SPAN = [f"word{number}" for number in range(SPAN_WORDS)]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]
SENTENCE = "The quick brown fox, it's said, jumps over the lazy dogs by the old mill."  # 16 words


def find(documents, texts):
    """For each document which of the texts is found in it first, or None; the kernels alone."""
    first, second, counts = list_spans(*fold_documents(*flatten(texts)))
    order = np.argsort(first, kind="stable")
    of_texts = np.repeat(np.arange(len(texts)), counts)[order]
    found = find_spans(*fold_documents(*flatten(documents)), SpanList.of(first[order], second[order]))
    return [None if one < 0 else int(of_texts[one]) for one in found]


def find_plainly(document, texts):
    """The same by the definition."""
    spans = {}
    for number, text in enumerate(texts):
        words = split_words(text)
        for start in range(len(words) - SPAN_WORDS + 1):
            spans.setdefault(tuple(words[start : start + SPAN_WORDS]), number)
    words = split_words(document)
    starts = range(len(words) - SPAN_WORDS + 1)
    return next((spans[span] for start in starts if (span := tuple(words[start : start + SPAN_WORDS])) in spans), None)


@pytest.mark.parametrize(("shared", "found"), [(SPAN_WORDS - 1, None), (SPAN_WORDS, 0)])
def test_thirteen_words_in_a_row_are_found_and_twelve_are_not(shared, found):
    document = " ".join(["before", *SPAN[:shared], "behind", "it"])
    assert find([document], [" ".join(["other", *SPAN, "end"])]) == [found]


@pytest.mark.parametrize(
    "document",
    [
        SENTENCE,
        f"{SENTENCE} And more.",
        f"Before it. {SENTENCE}",
        SENTENCE.upper(),
        SENTENCE.replace(" ", "\n\n"),
        SENTENCE.replace(",", ";").replace(" ", "  -- "),
        SENTENCE.replace("o", "o\u0301"),
        SENTENCE.replace(" ", "\u2003"),
    ],
)
def test_case_punctuation_and_line_breaks_hide_nothing(document):
    assert find([document], ["other words", SENTENCE]) == [1]


@pytest.mark.parametrize("filler", ["x ", "longerwordsthansixteenletters, ", "\u4e2d", "\u00e9\u2003"])
def test_a_span_is_found_at_every_place_around_the_border_of_a_chunk(filler):
    width = len(fold_documents(*flatten([filler]))[0]) - 16
    near = range((CHUNK_BYTES - 120) // width, (CHUNK_BYTES + 40) // width + 2)
    documents = [filler * count + " ".join(SPAN) + " " + filler * 3 for count in near]
    assert find(documents, [" ".join(SPAN)]) == [0] * len(documents)


def test_words_of_any_length_are_told_apart():
    for length in (1, 7, 8, 9, 15, 16, 17, 2 * CHUNK_BYTES):
        words = [*SPAN[:6], "a" * length, *SPAN[6:12]]
        assert find([" ".join(words)], [" ".join(words)]) == [0]
        for other in ("a" * (length + 1), "a" * (length - 1) + "b"):
            assert find([" ".join([*SPAN[:6], other, *SPAN[6:12]])], [" ".join(words)]) == [None]


def test_words_in_another_order_are_another_span():
    words = [*SPAN[:3], SPAN[5], SPAN[4], SPAN[3], *SPAN[6:]]
    assert find([" ".join(words), "a b " * 40], [" ".join(SPAN), "b a " * 6 + "b"]) == [None, 1]


def test_chinese_characters_are_words():
    text = "\u6211\u4eec\u7684\u78e8\u574a\u5f88\u8001\u5b83\u5728\u6cb3\u8fb9\u7684\u6751"
    assert len(text) == SPAN_WORDS
    document = f"\u4ed6\u8bf4\uff1a{text[:7]}\u3002{text[7:]}\uff01"
    assert find([document, document.replace(text[3], "\u5c71")], [text]) == [0, None]


@given(st.lists(st.text(ALPHABET, max_size=60), min_size=1, max_size=4), st.data())
def test_what_is_found_follows_the_definition(texts, data):
    pieces = st.one_of(st.text(ALPHABET, max_size=10), st.sampled_from(texts))
    documents = ["".join(data.draw(st.lists(pieces, max_size=4))) for _ in range(3)]
    assert find(documents, texts) == [find_plainly(document, texts) for document in documents]


def test_every_string_of_an_item_is_a_text_by_itself():
    item = {"id": 3, "question": "q", "choices": {"text": ["a", None, "b"], "label": []}, "more": [["c"], {"d": "e"}]}
    assert list(list_strings(item)) == [
        ("question", "q"),
        ("choices.text[0]", "a"),
        ("choices.text[2]", "b"),
        ("more[0][0]", "c"),
        ("more[1].d", "e"),
    ]


def write_items(path, items):
    """Evaluation items in the layout that the file's ending says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(items), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(items)
        make = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with make(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        data = b"".join(json.dumps(item).encode() + b"\n" for item in items)
        compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
        with pa.output_stream(str(path), compression=compression) as file:
            file.write(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.zst", "stream.arrow", "file.arrow", "a.parquet"])
def test_all_layouts_hold_the_same_texts(tmp_path, name):
    items = [{"question": "q", "choices": ["a", "b"], "answer": number} for number in range(150)]
    (file,) = find_evaluation_files([write_items(tmp_path / name, items)])
    texts = [(one.row, one.field, one.text) for one in read_texts(file)]
    assert texts[:3] == [(0, "question", "q"), (0, "choices[0]", "a"), (0, "choices[1]", "b")]
    assert texts[-1] == (149, "choices[1]", "b")


def keep(paths, folder):
    notices = []
    own = keep_spans(paths, describe_rule(find_evaluation_files(paths)), folder, notice=notices.append)
    return open_contamination(own), notices[0]


def test_the_real_evaluation_files_load_and_find_themselves(shared_data, tmp_path):
    paths = sorted((shared_data / "eval").glob("*.arrow"))
    if not paths:
        pytest.skip("needs ../shared/data/eval")
    contamination, notice = keep(paths, tmp_path)
    assert f"in {len(paths)} files" in notice
    texts = [one.text for file in find_evaluation_files(paths[:2]) for one in read_texts(file)]
    found = contamination.find(pa.array(texts))
    assert [number > 0 for number in found] == [len(split_words(text)) >= SPAN_WORDS for text in texts]


def test_bad_evaluation_files_are_refused_by_name_and_line(tmp_path):
    def refuse(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            keep([tmp_path / name], tmp_path / "spans")

    refuse("empty.jsonl", b"", "empty.jsonl: it holds no text")
    refuse("blank.jsonl", b"\n\n", "blank.jsonl: it holds no text")
    refuse("numbers.jsonl", b'{"answer": 3}\n', "numbers.jsonl: it holds no text")
    refuse("broken.jsonl", b'{"q": "a"}\n\n{"q": \n', r"broken.jsonl row 2 \(line 3\) is not JSON")
    refuse("latin.jsonl", b'{"q": "\xe9"}\n', r"latin.jsonl row 0 \(line 1\) is not JSON")
    refuse("array.json", b'[\n{"q": "a"}\n]\n', "must become JSON lines")
    refuse("deep.jsonl", b"[" * 100_000 + b"\n", r"deep.jsonl row 0 \(line 1\) is not JSON")
    refuse("cut.parquet", b"PAR1", "cut.parquet: not readable from row 0 on")
    refuse("cut.arrow", b"\xff\xff\xff\xff", "cut.arrow: not readable from row 0 on")
    refuse("cut.jsonl.gz", b"\x1f\x8b\x08", "cut.jsonl.gz is cut short")
    refuse("words.txt", b"text", "no reader for this ending")
    with pytest.raises(FileNotFoundError, match=r"gone.jsonl: it is not there"):
        find_evaluation_files([tmp_path / "gone.jsonl"])
    with pytest.raises(FileNotFoundError, match="is a folder"):
        find_evaluation_files([tmp_path])


def test_odd_items_are_read(tmp_path):
    rows = [
        b'"' + SENTENCE.encode() + b'"',
        b"3",
        b'{"q": "half a pair \\ud800 \\u0000"}',
        b'[{"": "' + b"a " * 13 + b'"}]',
    ]
    contamination, notice = keep([write_rows(tmp_path / "odd.jsonl", rows)], tmp_path / "spans")
    assert "5 spans of 13 words from 3 items in 1 files; 1 of these" in notice
    assert list(contamination.find(pa.array([SENTENCE, "a-" * 14, "half a pair"])) > 0) == [True, True, False]


def test_too_much_text_to_be_evaluation_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.contamination.MOST_SPANS", 2)
    assert MOST_SPANS > 10**7
    with pytest.raises(ValueError, match="more than 2 words up to .*no evaluation files"):
        keep([write_rows(tmp_path / "a.jsonl", [{"q": SENTENCE}])], tmp_path / "spans")


def test_files_of_one_name_are_told_apart_and_copies_count_once(tmp_path):
    paths = [write_rows(tmp_path / folder / "test.jsonl", [{"q": folder}]) for folder in ("a", "b")]
    copy = write_rows(tmp_path / "copy.jsonl", [{"q": "a"}])
    names = [file.name for file in find_evaluation_files([*paths, copy])]
    assert [name.partition("@")[0] for name in names] == ["test.jsonl", "test.jsonl"]
    assert len(set(names)) == 2
    assert find_evaluation_files([*paths[::-1]]) == find_evaluation_files(paths)


def test_a_damaged_table_is_refused(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"q": SENTENCE}])
    rule = describe_rule(find_evaluation_files([path]))
    own = keep_spans([path], rule, tmp_path / "spans", notice=print)
    (tmp_path / "spans").joinpath(own, "first.npy").write_bytes(b"other")
    with pytest.raises(ValueError, match="first.npy is damaged"):
        open_contamination(own)
    write_rows(path, [{"q": "another"}])
    with pytest.raises(ValueError, match="these are not the files"):
        keep_spans([path], rule, tmp_path / "spans", notice=print)


@pytest.fixture
def corpus(tmp_path):
    """Two sources with validation of their own in one, some documents with a planted span, and the evaluation files."""
    items = [{"question": "short", "choices": ["none", " ".join(SPAN)]}, {"question": SENTENCE, "id": " ".join(SPAN)}]
    evaluation = [
        write_rows(tmp_path / "eval/test.jsonl", items),
        write_items(tmp_path / "eval/qa.arrow", [{"passage": " ".join(LETTERS[:12]), "more": LETTERS[12:]}]),
    ]
    texts = [f"document {number} about nothing at all" for number in range(40)]
    texts[3] = f"It began so: {SENTENCE.upper()}"
    texts[5] = " ".join(SPAN[:12])
    texts[7] = f"a copy {' '.join(SPAN)} of it"
    texts[9] = f"{' '.join(SPAN)} {SENTENCE}"
    texts[11] = " ".join(LETTERS)  # of two fields
    write_texts(tmp_path / "raw/web", texts)
    write_texts(tmp_path / "raw/notes", [*texts[:4], texts[7]], "train/a.jsonl")
    write_texts(tmp_path / "raw/notes", ["fine", f"\n{SENTENCE}"], "validation/a.jsonl")
    return evaluation


def build(run_build, folder, model, evaluation, more="--dedup none", out="out"):
    flags = f"--mix web:0.5,notes:0.5 --raw {folder}/raw --out {folder}/{out} --tokenizer {model} --workers 1"
    outcome = run_build(f"{flags} --decontaminate {' '.join(map(str, evaluation))} {more}")
    assert outcome.code == 0, outcome.error
    return outcome.out


def read_items_dropped(out):
    """Contaminated documents as (source, row) -> item."""
    rows = {
        (name, row["raw_file"], row["row"]): row
        for name, source in read_dataset_json(out)["sources"].items()
        for file in source["drops"]
        for row in pq.read_table(out / file["path"]).to_pylist()
    }
    assert all((row["reason"] == "contaminated") == (row["item"] is not None) for row in rows.values())
    return {key: row["item"] for key, row in rows.items() if row["item"] is not None}


EXPECTED = {
    ("web", 0, 3): "test.jsonl:1 question",
    ("web", 0, 7): "test.jsonl:0 choices[1]",
    ("web", 0, 9): "test.jsonl:0 choices[1]",
    ("notes", 0, 3): "test.jsonl:1 question",
    ("notes", 0, 4): "test.jsonl:0 choices[1]",
    ("notes", 1, 1): "test.jsonl:1 question",
}


def test_contaminated_documents_go_and_the_drop_list_names_the_item(
    tmp_path, sample_model, run_build, run_command, corpus
):
    said = build(run_build, tmp_path, sample_model, corpus)
    assert "from 3 items in 2 files; 1 of these" in said
    assert "notes: 3 documents contaminated by evaluation texts, listed in" in said
    assert read_items_dropped(tmp_path / "out") == EXPECTED
    content = read_dataset_json(tmp_path / "out")
    rule = content["settings"]["decontaminate"]
    assert rule["span_words"] == 13
    assert list(rule["files"]) == ["qa.arrow", "test.jsonl"]
    assert str(tmp_path) not in json.dumps(content)
    assert content["sources"]["notes"]["counts"]["contaminated"]["documents"] == 3
    for more in ("", f"--decontaminate {corpus[1]} {corpus[0]}"):
        message, out = run_command(verify_main, tmp_path / "out", "--raw", tmp_path / "raw", *more.split())
        assert message == "", out
        assert ("contaminated documents are not looked at" in out) == (not more)
    _, out = run_command(explain_main, tmp_path / "out", "--document", "a.jsonl:3")
    assert "not kept: contaminated" in out
    assert "shares a span of words with test.jsonl:1 question" in out


def test_dry_run_counts_contaminated_documents(tmp_path, sample_model, run_build, corpus):
    said = build(run_build, tmp_path, sample_model, corpus, more="--dry-run")
    assert "web: 3 documents contaminated by evaluation texts" in said
    assert not (tmp_path / "out").exists()


def test_other_evaluation_files_are_another_dataset(tmp_path, sample_model, run_build, corpus):
    build(run_build, tmp_path, sample_model, corpus)
    (tmp_path / "moved").mkdir()
    moved = [path.rename(tmp_path / "moved" / path.name) for path in corpus]
    assert "nothing to do" in build(run_build, tmp_path, sample_model, moved[::-1])
    flags = f"--mix web:0.5,notes:0.5 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --dedup none"
    for more in ("", f"--decontaminate {moved[0]}"):
        outcome = run_build(f"{flags} {more}")
        assert "holds another dataset" in outcome.error
        assert "decontaminate" in outcome.error


def test_verify_finds_false_claims_about_contamination(tmp_path, sample_model, run_build, run_command, corpus):
    build(run_build, tmp_path, sample_model, corpus)
    write_items(corpus[1], [{"passage": "changed"}])
    message, _ = run_command(verify_main, tmp_path / "out", "--raw", tmp_path / "raw", "--decontaminate", *corpus)
    assert "these are not the files of settings.decontaminate" in message
    message, _ = run_command(verify_main, tmp_path / "out", "--decontaminate", *corpus)
    assert "give --raw" in message
    others = [write_rows(tmp_path / "eval/test.jsonl", [{"question": SENTENCE}, {"question": " ".join(LETTERS)}])]
    spans = keep_spans(others, describe_rule(find_evaluation_files(others)), tmp_path, notice=print)
    content = read_dataset_json(tmp_path / "out")
    found = verify_raw_files(tmp_path / "out", content, raw=tmp_path / "raw", fraction=0, seed=0, contamination=spans)
    assert [text.partition("/raw/")[2] for text in found if "/web/" in text] == [
        "web/a.jsonl row 11: kept, but it is contaminated",
        "web/a.jsonl row 3: dropped as contaminated, but the first span that it shares is of another item",
        "web/a.jsonl row 7: dropped as contaminated, but it has 93 characters and is not of an excluded subset",
        "web/a.jsonl row 9: dropped as contaminated, but the first span that it shares is of another item",
    ]


def test_a_span_common_to_most_documents_stops_the_build(tmp_path, sample_model, run_build, corpus):
    licence = " ".join(SPAN)
    write_texts(tmp_path / "raw/web", [f"{licence} {number}" for number in range(20)] + ["fine"] * 2)
    flags = f"--mix web:1 --raw {tmp_path}/raw --tokenizer {sample_model} --decontaminate {corpus[0]} --dedup none"
    outcome = run_build(f"{flags} --out {tmp_path}/out")
    assert "web loses 20 of 22 documents (90.9%) to --decontaminate" in outcome.error
    assert run_build(f"{flags} --out {tmp_path}/out --max-dup-fraction 1").code == 0
