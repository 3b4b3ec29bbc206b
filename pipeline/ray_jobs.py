"""Run the tasks of jobs.py on a Ray cluster that is there already. Knows nothing of what they do.

The machines share the storage: a task finds its files under the same paths on each of them. Ray itself repeats nothing:
a task whose worker or machine is gone is said aloud and tried once more, as the local workers do it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.jobs import Executor, Job, Outcome, Task, attempt, check_answer, try_again

PROJECT = Path(__file__).absolute().parent.parent
SECONDS_TO_ANSWER = 5
SECONDS_BETWEEN_LOOKS = 5  # machines may have come: how long until they get tasks
SECONDS_TO_CANCEL = 10
DEATHS = {  # by the name of Ray's error
    "WorkerCrashedError": "died (the system kills what takes too much memory)",
    "OutOfMemoryError": "was ended by Ray, for want of memory",
    "ObjectLostError": "was gone before its result was fetched",
    "NodeDiedError": "died with its machine",  # whose address follows
}


class RayWorkers(Executor):
    """The CPUs of a Ray cluster, for as long as the `with` block lasts; a task takes one of them."""

    def __init__(self, address: str, *, notice: Callable[[str], None]):
        super().__init__(notice=notice)
        self.address = address
        self.ray = import_ray()
        self.busy: dict[Any, Job] = {}  # by Ray's reference to the outcome

    def __enter__(self) -> RayWorkers:
        connect(self.ray, self.address)
        # Spread: each machine has its own link to the storage.
        options = {"num_cpus": 1, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self.remote_run = self.ray.remote(**options)(run_in_folder)
        num_machines = sum(node["Alive"] for node in self.ray.nodes())
        self.notice(f"Ray cluster: {num_machines:,} machines, {self._count_cpus():,} CPUs")
        return self

    def __exit__(self, *_: object) -> None:
        for reference in self.busy:
            self.ray.cancel(reference, force=True)
        if self.busy:  # the next build must find no other hands at work
            self.ray.wait(list(self.busy), num_returns=len(self.busy), timeout=SECONDS_TO_CANCEL)
        self.busy.clear()
        self.ray.shutdown()

    def execute(self, jobs: list[Job]) -> Iterator[tuple[Task, Outcome]]:
        """Each job's task and outcome, in the order in which they finish."""
        for folder in {job.record.parent for job in jobs}:
            folder.mkdir(parents=True, exist_ok=True)  # by which a machine sees that it shares our storage
        waiting = deque(jobs)
        while waiting or self.busy:
            self._hand_out(waiting)
            finished, _ = self.ray.wait(list(self.busy), timeout=SECONDS_BETWEEN_LOOKS)
            for reference in finished:
                job = self.busy.pop(reference)
                kind, value = self._receive(reference)
                if kind == "death":
                    waiting.appendleft(try_again(job, value, notice=self.notice))
                    continue
                self._hand_out(waiting)
                yield job.task, check_answer(kind, value, job)

    def _hand_out(self, waiting: deque[Job]) -> None:
        num_wanted = max(1, self._count_cpus())  # with none, one task waits in Ray for a machine to come
        while waiting and len(self.busy) < num_wanted:
            job = waiting.popleft()
            self.busy[self.remote_run.remote(os.getcwd(), job)] = job

    def _count_cpus(self) -> int:
        return int(self.ray.cluster_resources().get("CPU", 0))

    def _receive(self, reference: Any) -> tuple[str, Any]:
        """A worker's answer, which is "death" with how it came about where the worker did not live to tell."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            death = describe_death(error)
            return ("death", death) if death else ("broken", str(error))


def import_ray() -> ModuleType:
    """The library. Raises ValueError that says how to install it where it is not."""
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            f"--executor ray needs the extra `ray` ({error}). In the folder of this project, on each machine: "
            "pip install -c constraints.txt -e '.[ray]'"
        ) from error
    return ray


def connect(ray: ModuleType, address: str) -> None:
    """Join the cluster. Never starts one: raises ValueError that says how where none answers at `address`."""
    try:
        found = find_head(address)
        ray.init(
            found,
            runtime_env={"env_vars": {"PYTHONPATH": f"{PROJECT}{os.pathsep}${{PYTHONPATH}}"}},  # Ray fills in theirs
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"no Ray cluster at --ray-address {address} ({' '.join(str(error).split())}). Start one with "
            "`ray start --head`, or, where one runs, join it with `ray start --address HOST:PORT`, on this machine"
        ) from error
    # The raylets' last words, twenty lines for each machine that dies: `try_again` says it in one.
    ray._private.worker._worker_logs_enabled = False


def find_head(address: str) -> str:
    """The cluster's HOST:PORT, where something listens.

    Raises OSError or ValueError where nothing does: ray.init would go on trying for a quarter of an hour, aloud.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die

    found = canonicalize_bootstrap_address_or_die(address)
    host, _, port = found.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    return found


def describe_death(error: Exception) -> str | None:
    """How a worker died, where Ray's error says that it did."""
    how = next((DEATHS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in DEATHS), None)
    host = re.search(r"Node IP: ([^\s,]+)", str(error))
    return f"{how} {host[1]}" if how and host else how


def run_in_folder(folder: str, job: Job) -> tuple[str, Any]:
    """What becomes of a job on a machine of the cluster, its relative paths counted from `folder`."""
    with contextlib.suppress(OSError):  # not there: absolute paths do without
        os.chdir(folder)
    if not job.record.parent.is_dir():
        return "user error", (
            f"machine {socket.gethostname()} does not see {job.record.parent}: raw files, --out and --work must be on "
            f"storage that all machines of the cluster share, under the same paths (relative ones are in {folder})"
        )
    return attempt(job.run)
