"""Several ranks over gloo: equal to one, at every world size; stopped, killed and failing; how they end."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rank_server import RankServer
from train_fixtures import (
    SMALL_MODEL,
    keep_only_step,
    loss_of_pieces,
    losses_of,
    metric_of,
    train,
    two_sources,
    weights_of,
)

from model.transformer import Transformer
from pipeline.dataset import PackedDataset
from pipeline.storage import locked
from train.checkpoint import load_weights
from train.manifest import find_checkpoints, read_manifest
from train.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
KEEP_ALL = ("--steps", "8", "--checkpoint-every", "3", "--keep-checkpoints", "9")
VALIDATED = ("--valid-every", "4", "--valid-windows", "9")
"""9 windows are 3 rounds of 4 at one rank and 5 rounds of 2 at two: each fills up another number of places."""

AT_STEP = """
import os, signal, train.loop
count = train.loop.count_step
def count_step(run):
    count(run)
    if rank == {rank} and run.step == {step}:
        {action}
train.loop.count_step = count_step
"""
"""Something that one rank does right after a step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return two_sources(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(data, out, *KEEP_ALL) == 0
    return out


@pytest.fixture(scope="module")
def server():
    with RankServer() as server:
        yield server


def run_ranks(server, data, out, *flags, **options):
    return server.run(["--data", data, "--out", out, *SMALL_MODEL, *flags], **options)


def validation_by_hand(data, run_folder, *, num_windows):
    """The mean loss of the first windows in order, each piece of a document run alone, at the newest checkpoint."""
    newest = find_checkpoints(run_folder)[-1]
    model = Transformer(read_manifest(newest).model_config, attention_backend="sdpa")
    load_weights(newest, model)
    losses = {}
    for source in ("prose", "code"):
        dataset = PackedDataset(data, seq_len=32, mix={source: 1}, split="validation")
        num_read = min(num_windows, dataset.num_windows(source))
        total = sum(loss_of_pieces(model, dataset, position) for position in range(num_read))
        losses[source] = float(total.detach()) / (num_read * 32)
    return losses


@pytest.fixture(scope="module")
def two_ranks(server, data, tmp_path_factory):
    """What two ranks printed, and their run: four micro-batches a step, and a validation between steps."""
    out = tmp_path_factory.mktemp("runs") / "two"
    ended = run_ranks(server, data, out, *KEEP_ALL, *VALIDATED, "--micro-batch-size", "1")
    assert ended.codes == [0, 0], ended.errors
    return ended, out


def test_two_ranks_train_alike_and_one_rank_goes_on_from_their_checkpoint(two_ranks, data, finished_run, tmp_path):
    ended, two = two_ranks
    assert ended.outputs[0].count("step 1/8") == 1 and ended.outputs[1] == ""
    for metric in ("loss", "grad_norm"):
        assert metric_of(two, metric) == pytest.approx(metric_of(finished_run, metric), rel=1e-4)
    resumed = keep_only_step(two, 3, tmp_path / "one")
    assert train(data, resumed, *KEEP_ALL, *VALIDATED) == 0
    assert losses_of(resumed) == pytest.approx(losses_of(finished_run), rel=1e-4)
    for run in (two, resumed):
        valid_loss = read_metrics(run / "metrics.jsonl")[-1]["valid_loss"]
        assert valid_loss == pytest.approx(validation_by_hand(data, run, num_windows=9), rel=1e-4)


@pytest.mark.long
def test_two_ranks_divide_by_the_real_targets_of_both(server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = ("--steps", "4", "--packing", "best-fit", "--shuffle", "block", "--max-epochs", "1")
    set_cache = f"import os; os.environ['XDG_CACHE_HOME'] = {str(tmp_path / 'other cache')!r}"
    ended = run_ranks(server, data, tmp_path / "two", *flags, prelude=set_cache)
    assert ended.codes == [0, 0], ended.errors
    assert train(data, tmp_path / "one", *flags) == 0
    for metric in ("loss", "grad_norm"):
        assert metric_of(tmp_path / "two", metric) == pytest.approx(metric_of(tmp_path / "one", metric), rel=1e-4)
    assert len(list((tmp_path / "other cache").glob("tokenmill/best-fit/*/index.json"))) == 2


@pytest.mark.long
def test_resumed_again_and_again_at_other_world_sizes_the_batches_are_the_same(server, data, tmp_path):
    # 20 steps of 8 samples are 160 samples of 91 windows: the second epoch of both sources begins in step 12.
    flags = ("--steps", "20", "--keep-checkpoints", "9", "--valid-every", "0")
    assert train(data, tmp_path / "whole", *flags) == 0
    for world_size, stop_after, micro_batch in ((4, 5, 1), (2, 9, 2), (1, 13, 8), (4, 20, 2)):
        # The second stop is within the same epoch as the first, the third across the border.
        stops = AT_STEP.format(rank=world_size - 1, step=stop_after, action="os.kill(os.getpid(), signal.SIGTERM)")
        ended = run_ranks(
            server, data, tmp_path / "run", *flags, "--micro-batch-size", str(micro_batch),
            world_size=world_size, prelude=stops,
        )  # fmt: skip
        assert ended.codes == [0] * world_size, ended.errors
        assert read_manifest(find_checkpoints(tmp_path / "run")[-1]).step == stop_after
    ours, alone = (read_manifest(find_checkpoints(tmp_path / run)[-1]) for run in ("run", "whole"))
    assert (ours.samples_hash, ours.position) == (alone.samples_hash, alone.position)
    assert ours.tokens_per_source == alone.tokens_per_source
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(tmp_path / "whole"), rel=1e-3)
    assert metric_of(tmp_path / "run", "step") == list(range(1, 21))


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["replicate", "hybrid"])
def test_each_sharding_trains_alike(server, data, finished_run, tmp_path, sharding):
    machines = "import os; os.environ['LOCAL_WORLD_SIZE'] = '2'"  # four ranks on two machines
    ended = run_ranks(
        server, data, tmp_path / "run", *KEEP_ALL, "--micro-batch-size", "1", "--sharding", sharding,
        world_size=4, prelude=machines,
    )  # fmt: skip
    assert ended.codes == [0] * 4, ended.errors
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(finished_run), rel=1e-4)
    resumed = keep_only_step(tmp_path / "run", 3, tmp_path / "one")
    assert train(data, resumed, *KEEP_ALL) == 0
    assert losses_of(resumed) == pytest.approx(losses_of(finished_run), rel=1e-4)


