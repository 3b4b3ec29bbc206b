"""One run: its parts put together, its folder, and what it says of itself at both ends."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from model.config import ModelConfig
from model.transformer import Transformer
from pipeline.dataset import PackedDataset
from pipeline.storage import locked, write_json
from train.checkpoint import Saver, choose_checkpoint, gather, load_checkpoint
from train.config import TrainConfig
from train.data import describe_sources, shares_of
from train.distributed import AlikeError, Placement, build_model
from train.manifest import Manifest, find_checkpoints, list_changes, read_manifest, refuse_other_run
from train.metrics import METRICS, cut_metrics, read_metrics, summarise
from train.optim import build_optimizer

LARGEST_NUM_ROLLBACKS = 3  # So often a run goes back to the same checkpoint.
HAS_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)  # What some shared storage answers.


@dataclass
class Run:
    """Everything that one training process holds. The last four move; the rest stays."""

    config: TrainConfig
    placement: Placement
    dataset: PackedDataset
    model: Transformer
    optimizer: torch.optim.Optimizer
    saver: Saver
    manifest: Manifest  # How far the run has come, as a checkpoint at this step says it.
    bad_in_a_row: torch.Tensor  # Updates skipped just now one after the other: int64 scalar on the device.
    bad_in_all: torch.Tensor  # Updates skipped since this process started, likewise.
    num_rollbacks: int = 0  # How often the run went back to the checkpoint that is now its newest.

    @property
    def step(self) -> int:
        """Updates done, skipped ones included."""
        return self.manifest.step


@contextmanager
def claimed(out: Path, *, placement: Placement) -> Iterator[None]:
    """Keep other runs out of a run's folder while the block runs; the lock dies with rank 0. Raises AlikeError where
    another has it, or the folder cannot be written. Where the storage has no locks, nothing is kept out."""
    with ExitStack() as stack:
        refusal = None
        try:
            if placement.rank == 0 and not stack.enter_context(locked(out / "run", waits=False)):
                refusal = f"another run is training into {out}: wait for its end, stop it, or use another --out"
        except OSError as error:
            refusal = None if error.errno in HAS_NO_LOCKS else f"{out} cannot be written: {error}"
        if refusal := gather(refusal)[0]:
            raise AlikeError(refusal)
        yield


def start_run(config: TrainConfig, model_config: ModelConfig, dataset: PackedDataset, *, placement: Placement) -> Run:
    """A run at its first step, or at its newest whole checkpoint. Raises AlikeError for the folder of another run."""
    names = ("vocab_size", "bos_id", "eos_id", "document_rule", "fingerprint")
    identity = {"tokenizer": dataset.tokenizer["name"], "tokenizer_file": Path(dataset.tokenizer["file"]).name}
    manifest = Manifest(
        mix=shares_of(dataset),
        dataset=identity | {name: getattr(dataset, name) for name in names},
        model=asdict(model_config),
        config=config.as_json(),
        tokens_per_source=dict.fromkeys(dataset.sources, 0),
    )
    checkpoint, complaints = choose_checkpoint(config.out)
    changes: list[str] = []
    if checkpoint:
        saved = read_manifest(checkpoint)
        refuse_other_run(saved, current=manifest, run_folder=config.out)
        changes = list_changes(saved, current=manifest)
        manifest = replace(saved, config=manifest.config, dataset=manifest.dataset)
    model = build_model(model_config, config, placement=placement)
    optimizer = build_optimizer(model, config)
    is_unfinished = manifest.step < config.num_steps
    if checkpoint and is_unfinished:
        load_checkpoint(checkpoint, model=model, optimizer=optimizer)
    saver = Saver(config, model=model, optimizer=optimizer, last_step=manifest.step)
    none_bad = torch.zeros((), dtype=torch.int64, device=placement.device)
    run = Run(config, placement, dataset, model, optimizer, saver, manifest, none_bad, none_bad)
    announce(run, changes=changes, complaints=complaints)
    if placement.rank == 0 and is_unfinished:
        tokenizer = dataset.tokenizer_path
        (config.out / "tokenizer").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tokenizer, config.out / "tokenizer" / tokenizer.name)
        write_json(config.out / "config.json", config.as_json())
        cut_metrics(run.config.out / METRICS, last_step=run.step)  # to end where this run goes on
    return run


def announce(run: Run, *, changes: list[str], complaints: list[str]) -> None:
    """Say what is about to be trained, on what, and from where."""
    config, shape, place = run.config, run.model.config, run.placement
    lines = [
        config.as_text(),
        f"data    {config.data}  tokenizer {run.dataset.tokenizer['name']}",
        *describe_sources(run.dataset, num_samples=config.num_steps * config.samples_per_step),
        f"model   {shape.num_parameters():,} parameters  vocabulary {shape.vocab_size:,}"
        f"  attention {run.model.attention_backend}  document mask {config.document_mask}",
        f"run     {config.out}  {config.num_steps:,} steps of {config.tokens_per_step:,} tokens"
        f"  {place.world_size} x {place.device.type}  accumulation {config.accumulation(place.world_size)}",
        *(f"damaged {complaint}: it was set aside, and the one before it is used" for complaint in complaints),
    ]
    if 0 < run.step < config.num_steps:
        lines.append(f"resume  from step {run.step:,}, {run.manifest.tokens:,} tokens")
        lines += [f"changed {change}" for change in changes]
    place.say("\n".join(lines))


def is_rolled_back(run: Run) -> bool:
    """Whether too many updates in a row, or the last, were not finite: the run is at its newest checkpoint again. The
    data since then is left out: with the same weights and data the same would happen. The host waits for the device
    here. Raises AlikeError where there is no checkpoint, or going back has not helped."""
    in_a_row = int(run.bad_in_a_row)
    is_last = run.step == run.config.num_steps
    if in_a_row == 0 or (in_a_row < run.config.max_bad_steps and not is_last):
        return False
    finding = f"the loss or its gradient was not finite in {in_a_row:,} steps in a row, up to step {run.step:,}"
    run.saver.wait()
    checkpoint, _ = choose_checkpoint(run.config.out)
    if checkpoint is None or run.num_rollbacks == LARGEST_NUM_ROLLBACKS:
        raise not_finite(run, finding)
    load_checkpoint(checkpoint, model=run.model, optimizer=run.optimizer)
    saved, now = read_manifest(checkpoint), run.manifest
    skipped = [*saved.skipped, [saved.position, now.position]]
    run.manifest = replace(saved, config=now.config, dataset=now.dataset, position=now.position, skipped=skipped)
    run.num_rollbacks += 1
    run.bad_in_a_row = torch.zeros_like(run.bad_in_a_row)
    if run.placement.rank == 0:
        cut_metrics(run.config.out / METRICS, last_step=run.step)
    left_out = f"the samples {saved.position:,} to {now.position - 1:,}"
    run.placement.say(f"back    {finding}: goes on from {checkpoint} without {left_out}")
    return True


def not_finite(run: Run, finding: str) -> AlikeError:
    """The error that ends a run whose numbers have left the finite; what was saved before is good."""
    newest = next(reversed(find_checkpoints(run.config.out)), None)
    start = f"goes on from {newest}, which is good" if newest else "starts again, since nothing was saved yet"
    return AlikeError(
        f"{finding}, and that was not saved: the same command with --learning-rate below"
        f" {run.config.learning_rate:g} {start}"
    )


def report(run: Run) -> None:
    """Say what came of the run, and where everything is."""
    records = [] if run.placement.rank else read_metrics(run.config.out / METRICS)
    if records:
        trained = ", ".join(f"{source} {tokens:,}" for source, tokens in run.manifest.tokens_per_source.items())
        print(*summarise(records), f"tokens  {trained}", sep="\n")
        print(f"saved   {find_checkpoints(run.config.out)[-1]}  metrics {run.config.out / METRICS}", flush=True)
