"""Run the tasks of jobs.py in worker processes of this machine. Knows nothing of what they do.

Workers are started with `spawn` (no state of the parent leaks in) and take one task at a time. A worker that dies is
noticed at once and named with its task; a task that raises stops the run.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from pipeline.jobs import Executor, Job, Outcome, Task, check_answer, run_job, try_again


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
        for connection in self.processes:
            self._hand_out(connection, waiting, busy)
        while busy:
            for connection in wait(list(busy)):
                job = busy.pop(connection)
                try:
                    kind, value = connection.recv()
                except (EOFError, OSError):  # OSError: it died halfway through its answer
                    waiting.appendleft(self._bury(connection, job))
                    self._hand_out(self._start_one(), waiting, busy)
                    continue
                self._hand_out(connection, waiting, busy)
                yield job.task, check_answer(kind, value, job)

    def _hand_out(self, connection: Connection, waiting: deque[Job], busy: dict[Connection, Job]) -> None:
        if not waiting:
            return
        busy[connection] = job = waiting.popleft()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle: receiving will say so
            connection.send(job)

    def _bury(self, connection: Connection, job: Job) -> Job:
        """The job of a dead worker, to be tried again."""
        process = self.processes.pop(connection)
        process.join()
        how = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
        hint = " (the system kills what takes too much memory: try fewer --workers)" if process.exitcode == -9 else ""
        return try_again(job, f"died by {how}{hint}", notice=self.notice)


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
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            connection.send(run_job(job))
        except BrokenPipeError:
            return


def die_with_parent() -> None:
    """End this process when its parent is gone, however that died: the next build must find no other hands at work."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
