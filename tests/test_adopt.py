"""Imports of other programs' token files: the dtype is the one that was written, and a lie of an index is named."""

import numpy as np
import pytest

from pipeline.export import ExportArguments, export
from pipeline.shard import MEGATRON_HEADER, MEGATRON_MAGIC, open_tokens, read_dataset_json

IDS = [5, 6, 2, 300, 2]


@pytest.fixture
def adopt(tmp_path, sample_model):
    """Import tmp_path/old as a function of more settings; returns OUT."""

    def adopt(**settings):
        arguments = {"import_from": tmp_path / "old", "out": tmp_path / "out", "tokenizer": str(sample_model)}
        export(ExportArguments(**{**arguments, **settings}))
        return tmp_path / "out"

    (tmp_path / "old").mkdir()
    return adopt


@pytest.fixture
def old(tmp_path, adopt):
    return tmp_path / "old"


def read_ids(folder, number=0):
    content = read_dataset_json(folder)
    (source,) = content["sources"].values()
    shard = source["splits"]["train"]["shards"][number]
    dtype = np.dtype(content["dtype"])
    return dtype.name, open_tokens(folder / shard["path"], dtype=dtype, num_tokens=shard["tokens"]).tolist()


def write_datatrove(path, dtype, *, ends=None, metadata=None):
    np.array(IDS, dtype).tofile(path)
    if ends is not None:
        np.array(ends, "<u8").tofile(path.with_name(path.name + ".index"))
    if metadata is not None:
        path.with_name(path.name + ".metadata").write_text(metadata)


def write_megatron(path, *, dtype="<u2", lengths=(3, 2), indices=(0, 1, 2)):
    ids, lengths = np.array(IDS, dtype), np.array(lengths, "<i4")
    ids.tofile(path)
    code = 8 if ids.itemsize == 2 else 4
    header = MEGATRON_HEADER.pack(MEGATRON_MAGIC, 1, code, len(lengths), len(indices))
    starts = (np.cumsum(lengths) - lengths) * ids.itemsize
    arrays = [lengths, starts.astype("<i8"), np.array(indices, "<i8")]
    path.with_suffix(".idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))


@pytest.mark.parametrize("size", [2, 4])
def test_datatroves_metadata_says_the_dtype(old, adopt, size):
    write_datatrove(old / "a.ds", f"<u{size}", ends=[3, 5], metadata=f"gpt2|{size}\n5\n5 tokens\n")
    assert read_ids(adopt()) == (f"uint{8 * size}", IDS)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_the_dtype_of_files_that_do_not_say_it_can_be_given(old, adopt, dtype):
    np.array(IDS, dtype).tofile(old / "a.npy")
    assert read_ids(adopt(dtype=dtype)) == (dtype, IDS)


@pytest.mark.parametrize(
    ("write", "settings", "expected"),
    [
        (
            lambda old: np.array(IDS, "<u4").tofile(old / "a.npy"),
            {},
            "looks like uint32, not uint16: give --dtype uint32",
        ),
        (lambda old: write_datatrove(old / "a.ds", "<u4"), {}, "looks like uint32, not uint16: give --dtype uint32"),
        (lambda old: write_datatrove(old / "a.ds", "<u4", ends=[3, 5]), {}, "give --dtype uint32"),
        (lambda old: write_datatrove(old / "a.ds", "<u4", metadata="x|4"), {"dtype": "uint16"}, "metadata says uint32"),
        (lambda old: write_datatrove(old / "a.ds", "<u4", metadata="x|3\n5"), {}, "says 3 bytes per id"),
        (lambda old: write_datatrove(old / "a.ds", "<u2", ends=[3, 5], metadata="x|4"), {}, "which are no uint32 ids"),
        (lambda old: np.array([*IDS, 2], "<u2").tofile(old / "a.npy"), {"dtype": "uint32"}, "its ids are not uint32"),
        (lambda old: write_megatron(old / "a.bin"), {"dtype": "uint32"}, "a.idx says uint16. Leave --dtype out"),
    ],
)
def test_ids_are_never_read_as_another_dtype(old, adopt, write, settings, expected):
    write(old)
    with pytest.raises(ValueError, match=expected):
        adopt(**settings)


def test_files_of_two_dtypes_are_refused_with_both(old, adopt):
    write_megatron(old / "a.bin")
    write_megatron(old / "b.bin", dtype="<i4")
    with pytest.raises(ValueError, match=r"a\.bin has uint16 ids, .*b\.bin uint32: a dataset has one dtype"):
        adopt()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"indices": (0, 1, 9)}, r"indices \(0, 1, 9, ..., 9\) do not rise from 0 to its 2 sequences"),
        ({"indices": (1, 1, 2)}, "do not rise from 0"),
        ({"indices": (0, 2, 1, 2)}, "do not rise from 0"),
        ({"indices": (0, -1, 2)}, "do not rise from 0"),
        ({"indices": ()}, "its 0 document indices"),
        ({"lengths": (7, -2)}, "do not lie end to end"),
        ({"lengths": (3, 1)}, "has 5 uint16 ids, its index ends at 4"),
    ],
)
def test_a_megatron_index_that_lies_is_named(old, adopt, changed, expected):
    write_megatron(old / "a.bin", **changed)
    with pytest.raises(ValueError, match=expected):
        adopt()


def test_ends_that_fall_are_named(old, adopt):
    write_datatrove(old / "a.ds", "<u2", ends=[3, 1, 5])
    with pytest.raises(ValueError, match="by its index document 1 ends before it begins"):
        adopt()


@pytest.mark.parametrize("source", ["../../evil", "a:b,c", "..", "a/b", "tokenizer"])
def test_a_source_has_a_name_within_the_dataset(old, adopt, tmp_path, source):
    write_megatron(old / "a.bin")
    with pytest.raises(ValueError, match="source name '|give the source another name"):
        adopt(source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_without_a_name_for_a_source_asks_for_one(old, adopt):
    old.rename(old.with_name("\u0434\u0430"))
    write_megatron(old.with_name("\u0434\u0430") / "a.bin")
    with pytest.raises(ValueError, match="makes no name of a source: give one, as --source web"):
        adopt(import_from=old.with_name("\u0434\u0430"))
    assert read_ids(adopt(import_from=old.with_name("\u0434\u0430"), source="web")) == ("uint16", IDS)
