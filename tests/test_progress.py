"""What a person sees of a build: how fast it goes, how long it still takes; and the log for machines."""

import io
import json
import resource
import signal
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from pipeline.progress import BuildLog, Done, StageProgress
from pipeline.shard import OUTCOMES
from pipeline.summary import COLUMNS, documents_table, read_build_seconds


@dataclass
class Watched:
    """A stage that is watched by a clock of its own."""

    progress: StageProgress
    said: io.StringIO
    log: BuildLog
    clock: list[float] = field(default_factory=lambda: [0.0])

    def finish(self, source, *, at, seconds, num_bytes=0, units=1, weight=1):
        """A task of a source ends; seconds: that it took, None: in an earlier run."""
        self.clock[0] = at
        done = Done(units=units, weight=weight, num_bytes=num_bytes)
        self.progress.advance(source, done, task="some-00000", seconds=seconds)

    def read_log(self):
        return [json.loads(line) for line in self.log.path.read_text().splitlines()]


@pytest.fixture
def watch(tmp_path, monkeypatch):
    def watch(totals):
        clock, said, log = [0.0], io.StringIO(), BuildLog(tmp_path / "log.jsonl")
        monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: clock[0])
        progress = StageProgress(Console(file=said, width=110), log, "ingest", unit="files", totals=totals)
        return Watched(progress, said, log, clock)

    return watch


def test_a_source_goes_as_fast_as_its_own_tasks_in_this_run(watch):
    watched = watch({"web": (10, 100), "code": (4, 40)})
    watched.finish("web", at=1, seconds=None, num_bytes=10**12, units=5, weight=50)  # an earlier run's
    assert "/s" not in watched.progress.note("web")
    watched.finish("web", at=110, seconds=10, num_bytes=10**6, weight=10)
    watched.finish("web", at=120, seconds=10, num_bytes=10**6, weight=10)
    watched.finish("code", at=1000, seconds=5, num_bytes=10**7, weight=10)  # its workers had other sources until now
    assert "7/10 files      1 TB    100 kB/s" in watched.progress.note("web")
    assert "2 MB/s" in watched.progress.note("code")
    assert watched.progress.describe_time("code").split() == ["15", "s", "left"]
    watched.clock[0] = 1006
    assert watched.progress.describe_time("code").split() == ["9", "s", "left"]


def test_the_log_tells_what_was_done_from_what_was_kept(watch):
    watched = watch({"web": (2, 2)})
    watched.finish("web", at=1, seconds=None)
    watched.finish("web", at=9, seconds=7.5)
    kept, finished = watched.read_log()
    assert (kept["event"], finished["event"], finished["seconds"]) == ("task kept", "task finished", 7.5)


def test_the_parts_of_a_huge_file_are_shown_until_the_last(watch):
    watched = watch({"web": (1, 100)})
    for number in range(10):
        watched.finish("web", at=10 * (number + 1), seconds=10, units=int(number == 0), weight=10)
    lines = watched.said.getvalue().splitlines()
    assert [line.split()[-3:] for line in lines] == [[str(left), "s", "left"] for left in range(90, 0, -10)]
    assert watched.progress.describe_time("web").split() == ["100.0", "s"]


@contextmanager
def largest_file(num_bytes):
    """In the block a file ends there, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_no_half_line_in_the_log(tmp_path):
    log = BuildLog(tmp_path / "build-log.jsonl")
    log.write("finished", seconds=1.5)
    with largest_file(log.path.stat().st_size + 20), pytest.raises(OSError, match="build-log.jsonl"):
        log.write("finished", seconds=2.5)
    log.write("finished", seconds=3.5, is_continued=False)
    assert [json.loads(line)["seconds"] for line in log.path.read_text().splitlines()] == [1.5, 3.5]
    assert read_build_seconds(tmp_path) == 3.5


def test_a_build_that_was_stopped_and_went_on_has_no_speed(tmp_path):
    assert read_build_seconds(tmp_path) is None
    BuildLog(tmp_path / "build-log.jsonl").write("finished", seconds=2.5, is_continued=True)
    assert read_build_seconds(tmp_path) is None


def test_a_damaged_log_leaves_the_speed_out_of_the_summary(tmp_path):
    (tmp_path / "build-log.jsonl").write_text('{"event": "finished", "seconds": 3.5}\n{"eve')
    assert read_build_seconds(tmp_path) is None


def test_a_row_of_the_final_table_adds_up():
    assert set(COLUMNS) == {"read", *OUTCOMES}
    counts = {outcome: {"documents": number} for number, outcome in enumerate(OUTCOMES, start=1)}
    counts["read"] = {"documents": sum(range(len(OUTCOMES) + 1)), "bytes": 1}
    table = documents_table({"web": {"raw_files": [], "counts": counts}})
    read, *others = [int(next(column.cells)) for column in table.columns[3:]]
    assert read == sum(others) and len(others) == len(OUTCOMES)
