"""One run: its parts put together, its folder, and what it says of itself at both ends."""

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from model.attention import choose_backend
from model.config import ModelConfig
from model.transformer import Transformer
from pipeline.dataset import PackedDataset
from train.checkpoint import (
    Manifest,
    find_checkpoints,
    list_changes,
    load_checkpoint,
    read_manifest,
    refuse_other_run,
)
from train.config import TrainConfig, save_config
from train.data import shares_of
from train.distributed import AlikeError, Placement, build_model
from train.metrics import cut_metrics, format_validation, read_metrics
from train.optim import build_optimizer, weight_norm


@dataclass
class Run:
    """Everything that one training process holds. The last three move; the rest stays."""

    config: TrainConfig
    model_config: ModelConfig
    placement: Placement
    dataset: PackedDataset
    model: Transformer
    optimizer: torch.optim.Optimizer
    step: int
    """Updates done."""
    tokens_per_source: dict[str, int]
    """Tokens trained on, over all ranks."""
    first_bad_step: torch.Tensor
    """int64 scalar on the device: the first step whose loss or gradient was not finite, 0 while there is none. From
    then on no update is applied, so the weights stay those of the step before."""

    @property
    def folder(self) -> Path:
        """RUN_DIR."""
        return self.config.out

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are."""
        return self.folder / "metrics.jsonl"

    def manifest(self) -> Manifest:
        """This run as a checkpoint at this step describes it."""
        return describe_run(self.config, self.model_config, self.dataset, self.step, self.tokens_per_source)


@dataclass(frozen=True)
class Start:
    """Where a run begins: nowhere, or where a checkpoint left it."""

    checkpoint: Path | None
    step: int
    tokens_per_source: dict[str, int]
    changes: list[str]
    """The settings that are not those of the checkpoint, in words."""


def find_start(config: TrainConfig, model_config: ModelConfig, dataset: PackedDataset) -> Start:
    """The first step, or the newest checkpoint. Raises ValueError for another run's folder."""
    checkpoint = next(reversed(find_checkpoints(config.out)), None)
    nothing_read = dict.fromkeys(dataset.sources, 0)
    if checkpoint is None:
        return Start(checkpoint=None, step=0, tokens_per_source=nothing_read, changes=[])
    manifest = read_manifest(checkpoint)
    current = describe_run(config, model_config, dataset, 0, nothing_read)
    refuse_other_run(manifest, current=current, run_folder=config.out)
    changes = list_changes(manifest, current=current)
    tokens_per_source = nothing_read | manifest.tokens_per_source
    return Start(checkpoint, step=manifest.step, tokens_per_source=tokens_per_source, changes=changes)


def start_run(
    config: TrainConfig, model_config: ModelConfig, dataset: PackedDataset, *, start: Start, placement: Placement
) -> Run:
    """A run with its model and optimizer as they are at its start. Raises ValueError for a damaged checkpoint."""
    backend = choose_backend(config.attention, device_type=placement.device.type)
    model = build_model(model_config, attention_backend=backend, seed=config.seed, placement=placement)
    optimizer = build_optimizer(model, config)
    if start.checkpoint and start.step < config.steps:
        load_checkpoint(start.checkpoint, model=model, optimizer=optimizer)
    no_bad_step = torch.zeros((), dtype=torch.int64, device=placement.device)
    run = Run(
        config, model_config, placement, dataset, model, optimizer, start.step, start.tokens_per_source, no_bad_step
    )
    announce(run, start.changes)
    if placement.rank == 0 and start.step < config.steps:
        prepare_folder(run)
    return run


def describe_run(
    config: TrainConfig, model_config: ModelConfig, dataset: PackedDataset, step: int, tokens_per_source: dict[str, int]
) -> Manifest:
    """The manifest of a checkpoint after `step` updates."""
    return Manifest(
        step=step,
        position=step * config.samples_per_step,
        tokens=step * config.tokens_per_step,
        tokens_per_source=dict(tokens_per_source),
        mix=shares_of(dataset),
        dataset={
            "fingerprint": dataset.fingerprint,
            "tokenizer": dataset.tokenizer["name"],
            "tokenizer_file": Path(dataset.tokenizer["file"]).name,
            "vocab_size": dataset.vocab_size,
            "bos_id": dataset.bos_id,
            "eos_id": dataset.eos_id,
            "document_rule": dataset.document_rule,
        },
        model=asdict(model_config),
        config=config.as_json(),
        files={},
    )


