"""Fetches raw files ahead of ingest, in the order of its tasks, and removes them behind it.

The files that are there or on their way never have more than `room_bytes` together; one that the first unfinished task
needs is fetched in any case, so that a task larger than the room is done, too. Workers find a file by its name.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pipeline.fetch import StoppedError
from pipeline.folders import FETCH_FAILURE
from pipeline.ingest import IngestTask, begin_ingest
from pipeline.jobs import KEPT, Job, describe
from pipeline.plan import PlannedSource
from pipeline.progress import BuildLog
from pipeline.raw_sources import find_remotes
from pipeline.remote import RemoteSource
from pipeline.storage import write_file

FETCHED_AT_ONCE = 8
FAILURE_BYTES = 4096

Check = Callable[[IngestTask, dict[str, Any]], None]


@dataclass(frozen=True)
class Wanted:
    """A file and the tasks that read it: their numbers in order."""

    remote: RemoteSource
    path: str
    tasks: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """As listed."""
        return self.remote.files[self.path].size_bytes

    @property
    def target(self) -> Path:
        """Where it goes."""
        return self.remote.folder / self.path


class ReadAhead:
    """Threads that fetch while the `with` block runs.

    tasks: all of ingest. finished: the names of those that an earlier run has done. failure: a file that says to
    workers what went wrong.
    """

    def __init__(
        self,
        tasks: Sequence[IngestTask],
        remotes: Mapping[str, RemoteSource],
        *,
        finished: set[str],
        room_bytes: int,
        failure: Path,
        log: BuildLog,
    ):
        self.numbers = {task.name: number for number, task in enumerate(tasks)}
        self.unfinished = {self.numbers[task.name] for task in tasks if task.name not in finished}
        self.wanted = list(list_wanted(tasks, remotes))
        self.by_task: dict[int, list[Wanted]] = {}
        for wanted in self.wanted:
            for number in wanted.tasks:
                self.by_task.setdefault(number, []).append(wanted)
        self.room_bytes, self.failure, self.log = room_bytes, failure, log
        self.reserve = failure.with_suffix(".reserve")  # what is there can be written over on a full disk
        self.queue: deque[Wanted] = deque()
        self.held_bytes = self.num_files = self.num_bytes = self.most_held_bytes = 0
        self.room_seconds = self.worker_seconds = 0.0
        self.changed = threading.Condition()
        self.is_stopped = False
        self.threads: list[threading.Thread] = []
        self.patience = {id(remote.fetcher.patience): remote.fetcher.patience for remote in remotes.values()}
        for remote in remotes.values():
            remote.fetcher.is_stopped = lambda: self.is_stopped

    def __enter__(self) -> Self:
        self.started = time.monotonic()
        self.failure.unlink(missing_ok=True)
        if self.wanted:
            write_file(self.reserve, [b" " * FAILURE_BYTES])
        needed = [wanted for wanted in self.wanted if self.unfinished.intersection(wanted.tasks)]
        for wanted in self.wanted:
            if not self.unfinished.intersection(wanted.tasks):
                self.remove(wanted)
        # Those that are there first: they take up room.
        self.queue.extend(sorted(needed, key=lambda wanted: not wanted.target.exists()))
        for _ in range(min(FETCHED_AT_ONCE, len(self.queue))):
            self.threads.append(threading.Thread(target=self.fetch_files, daemon=True))
            self.threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()
        for thread in self.threads:
            thread.join(timeout=0.1)  # one that waits for a server ends with the program
        self.reserve.unlink(missing_ok=True)
        if self.wanted:
            self.write_log()

    def fetch_files(self) -> None:
        """A thread's life."""
        while (wanted := self.take_next()) is not None:
            try:
                num_bytes = wanted.remote.fetch(wanted.path)
            except StoppedError:
                return
            except Exception as error:  # whatever it is, workers wait for this file: they must be told
                self.fail(wanted, error)
                return
            with self.changed:
                self.num_files += 1
                self.num_bytes += num_bytes

    def take_next(self) -> Wanted | None:
        """The next file to fetch once there is room for it; None: no more."""
        started = time.monotonic()
        with self.changed:
            self.changed.wait_for(lambda: self.is_stopped or not self.queue or self.has_room(self.queue[0]))
            self.room_seconds += time.monotonic() - started
            if self.is_stopped or not self.queue:
                return None
            wanted = self.queue.popleft()
            self.held_bytes += wanted.size_bytes
            self.most_held_bytes = max(self.most_held_bytes, self.held_bytes)
            self.changed.notify_all()
            return wanted

    def has_room(self, wanted: Wanted) -> bool:
        """Whether a file may come now."""
        is_due = min(self.unfinished, default=-1) in wanted.tasks
        return is_due or self.held_bytes + wanted.size_bytes <= self.room_bytes or wanted.target.exists()

    def release(self, task: IngestTask, record: Mapping[str, Any]) -> None:
        """A task is finished: remove the raw files that no other task needs."""
        number = self.numbers[task.name]
        with self.changed:
            if number not in self.unfinished:
                return
            self.unfinished.discard(number)
            self.worker_seconds += record.get("waited_seconds", 0.0)
            for wanted in self.by_task.get(number, []):
                if not self.unfinished.intersection(wanted.tasks):
                    self.remove(wanted)
                    self.held_bytes -= wanted.size_bytes
            self.changed.notify_all()

    def releasing(self, check: Check) -> Check:
        """`check`, and then `release`: for a task that is finished."""

        def check_and_release(task: IngestTask, record: dict[str, Any]) -> None:
            check(task, record)
            self.release(task, record)

        return check_and_release

    def remove(self, wanted: Wanted) -> None:
        """Remove a raw file that is not to be kept."""
        if not wanted.remote.keep:
            wanted.target.unlink(missing_ok=True)

    def fail(self, wanted: Wanted, error: Exception) -> None:
        """Tell workers that a file will not come, and fetch no more."""
        what = describe(error) if isinstance(error, (OSError, ValueError)) else f"{wanted.path}: {error!r}"
        with self.changed:
            if not self.is_stopped:
                self.is_stopped = True
                what = what if KEPT in what else f"{what}. {KEPT}"
                self.tell(f"{wanted.remote.name}: {what}")
            self.changed.notify_all()

    def tell(self, text: str) -> None:
        """Write down for workers why a file will not come: where there was room for it before the disk was full."""
        with open(self.reserve, "r+b") as file:
            file.write(text.encode()[:FAILURE_BYTES].decode(errors="ignore").encode().ljust(FAILURE_BYTES))
        os.replace(self.reserve, self.failure)

    def write_log(self) -> None:
        """One line on what was fetched, and who waited for whom."""
        self.log.write(
            "fetched",
            stage="ingest",
            files=self.num_files,
            bytes=self.num_bytes,
            most_held_bytes=self.most_held_bytes,
            seconds=round(time.monotonic() - self.started, 3),
            workers_waited_seconds=round(self.worker_seconds, 3),
            room_waited_seconds=round(self.room_seconds, 3),
            servers_waited_seconds=round(sum(one.waited_seconds for one in self.patience.values()), 3),
            failures=sum(one.num_failures for one in self.patience.values()),
        )


