"""Builds as processes of their own, to be watched and killed; the raw files for them, and the bytes that they make."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from build_fixtures import hashes
from conftest import REPOSITORY, write_rows

WORDS = ["mill", "token", "stone", "\u00e9t\u00e9", "x = 1\n", "  ", "<s>", "</s>", "\U0001f600"]
POLL_SECONDS = 0.001  # a stage of small tasks is over in a few milliseconds
PATIENCE_SECONDS = 120


def write_many_raw_files(folder):
    """Raw files that make several tasks of each stage: 600 small ones, and one that is read in two parts."""
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 80))) for _ in range(600)]
    for number, text in enumerate(texts):
        rows = [{"text": text}, {"text": texts[number // 2]}, b"{" if number % 50 == 0 else {"text": ""}]
        write_rows(folder / f"web/{number % 7}/{number:03d}.jsonl", rows)
    padding = "x" * 6000  # is read, but need not be encoded
    rows = ({"text": " ".join(rng.choice(WORDS, 500)), "padding": padding} for _ in range(1600))
    write_rows(folder / "code/big.jsonl", rows)
    return folder


def many_flags(raw, out, model, more=""):
    """The flags of a build of these raw files: 7 tasks of ingest, 1 of dedup, 7 of drops and about 70 of pack."""
    mix = "--mix web:1,code:1 --max-bad-fraction 0.1 --shard-tokens 25000"
    return f"{mix} --raw {raw} --out {out} --tokenizer {model} {more}"


def checksums(folder):
    """The sha256 of every file of a dataset but the log and the work files."""
    return {
        name: hashlib.sha256(data).hexdigest() for name, data in hashes(folder).items() if not name.startswith("work/")
    }


class BuildProcess:
    """A build in a session of its own, so that whatever it starts can be found by the session's number."""

    def __init__(self, arguments, out, **how):
        self.log = out / "build-log.jsonl"
        self.log_read = self.log.stat().st_size if self.log.exists() else 0
        self.events = []
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "pipeline/build.py"), *arguments.split()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **how,
        )

    @property
    def is_running(self):
        return self.process.poll() is None

    def finish(self):
        """The end of the build: exit code, what it said, and what it said to stderr."""
        out, error = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, out, error

    def count_finished(self, stage):
        """How many tasks of a stage this run has finished so far, by the log; -1 before the stage begins."""
        if self.log.exists() and self.log.stat().st_size > self.log_read:
            with open(self.log, "rb") as file:
                file.seek(self.log_read)
                lines = file.read().split(b"\n")[:-1]
            self.log_read += sum(len(line) + 1 for line in lines)
            self.events += map(json.loads, lines)
        return sum(event.get("stage") == stage and event["event"] != "stage finished" for event in self.events) - 1

    def wait_for(self, stage, num_tasks):
        """Wait until the stage has begun and finished so many tasks; returns whether the build still runs then."""
        return self.wait_until(lambda: self.count_finished(stage) >= num_tasks)

    def wait_until(self, condition):
        """Wait for a condition or the build's end; returns whether the build still runs."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.is_running:
            began = time.monotonic()
            if condition():
                break
            assert began < deadline
            time.sleep(max(POLL_SECONDS, 2 * (time.monotonic() - began)))  # leave the processor to the build
        return self.is_running

    def list_processes(self):
        """The processes of this build that run, its own too."""
        numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [number for number in numbers if read_session(number) == self.process.pid]

    def list_workers(self):
        return [pid for pid in self.list_processes() if b"spawn_main" in read_command(pid)]

    def find_worker_of(self, task):
        """The workers that have a file of the task open."""
        return [pid for pid in self.list_workers() if any(f"/{task}." in path for path in list_open_files(pid))]

    def kill(self):
        """Kill the build itself as `kill -9` does."""
        self.process.kill()
        return self.finish()

    def is_gone(self, seconds):
        """Whether no process of the build is left, or none is within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.list_processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True


def read_session(pid):
    """The session of a process; None where it is gone or waits to be buried."""
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(session) if state not in "ZX" else None


def read_command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def list_open_files(pid):
    paths = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
        for link in Path(f"/proc/{pid}/fd").iterdir():
            paths.append(os.readlink(link))
    return paths


def kill_if_there(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
