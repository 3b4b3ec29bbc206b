"""Run tasks, and remember which are finished. Knows nothing of what they do, or where: local_jobs.py, ray_jobs.py.

A finished task leaves a record as JSON, written last: its result, the sizes of the files it wrote and a fingerprint of
what it read. The next run takes the result and does not repeat the task, unless a file of its own is gone or cut, or
what it reads is no longer the same.
"""

from __future__ import annotations

import errno
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from pipeline.storage import read_json, write_json

USER_ERRORS = (ValueError, OSError)
REPEATS_SHOWN = 3
KEPT = "What was finished is kept"
ADVICE = {
    errno.ENOSPC: f". {KEPT}: free some space, or start anew with --work on another disk, and run the command again",
    errno.EDQUOT: f". {KEPT}: raise the quota or free some space, and run the command again",
    errno.EMFILE: f". {KEPT}: raise the limit of open files (ulimit -n), and run the command again",
}


class Task(Protocol):
    """Anything with these that can be pickled."""

    @property
    def name(self) -> str:
        """What its record is called: unique in a stage."""

    @property
    def subject(self) -> str:
        """What it works on, for a person."""

    @property
    def fingerprint(self) -> str:
        """What it reads from outside of the build: a record of another fingerprint is not taken up."""

    def list_outputs(self, result: Any) -> list[Path]:
        """The files that it leaves, in a fixed order."""


@dataclass(frozen=True)
class AlmostDone:
    """What a function may leave of a task: `finish` does the rest, and returns the result.

    The rest waits for the disk and works little, so a worker begins its next task beside it.
    """

    finish: Callable[[], Any]


class Executor(ABC):
    """Runs tasks somewhere, and keeps their records."""

    def __init__(self, *, notice: Callable[[str], None]):
        self.notice = notice
        self.is_change_said = False

    @abstractmethod
    def __enter__(self) -> Self:
        """Make ready."""

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Leave nothing running."""

    @abstractmethod
    def execute(self, jobs: list[Job]) -> Iterator[tuple[Task, Outcome]]:
        """Each job's task and outcome, in the order in which they finish. Raises as `run` says."""

    def run(
        self, function: Callable[[Any], Any], tasks: Sequence[Task], *, records: Path
    ) -> Iterator[tuple[Task, Outcome]]:
        """Each task with function(task), in the order in which they finish; those with a record in `records` first.

        function must be importable by name, its result JSON, or AlmostDone. A worker that dies is replaced, its task
        tried once more. Raises ValueError with the task's own message where it met bad input or a full disk,
        RuntimeError where two workers died of a task, or it broke.
        """
        jobs = [Job(function, task, records / f"{task.name}.json") for task in tasks]
        unfinished, repeated = [], []
        for job in jobs:
            record = job.read_record()
            reason = None if record is None else job.find_reason_to_repeat(record)
            if record is not None and not reason:
                yield job.task, Outcome(record["result"], None)
                continue
            unfinished.append(job)
            if reason:
                repeated.append((job, reason, job.is_changed(record)))
        self._say_repeated(repeated)
        self._say_cut_off(unfinished)
        yield from self.execute(unfinished)

    def _say_repeated(self, repeated: list[tuple[Job, str, bool]]) -> None:
        """Say which finished tasks are done again; where what they read has changed, only those of the first such
        stage: what changes in later ones follows from it."""
        texts = [
            f"task {job.task.name} ({job.task.subject}): {reason}"
            for job, reason, is_changed in repeated
            if not (is_changed and self.is_change_said)
        ]
        self.is_change_said |= any(is_changed for _, _, is_changed in repeated)
        if texts:
            more = f", and {len(texts) - REPEATS_SHOWN:,} more" if len(texts) > REPEATS_SHOWN else ""
            self.notice(f"done again: {'; '.join(texts[:REPEATS_SHOWN])}{more}")

    def _say_cut_off(self, jobs: list[Job]) -> None:
        """Name the task that an earlier run was killed in, where it ran in that run's own process."""
        for job in jobs:
            if job.begun.exists():
                what = f"an earlier run was cut off in task {job.task.name} ({job.task.subject})"
                self.notice(f"{what}; if the system killed it, it took too much memory")
                job.begun.unlink()


