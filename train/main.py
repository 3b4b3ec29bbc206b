"""Train a model from packed shards.

    torchrun --nproc-per-node 8 train/main.py --data data/packed --recipe tinyllama-1.1b --out runs/tiny

Every field of TrainConfig is a flag. The same command again goes on from the newest checkpoint of --out.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # started as `python train/main.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from model.attention import choose_backend
from model.config import ModelConfig
from pipeline.dataset import PackedDataset
from train.config import TrainConfig, load_recipe, read_flags
from train.data import open_dataset, refuse_end
from train.distributed import end_process, from_torchrun, print_error, resolve_device, start_ranks, stop_ranks
from train.loop import train
from train.preflight import CPU_RECIPE, choose_recipe, print_forecast, refuse_cpu, refuse_data
from train.run import start_run
from train.signals import StopRequest

HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the flags say. Returns the exit code; what the user can mend is one line on stderr."""
    is_finished = False
    try:
        config, device_type = read_config(sys.argv[1:] if arguments is None else arguments)
        dataset, model_config = check_config(config, device_type)
        if config.dry_run:
            print_forecast(config, model_config, dataset, device=torch.device(device_type))
            return 0
        with StopRequest() as stop:
            run = start_run(config, model_config, dataset, placement=start_ranks(device_type))
            train(run, stop=stop)
        is_finished = True
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    except torch.OutOfMemoryError as error:
        print_error(
            f"out of memory: a smaller --micro-batch-size or --activation-checkpointing full would help ({error})"
        )
        return 1
    finally:
        stop_ranks(in_order=is_finished)
    return 0


def read_config(arguments: Sequence[str]) -> tuple[TrainConfig, str]:
    """The settings (defaults < recipe < flags) and the device's type.

    The flags are read twice: first to learn the recipe, or the data and the device that decide it. --help shows the
    recipe's values, or the demo's where none is named.
    """
    speaks = from_torchrun("RANK", 0) == 0
    flags = read_flags([word for word in arguments if word not in HELP], defaults=TrainConfig(), speaks=speaks)
    recipe = flags.recipe
    if recipe is None and not HELP.isdisjoint(arguments):
        recipe = CPU_RECIPE
    if recipe is None:
        recipe, reason = choose_recipe(flags.data, device_type=resolve_device(flags.device))
        if speaks:
            print(reason, flush=True)
    config = read_flags(arguments, defaults=load_recipe(recipe), speaks=speaks)
    out = config.out or Path("runs") / Path(recipe).stem
    return replace(config, out=out), resolve_device(config.device)


def check_config(config: TrainConfig, device_type: str) -> tuple[PackedDataset, ModelConfig]:
    """The dataset and the model's shape, once settings, data and machine are known to agree. Raises ValueError."""
    config.check()
    config.accumulation(from_torchrun("WORLD_SIZE", 1))
    dataset = open_dataset(config.data, config.as_json())
    refuse_data(config, dataset)
    refuse_end(dataset, config)
    model_config = config.model_config(dataset.vocab_size)
    if not config.dry_run:
        refuse_cpu(config, model_config, device_type=device_type)
    choose_backend(config.attention, device_type=device_type)  # refused here, where all ranks are refused alike
    return dataset, model_config


if __name__ == "__main__":
    end_process(main)
