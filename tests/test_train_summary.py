"""The summary of a run fails where the loss did not fall."""

import json

import pytest

from train.summary import main


def write_metrics(folder, losses):
    lines = [
        {"step": step, "loss": loss, "tokens": step * 10, "tokens_per_second": 5.0}
        for step, loss in enumerate(losses, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(("losses", "code"), [([8.0, 7.0, 5, 5, 5, 5, 5], 0), ([8.0] * 9, 1), ([8.0, float("nan")], 1)])
def test_the_exit_code_says_whether_the_loss_fell(tmp_path, capsys, losses, code):
    write_metrics(tmp_path, losses)
    assert main([str(tmp_path), "--require-fall", "0.8"]) == code
    assert main([str(tmp_path)]) == 0
    assert "8.0000 at step 1" in capsys.readouterr().out


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert f"{tmp_path} holds no metrics" in capsys.readouterr().err
