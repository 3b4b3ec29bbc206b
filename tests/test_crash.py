"""Builds that are killed, at any moment and in any part, and go on: the same bytes, and nothing done twice."""

import os
import random
import shutil
import signal
import time

import pytest
from build_process import BuildProcess, checksums, kill_if_there, many_flags

STAGES = {"ingest": 7, "dedup": 1, "drops": 7, "pack": 70}
LAST_DELAY_SECONDS = 0.05  # behind the event that a kill waits for: tasks of these tests take 1 to 50 ms, ingest more
VANISH_SECONDS = 5
ATTEMPTS = 6  # at a moment: on a busy machine this process may be late


@pytest.fixture
def start(many_raw_files, tmp_path, sample_model):
    """Starts a build of many_raw_files in tmp_path/out. What is left of it ends with the test."""
    builds = []

    def start(more="--workers 2", **how):
        out = tmp_path / "out"
        builds.append(BuildProcess(many_flags(many_raw_files, out, sample_model, more), out, **how))
        return builds[-1]

    yield start
    for pid in (pid for build in builds for pid in build.list_processes()):
        kill_if_there(pid)


def read_stamps(out):
    """When the record of each finished task was written."""
    return {path: path.stat().st_mtime_ns for path in sorted(out.glob("work/records/**/*.json"))}


def draw_moment(rng, stage):
    """Seconds to wait, and for how many finished tasks of which stage before."""
    if stage == "start":
        return rng.uniform(0, 2), None, 0
    if stage == "finish":
        return rng.uniform(0, LAST_DELAY_SECONDS), "pack", STAGES["pack"]
    return rng.uniform(0, LAST_DELAY_SECONDS), stage, rng.randrange(STAGES[stage])


def wait_for_moment(build, seconds, stage, num_tasks):
    """Returns whether the build still runs then."""
    if stage:
        build.wait_for(stage, num_tasks)
    moment = time.monotonic() + seconds
    return build.wait_until(lambda: time.monotonic() > moment)


def stop_in_turn(start, out, seed, stages):
    """Builds one dataset, stopped once in each of these stages: by `kill -9`, by the death of a worker, or by Ctrl-C.

    Returns how often it was stopped; asserts that finished tasks stay finished, and that no process is left.
    """
    rng, build, stamps, num_stops = random.Random(seed), start(), {}, 0
    for number, stage in enumerate(stages, start=seed):
        for _ in range(ATTEMPTS):
            build = build if build.is_running else start()
            if wait_for_moment(build, *draw_moment(rng, stage)):
                break
            if (out / "dataset.json").exists():  # all was over before the moment came: once more from the beginning
                shutil.rmtree(out)
                stamps = {}
        else:
            continue
        num_stops += 1
        if number % 3 == 1 and build.list_workers():
            kill_if_there(rng.choice(build.list_workers()))
            continue
        os.killpg(build.process.pid, signal.SIGINT) if number % 3 == 2 else build.process.kill()
        build.finish()
        assert build.is_gone(VANISH_SECONDS)
        now = read_stamps(out)
        assert all(now[path] == stamp for path, stamp in stamps.items() if path in now)
        stamps = now
    build.finish()
    code, _, error = start().finish()
    assert code == 0, error
    return num_stops


MOMENTS = ["start", *STAGES, "finish"]


@pytest.mark.parametrize(
    ("seed", "stages"),
    [
        pytest.param(0, ["ingest", "drops", "pack"], marks=pytest.mark.long),
        *(pytest.param(seed, MOMENTS, marks=pytest.mark.long) for seed in range(1, 5)),
    ],
)
def test_a_build_stopped_at_seeded_moments_ends_with_the_bytes_of_one_left_alone(start, tmp_path, whole, seed, stages):
    num_stops = stop_in_turn(start, tmp_path / "out", seed, stages)
    assert num_stops >= len(stages) - 1  # the last moments of a build are short
    assert checksums(tmp_path / "out") == checksums(whole)
    assert not (tmp_path / "out/work").exists()


def kill_worker_of(build, task):
    """Kill the worker that holds a task, once one does; returns whether the build still ran then."""
    found = []
    if build.wait_until(lambda: found.extend(build.find_worker_of(task)) or found):
        kill_if_there(found[0])
        build.wait_until(lambda: found[0] not in build.list_processes())
    return bool(found)


@pytest.mark.long
def test_a_killed_worker_is_named_with_its_raw_file_and_a_task_that_kills_two_stops_the_build(
    start, tmp_path, whole, many_raw_files
):
    died = f"the worker of task code-00001 ({many_raw_files}/code/big.jsonl) died by signal 9"
    build = start("--workers 2 --engine reference")  # slow enough to be found at work
    assert kill_worker_of(build, "code-00001") and kill_worker_of(build, "code-00001")
    code, out, error = build.finish()
    (line,) = error.splitlines()
    assert code == 1 and died in out and died in line and "for the second time" in line
    assert build.is_gone(VANISH_SECONDS)
    build = start()
    assert build.wait_for("pack", 3)
    kill_if_there(build.list_workers()[0])
    code, out, error = build.finish()
    assert code == 0 and "died by signal 9" in out and not error
    assert checksums(tmp_path / "out") == checksums(whole)


INTERRUPTED = [("--workers 1", "ingest", 0), ("--workers 2", "ingest", 0)]


@pytest.mark.long
def test_ctrl_c_stops_the_build_within_two_seconds_and_it_goes_on_later(start, tmp_path, whole):
    for more, stage, num_tasks in INTERRUPTED:
        # Two seconds are a promise to the user. Other work may hold this machine up, but hardly twice in a row.
        assert any(interrupt(start(more), stage, num_tasks) < 2 for _ in range(2))
    assert start().finish()[0] == 0
    assert checksums(tmp_path / "out") == checksums(whole)


def interrupt(build, stage, num_tasks):
    """Press Ctrl-C in a stage, after so many tasks and a bit; returns the seconds until nothing of the build is left."""
    assert wait_for_moment(build, 0.1, stage, num_tasks)
    os.killpg(build.process.pid, signal.SIGINT)
    began = time.monotonic()
    code, _, error = build.finish()
    assert build.is_gone(VANISH_SECONDS)
    assert code == 1
    assert error == "stopped. What was finished is kept: run the same command again to continue\n"
    return time.monotonic() - began