def list_wanted(tasks: Sequence[IngestTask], remotes: Mapping[str, RemoteSource]) -> Iterator[Wanted]:
    """Every file that is fetched, in the order of the tasks."""
    readers: dict[tuple[str, str], list[int]] = {}
    for number, task in enumerate(tasks):
        for path in list_paths(task) if task.source in remotes else ():
            path = Path(path).relative_to(remotes[task.source].folder).as_posix()
            readers.setdefault((task.source, path), []).append(number)
    for (source, path), numbers in readers.items():
        yield Wanted(remotes[source], path, tuple(numbers))


def list_paths(task: IngestTask) -> Iterator[str]:
    """The files that a task reads, in its order."""
    for file in task.files:
        yield file.path
        if file.signals:
            yield file.signals


def read_ahead(
    tasks: Sequence[IngestTask], sources: Sequence[PlannedSource], *, work: Path, room_bytes: int, log: BuildLog
) -> ReadAhead:
    """What fetches the raw files of these tasks that are not on this disk, but for the tasks that are finished."""
    remotes = find_remotes(sources)
    jobs = (Job(begin_ingest, task, work / "records" / "ingest" / f"{task.name}.json") for task in tasks if remotes)
    finished = {job.task.name for job in jobs if job.is_finished()}
    failure = work / FETCH_FAILURE
    return ReadAhead(tasks, remotes, finished=finished, room_bytes=room_bytes, failure=failure, log=log)
