"""What a person sees of a build: how fast it goes, how long it still takes; and the log for machines."""

import io
import json
from dataclasses import dataclass, field

import pytest
from rich.console import Console

from pipeline.progress import BuildLog, Done, StageProgress


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