@pytest.mark.parametrize(
    "name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.long), pytest.param("SIGUSR1", marks=pytest.mark.long)]
)
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_bit_for_bit(server, data, finished_run, tmp_path, name):
    stops = AT_STEP.format(rank=0, step=2, action=f"os.kill(os.getpid(), signal.{name})")
    ended = run_ranks(server, data, tmp_path / "run", *KEEP_ALL, world_size=1, prelude=stops)
    assert ended.codes == [0]
    assert f"stopped by {name} after step 2: the same command goes on from there" in ended.outputs[0]
    assert [read_manifest(path).step for path in find_checkpoints(tmp_path / "run")] == [2]
    assert train(data, tmp_path / "run", *KEEP_ALL) == 0
    assert losses_of(tmp_path / "run") == losses_of(finished_run)
    assert all(map(torch.equal, weights_of(tmp_path / "run"), weights_of(finished_run)))


STOP_WITHIN_STEP_3 = """
import os, signal, train.loop
exchange, calls = train.loop.exchange_gradients, []
def exchange_gradients(model, *, is_last):
    calls.append(is_last)
    exchange(model, is_last=is_last)
    if rank == 1 and len(calls) == 2 * 4 + 2:  # of four micro-batches a step
        os.kill(os.getpid(), signal.SIGTERM)
train.loop.exchange_gradients = exchange_gradients
"""


def test_a_signal_between_micro_batches_leaves_nothing_of_that_step(server, data, two_ranks, tmp_path):
    flags = (*KEEP_ALL, "--micro-batch-size", "1")
    ended = run_ranks(server, data, tmp_path / "run", *flags, prelude=STOP_WITHIN_STEP_3)
    assert ended.codes == [0, 0], ended.errors
    assert "stopped by SIGTERM after step 2" in ended.outputs[0]
    ended = run_ranks(server, data, tmp_path / "run", *flags)
    assert ended.codes == [0, 0], ended.errors
    assert losses_of(tmp_path / "run") == losses_of(two_ranks[1])
    assert all(map(torch.equal, weights_of(tmp_path / "run"), weights_of(two_ranks[1])))


