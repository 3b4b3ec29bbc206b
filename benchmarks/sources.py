"""How much slower ingest is when its raw files come over a network than when they lie on the disk.

    python benchmarks/sources.py --tokenizer gpt2 --json sources.json

Builds the same raw files (packed JSON lines of about 15 MB each) by turns from a folder, from an HTTP server, and with
--s3 from moto's S3 server; both wait 50 ms before each answer, and run here, on the same processors. The
figure is the ingest stage's time by the build's own log, the best of the rounds, and how long its workers waited for
files. What other work on the machine takes away hits all of them, by turns. Exits with 1 where a source keeps less
than 90 % of the local speed.
"""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

if __package__ in (None, ""):  # started as `python benchmarks/sources.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro
import zstandard
from rich.table import Table

from pipeline.progress import make_console

LATENCY_SECONDS = 0.05
TEXT_BYTES = 42_000_000  # of a file; they pack to about 15 MB
DOCUMENT_WORDS = 700
LOWEST_SHARE = 0.9
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class SourcesFlags:
    """Compare ingest from the disk with ingest from servers."""

    tokenizer: str = "gpt2"
    """Name or path."""
    files: int = 12
    """Raw files of about 15 MB."""
    rounds: int = 3
    """Builds of each kind, by turns."""
    workers: int = os.cpu_count() or 1
    """Worker processes of each build."""
    s3: bool = False
    """Build from moto's S3 server, too."""
    json: Path | None = None
    """Write the figures here."""


@dataclass(frozen=True)
class Round:
    """One build. seconds: of the ingest stage. waited: of its workers together, for files."""

    seconds: float
    waited: float


def main() -> None:
    """The command."""
    flags = tyro.cli(SourcesFlags)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "corpus"
        size_bytes = write_corpus(raw, flags.files)
        with serve_web(raw) as url, serve_bucket(raw, is_wanted=flags.s3) as address:
            places = {"folder": f"{raw}:1", "http": f"{url}/urls.txt?name=corpus:1", "s3": address}
            rounds: dict[str, list[Round]] = {kind: [] for kind, place in places.items() if place}
            for _ in range(flags.rounds):
                for kind, done in rounds.items():
                    done.append(build(places[kind], Path(folder) / "out", flags))
    figures = summarise(rounds, size_bytes, workers=flags.workers)
    make_console().print(show(figures))
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any(figure["share"] < LOWEST_SHARE for figure in figures.values()))


def write_corpus(folder: Path, num_files: int) -> int:
    """Raw files of words in random order, and the list of their URLs; returns their size."""
    words = sorted({word for path in (ROOT / "pipeline").glob("*.py") for word in path.read_text().split()})
    rng = random.Random(0)
    folder.mkdir()
    for number in range(num_files):
        lines, size_bytes = [], 0
        while size_bytes < TEXT_BYTES:
            line = json.dumps({"text": " ".join(rng.choices(words, k=DOCUMENT_WORDS))})
            lines.append(line)
            size_bytes += len(line)
        (folder / f"{number:03d}.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    names = sorted(path.name for path in folder.iterdir())
    (folder / "urls.txt").write_text("\n".join(names))
    return sum((folder / name).stat().st_size for name in names)


class SlowHandler(SimpleHTTPRequestHandler):
    """A file server that is far away."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def send_head(self) -> object:
        """Answer, later."""
        time.sleep(LATENCY_SECONDS)
        return super().send_head()


def run_web(folder: Path, port: Connection) -> None:
    """The web server's process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SlowHandler, directory=str(folder)))
    port.send(server.server_port)
    server.serve_forever()


def run_bucket(folder: Path, port: Connection) -> None:
    """The S3 server's process: a bucket with the raw files."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, number = server.get_host_and_port()
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{number}", **keys)
    client.create_bucket(Bucket="corpus")
    for path in folder.glob("*.zst"):
        client.put_object(Bucket="corpus", Key=path.name, Body=path.read_bytes())
    server._server.app = delay(server._server.app)
    port.send(number)
    time.sleep(1e6)


def delay(app: Callable[..., object]) -> Callable[..., object]:
    """A WSGI application that is far away."""

    def answer(*request: object) -> object:
        time.sleep(LATENCY_SECONDS)
        return app(*request)

    return answer


@contextmanager
def serving(run: object, folder: Path) -> Iterator[int]:
    """A server in a process of its own; its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run, args=(folder, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


@contextmanager
def serve_web(folder: Path) -> Iterator[str]:
    """The web server's URL."""
    with serving(run_web, folder) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serve_bucket(folder: Path, *, is_wanted: bool) -> Iterator[str | None]:
    """The bucket as a mix names it, once the environment leads there; None where it is not wanted."""
    if not is_wanted:
        yield None
        return
    with serving(run_bucket, folder) as port:
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ.update({**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
        yield "s3://corpus:1"


def build(mix: str, out: Path, flags: SourcesFlags) -> Round:
    """Build once, and read the log. Raises RuntimeError with what a failed build said."""
    command = f"pipeline/build.py --mix {mix} --out {out} --tokenizer {flags.tokenizer} --dedup none --replace"
    command = [sys.executable, *command.split(), "--workers", str(flags.workers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{mix}: {done.stderr}")
    log = out / "build-log.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    (seconds,) = [one["seconds"] for one in events if (one["event"], one.get("stage")) == ("stage finished", "ingest")]
    return Round(seconds, sum(one["workers_waited_seconds"] for one in events if one["event"] == "fetched"))


def summarise(rounds: dict[str, list[Round]], size_bytes: int, *, workers: int) -> dict[str, dict[str, float]]:
    """By kind of source: the best round's speed, its share of the local one, and how much its workers waited.

    busy: the share of all rounds that workers did not wait for files, which other work on the machine does not move.
    """
    best = {kind: min(done, key=lambda one: one.seconds) for kind, done in rounds.items()}
    return {
        kind: {
            "raw_mb_s": size_bytes / one.seconds / 1e6,
            "share": best["folder"].seconds / one.seconds,
            "seconds": one.seconds,
            "waited_seconds": one.waited,
            "busy": 1
            - sum(each.waited for each in rounds[kind]) / sum(each.seconds * workers for each in rounds[kind]),
        }
        for kind, one in best.items()
    }


def show(figures: dict[str, dict[str, float]]) -> Table:
    """The figures for a person."""
    table = Table("source", "raw MB/s", "of local", "ingest s", "waited s", "busy")
    for kind, one in figures.items():
        figure = f"{one['raw_mb_s']:.1f} {one['share']:.2f} {one['seconds']:.1f} {one['waited_seconds']:.2f}"
        table.add_row(kind, *figure.split(), f"{one['busy']:.1%}")
    return table


if __name__ == "__main__":
    main()
