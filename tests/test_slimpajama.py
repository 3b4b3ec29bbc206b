"""SlimPajama's recipe against the libraries that it was made with."""

import json

import ftfy
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from near_fixtures import FEW_DOCUMENTS, build, write_texts

from pipeline.dataset import read_dataset_json
from pipeline.slimpajama import CleanTexts, clean, make_keys, normalise, normalise_texts, sign_texts

datasketch = pytest.importorskip("datasketch")
TEXTS = ("redpajama-c4.jsonl", "redpajama-cc-2023-06.jsonl", "redpajama-arxiv.jsonl", "stackexchange.jsonl")
PIECES = [
    "mill",
    " ",
    "\u00e9t\u00e9",
    "\u0130",
    "x&amp;y",
    "<p>",
    "\n",
    "\r\n",
    "\u2019",
    "\ufb01",
    "\u00c3\u00a9",
    "\x1b[31m",
    "\0",
    "\x85",
    "!?",
    "\u4e2d\u56fd",
    "\u2003",
    "\x1c",
    "\U0001f600",
]


def read_texts(shared_data):
    folder = shared_data / "text"
    texts = [json.loads(line)["text"] for name in TEXTS for line in (folder / name).read_text().splitlines()]
    for path in sorted(folder.glob("*.txt")):
        texts += [part for part in path.read_text(encoding="utf-8").split("\n \n") if part.strip()][:60]
    return texts


def generate_texts(count):
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(PIECES, rng.integers(0, 60))) for _ in range(count)]


def sign_by_datasketch(text):
    minhash = datasketch.MinHash(num_perm=128)
    cleaned = clean(text)
    minhash.update_batch([cleaned[place : place + 13].encode() for place in range(len(cleaned) - 12)])
    return minhash.hashvalues.astype(np.uint64)


def clean_as_published(text):
    """modelzoo's own lines."""
    import re
    import string

    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\s+", " ", text.strip())


@pytest.mark.long
def test_signatures_of_real_texts_are_datasketchs(shared_data):
    texts = [normalise(text) for text in read_texts(shared_data)]
    found = sign_texts(CleanTexts.of(pa.array(texts)))
    for text, signature in zip(texts, found, strict=True):
        assert np.array_equal(signature, sign_by_datasketch(text))


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.long)])
def test_signatures_of_generated_texts_are_datasketchs(count):
    texts = [normalise(text) for text in generate_texts(count)]
    found = sign_texts(CleanTexts.of(pa.array(texts)))
    for text, signature in zip(texts, found, strict=True):
        assert np.array_equal(signature, sign_by_datasketch(text))


@settings(deadline=None)
@given(st.text(st.sampled_from("aZ 9!-_\t\n\x0b\x1c\0\u00e9\u0130\u2003\u4e2d"), max_size=40))
def test_texts_are_cleaned_as_published(text):
    texts = CleanTexts.of(pa.array(["x", text, ""]))
    assert bytes(texts.data[texts.offsets[1] : texts.offsets[2]]).decode() == clean(text) == clean_as_published(text)
    assert texts.num_chars.tolist() == [1, len(clean(text)), 0]


def test_normalisation_is_ftfys(shared_data):
    for text in [*read_texts(shared_data), *generate_texts(100)]:
        assert normalise(text) == ftfy.fix_text(text, normalization="NFC")


@settings(deadline=None)
@given(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12))
def test_normalisation_of_any_text_is_ftfys(text, pieces):
    text = text.encode("utf-8", "ignore").decode() + "".join(pieces)
    assert normalise(text) == ftfy.fix_text(text, normalization="NFC")


def test_texts_that_do_not_change_are_not_copied():
    texts = pa.array(["plain text", "two\nlines"])
    assert normalise_texts(texts) is texts


def test_components_and_what_stays_are_those_of_datasketchs_bands(tmp_path, sample_model, run_build):
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(11)
    words = [f"word{number}" for number in range(300)]
    texts = []
    for _ in range(25):
        base = rng.choice(words, rng.integers(20, 60))
        for _ in range(4):
            changed = np.where(rng.random(len(base)) < 0.02, "changed", base)
            texts.append(" ".join(changed[: rng.integers(len(base) - 3, len(base) + 1)]))
    texts += ["too short", "!!", "tiny", texts[5]]
    write_texts(tmp_path / "raw/web", texts)
    dropped = build(run_build, tmp_path, sample_model, f"--dedup slimpajama {FEW_DOCUMENTS}")
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(texts)))
    bands = {}
    for number, text in enumerate(texts):
        values = sign_by_datasketch(normalise(text))
        for band in range(9):
            key = band, bytes(values[13 * band : 13 * (band + 1)].byteswap())
            graph.add_edge(number, bands.setdefault(key, number))
    is_short = [len(clean_as_published(text)) < 200 for text in texts]
    expected = {}
    for component in networkx.connected_components(graph):
        long = sorted(number for number in component if not is_short[number])
        expected.update(dict.fromkeys(long[1:], min(long, default=None)))
    assert {row: found[2] for (_, row), found in dropped.items() if found[0] != "short"} == expected
    assert {row for (_, row), found in dropped.items() if found[0] == "short"} == set(np.flatnonzero(is_short))
    assert len(expected) > 20 and sum(is_short) > 3