def prepare_folder(run: Run) -> None:
    """Make RUN_DIR: the settings, the tokenizer, and metrics that end where this run goes on."""
    tokenizer = run.config.data / run.dataset.tokenizer["file"]
    folder = run.folder / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(tokenizer, folder / tokenizer.name)
    save_config(run.config, run.folder / "config.json")
    cut_metrics(run.metrics_path, last_step=run.step)


def announce(run: Run, changes: list[str]) -> None:
    """Say what is about to be trained, on what, and from where."""
    config, placement = run.config, run.placement
    placement.say(f"data    {config.data}  tokenizer {run.dataset.tokenizer['name']}")
    for line in describe_sources(run.dataset, num_samples=config.steps * config.samples_per_step):
        placement.say(f"source  {line}")
    placement.say(
        f"model   {run.model_config.num_parameters():,} parameters  vocabulary {run.model_config.vocab_size:,}"
        f"  attention {run.model.attention_backend}  document mask {'on' if config.document_mask else 'off'}"
    )
    placement.say(
        f"run     {config.out}  {config.steps:,} steps of {config.tokens_per_step:,} tokens  {placement.world_size} x"
        f" {placement.device.type}  accumulation {config.accumulation(placement.world_size)}"
    )
    if 0 < run.step < config.steps:
        placement.say(f"resume  from step {run.step:,}, {run.step * config.tokens_per_step:,} tokens")
        for change in changes:
            placement.say(f"changed {change}")


def describe_sources(dataset: PackedDataset, *, num_samples: int) -> list[str]:
    """For each source its share, its windows, how often a run of num_samples reads them, and what it never reads."""
    lines = []
    for source, share in shares_of(dataset).items():
        windows = dataset.windows[source]
        epochs = share * num_samples / windows.num_windows
        repeats = ", so text is repeated" if epochs > 1 else ""
        lines.append(
            f"{source}  share {share:g}  {windows.num_windows:,} windows  {epochs:.2f} epochs{repeats}"
            f"  {windows.num_unread_tokens:,} tokens in tails not read"
        )
    return lines


def refuse_bad_step(run: Run) -> None:
    """Raises AlikeError if a loss or gradient was not finite so far. The host waits for the device here."""
    if step := int(run.first_bad_step):
        raise not_finite(run, f"the loss or its gradient is not finite at step {step:,}")


def refuse_bad_weights(run: Run) -> None:
    """Raises AlikeError if the last update made a weight that is not finite. The host waits for the device here."""
    if not math.isfinite(weight_norm(run.model)):
        raise not_finite(run, f"the weights are not finite after step {run.step:,}")


def not_finite(run: Run, finding: str) -> AlikeError:
    """The error that ends a run whose numbers have left the finite; what was saved before is good."""
    newest = next(reversed(find_checkpoints(run.folder)), None)
    start = f"goes on from {newest}, which is good" if newest else "starts again, since nothing was saved yet"
    return AlikeError(
        f"{finding}, and that was not saved: the same command with --learning-rate below"
        f" {run.config.learning_rate:g} {start}"
    )


def report(run: Run) -> None:
    """Say what came of the run: the first and last loss, tokens per source, where everything is."""
    if run.placement.rank:
        return
    records = read_metrics(run.metrics_path)
    last = records[-1]
    trained = ", ".join(f"{source} {tokens:,}" for source, tokens in run.tokens_per_source.items())
    for name, record in (("first", records[0]), ("last", last)):
        print(f"{name:5}   loss {record['loss']:.4f} at step {record['step']:,}")
    if "valid_loss" in last:
        print(format_validation(last["valid_loss"]))
    print(f"tokens  {last['tokens']:,}: {trained}")
    print(f"saved   {find_checkpoints(run.folder)[-1]}  metrics {run.metrics_path}", flush=True)
