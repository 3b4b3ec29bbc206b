"""Loss curves of one or more runs as a PNG.

python train/plot.py runs/demo runs/other --out loss.png
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # started as `python train/plot.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from train.metrics import Record, read_metrics


@dataclass(frozen=True)
class PlotFlags:
    """Draw the loss of training runs over their tokens."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The runs' folders."""
    out: Path = Path("loss.png")
    """The picture."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    flags = tyro.cli(PlotFlags, args=arguments)
    try:
        draw({run.name: read_run(run) for run in flags.runs}, flags.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"error: {error}: pip install 'tokenmill[log]'", file=sys.stderr)
        return 1
    print(f"saved   {flags.out}")
    return 0


def read_run(run: Path) -> list[Record]:
    """A run's records. Raises ValueError where there are none."""
    records = read_metrics(run / "metrics.jsonl")
    if not records:
        raise ValueError(f"{run} holds no metrics: is it the folder of a training run?")
    return records


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
    for name, records in runs.items():
        for curve, (tokens, losses) in curves_of(records).items():
            axes.plot(tokens, losses, marker="." if curve != "train" else None, label=f"{name} {curve}")
    axes.legend()
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(out)


if __name__ == "__main__":
    sys.exit(main())
