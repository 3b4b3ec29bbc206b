"""Run the tasks of jobs.py in worker processes of this machine. Knows nothing of what they do.

Workers are started with `spawn` (no state of the parent leaks in) and work on one task at a time; while a thread waits
until the disk has its files, they begin the next. A worker that dies is noticed at once and named with its task; a task
that raises stops the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline.jobs import Executor, Job, Outcome, Task, attempt, check_answer, try_again

BEGUN = "begun", None  # a worker's answer: of its job it only waits for the disk


class Workers(Executor):
    """Worker processes, started when there is first work for two, kept until the end of the `with` block.

    With one worker the tasks run in this process, and so does one task alone before there are workers.
    """

    def __init__(self, num_workers: int, *, notice: Callable[[str], None]):
        super().__init__(notice=notice)
        self.num_workers = num_workers
        self.processes: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self.processes.items():
            connection.close()
            process.terminate()
        for process in self.processes.values():
            process.join()

    def execute(self, jobs: list[Job]) -> Iterator[tuple[Task, Outcome]]:
        """Each job's task and outcome, in the order in which they finish."""
        if self.num_workers == 1 or (len(jobs) <= 1 and not self.processes):
            for job in jobs:
                yield job.task, job.run_here()
            return
        while len(self.processes) < min(self.num_workers, len(jobs)):
            self._start_one()
        yield from self._run_jobs(deque(jobs))

    def _start_one(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_jobs, args=(theirs,), daemon=True)
        with holding_back_ctrl_c():
            process.start()
        theirs.close()
        self.processes[ours] = process
        return ours

    def _run_jobs(self, waiting: deque[Job]) -> Iterator[tuple[Task, Outcome]]:
        busy: dict[Connection, Job] = {}
        ending: dict[Connection, Job] = {}  # they wait for the disk
        while waiting or busy or ending:
            self._hand_out(waiting, busy)
            for connection in wait({*busy, *ending}):
                try:
                    answer = connection.recv()
                except (EOFError, OSError):  # OSError: it died halfway through its answer
                    waiting.extendleft(self._bury(connection, busy, ending))
                    continue
                if answer == BEGUN:
                    ending[connection] = busy.pop(connection)
                    self._hand_out(waiting, busy)
                    continue
                job = ending.pop(connection) if connection in ending else busy.pop(connection)
                yield job.task, check_answer(*answer, job)

    def _hand_out(self, waiting: deque[Job], busy: dict[Connection, Job]) -> None:
        """Give each idle worker a job."""
        for connection in self.processes:
            if waiting and connection not in busy:
                busy[connection] = job = waiting.popleft()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle: receiving will say so
                    connection.send(job)

    def _bury(self, connection: Connection, busy: dict[Connection, Job], ending: dict[Connection, Job]) -> list[Job]:
        """The jobs of a dead worker, which are to be done again, now that another has taken its place.

        What it worked on is what it died of; what waited for the disk is not to blame.
        """
        process = self.processes.pop(connection)
        process.join()
        how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        hint = " (the system kills what takes too much memory: try fewer --workers)" if process.exitcode == -9 else ""
        first, *others = [jobs.pop(connection) for jobs in (busy, ending) if connection in jobs]
        again = try_again(first, f"died by {how}{hint}", notice=self.notice)
        self._start_one()
        return [*others, again]


@contextlib.contextmanager
def holding_back_ctrl_c() -> Iterator[None]:
    """Let processes that start in the block never notice Ctrl-C: it reaches the whole group, but the parent decides.

    They inherit the mask, so that they are deaf while they still import. Here Ctrl-C arrives when the block ends.
    """
    resource_tracker.ensure_running()  # would lift the mask where it is first started within the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_jobs(connection: Connection) -> None:
    """A worker's life: take a job, answer, until the other end is gone."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    with ThreadPoolExecutor(1) as threads, contextlib.suppress(EOFError, BrokenPipeError):
        ending: Future | None = None
        while True:
            job = connection.recv()
            kind, value = attempt(job.begin)
            if ending:
                ending.result()  # has sent its answer: never two at once
            if kind == "outcome":
                connection.send(BEGUN)
                ending = threads.submit(lambda finish=value: connection.send(attempt(finish)))
            else:
                connection.send((kind, value))


def die_with_parent() -> None:
    """End this process when its parent is gone, however that died: the next build must find no other hands at work."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
