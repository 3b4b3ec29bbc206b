"""Counts as people write them, and what each source of a mix has of one."""

from fractions import Fraction
from pathlib import Path

import pytest
from build_fixtures import flags

from pipeline.arguments import BuildArguments, parse_count
from pipeline.flags import read_flags
from pipeline.manifest import Source
from pipeline.plan import PlannedSource


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("300_000_000", 300_000_000),
        ("1e9", 10**9),
        ("2.5E+3", 2500),
        ("20k", 20_000),
        ("500M", 500 * 10**6),
        ("10B", 10**10),
        ("1.5T", 15 * 10**11),
        ("0.29b", 290_000_000),
        ("9007199254740993", 2**53 + 1),  # no float holds it
    ],
)
def test_a_count_is_read_exactly_as_it_is_written(text, count):
    assert parse_count(text, flag="--tokens") == count


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "+5", "many", "1.5", "1.2345k", "1,5B", "10 B", "10BB", "_1", "1_", "1__0", "inf", "nan", "1e-3"]
    + ["1e400", "٣", "9" * 5000],
)
def test_what_is_no_whole_number_is_refused_by_the_name_of_its_flag(text):
    with pytest.raises(ValueError, match=r"--tokens '.*': write a whole number") as raised:
        parse_count(text, flag="--tokens")
    assert "\n" not in str(raised.value)


def test_a_build_says_in_one_line_that_its_tokens_are_no_number(raw, tmp_path, sample_model, run_build):
    outcome = run_build(flags(raw, tmp_path / "out", sample_model, "--tokens 1.5"))
    assert outcome.code == 1 and outcome.error.startswith("error: --tokens '1.5'")
    assert len(outcome.error.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_share_of_a_number_of_tokens_is_exact():
    source = PlannedSource(Source("web"), Path("web"), (), Fraction("0.69"), ())
    assert int(300_000_000_000 * source.weight) == 206_999_999_999  # so floats would have it
    assert source.find_share(300_000_000_000) == 207_000_000_000


def test_the_help_of_a_flag_is_one_paragraph_without_a_default_that_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["build.py", "--help"])
    monkeypatch.setenv("COLUMNS", "700")
    with pytest.raises(SystemExit):
        read_flags(BuildArguments)
    shown = capsys.readouterr().out
    assert "A source takes options as in a URL: slimpajama?exclude=" in shown  # the source breaks a line within this
    assert "(default: None)" not in shown and "(default: 0.8)" in shown


def test_flags_are_an_object_of_their_own_kind(monkeypatch):
    monkeypatch.setattr("sys.argv", ["build.py", "--mix", "web:1", "--work", "here"])
    found = read_flags(BuildArguments)
    assert type(found) is BuildArguments and found == BuildArguments(mix="web:1", work=Path("here"))
