"""What several test files need: the shared data, a small tokenizer, and the build command run in this process."""

import json
import os
import shlex
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# The same examples in every run: a test that fails fails again. `HYPOTHESIS_PROFILE=explore` draws new ones.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Who starts the tests in the background has the shell ignore Ctrl-C, for them and for all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """Real tokenizers and texts, which are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real tokenizers and texts of ../shared/data")
    return SHARED_DATA


@pytest.fixture
def named_tokenizers(shared_data, monkeypatch):
    """llama2 and gpt2 by name."""
    monkeypatch.setenv("TOKENMILL_TOKENIZERS", str(shared_data / "tokenizers"))


@pytest.fixture(scope="session")
def sample_model(tmp_path_factory):
    """The path of a small SentencePiece model, trained on this repository's own code."""
    from pipeline.tokenizer_training import train_sample_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "pipeline").glob("*.py"))]
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    path.write_bytes(train_sample_tokenizer(texts, vocab_size=600))
    return path


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    error: str


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a thread that was fetching may still hold a file open


@pytest.fixture
def run_build(capsys, monkeypatch):
    """The build command as a function of its flags, run in this process."""
    from pipeline.build import main

    def run(flags, *paths):
        monkeypatch.setattr("sys.argv", ["build.py", *shlex.split(flags), *map(str, paths)])
        try:
            main()
            code, message = 0, ""
        except SystemExit as stop:
            code, message = (0, "") if stop.code is None else (1, str(stop.code))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err + message)

    return run


@pytest.fixture
def run_command(capsys, monkeypatch):
    """A command's main with its arguments, run in this process: what it ends with, if anything, and what it says."""

    def run(main, *arguments):
        monkeypatch.setattr("sys.argv", [f"{main.__module__.split('.')[-1]}.py", *map(str, arguments)])
        try:
            main()
            message = ""
        except SystemExit as stop:
            message = str(stop.code)
        return message, capsys.readouterr().out

    return run


def write_rows(path, rows):
    """Write a JSON lines file: each row an object, or bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture
def raw(tmp_path):
    """Two sources: 300 and 40 documents in several files, with exact duplicates, empty and bad rows."""
    rng = np.random.default_rng(0)
    words = ["mill", "token", "stone", "\u00e9t\u00e9", "x = 1\n", "  ", "<s>", "</s>", "\U0001f600"]

    def text():
        return " ".join(rng.choice(words, rng.integers(1, 60)))

    for number in range(5):
        rows = [{"text": text()} for _ in range(60)]
        write_rows(tmp_path / f"raw/web/part-{number}.jsonl", rows)
    web = (tmp_path / "raw/web/part-0.jsonl").read_bytes().splitlines()
    rows = [{"text": text(), "id": i} for i in range(40)] + [web[3], web[3], web[9], {"text": ""}, b'{"text": null}']
    write_rows(tmp_path / "raw/notes/n.jsonl", rows)
    return tmp_path / "raw"


@pytest.fixture(scope="session")
def many_raw_files(tmp_path_factory):
    """Raw files that make several tasks of each stage, for builds that are killed."""
    from build_process import write_many_raw_files

    return write_many_raw_files(tmp_path_factory.mktemp("many"))


@pytest.fixture(scope="session")
def whole(many_raw_files, tmp_path_factory, sample_model):
    """A build of many_raw_files that nothing disturbs, by two workers: its folder."""
    from build_process import BuildProcess, many_flags

    out = tmp_path_factory.mktemp("whole") / "out"
    code, _, error = BuildProcess(many_flags(many_raw_files, out, sample_model, "--workers 2"), out).finish()
    assert code == 0, error
    return out


@pytest.fixture(scope="session")
def one_source(tmp_path_factory, sample_model):
    """A folder with raw/ and out/: one source, web, with a duplicate, a short and a bad row; one shard."""
    from verify_fixtures import build_in, text_rows

    folder = tmp_path_factory.mktemp("one")
    rows = text_rows("web", range(60))
    write_rows(folder / "raw/web/a.jsonl", [*rows, rows[0], {"text": ""}, b"{"])
    build_in(folder, sample_model, mix="web:1")
    return folder


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory, sample_model):
    """A folder with raw/ and out/: web and notes, with duplicates within and across them, and several shards."""
    from verify_fixtures import build_in, write_two_sources

    folder = tmp_path_factory.mktemp("two")
    write_two_sources(folder / "raw")
    build_in(folder, sample_model, mix="web:3,notes:1", shard_tokens=400, valid_fraction=0.2)
    return folder


@pytest.fixture
def one_copy(one_source, tmp_path):
    """A copy of one_source, to be damaged."""
    return Path(shutil.copytree(one_source, tmp_path / "copy"))


@pytest.fixture
def two_copy(two_sources, tmp_path):
    """A copy of two_sources, to be damaged."""
    return Path(shutil.copytree(two_sources, tmp_path / "copy"))


@pytest.fixture
def verify(run_command):
    """The verify command as a function of its flags: its exit code, and what it says."""
    from pipeline.verify import main

    def run(flags):
        message, out = run_command(main, *shlex.split(flags))
        return int(bool(message)), out + message

    return run


@pytest.fixture(scope="session")
def sample_path(tmp_path_factory):
    """The path of a SentencePiece model as --tokenizer sample trains one."""
    from tokenizer_fixtures import write_sample_model

    return write_sample_model(tmp_path_factory.mktemp("sample") / "sample.model")


@pytest.fixture(scope="session")
def ranks_path(tmp_path_factory):
    """The path of a small tiktoken file."""
    from tokenizer_fixtures import write_ranks

    return write_ranks(tmp_path_factory.mktemp("ranks") / "small.tiktoken")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Raw files of every kind: the folder, and path -> bytes."""
    from remote_fixtures import write_corpus

    folder = tmp_path_factory.mktemp("corpus") / "notes"
    return folder, write_corpus(folder)


@pytest.fixture(scope="session")
def local_build(corpus, tmp_path_factory, sample_model):
    """The dataset that is built from the folder of `corpus` itself."""
    from build_process import BuildProcess
    from remote_fixtures import flags

    out = tmp_path_factory.mktemp("local") / "out"
    code, _, error = BuildProcess(flags(f"{corpus[0]}:1", out, sample_model), out).finish()
    assert code == 0, error
    return out


@pytest.fixture
def hub(corpus, monkeypatch):
    """A hub whose data set org/name has the files of `corpus`."""
    from loopback import Hub

    with Hub(corpus[1]) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        yield server


@pytest.fixture
def web(corpus):
    """A web server with the raw files of `corpus`, and a list of them."""
    from loopback import Server

    names = [name for name in corpus[1] if not name.endswith(".md")]
    files = {f"data/notes/{name}": corpus[1][name] for name in names}
    urls = "# the list\n\n" + "".join(f"{name}\n" for name in names)
    with Server({**files, "data/notes/urls.txt": urls.encode()}) as server:
        yield server


@pytest.fixture
def bucket(corpus, monkeypatch):
    """A bucket with the files of `corpus`, and before it a server that can be told faults."""
    from loopback import FaultyBucket, bucket_server

    objects = {f"notes/{name}": data for name, data in corpus[1].items()}
    with (
        bucket_server(objects, monkeypatch) as client,
        FaultyBucket(os.environ["AWS_ENDPOINT_URL"], client) as server,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
