"""Workers: results are recorded, errors and deaths are named."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.jobs import AlmostDone
from pipeline.local_jobs import Workers

PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Step:
    """A task that does as its name says."""

    name: str
    folder: str = ""

    @property
    def subject(self):
        return f"the step {self.name}"

    @property
    def fingerprint(self):
        return Path(self.folder, "input").read_text() if Path(self.folder, "input").exists() else ""

    def list_outputs(self, result):
        return [Path(self.folder, f"{self.name}.out")]


def act(step):
    if step.name == "bad input":
        raise ValueError("row 3 is wrong")
    if step.name == "bug":
        raise KeyError("oops")
    if step.name == "die" or (step.name == "die once" and not Path(step.folder, "died").exists()):
        Path(step.folder, "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    Path(step.folder, f"{step.name}.out").write_text("done")
    return {"name": step.name, "pid": os.getpid()}


def wait_for(path):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.01)


def act_slowly_at_the_end(step):
    """The same, but steps whose names begin with an underscore wait for something before they end: "_c" for the
    beginning of step c, "_full disk" in vain, "_death" for the death of its worker, unless that was before. "hold"
    waits for that death at its beginning."""
    Path(step.folder, f"{step.name}.begun").touch()
    if step.name == "hold":
        wait_for(Path(step.folder, "died"))
    is_first = not Path(step.folder, "died").exists()

    def finish():
        if step.name == "_full disk":
            raise OSError(28, "No space left on device", "disk")
        if step.name == "_death":
            time.sleep(PATIENCE_SECONDS if is_first else 0)
        elif step.name.startswith("_"):
            wait_for(Path(step.folder, f"{step.name[1:]}.begun"))
        return act(step)

    return AlmostDone(finish) if step.name.startswith("_") else act(step)


def run(names, folder, workers, function=act):
    said = []
    steps = [Step(name, str(folder)) for name in names]
    with Workers(workers, notice=said.append) as pool:
        finished = pool.run(function, steps, records=folder / "records")
        return {task.name: outcome.result for task, outcome in finished} | {"said": said}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_recorded_and_not_made_again(tmp_path, workers):
    first = run(["a", "b", "c"], tmp_path, workers)
    assert sorted(first) == ["a", "b", "c", "said"]
    (tmp_path / "records/b.json").unlink()
    second = run(["a", "b", "c"], tmp_path, workers)
    assert second["a"] == first["a"]
    assert second["b"]["pid"] == os.getpid()  # one task alone needs no worker


@pytest.mark.parametrize("workers", [1, 2])
def test_a_task_whose_file_is_gone_or_cut_is_done_again_and_that_is_said(tmp_path, workers):
    first = run(["a", "b", "c"], tmp_path, workers)
    (tmp_path / "a.out").unlink()
    (tmp_path / "c.out").write_text("do")
    second = run(["a", "b", "c"], tmp_path, workers)
    assert second["b"] == first["b"]
    assert [(tmp_path / name).read_text() for name in ("a.out", "c.out")] == ["done", "done"]
    assert len(second["said"]) == 1 and "a.out is gone" in second["said"][0]
    assert "c.out has 2 bytes, not the 4" in second["said"][0]
    assert run(["a", "b", "c"], tmp_path, workers)["said"] == []


def test_tasks_whose_input_has_changed_are_done_again(tmp_path):
    run(["a", "b", "c", "d"], tmp_path, 1)
    (tmp_path / "input").write_text("other")
    said = run(["a", "b", "c", "d"], tmp_path, 1)["said"]
    assert len(said) == 1 and "what it reads has changed" in said[0] and "and 1 more" in said[0]
    assert run(["a", "b", "c", "d"], tmp_path, 1)["said"] == []


def test_what_follows_from_changed_input_is_done_again_without_another_word(tmp_path):
    def run_two_stages():
        said, steps = [], [Step(name, str(tmp_path)) for name in "abc"]
        with Workers(1, notice=said.append) as pool:
            for stage, function in (("first", act), ("second", act)):
                assert len(list(pool.run(function, steps, records=tmp_path / stage))) == 3
        return said

    run_two_stages()
    (tmp_path / "input").write_text("other")
    (said,) = run_two_stages()
    assert "task a (the step a): what it reads has changed" in said
    (tmp_path / "c.out").unlink()
    said = run_two_stages()
    assert said and all("task c" in text and "task a" not in text for text in said)


def run_alone(names, folder):
    """A run with one worker, in a process of its own; what it said."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; from test_jobs import run\n"
        "print(*run(sys.argv[4:], Path(sys.argv[3]), 1)['said'], sep='\\n')"
    )
    command = [sys.executable, "-c", script, str(REPOSITORY), str(REPOSITORY / "tests"), str(folder), *names]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


