"""The two commands as a user gives them: raw files to shards to a model that writes, and again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SMALL = "--steps 12 --seq-len 64 --tokens-per-step 512 --micro-batch-size 2 --learning-rate 0.01 --valid-windows 4"


def run(command, folder, *, code=0):
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def script(name, flags):
    return [sys.executable, str(REPOSITORY / name), *flags.split()]


@pytest.mark.long
def test_raw_files_become_shards_become_a_model_that_writes(tmp_path):
    build = script("pipeline/build.py", "--mix slimpajama:0.7,starcoder:0.3 --sample-mb 1 --out data/packed")
    said = run(build, tmp_path)
    assert "slimpajama" in said
    assert "sample" in said
    said = run(script("pipeline/verify.py", "data/packed --raw data/sample-1mb --fraction 0.2"), tmp_path)
    assert "all right" in said
    assert "nothing to do" in run(build, tmp_path)

    train = [*TORCHRUN, str(REPOSITORY / "train/main.py"), *SMALL.split()]
    said = run(train, tmp_path)
    assert "demo" in said  # on a CPU, and it says so
    lines = [json.loads(line) for line in (tmp_path / "runs/demo/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert {"step", "loss", "lr", "tokens", "tokens_per_second"} <= lines[0].keys()
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]

    said = run(script("train/generate.py", "runs/demo --prompt import --max-tokens 5"), tmp_path)
    assert "import" in said
    run(script("train/plot.py", "runs/demo --out loss.png --require-fall 0.9"), tmp_path)
    assert "dataset: data/packed" in run(script("pipeline/summary.py", "data/packed"), tmp_path)
    assert sorted(path.name for path in Path(tmp_path / "data/packed").iterdir()) == [
        "build-log.jsonl", "dataset.json", "slimpajama", "starcoder", "tokenizer",
    ]  # fmt: skip


def test_training_without_data_names_the_build_command(tmp_path):
    said = run(script("train/main.py", "--data nowhere"), tmp_path, code=1)
    assert "python pipeline/build.py" in said
    assert "Traceback" not in said
