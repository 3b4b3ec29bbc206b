"""What came of one or more runs: a summary of each, and their loss curves as a PNG.

    python train/plot.py runs/demo runs/other --out loss.png

With --require-fall the exit code is 1 unless every loss fell to that share of where it began: `make demo` asks for it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # started as `python train/plot.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from train.metrics import METRICS, Record, last_loss, read_metrics, summarise

STYLES = ("-", "o--", "s--", "^--", "d--", "v--")  # A run's curves have one colour; the first is of the training.


@dataclass(frozen=True)
class PlotFlags:
    """Say what came of training runs, and draw their loss over their tokens."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # The runs' folders.
    out: Path = Path("loss.png")  # The picture.
    require_fall: float | None = None  # Exit with 1 unless the last loss of each run is at most so much of its first.


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    flags = tyro.cli(PlotFlags, args=arguments)
    try:
        names = [run.resolve().name for run in flags.runs]
        names = names if len(set(names)) == len(names) else [str(run) for run in flags.runs]  # two are alike
        runs = {}
        for name, run in zip(names, flags.runs, strict=True):
            runs[name] = read_metrics(run / METRICS)
            if not runs[name]:
                raise ValueError(f"{run} holds no metrics: is it the folder of a training run?")
            print(name, *summarise(runs[name]), sep="\n")
        draw(runs, flags.out)
        print(f"drawn   {flags.out}")
        for name, records in runs.items():
            first, last, share = records[0]["loss"], last_loss(records), flags.require_fall
            if share is not None and not last <= share * first:  # not a number fails too
                raise ValueError(f"the loss of {name} did not fall to {share:g} of {first:.4f}: {last:.4f}")
    except (ValueError, OSError, ImportError) as error:
        advice = ": pip install 'tokenmill[log]'" if isinstance(error, ImportError) else ""
        print(f"error: {error}{advice}", file=sys.stderr)
        return 1
    return 0


def curves_of(records: Sequence[Record]) -> dict[str, tuple[list[int], list[float]]]:
    """Tokens and losses by name: train, and each source that was validated."""
    curves = {"train": ([record["tokens"] for record in records], [record["loss"] for record in records])}
    for record in records:
        for source, loss in record.get("valid_loss", {}).items():
            tokens, losses = curves.setdefault(f"valid {source}", ([], []))
            tokens.append(record["tokens"])
            losses.append(loss)
    return curves


def draw(runs: dict[str, list[Record]], out: Path) -> None:
    """Write the picture. Raises ImportError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="tokens", ylabel="loss")
    for number, (name, records) in enumerate(runs.items()):
        for style, (curve, (tokens, losses)) in zip(cycle(STYLES), curves_of(records).items(), strict=False):
            axes.plot(tokens, losses, style, color=f"C{number}", label=f"{name} {curve}")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(out)


if __name__ == "__main__":
    sys.exit(main())