def test_a_short_document_connects_two_that_are_kept_apart_without_it(tmp_path, sample_model, run_build):
    """Those too short to keep take part, as in the original: found by looking for such a chain among many."""
    rng = np.random.default_rng(2)
    chain = None
    while chain is None:
        first = "".join(rng.choice(list("abcdefghij "), 199)).strip()
        texts = [first + "x" * count for count in (8, 0)] + ["yyy" + first[:-2] + "z" * 8]
        keys = make_keys(pa.array(texts))
        shares = [(keys[a] == keys[b]).any() for a, b in ((0, 1), (1, 2), (0, 2))]
        lengths = [len(clean(text)) for text in texts]
        if shares == [True, True, False] and lengths[0] >= 200 > lengths[1] and lengths[2] >= 200:
            chain = texts
    write_texts(tmp_path / "raw/web", chain)
    dropped = build(run_build, tmp_path, sample_model, f"--dedup slimpajama {FEW_DOCUMENTS}")
    assert {row: found[:3] for (_, row), found in dropped.items()} == {
        1: ("short", None, None),
        2: ("duplicate_near", "web", 0),
    }


def test_verify_agrees_and_texts_are_changed_as_ftfy_changes_them(tmp_path, sample_model, run_build, monkeypatch):
    from pipeline.verify import main as verify_main

    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(["\u201cmill\u201d", "caf\u00c3\u00a9", "stone", "wheel"], 80)) for _ in range(6)]
    write_texts(tmp_path / "raw/web", [*texts, texts[0], texts[1] + "!", "short"])
    dropped = build(run_build, tmp_path, sample_model, f"--dedup slimpajama {FEW_DOCUMENTS}")
    assert {row: found[0] for (_, row), found in dropped.items()} == {
        6: "duplicate_exact",
        7: "duplicate_near",
        8: "short",
    }
    monkeypatch.setattr("sys.argv", ["verify.py", f"{tmp_path}/out", "--raw", f"{tmp_path}/raw"])
    verify_main()


def read_lines(path):
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def test_the_texts_that_stay_are_written_in_slimpajamas_layout(tmp_path, sample_model, run_build):
    rng = np.random.default_rng(4)
    texts = {
        name: [" ".join(rng.choice(["\u201cmill\u201d", "wheel", "water", f"{name}"], 80)) for _ in range(3)]
        for name in ("arxiv", "c4")
    }
    texts["c4"] += [texts["arxiv"][0], "short"]
    for name, own in texts.items():
        write_texts(tmp_path / f"raw/redpajama/{name}", own, f"{name}.jsonl")
    more = f"--dedup slimpajama --write-text {tmp_path}/text --valid-fraction 0.3"
    build(run_build, tmp_path, sample_model, more, mix="redpajama:1")
    lines = {}
    for path in sorted((tmp_path / "text").rglob("*.jsonl.zst")):
        split, chunk, name = path.relative_to(tmp_path / "text").parts
        assert (split, name.rpartition("_")[0]) in {(one, f"example_{one}") for one in ("train", "validation")}
        assert chunk == "chunk1"
        lines.setdefault(split, []).extend(read_lines(path))
    content = read_dataset_json(tmp_path / "out")
    kept = {split: entry["documents"] for split, entry in content["sources"]["redpajama"]["splits"].items()}
    assert {split: len(of_split) for split, of_split in lines.items()} == kept
    found = {(line["text"], line["meta"]["redpajama_set_name"]) for of_split in lines.values() for line in of_split}
    names = {"arxiv": "RedPajamaArXiv", "c4": "RedPajamaC4"}
    expected = {
        (text.replace("\u201c", '"').replace("\u201d", '"'), names[name]) for name in texts for text in texts[name][:3]
    }
    assert found == expected


def test_texts_are_written_where_nothing_else_is(tmp_path, sample_model, run_build):
    rng = np.random.default_rng(4)
    write_texts(tmp_path / "raw/web", [" ".join(rng.choice(["mill", "wheel", "water"], 80)) for _ in range(20)])
    command = f"--mix web:1 --raw {tmp_path}/raw --out {tmp_path}/out --tokenizer {sample_model} --workers 1"
    text = f"--write-text {tmp_path}/text"
    for place in ("raw/web/more", "out/text", "out"):
        outcome = run_build(f"{command} --write-text {tmp_path / place}")
        assert outcome.code == 1
        assert f"--write-text {tmp_path / place} must be a folder of its own" in outcome.error
    assert run_build(f"{command} {text} --valid-fraction 0.5").code == 0
    files = sorted((tmp_path / "text").rglob("*.zst"))
    assert len(files) == 2
    assert run_build(f"{command} {text} --valid-fraction 0.5").code == 0  # nothing to do
    outcome = run_build(f"{command} {text} --valid-fraction 0 --replace")  # would leave the validation texts there
    assert outcome.code == 1
    assert f"--write-text {tmp_path}/text holds train/chunk1/{files[0].name}" in outcome.error
    assert sorted((tmp_path / "text").rglob("*.zst")) == files
    outcome = run_build(f"{command} --write-text {tmp_path}/other --valid-fraction 0.5")
    assert outcome.code == 1
    assert "texts are written while a dataset is built" in outcome.error
