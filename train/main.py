"""Train a model from packed shards.

    torchrun --nproc-per-node 8 train/main.py --data data/packed --recipe tinyllama-1.1b --out runs/tiny

Every field of TrainConfig is a flag. The same command again goes on from the newest checkpoint of --out.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):  # started as `python train/main.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from model.attention import choose_backend
from model.config import ModelConfig
from pipeline.dataset import PackedDataset, read_dataset_json
from train.checkpoint import save_checkpoint
from train.config import TrainConfig, load_recipe, read_flags
from train.data import MicroBatch, RankReader, arrange_mix, document_mask_of, parse_mix
from train.distributed import (
    end_process,
    print_error,
    rank_from_environment,
    resolve_device,
    start_ranks,
    stop_ranks,
    sum_over_ranks,
    world_size_from_environment,
)
from train.evaluate import ValidationSource, open_validation, validation_losses
from train.metrics import Meter, Record, append_metrics, format_record
from train.optim import clip_gradients, learning_rate_at, set_learning_rate, update_weights
from train.preflight import CPU_RECIPE, choose_recipe, refuse_cpu, refuse_data
from train.run import Run, find_start, not_finite, refuse_bad_step, refuse_bad_weights, report, start_run

HELP = {"-h", "--help"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the flags say. Returns the exit code; what the user can mend is one line on stderr."""
    is_finished = False
    try:
        config, device_type = read_config(sys.argv[1:] if arguments is None else arguments)
        dataset, model_config = check_config(config, device_type)
        start = find_start(config, model_config, dataset)
        run = start_run(config, model_config, dataset, start=start, placement=start_ranks(device_type))
        train(run)
        is_finished = True
    except (ValueError, OSError) as error:
        print_error(error)
        return 1
    finally:
        stop_ranks(in_order=is_finished)
    return 0


def read_config(arguments: Sequence[str]) -> tuple[TrainConfig, str]:
    """The settings (defaults < recipe < flags) and the device's type.

    The flags are read twice: first to learn the recipe, or the data and the device that decide it. --help shows the
    recipe's values, or the demo's where none is named.
    """
    speaks = rank_from_environment() == 0
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
    config.accumulation(world_size_from_environment())
    mix = arrange_mix(parse_mix(config.mix), known=read_dataset_json(config.data)["mix"])
    dataset = PackedDataset(config.data, seq_len=config.seq_len, mix=mix, seed=config.seed)
    refuse_data(config, dataset)
    model_config = config.model_config(dataset.vocab_size)
    refuse_cpu(config, model_config, device_type=device_type)
    choose_backend(config.attention, device_type=device_type)  # refused here, where all ranks are refused alike
    return dataset, model_config


def train(run: Run) -> None:
    """Train to the last step, with metrics, validation and checkpoints on the way."""
    config = run.config
    if run.step >= config.steps:
        run.placement.say(f"finished already: {config.out} is at step {run.step:,}; a larger --steps goes on")
        return
    validation = open_validation(config, run.dataset, placement=run.placement)
    reader = open_reader(run)
    meter = Meter()
    for batch in meter.watch(reader.read_steps(range(run.step, config.steps))):
        learning_rate = learning_rate_at(run.step + 1, config)
        loss, grad_norm = train_step(run, batch, learning_rate=learning_rate)
        count_step(run, reader)
        is_validated = validation and is_due(run, config.valid_every)
        is_logged, is_saved = is_validated or is_due(run, config.log_every), is_due(run, config.checkpoint_every)
        if is_logged or is_saved:
            refuse_bad_step(run)
        if is_logged:
            record = measure(run, meter, loss=loss, grad_norm=grad_norm, learning_rate=learning_rate)
            with meter.paused():
                log(run, record | (validate(run, validation) if is_validated else {}))
        if is_saved:
            with meter.paused():
                save(run)
    report(run)


def open_reader(run: Run) -> RankReader:
    """What this rank reads."""
    return RankReader(
        dataset=run.dataset,
        samples_per_step=run.config.samples_per_step,
        micro_batch_size=run.config.micro_batch_size,
        rank=run.placement.rank,
        world_size=run.placement.world_size,
        has_mask=run.config.document_mask,
        is_pinned=run.placement.device.type == "cuda",
    )


def train_step(run: Run, batch: list[MicroBatch], *, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One update. Returns the mean loss and the norm of all gradients, over all ranks; both stay on the device.

    It is not applied where one of them is not finite, nor is any later one: `refuse_bad_step` then ends the run.
    """
    loss = torch.zeros((), device=run.placement.device)
    for micro_batch in batch:
        on_device = micro_batch.to(run.placement.device)
        documents = document_mask_of(on_device, backend=run.model.attention_backend)
        part = run.model(on_device.inputs, targets=on_device.targets, documents=documents) / run.config.tokens_per_step
        part.backward()
        loss += part.detach()
    loss = sum_over_ranks(loss)
    grad_norm = clip_gradients(run.model, run.config.grad_clip)
    is_bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    run.first_bad_step = torch.where(is_bad & (run.first_bad_step == 0), run.step + 1, run.first_bad_step)
    set_learning_rate(run.optimizer, learning_rate)
    update_weights(run.optimizer, is_skipped=run.first_bad_step > 0)
    return loss, grad_norm


def count_step(run: Run, reader: RankReader) -> None:
    """Count the step that was just done, and its tokens."""
    for source, num_tokens in reader.count_tokens(run.step).items():
        run.tokens_per_source[source] += num_tokens
    run.step += 1


def is_due(run: Run, every: int) -> bool:
    """Whether something that is done every so many steps, and at the last, is to be done now."""
    return run.step == run.config.steps or (every > 0 and run.step % every == 0)


def measure(run: Run, meter: Meter, *, loss: torch.Tensor, grad_norm: torch.Tensor, learning_rate: float) -> Record:
    """The metrics of this step. The host waits for the device here."""
    return {
        "step": run.step,
        "loss": loss.item(),
        "lr": learning_rate,
        "grad_norm": grad_norm.item(),
        "tokens": run.step * run.config.tokens_per_step,
        **meter.read(tokens_per_step=run.config.tokens_per_step),
        "tokens_per_source": dict(run.tokens_per_source),
    }


def validate(run: Run, validation: Mapping[str, ValidationSource]) -> Record:
    """The validation loss of each source, as a part of the step's metrics. Raises AlikeError if one is not finite."""
    losses = validation_losses(run.model, validation, config=run.config, placement=run.placement)
    for source, loss in losses.items():
        if not math.isfinite(loss):
            raise not_finite(run, f"the validation loss of {source} is {loss} at step {run.step:,}")
    return {"valid_loss": losses}


def save(run: Run) -> None:
    """Write a checkpoint of this step."""
    refuse_bad_weights(run)
    save_checkpoint(
        run.folder,
        manifest=run.manifest(),
        model=run.model,
        optimizer=run.optimizer,
        keep=run.config.keep_checkpoints,
    )


def log(run: Run, record: Record) -> None:
    """Write a step's metrics to the file and to the screen, on rank 0."""
    if run.placement.rank == 0:
        append_metrics(run.metrics_path, record)
        run.placement.say(format_record(record, num_steps=run.config.steps))


if __name__ == "__main__":
    end_process(main)