BREAK_AND_COUNT = """
import math, train.loop
from torch.utils._python_dispatch import TorchDispatchMode
clip, step, norms, sums = train.loop.clip_gradients, train.loop.train_step, [], []
class Counter(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if "reduce_scatter" in function.name():
            sums.append(function)
        return function(*arguments, **(options or {}))
def clip_gradients(model, max_norm):
    norms.append(None)
    if len(norms) == 4:
        model.norm.weight.grad.mul_(math.nan)
    print(len(sums), "sums in", len(norms), "steps")
    return clip(model, max_norm)
def train_step(*arguments, **options):
    with Counter():
        return step(*arguments, **options)
train.loop.clip_gradients, train.loop.train_step = clip_gradients, train_step
"""


def test_gradients_are_exchanged_once_a_step_also_after_going_back(server, data, tmp_path):
    flags = ("--steps", "5", "--micro-batch-size", "1", "--checkpoint-every", "2", "--max-bad-steps", "1")
    ended = run_ranks(server, data, tmp_path / "run", *flags, prelude=BREAK_AND_COUNT)
    assert ended.codes == [0, 0], ended.errors
    assert "not finite in 1 steps in a row, up to step 4: goes on from" in ended.outputs[0]
    assert "\n21 sums in 7 steps\n" in ended.outputs[0]  # of two blocks and the root; steps 1 to 4 and 3 to 5
    skipped = read_manifest(find_checkpoints(tmp_path / "run")[-1]).skipped
    assert skipped == [[16, 32]]


def test_a_signal_in_the_middle_of_a_validation_stops_all_ranks(server, data, tmp_path):
    stops = """
import os, signal, train.loop
read = train.loop.read_micro_batch
def read_micro_batch(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    return read(*arguments, **options)
if rank == 1:
    train.loop.read_micro_batch = read_micro_batch
"""
    ended = run_ranks(server, data, tmp_path / "run", "--steps", "8", "--valid-every", "3", prelude=stops)
    assert ended.codes == [0, 0], ended.errors
    assert "stopped by SIGTERM after step 3" in ended.outputs[0]
    assert [read_manifest(path).step for path in find_checkpoints(tmp_path / "run")] == [3]


def test_a_signal_while_the_first_step_takes_too_long_ends_the_rank_in_order(server, data, tmp_path):
    sleeps = """
import os, signal, time, train.loop, train.distributed
train.distributed.PATIENCE_SECONDS = 0.1
def train_step(*arguments, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(100)  # as torch.compile may
train.loop.train_step = train_step
"""
    ended = run_ranks(server, data, tmp_path / "run", *KEEP_ALL, prelude=sleeps)
    assert ended.codes == [0, 0]
    assert "stopped by SIGTERM before the first step was done" in ended.outputs[0]
    assert find_checkpoints(tmp_path / "run") == []


@pytest.mark.long
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(server, data, finished_run, tmp_path):
    dies = """
import os, signal, train.checkpoint
def describe_file(path):
    if "step-00000006" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(path)
original, train.checkpoint.describe_file = train.checkpoint.describe_file, describe_file
"""
    ended = run_ranks(server, data, tmp_path / "run", *KEEP_ALL, prelude=dies)
    assert ended.codes == [-signal.SIGKILL] * 2
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step-00000003", "step-00000006.tmp"]
    ended = run_ranks(server, data, tmp_path / "run", *KEEP_ALL)
    assert ended.codes == [0, 0] and "resume  from step 3" in ended.outputs[0]
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(finished_run), rel=1e-4)


@pytest.mark.long
def test_a_rank_that_cannot_read_back_its_part_of_a_checkpoint_ends_all_and_is_named(server, data, tmp_path):
    breaks = """
import train.checkpoint
def describe_file(path):
    raise OSError(5, "Input/output error", path.name)
if rank == 1:
    train.checkpoint.describe_file = describe_file
"""
    ended = run_ranks(server, data, tmp_path / "run", *KEEP_ALL, prelude=breaks)
    assert ended.codes == [1, 1]
    assert "step-00000003 could not be written (rank 1: [Errno 5] Input/output error" in ended.errors[0]
    assert find_checkpoints(tmp_path / "run") == []


