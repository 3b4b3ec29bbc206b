"""Real texts with the real tokenizers, against counts that the reference engines gave."""

import shutil

import pytest
from build_fixtures import read_shards

from pipeline.verify import verify_dataset
from pipeline.verify_raw import verify_raw_files

# Ids of the whole file as one document, without what frames it (sentencepiece 0.2.3, tiktoken 0.14.0).
WHOLE_FILES = {
    "tinyshakespeare.txt": {"gpt2": 338_025, "llama2": 368_633},
    "wikitext2-valid.txt": {"gpt2": 258_659, "llama2": 298_065},
    "wikitext2-test.txt": {"gpt2": 295_877, "llama2": 339_369},
}
SOURCES = {
    "arxiv": ["redpajama-arxiv.jsonl"],
    "stackexchange": ["stackexchange.jsonl"],
    "c4": ["c4-sample.01.json.gz", "c4-sample.02.json.gz", "c4-sample.03.json.gz"],
    "books": list(WHOLE_FILES),
}


@pytest.fixture
def raw(shared_data, tmp_path):
    for source, names in SOURCES.items():
        (tmp_path / "raw" / source).mkdir(parents=True)
        for name in names:
            shutil.copyfile(shared_data / "text" / name, tmp_path / "raw" / source / name)
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("tokenizer", "rule", "num_framing"),
    [("gpt2", "eos", 1), pytest.param("llama2", "bos+eos", 2, marks=pytest.mark.long)],
)
def test_real_files_are_built_exactly(raw, tmp_path, named_tokenizers, run_build, tokenizer, rule, num_framing):
    out = tmp_path / "out"
    mix = ",".join(f"{source}:0.25" for source in SOURCES)
    outcome = run_build(f"--mix {mix} --raw {raw} --out {out} --tokenizer {tokenizer}")
    assert outcome.code == 0, outcome.error
    content, documents = read_shards(out)
    assert content["document_rule"] == rule
    names = content["sources"]["books"]["raw_files"]
    for (source, _, raw_file, _), ids in documents.items():
        if source == "books":
            assert len(ids) - num_framing == WHOLE_FILES[names[raw_file]][tokenizer]
    outcomes = {
        source: {outcome: count["documents"] for outcome, count in entry["counts"].items() if count["documents"]}
        for source, entry in content["sources"].items()
    }
    assert outcomes["stackexchange"] == {"read": 70, "kept": 64, "duplicate_exact": 6}
    assert outcomes["arxiv"] == {"read": 11, "kept": 10, "duplicate_near": 1}  # one but for a line feed
    assert outcomes["c4"] == {"read": 30, "kept": 30}
    assert outcomes["books"] == {"read": 3, "kept": 3}
    assert list(verify_dataset(out, content)) == []
    assert list(verify_raw_files(out, content, raw=raw, fraction=1.0, seed=0, contamination=None)) == []
