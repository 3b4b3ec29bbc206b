"""What came of runs: summed up and drawn; a loss that did not fall is an error where a fall is asked for."""

import json

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from train.plot import main


def write_metrics(folder, losses):
    lines = [
        {"step": step, "loss": loss, "tokens": step * 10, "tokens_per_second": 5.0}
        for step, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("losses", "code"), [([8.0, 7.0, 5, 5, 5, 5, 5], 0), ([8.0] * 9, 1), ([8.0, float("nan")], 1)])
def test_the_exit_code_says_whether_the_loss_fell(tmp_path, capsys, losses, code):
    write_metrics(tmp_path, losses)
    picture = ["--out", str(tmp_path / "loss.png")]
    assert main([str(tmp_path), "--require-fall", "0.8", *picture]) == code
    assert main([str(tmp_path), *picture]) == 0
    assert "8.0000 at step 1" in capsys.readouterr().out


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path} holds no metrics" in capsys.readouterr().err


def test_runs_whose_folders_have_the_same_name_are_told_apart(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name / "run").mkdir(parents=True)
        write_metrics(tmp_path / name / "run", [8.0, 7.0])
    assert main([str(tmp_path / "a/run"), str(tmp_path / "b/run"), "--out", str(tmp_path / "loss.png")]) == 0
    output = capsys.readouterr().out
    assert f"{tmp_path}/a/run\nloss " in output and f"{tmp_path}/b/run\nloss " in output
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
