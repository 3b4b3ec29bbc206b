"""Where tokenizer files are found: own folder, cache, download; the sha256 decides."""

import hashlib
import http.server
import os
import re
import threading
from pathlib import Path

import pytest

from pipeline import tokenizer_files
from pipeline.tokenizer import load_tokenizer
from pipeline.tokenizer_files import cache_folder, find_tokenizer_file, read_named_tokenizers
from pipeline.tokenizer_training import train_sample_tokenizer

GOOD = b"the right bytes"
GOOD_SHA256 = hashlib.sha256(GOOD).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers each request with the next of `answers`, (status, body); remembers what was asked."""

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.paths = list(answers), []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        status, body = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if status == 299 else body)  # 299 stands for a broken connection

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*answers):
        server = Server(answers)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def empty_places(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENMILL_TOKENIZERS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def write_manifest(tmp_path, urls, sha256=GOOD_SHA256):
    path = tmp_path / "tokenizers.toml"
    path.write_text(
        f'[small]\nfamily = "sentencepiece"\nfile = "small.model"\nsha256 = "{sha256}"\nsize_bytes = 15\nvocab_size = 3\n'
        f'licence = "none"\nnotes = ""\nurls = {urls!r}\n'
    )
    return path


def find_small(manifest_path, waits=None):
    return find_tokenizer_file(
        "small",
        sha256=None,
        notice=lambda message: None,
        manifest_path=manifest_path,
        wait=(waits if waits is not None else []).append,
    )


def put(folder, data):
    path = folder / "small" / "small.model"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


def test_the_manifest_names_both_tokenizers():
    named = read_named_tokenizers()
    assert list(named) == ["llama2", "gpt2"]
    assert all(len(entry.sha256) == 64 and entry.urls for entry in named.values())


def test_the_own_folder_comes_before_the_cache(tmp_path, monkeypatch):
    own = put(tmp_path / "own", GOOD)
    put(cache_folder(), b"not looked at")
    monkeypatch.setenv("TOKENMILL_TOKENIZERS", str(tmp_path / "own"))
    assert find_small(write_manifest(tmp_path, [])) == ("small", own, GOOD)


def test_the_cache_comes_before_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_TOKENIZERS", str(tmp_path / "own that lacks it"))
    cached = put(cache_folder(), GOOD)
    assert find_small(write_manifest(tmp_path, ["http://127.0.0.1:9/never-asked"])) == ("small", cached, GOOD)


def test_another_file_under_a_known_name_is_refused_with_both_hashes(tmp_path):
    path = put(cache_folder(), b"other bytes")
    with pytest.raises(ValueError) as raised:
        find_small(write_manifest(tmp_path, []))
    for part in (str(path), GOOD_SHA256, hashlib.sha256(b"other bytes").hexdigest(), "delete it"):
        assert part in str(raised.value)


def test_a_download_lands_in_the_cache_and_is_not_repeated(tmp_path, serve):
    server = serve((200, GOOD))
    manifest_path = write_manifest(tmp_path, [f"{server.url}/a"])
    _, path, _ = find_small(manifest_path)
    assert path == tmp_path / "cache" / "tokenmill" / "tokenizers" / "small" / "small.model"
    assert find_small(manifest_path) == ("small", path, GOOD)
    assert server.paths == ["/a"]
    assert os.listdir(path.parent) == ["small.model"]


def test_a_server_error_is_tried_again_after_a_wait(tmp_path, serve):
    server = serve((500, b"busy"), (200, GOOD))
    waits = []
    assert find_small(write_manifest(tmp_path, [f"{server.url}/a"]), waits)[2] == GOOD
    assert waits == [1.0]


def test_a_broken_connection_is_tried_again(tmp_path, serve):
    server = serve((299, GOOD), (200, GOOD))
    assert find_small(write_manifest(tmp_path, [f"{server.url}/a"]))[2] == GOOD


def test_the_wrong_bytes_of_one_mirror_lead_to_the_next(tmp_path, serve):
    server = serve((200, b"an error page"), (404, b""), (200, GOOD))
    waits = []
    urls = [f"{server.url}/{mirror}" for mirror in "abc"]
    assert find_small(write_manifest(tmp_path, urls), waits)[2] == GOOD
    assert (server.paths, waits) == (["/a", "/b", "/c"], [])


def test_when_no_mirror_has_it_one_line_says_what_was_tried_and_what_to_do(tmp_path, serve):
    server = serve((200, b"an error page"), (404, b""), (503, b""), (503, b""), (503, b""))
    urls = [f"{server.url}/{mirror}" for mirror in "abc"]
    waits = []
    with pytest.raises(FileNotFoundError) as raised:
        find_small(write_manifest(tmp_path, urls), waits)
    message = str(raised.value)
    wrong_sha256 = hashlib.sha256(b"an error page").hexdigest()
    for part in (*urls, wrong_sha256, "404", "503", GOOD_SHA256, "$TOKENMILL_TOKENIZERS/small/", "put small.model"):
        assert part in message
    assert "\n" not in message
    assert waits == [1.0, 3.0]
    assert not list(tmp_path.glob("cache/**/*.*"))


def test_an_unknown_name_gets_the_nearest_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown tokenizer 'lama2': did you mean llama2"):
        load_tokenizer("lama2")


def test_a_path_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="no/such/tokenizer.model: no such tokenizer file"):
        load_tokenizer("no/such/tokenizer.model")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}: no .model"):
        load_tokenizer(tmp_path)


def test_a_given_sha256_is_checked_for_a_path_too(tmp_path):
    path = tmp_path / "mine.model"
    path.write_bytes(train_sample_tokenizer(["a few words"], vocab_size=300))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_tokenizer(path, sha256=sha256).sha256 == sha256
    with pytest.raises(ValueError, match=f"sha256 is {sha256}, not {'0' * 64}"):
        load_tokenizer(path, sha256="0" * 64)


def test_a_folder_is_read_by_its_original_file_and_gives_the_name(tmp_path):
    folder = tmp_path / "my-tokenizer"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(train_sample_tokenizer(["a few words"], vocab_size=300))
    (folder / "tokenizer.json").write_text("{}")
    notices = []
    tokenizer = load_tokenizer(folder, notice=notices.append)
    assert (tokenizer.name, tokenizer.family) == ("my-tokenizer", "sentencepiece")
    assert "tokenizer.model is used" in notices[0]


def test_the_manifest_lies_beside_the_packages():
    assert Path(__file__).resolve().parents[1] / "data_manifests" / "tokenizers.toml" == tokenizer_files.MANIFEST_PATH


def test_only_the_file_itself_has_a_known_tokenizers_name(shared_data, sample_model, tmp_path):
    def name_in(folder, source):
        path = tmp_path / folder / "tokenizer.model"
        path.parent.mkdir()
        path.write_bytes(source.read_bytes())
        return find_tokenizer_file(path, sha256=None, notice=print)[0]

    assert name_in("anything", shared_data / "tokenizers/llama2/tokenizer.model") == "llama2"
    assert re.fullmatch("llama2-[0-9a-f]{8}", name_in("llama2", sample_model))
    assert name_in("mine", sample_model) == "mine"


def test_a_cut_rank_file_is_not_taken_for_another_tokenizer(shared_data, tmp_path):
    lines = (shared_data / "tokenizers/gpt2/gpt2.tiktoken").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.tiktoken").write_bytes(b"".join(lines[:13_000]))
    with pytest.raises(ValueError, match="begins like GPT-2's ranks but is not that file"):
        load_tokenizer(tmp_path / "cut.tiktoken")
