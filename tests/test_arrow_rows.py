"""Arrow files and streams as `datasets` writes them: the documents of the same rows in parquet."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.documents import read_documents

TEXTS = ["one", None, "", "two \u00e9", "x" * 100_000, *map(str, range(300))]


def write(path, table, *, as_file):
    make = pa.ipc.new_file if as_file else pa.ipc.new_stream
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return path


def read(path, **how):
    batches = list(read_documents(path, text_field="text", **how))
    texts = [text for batch in batches for text in batch.texts.to_pylist()]
    rows = [row for batch in batches for row in batch.rows.tolist()]
    bad = [(row["row"], row["reason"]) for batch in batches for row in batch.bad_rows]
    subsets = [one for batch in batches if batch.subsets is not None for one in batch.subsets.to_pylist()]
    return texts, rows, bad, subsets


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "stream"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_arrow_rows_are_parquet_rows(tmp_path, as_file, kind):
    meta = pa.array([{"redpajama_set_name": f"s{n % 3}"} for n in range(len(TEXTS))])
    table = pa.table({"id": range(len(TEXTS)), "text": pa.array(TEXTS).cast(kind), "meta": meta})
    path = write(tmp_path / "a.arrow", table, as_file=as_file)
    pq.write_table(table, tmp_path / "a.parquet")
    how = {"subset_field": "meta.redpajama_set_name"}
    assert read(path, **how) == read(tmp_path / "a.parquet", **how)
    assert len(read(path)[0]) == len(TEXTS) - 1


def test_what_is_cut_or_no_arrow_is_one_line(tmp_path):
    path = write(tmp_path / "a.arrow", pa.table({"text": TEXTS}), as_file=False)
    data = path.read_bytes()
    for wrong in (data[: len(data) // 2], b"", b"ARROW1", b"not arrow at all"):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"a\.arrow is cut short or not arrow, at row"):
            read(path)


def test_a_missing_column_is_one_line(tmp_path):
    path = write(tmp_path / "a.arrow", pa.table({"content": ["a"]}), as_file=True)
    with pytest.raises(ValueError, match="has no column 'text': it has content"):
        read(path)