def test_an_error_that_one_rank_meets_alone_is_printed_with_its_rank(server, data, tmp_path):
    breaks = """
from pipeline.dataset import PackedDataset
def fail(self, positions):
    raise OSError(5, "Input/output error", "shard-00000.bin")
if rank == 1:
    PackedDataset.samples_with_ends = fail
"""
    ended = run_ranks(server, data, tmp_path / "run", "--steps", "8", prelude=breaks)
    assert 0 not in ended.codes  # the other loses its partner
    assert ended.errors[1].startswith("[rank 1] error: [Errno 5] Input/output error")
    assert "Errno 5" not in ended.errors[0]


def test_an_error_that_all_ranks_meet_is_printed_once(server, data, tmp_path):
    ended = run_ranks(server, data, tmp_path / "run", "--steps", "8", "--learning-rate", "1e30", "--log-every", "4")
    assert ended.codes == [1, 1]
    assert ended.errors[0].startswith("error: the loss or its gradient was not finite in ")
    assert ended.errors[0].count("\n") == 1 and ended.errors[1] == ""
    assert find_checkpoints(tmp_path / "run") == []


def test_ranks_that_find_another_run_in_their_folder_end_alike(server, data, tmp_path):
    with locked(tmp_path / "run" / "run", waits=False):
        ended = run_ranks(server, data, tmp_path / "run", "--steps", "8")
    assert ended.codes == [1, 1]
    assert ended.errors[0].startswith("error: another run is training into ") and ended.errors[1] == ""


def start_torchrun(data, out, *flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--signals-to-handle", "SIGTERM,SIGINT,SIGUSR1"]
    return subprocess.Popen(
        [*command, str(ROOT / "train" / "main.py"), "--data", str(data), "--out", str(out), *SMALL_MODEL, *flags],
        cwd="/", env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_step(process, step):
    assert any(re.match(rf"step +{step}/", line) for line in process.stdout), process.stderr.read()


@pytest.mark.long
def test_torchrun_goes_on_from_the_checkpoint_of_one(data, finished_run, tmp_path):
    resumed = keep_only_step(finished_run, 6, tmp_path / "resumed")
    process = start_torchrun(data, resumed, "--steps", "8", "--tie-embeddings", "False")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert losses_of(resumed) == pytest.approx(losses_of(finished_run), rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_torchrun_saves_on_every_rank_before_torchrun_kills_them(data, tmp_path, name):
    process = start_torchrun(data, tmp_path / "run", "--steps", "100000", "--valid-every", "0")
    wait_for_step(process, 20)
    process.send_signal(signal.Signals[name])
    output, error = process.communicate(timeout=60)
    assert process.returncode == 1 and f"got signal: {signal.Signals[name].value}" in error  # torchrun's own way
    assert f"stopped by {name} after step" in output
    assert len(find_checkpoints(tmp_path / "run")) == 1


@pytest.mark.long
def test_a_rank_that_dies_ends_the_others_and_torchrun_names_it(data, tmp_path):
    process = start_torchrun(data, tmp_path / "run", "--steps", "100000", "--valid-every", "0")
    wait_for_step(process, 20)
    (tasks,) = Path(f"/proc/{process.pid}/task/{process.pid}").glob("children")
    os.kill(int(tasks.read_text().split()[1]), signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "exitcode  : -9" in error and "rank      : 1" in error
    assert "error: another rank has ended" in error


# Each case runs in a child of one process, since importing torch takes seconds.
ENDINGS = """
import atexit, os, sys
sys.path[0] = {root!r}
from train.distributed import end_process

def speak(code):
    print("the last words of", code)
    return code

def fail():
    raise RuntimeError("a partner is gone")

def misuse():
    sys.exit(2)

for main in (lambda: speak(0), lambda: speak(3), fail, misuse):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        atexit.register(print, "the interpreter shuts down")
        end_process(main)
    print("code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_rank_ends_with_its_code_and_all_output_but_without_a_shutdown_of_the_interpreter():
    # In the shutdown a gloo thread that drops its last tensor would be unwound, which aborts the process.
    command = [sys.executable, "-c", ENDINGS.format(root=str(ROOT))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout.splitlines() == [
        "the last words of 0", "code 0",
        "the last words of 3", "code 3",
        "code 1",
        "the interpreter shuts down", "code 2",  # flags that cannot be read: there is no group yet
    ]  # fmt: skip
    assert result.stderr.count("RuntimeError: a partner is gone") == 1