def test_a_lone_worker_that_was_killed_is_named_with_its_task_by_the_next_run(tmp_path):
    names = ["a", "die once", "b"]
    assert run_alone(names, tmp_path).returncode == -signal.SIGKILL
    (said,) = run_alone(names, tmp_path).stdout.splitlines()
    assert "cut off in task die once (the step die once)" in said and "memory" in said
    assert run_alone(names, tmp_path).stdout == "\n"


def test_a_task_that_met_bad_input_was_not_cut_off(tmp_path):
    with pytest.raises(ValueError, match="row 3 is wrong"):
        run(["a", "bad input"], tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == ["a.json"]


def test_bad_input_in_a_worker_comes_back_as_its_own_message(tmp_path):
    with pytest.raises(ValueError, match="^row 3 is wrong$"):
        run(["a", "bad input", "c"], tmp_path, 2)


def test_a_broken_task_is_named_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)task bug .* broke.*KeyError"):
        run(["a", "bug"], tmp_path, 2)


def test_a_task_whose_worker_died_is_tried_once_more(tmp_path):
    results = run(["a", "die once", "b", "c"], tmp_path, 2)
    assert {"a", "die once", "b", "c"} <= results.keys()
    (said,) = results["said"]
    assert "the worker of task die once (the step die once) died by signal 9" in said


def test_a_task_that_kills_two_workers_stops_the_run_with_its_subject(tmp_path):
    with pytest.raises(RuntimeError, match=r"task die \(the step die\) died by signal 9 .*for the second time"):
        run(["a", "die", "b"], tmp_path, 2)


def test_a_task_begins_while_those_before_it_wait_for_the_disk(tmp_path):
    results = run(["_c", "_d", "c", "d"], tmp_path, 2, act_slowly_at_the_end)
    assert sorted(results) == ["_c", "_d", "c", "d", "said"] and results["said"] == []
    assert run(["_c", "_d", "c", "d"], tmp_path, 2, act_slowly_at_the_end) == results


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_at_the_end_of_a_task_stops_the_run(tmp_path, workers):
    with pytest.raises((ValueError, OSError), match="No space left"):
        run(["a", "_full disk", "b", "c"], tmp_path, workers, act_slowly_at_the_end)
    assert not (tmp_path / "records/_full disk.json").exists()


def test_a_worker_dies_of_what_it_works_on_and_what_waited_for_the_disk_is_done_again(tmp_path):
    results = run(["_death", "hold", "die once"], tmp_path, 2, act_slowly_at_the_end)
    assert sorted(results) == ["_death", "die once", "hold", "said"]
    (said,) = results["said"]
    assert "the worker of task die once (the step die once) died by signal 9" in said


def test_the_workers_end_with_their_parent(tmp_path):
    script = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1]); from pipeline.local_jobs import Workers\n"
        "if __name__ == '__main__':\n"
        "    workers = Workers(2, notice=print); workers._start_one(); workers._start_one()\n"
        "    print(*[process.pid for process in workers.processes.values()], flush=True); time.sleep(60)"
    )
    (tmp_path / "parent.py").write_text(script)
    command = [sys.executable, str(tmp_path / "parent.py"), str(REPOSITORY)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
