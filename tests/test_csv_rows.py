"""CSV and TSV files: rows as RFC 4180 has them, texts as they stand there, and one line for what is none."""

import csv
import gzip
import io

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.documents import read_documents
from pipeline.manifest import Source, choose_raw_files

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
TEXTS = ["one", "007", "", "null", 'a "quoted" word', "two\nlines, and a comma", "été 🌾", " space ", "1e5"]


def write_csv(path, rows, *, delimiter=",", packing=""):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    path.write_bytes(PACKERS[packing](text.getvalue().encode()))
    return path


def read_all(path, **how):
    batches = list(read_documents(path, text_field="text", **how))
    documents = [pair for batch in batches for pair in zip(batch.rows.tolist(), batch.texts.to_pylist(), strict=True)]
    return documents, [int(row) for batch in batches for row in batch.bad_rows["row"]]


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_texts_come_out_as_they_went_in_with_their_rows(tmp_path, ending, delimiter, packing):
    rows = [("id", "text"), *enumerate(TEXTS)]
    path = write_csv(tmp_path / f"a{ending}{packing}", rows, delimiter=delimiter, packing=packing)
    assert read_all(path) == (list(enumerate(TEXTS)), [])


@given(st.lists(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_comes_back(tmp_path_factory, texts):
    rows = [("text", "n"), *((text, number) for number, text in enumerate(texts))]
    assert read_all(write_csv(tmp_path_factory.mktemp("csv") / "a.csv", rows)) == (list(enumerate(texts)), [])


def test_bytes_that_are_no_text_are_a_bad_row(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,n\r\ngood,1\r\n\r\n\xff\xfe,2\r\nlast,3")
    assert read_all(tmp_path / "a.csv") == ([(0, "good"), (2, "last")], [1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,n\na,1\nb\n", r"a\.csv is cut short or not CSV, at row \d+: .*Expected 2 columns, got 1"),
        (b"", r"a\.csv is cut short or not CSV, at row 0: Empty CSV file"),
        (b"body,n\na,1\n", r"a\.csv has no column 'text': it has body, n"),
        (b"text,text\na,b\n", r"a\.csv has more than one column 'text'"),
        (b'text\n"' + b"x" * 5000 + b'"\n', r"a\.csv is cut short or not CSV, at row 0: .*straddles two block"),
    ],
)
def test_what_is_no_csv_is_one_line(tmp_path, monkeypatch, content, said):
    monkeypatch.setattr("pipeline.csv_rows.BLOCK_BYTES", 2000)
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_all(tmp_path / "a.csv")


def test_tables_are_read_only_where_there_is_nothing_else():
    alone = choose_raw_files(Source("notes"), {"a.csv": 1, "b.tsv.gz": 1, "c.md": 1})
    assert [file.path for file in alone.files] == ["a.csv", "b.tsv.gz"] and alone.ignored == ("c.md",)
    beside = choose_raw_files(Source("notes"), {"index.csv": 1, "b.jsonl": 1})
    assert [file.path for file in beside.files] == ["b.jsonl"] and beside.ignored == ("index.csv",)


def test_a_dataset_of_tables_is_verified_and_explained_from_its_rows(tmp_path, sample_model, run_build, run_command):
    from pipeline.explain import main as explain
    from pipeline.verify import main as verify

    (tmp_path / "raw/notes").mkdir(parents=True)
    write_csv(tmp_path / "raw/notes/a.csv", [("id", "body"), *((n, f"{text} {n}") for n, text in enumerate(TEXTS))])
    command = f"--mix notes?column=body:1 --raw {tmp_path / 'raw'} --out {tmp_path / 'out'} --tokenizer {sample_model}"
    outcome = run_build(command)
    assert outcome.code == 0, outcome.error
    assert run_command(verify, tmp_path / "out", "--raw", tmp_path / "raw", "--fraction", "1")[0] == ""
    said = run_command(explain, tmp_path / "out", "--document", "a.csv:5", "--raw", tmp_path / "raw")[1]
    assert "notes  a.csv:5" in said and "two\\nlines, and a comma 5" in said
