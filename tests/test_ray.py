"""Ray: the same tasks on a cluster give the same bytes, the same errors, and outlive a machine."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, write_rows
from test_jobs import Step, act

from pipeline.ray_jobs import RayWorkers

BUILD = str(REPOSITORY / "pipeline/build.py")
MACHINE = {"num_cpus": 1, "object_store_memory": 80 << 20}
SECONDS_TO_WAIT = 120


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two machines with a CPU each, as far as Ray can tell."""
    pytest.importorskip("ray", reason="needs the extra `ray`: make test-ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))  # the workers import test_jobs
        cluster = Cluster(initialize_head=True, head_node_args=MACHINE | {"include_dashboard": False})
        cluster.second = cluster.add_node(**MACHINE)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def raw(tmp_path):
    """Two sources, one of them of several ingest tasks (of 4 MiB each), with duplicates and a bad row."""
    chance = random.Random(0)
    words = ["mill", "token", "stone", "\u00e9t\u00e9", "x = 1\n", "<s>", "</s>"]
    texts = [" ".join(chance.choices(words, k=chance.randrange(1, 8000))) for _ in range(800)]
    for number in range(4):
        write_rows(tmp_path / f"raw/web/{number}.jsonl", [{"text": text} for text in texts[200 * number :][:200]])
    write_rows(tmp_path / "raw/notes/n.jsonl", [*({"text": text[:50]} for text in texts), {"text": texts[7]}, b"{"])
    return tmp_path / "raw"


def build_command(sample_model, out, more=""):
    """The command as a person gives it, with relative paths."""
    flags = f"--mix web:3,notes:1 --raw raw --out {out} --tokenizer {sample_model} --shard-tokens 300000 {more}"
    return [sys.executable, BUILD, *flags.split()]


def run(command, folder, code=0):
    """What the command said, on both channels."""
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS_TO_WAIT)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout, result.stderr


def sums(folder):
    """The sha256 of every file of a dataset but the log."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "build-log.jsonl")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def on_cluster(cluster):
    return f"--executor ray --ray-address {cluster.address}"


@pytest.mark.long
def test_a_cluster_of_two_machines_makes_the_same_bytes(raw, tmp_path, sample_model, cluster):
    run(build_command(sample_model, "local", "--workers 2"), tmp_path)
    said, errors = run(build_command(sample_model, "remote", on_cluster(cluster)), tmp_path)
    assert "Ray cluster: 2 machines, 2 CPUs" in said
    assert errors == ""
    assert sums(tmp_path / "local") == sums(tmp_path / "remote")
    assert len(sums(tmp_path / "local")) > 20
    assert "nothing to do" in run(build_command(sample_model, "remote", on_cluster(cluster)), tmp_path)[0]


@pytest.mark.long
def test_a_machine_that_dies_mid_build_changes_no_byte(raw, tmp_path, sample_model, cluster):
    run(build_command(sample_model, "local", "--workers 2"), tmp_path)
    # The slower engine, so that tasks are long enough to be hit; the ids are the same.
    command = build_command(sample_model, "remote", f"--engine reference {on_cluster(cluster)}")
    build = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        kill_machine(cluster, wait_for_task(raylet_of(cluster.second), build))
        said, _ = build.communicate(timeout=SECONDS_TO_WAIT)
    finally:
        build.kill()
        cluster.second = cluster.add_node(**MACHINE)
    assert build.returncode == 0, said
    assert "the worker of task web-" in said and "trying the task once more" in said
    assert "Raylet" not in said  # one line of ours for each task, no logs of Ray's
    assert sums(tmp_path / "local") == sums(tmp_path / "remote")


def raylet_of(node):
    """The process id of a machine's main process."""
    return node.all_processes["raylet"][0].process.pid


def wait_for_task(raylet, build):
    """The process ids of a machine's workers that are at a task, as soon as there are any."""
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not (busy := list(busy_workers(raylet))):
        assert build.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    return busy


