"""metrics.jsonl: repaired after a kill, cut at the checkpoint, readable."""

import pytest

from train.distributed import peak_flops
from train.metrics import append_metrics, cut_metrics, format_record, read_metrics

RECORD = {
    "step": 3, "loss": 8.25, "lr": 1e-3, "grad_norm": 0.5, "tokens": 12288, "tokens_per_second": 4321.0,
    "step_seconds": 0.95, "data_seconds": 0.001, "tokens_per_source": {"prose": 12288},
}  # fmt: skip


def test_lines_after_the_checkpoint_are_cut_so_that_no_step_is_doubled(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_metrics(path, RECORD | {"step": step})
    cut_metrics(path, last_step=3)
    append_metrics(path, RECORD | {"step": 4})
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 4, "lo')
    cut_metrics(path, last_step=10)
    assert path.read_bytes() == whole


def test_a_run_without_metrics_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_the_line_for_people_shows_loss_speed_and_validation():
    line = format_record(RECORD | {"valid_loss": {"prose": 7.5}}, num_steps=100)
    for column in ("step   3/100", "loss  8.2500", "4,321 tokens/s", "12,288 tokens", "left 0:01:32", "prose 7.5000"):
        assert column in line


@pytest.mark.parametrize("junk", [b"\0" * 20, b"[]", b"7", b'{"step": 4}', b'{"step": "4", "loss": 1}', b"\xff", b""])
def test_a_whole_line_that_is_no_record_is_refused_with_its_number(tmp_path, junk):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, RECORD)
    path.write_bytes(path.read_bytes() + junk + b"\n")
    append_metrics(path, RECORD | {"step": 4})
    with pytest.raises(ValueError, match=r"line 2 of .*metrics.jsonl is not a record of metrics: delete that line"):
        cut_metrics(path, last_step=10)


def test_what_is_not_json_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        append_metrics(tmp_path / "metrics.jsonl", RECORD | {"loss": float("nan")})


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA A10G", 70e12), ("NVIDIA A10", 125e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("cpu", None),
    ],
)  # fmt: skip
def test_a_peak_belongs_to_the_whole_name_and_an_unknown_gpu_has_none(name, peak):
    assert peak_flops(name) == peak
