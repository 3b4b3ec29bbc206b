"""What came of a training run, from its metrics.

    python train/summary.py runs/demo --require-fall 0.8

With --require-fall the exit code is 1 unless the loss fell to that share of where it began: `make demo` asks for it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

if __package__ in (None, ""):  # started as `python train/summary.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from train.metrics import Record, format_validation, read_metrics

RECORDS_AVERAGED = 5
"""The last loss is a mean over so many records: one batch alone says little."""


@dataclass(frozen=True)
class SummaryFlags:
    """Say what came of a training run."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    require_fall: float | None = None
    """Exit with 1 unless the last loss is at most this share of the first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    flags = tyro.cli(SummaryFlags, args=arguments)
    try:
        records = read_metrics(flags.run / "metrics.jsonl")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not records:
        print(f"error: {flags.run} holds no metrics: is it the folder of a training run?", file=sys.stderr)
        return 1
    print("\n".join(summarise(records, flags.run)))
    first, last = records[0]["loss"], last_loss(records)
    if flags.require_fall is not None and not last <= flags.require_fall * first:
        print(f"error: the loss did not fall to {flags.require_fall:g} of {first:.4f}: {last:.4f}", file=sys.stderr)
        return 1
    return 0


def last_loss(records: Sequence[Record]) -> float:
    """The mean loss of the last few records."""
    return fmean(record["loss"] for record in records[-RECORDS_AVERAGED:])


def summarise(records: Sequence[Record], run: Path) -> list[str]:
    """Lines for a person: where the loss began and ended, how much was read, how fast."""
    first, last = records[0], records[-1]
    num_averaged = min(RECORDS_AVERAGED, len(records))
    speed = fmean(record["tokens_per_second"] for record in records)
    lines = [
        f"loss      {first['loss']:.4f} at step {first['step']:,}  ->  {last_loss(records):.4f} at step"
        f" {last['step']:,} (mean of the last {num_averaged})",
        f"trained   {last['tokens']:,} tokens at {speed:,.0f} tokens/s",
        f"run       {run}",
    ]
    validated = [record["valid_loss"] for record in records if "valid_loss" in record]
    return lines[:1] + [format_validation(loss) for loss in validated[-1:]] + lines[1:]


if __name__ == "__main__":
    sys.exit(main())