def busy_workers(raylet):
    """The children of a raylet that Ray has named after our task."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and b"ray::run_in_folder" in (folder / "cmdline").read_bytes():
                yield int(folder.name)


def kill_machine(cluster, workers):
    """End a machine as a power cut does: its main process first, so that nobody reports the death of the rest."""
    os.kill(raylet_of(cluster.second), signal.SIGKILL)
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):  # it ends with its raylet
            os.kill(worker, signal.SIGKILL)
    cluster.remove_node(cluster.second, allow_graceful=False)


@pytest.mark.long
def test_a_bad_raw_file_gets_the_same_line_as_locally(tmp_path, sample_model, cluster):
    (tmp_path / "raw/web").mkdir(parents=True)
    (tmp_path / "raw/web/cut.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd\x04\x00")
    lines = []
    for out, more in (("local", "--workers 1"), ("remote", on_cluster(cluster))):
        command = [sys.executable, BUILD, *f"--mix web:1 --raw raw --out {out} {more}".split()]
        lines.append(run([*command, "--tokenizer", str(sample_model)], tmp_path, code=1)[1])
    assert "raw/web/cut.jsonl.zst is cut short near row 0" in lines[0]
    assert lines[0] == lines[1]


@pytest.mark.long
def test_a_stopped_build_leaves_no_task_running_and_goes_on(raw, tmp_path, sample_model, cluster):
    command = build_command(sample_model, "remote", f"--engine reference {on_cluster(cluster)}")
    build = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    raylet = raylet_of(cluster.second)
    wait_for_task(raylet, build)
    build.send_signal(signal.SIGINT)
    _, errors = build.communicate(timeout=SECONDS_TO_WAIT)
    assert errors == "stopped. What was finished is kept: run the same command again to continue\n"
    assert not list(busy_workers(raylet))
    said, _ = run(build_command(sample_model, "remote", "--workers 2"), tmp_path)  # elsewhere: it is the same work
    assert "going on with the unfinished build" in said
    run(build_command(sample_model, "local", "--workers 2"), tmp_path)
    assert sums(tmp_path / "local") == sums(tmp_path / "remote")


def run_steps(cluster, names, folder):
    said = []
    steps = [Step(name, str(folder)) for name in names]
    with RayWorkers(cluster.address, notice=said.append) as pool:
        finished = pool.run(act, steps, records=folder / "records")
        return {task.name: outcome.result for task, outcome in finished} | {"said": said}


@pytest.mark.long
def test_results_are_recorded_and_not_made_again(tmp_path, cluster):
    first = run_steps(cluster, ["a", "b", "c"], tmp_path)
    (tmp_path / "records/b.json").unlink()
    second = run_steps(cluster, ["a", "b", "c"], tmp_path)
    assert (second["a"], second["c"]) == (first["a"], first["c"])
    assert second["b"]["pid"] not in (first["b"]["pid"], os.getpid())


@pytest.mark.long
def test_a_task_whose_worker_died_is_tried_once_more(tmp_path, cluster):
    results = run_steps(cluster, ["a", "die once", "b", "c"], tmp_path)
    assert {"a", "die once", "b", "c"} <= results.keys()
    (said,) = results["said"][1:]
    assert said.startswith("the worker of task die once (the step die once) died")


@pytest.mark.long
def test_a_task_that_kills_two_workers_stops_the_run_with_its_subject(tmp_path, cluster):
    with pytest.raises(RuntimeError, match=r"task die \(the step die\) died .*for the second time"):
        run_steps(cluster, ["a", "die", "b"], tmp_path)


@pytest.mark.long
def test_a_broken_task_is_named_with_its_traceback(tmp_path, cluster):
    with pytest.raises(RuntimeError, match="(?s)task bug .* broke.*KeyError"):
        run_steps(cluster, ["a", "bug"], tmp_path)


@pytest.mark.long
def test_a_machine_that_does_not_share_the_storage_is_named(tmp_path, cluster, monkeypatch):
    # Other machines cannot be had here: records in a folder that is gone when the task looks.
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
    with pytest.raises(ValueError, match="machine .* does not see .*records: raw files, --out and --work must be on"):
        run_steps(cluster, ["a"], tmp_path)


def test_without_ray_the_flag_says_how_to_install_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    result = subprocess.run(
        [sys.executable, BUILD, "--mix", "web:1", "--executor", "ray"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "--executor ray needs the extra `ray`" in result.stderr and "'.[ray]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:1", "local", "nonsense", "ray://127.0.0.1:1"])
def test_without_a_cluster_one_line_says_how_to_start_one(address, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra `ray`: make test-ray")
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)  # whatever runs on this computer
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(ValueError, match=rf"^no Ray cluster at --ray-address {address} .*`ray start --head`"),
        RayWorkers(address, notice=print),
    ):
        pass
