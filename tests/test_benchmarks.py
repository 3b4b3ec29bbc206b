"""The parts of the benchmarks that could make a figure wrong: their text, and the tokenizers that they hand to others."""

import gzip
import json
import sys
from collections import Counter

import pytest
import tiktoken
import tokenizers
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY))  # benchmarks are scripts, not part of the installed packages

from benchmarks.corpus import leave_out_repeated, list_files, read_lines, read_text, strip_roff, write_corpus
from benchmarks.hub_json import build_hub_json, convert_ranks
from benchmarks.ingest import make_task, time_profiled
from benchmarks.peers import PeerSpeed, Portion, add_up, attempt
from benchmarks.stopwatch import Speed, one_after_the_other
from pipeline.ingest import run_ingest
from pipeline.tokenizer import load_tokenizer

TEXTS = (
    "Hello, world! It's 1,234.56",
    "  two  spaces\n\n\ttabs\r\n",
    "naïve 中文 \U0001f468\u200d\U0001f469 \x00",
    "<s> </s>",
)


def test_a_paragraph_stands_in_prose_once():
    licence = "You may copy this text, whatever for, as long as this line stays in it. " * 3
    texts = [f"{licence}\n\n{'First. ' * 40}", f"{'Second. ' * 40}\n \n{licence.replace(' ', '  ')}", licence]
    assert list(leave_out_repeated(texts)) == [texts[0], "Second. " * 40]


def test_a_manual_page_loses_its_markup_and_keeps_its_words():
    page = '.TH LS 1\n.SH NAME\nls \\- list\n.\\" a comment\n.PP\nUse\n.B ls \\-l\nfor \\fIlong\\fR lists.\n'
    assert strip_roff(page) == "NAME\nls - list\n\nUse\nls -l\nfor long lists.\n"


def test_what_is_no_text_is_left_out(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress("é".encode()))
    (tmp_path / "b").write_bytes(b"\xff")
    (tmp_path / "c").write_bytes(b"a\0b")
    (tmp_path / "d").symlink_to(tmp_path / "a.gz")
    assert {path.name: read_text(path) for path in list_files(tmp_path)} == {"a.gz": "é", "b": "", "c": ""}


def test_what_warms_up_is_not_measured(tmp_path):
    texts = [f"text {number} " * 10 for number in range(200)]
    corpus = write_corpus("prose", iter(texts), tmp_path / "prose", num_bytes=10_000)
    warm, parts = list(read_lines(corpus.warm)), [list(read_lines(path)) for path in corpus.parts]
    measured = [text for part in parts for text in part]
    assert len(set(warm + measured)) == len(warm + measured)
    assert corpus.num_bytes == sum(map(len, measured)) > 9_000
    assert all(parts)
    with pytest.raises(ValueError, match="too few"):
        write_corpus("code", iter(texts[:1]), tmp_path / "code", num_bytes=10_000)


def test_a_peer_reads_a_portion_and_no_more(tmp_path):
    corpus = write_corpus("prose", iter("abcdefgh" * 4), tmp_path / "prose", num_bytes=32)
    portion = Portion(*corpus.parts, num_bytes=6)  # more than one part has
    assert (len(list(portion)), portion.num_bytes) == (6, 6)


def test_a_peer_that_is_not_there_or_breaks_has_a_note():
    def break_down():
        raise OSError("no disk")

    def miss():
        raise ImportError

    missing, broken = attempt("a", "a-package", miss), attempt("b", "b", break_down)
    assert (missing.speed, missing.note) == (None, "not installed (pip install a-package)")
    assert (broken.speed, broken.note) == (None, "does not run here: OSError: no disk")
    assert add_up("both", PeerSpeed("c", Speed(1, 1)), missing) == PeerSpeed("both", None, missing.note)


def test_two_steps_over_the_same_text_take_their_times_together():
    assert one_after_the_other(Speed(2, 6), Speed(2, 3)) == Speed(1, 2)


def test_ranks_become_a_tokenizer_json_that_says_the_same():
    pieces = [bytes([byte]) for byte in range(256)] + [b"lo", b"wo", b"low", b" w", b"el", b"ello", b"orld", b"  "]
    ranks = {piece: rank for rank, piece in enumerate([*pieces[:-2], b"or", b"ld", *pieces[-2:]])}
    hub = tokenizers.Tokenizer.from_str(json.dumps(convert_ranks(ranks)))
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in TEXTS:
        assert hub.encode(text).ids == encoding.encode_ordinary(text)


@pytest.mark.parametrize("name", ["gpt2", "llama2"])
def test_peers_get_the_same_tokenizer(named_tokenizers, name):
    tokenizer = load_tokenizer(name, engine="reference")
    hub = tokenizers.Tokenizer.from_str(build_hub_json(tokenizer))
    for text in TEXTS:
        assert hub.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


def test_ingest_makes_no_python_call_per_document(tmp_path, sample_model):
    tokenizer = load_tokenizer(sample_model)
    counts = []
    for name, num_documents in (("warm", 5), ("few", 5), ("many", 5_000)):
        path = tmp_path / f"{name}.jsonl"
        text = "word " * (100_000 // num_documents)
        path.write_text("".join(f'{{"text": "{number} {text}"}}\n' for number in range(num_documents)))
        task = make_task(name, (path,), tokenizer, tmp_path)
        _, profile, record = time_profiled(lambda task=task: run_ingest(task), num_bytes=1)
        assert record["documents"]["accepted"] == num_documents
        counts.append(Counter({function: figures[1] for function, figures in profile.stats.items()}))
    more_calls = counts[2] - counts[1]  # of each function: how many threads are started to sync the files, varies
    assert max(more_calls.values(), default=0) < 100


@pytest.mark.long
def test_the_stages_of_dedup_run_over_synthetic_documents(tmp_path, monkeypatch):
    from benchmarks.dedup import BenchmarkFlags, measure_stages

    monkeypatch.setattr("benchmarks.dedup_documents.TASK_DOCUMENTS", 5000)
    figures = measure_stages(20_000, BenchmarkFlags(folder=tmp_path, against=True))
    assert figures["documents"] == 20_000
    assert figures["dropped"] > 2000
    assert figures["pairs compared"] > 100 and figures["pairs judged again"] > 100
    assert not list(tmp_path.iterdir())