def try_again(job: Job, how: str, *, notice: Callable[[str], None]) -> Job:
    """The job of a dead worker, to be tried once more; raises RuntimeError where it has been."""
    what = f"the worker of task {job.task.name} ({job.task.subject}) {how}"
    if job.has_died:
        raise RuntimeError(f"{what}, for the second time. {KEPT}: run the command again")
    notice(f"{what}; trying the task once more")
    return replace(job, has_died=True)


@dataclass(frozen=True)
class Outcome:
    """What a finished task left. seconds: that it took; None: in an earlier run."""

    result: Any
    seconds: float | None


@dataclass(frozen=True)
class Job:
    """A task with what is to be done to it, and where the result is recorded."""

    function: Callable[[Any], Any]
    task: Task
    record: Path
    has_died: bool = False  # a worker died of it once

    def run(self) -> Outcome:
        """What the function leaves. Its record is written last: a task that has one is finished."""
        return self.begin()()

    def begin(self) -> Callable[[], Outcome]:
        """Do the task, but for what waits for the disk: that, and the record, is left to what it returns."""
        began = time.monotonic()
        return partial(self._finish, self.function(self.task), began)

    def _finish(self, result: Any, began: float) -> Outcome:
        result = result.finish() if isinstance(result, AlmostDone) else result
        sizes = [path.stat().st_size for path in self.task.list_outputs(result)]
        write_json(self.record, {"fingerprint": self.task.fingerprint, "output_bytes": sizes, "result": result})
        return Outcome(result, time.monotonic() - began)

    @property
    def begun(self) -> Path:
        """The file that is there while the task runs in the build's own process, whose death nobody would report."""
        return self.record.with_suffix(".begun")

    def run_here(self) -> Outcome:
        """What `run` leaves. Where this process is killed meanwhile, the next run finds what it was at."""
        self.begun.parent.mkdir(parents=True, exist_ok=True)
        self.begun.touch()
        try:
            return self.run()
        finally:
            self.begun.unlink()

    def read_record(self) -> dict[str, Any] | None:
        """The record of the finished task, or None; empty where it is damaged."""
        if not self.record.is_file():
            return None
        try:
            return read_json(self.record)
        except ValueError:
            return {}

    def is_finished(self) -> bool:
        """Whether the task need not be done again."""
        record = self.read_record()
        return record is not None and self.find_reason_to_repeat(record) is None

    def is_changed(self, record: dict[str, Any]) -> bool:
        """Whether what the task read when it left this record is not what it reads now."""
        return record.get("fingerprint", self.task.fingerprint) != self.task.fingerprint

    def find_reason_to_repeat(self, record: dict[str, Any]) -> str | None:
        """Why a finished task must be done again, or None."""
        if not record:
            return f"{self.record} is damaged"
        if self.is_changed(record):
            return "what it reads has changed (what follows from it is done again, too)"
        for path, size in zip(self.task.list_outputs(record["result"]), record["output_bytes"], strict=True):
            if not path.is_file():
                return f"{path} is gone"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size:,} bytes, not the {size:,} that it was written with"
        return None


def attempt(step: Callable[[], Any]) -> tuple[str, Any]:
    """What comes of a step of a job, as a worker sends it home: for `check_answer`."""
    try:
        return "outcome", step()
    except USER_ERRORS as error:
        return "user error", describe(error)
    except Exception:
        return "broken", traceback.format_exc()


def check_answer(kind: str, value: Any, job: Job) -> Outcome:
    """A job's outcome, or the error that a worker sent instead."""
    if kind == "outcome":
        return value
    if kind == "user error":
        raise ValueError(value)
    raise RuntimeError(f"task {job.task.name} ({job.task.subject}) broke:\n{value}")


def describe(error: BaseException) -> str:
    """One line for the user."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    advice = ADVICE.get(error.errno, "")
    return f"{where}{error.strerror}{advice}"
