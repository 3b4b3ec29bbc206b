"""The training loop in named steps: update, count, log, validate, save."""

import gc
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from model.loss import IGNORED
from pipeline.dataset import PackedDataset
from train.data import MicroBatch, RankReader, count_tokens, extend_hash, read_micro_batch, refuse_end
from train.distributed import (
    StopRequest,
    StopRequestedError,
    device_name,
    exchange_gradients,
    is_compiled,
    peak_flops,
    sum_over_ranks,
)
from train.metrics import METRICS, Meter, Record, Watcher, append_metrics, format_record, open_profiler, open_watchers
from train.optim import clip_gradients, learning_rate_at, update_weights, weight_norm
from train.run import Run, is_rolled_back, not_finite, report

Validation = dict[str, PackedDataset]


def train(run: Run, *, stop: StopRequest) -> None:
    """Train to the last step; or, asked to stop, to the last whole step, which is saved."""
    if run.step >= run.config.num_steps:
        run.placement.say(f"finished already: {run.config.out} is at step {run.step:,}; a larger --steps goes on")
        return
    gc.collect()
    gc.freeze()  # what is there now stays, so that no later collection on any rank looks at it
    with ExitStack() as stack:
        stack.callback(gc.unfreeze)
        stack.callback(run.saver.close)
        try:
            train_steps(run, stop=stop, stack=stack)
        except StopRequestedError as request:
            run.optimizer.zero_grad()  # of a step that is not finished
            save(run)
            run.saver.wait()
            run.placement.say(f"stopped by {request} after step {run.step:,}: the same command goes on from there")
        else:
            run.saver.wait()
            report(run)


def train_steps(run: Run, *, stop: StopRequest, stack: ExitStack) -> None:
    """All steps, with metrics, validation and checkpoints on the way. `stack` closes what they need."""
    config = run.config
    validation = open_validation(run)
    watchers = open_watchers(config, first_step=run.step + 1, rank=run.placement.rank, stack=stack)
    after_step = open_profiler(config, rank=run.placement.rank, stack=stack)
    if validation and is_compiled(config, run.placement.device):
        # All is compiled before the first step: a signal in the middle of a compilation is heard only after it.
        validation_losses(run, validation, before_each=stop.check, max_windows=1)
    meter, reader = Meter(), RankReader(run.dataset, config, run.placement)
    while run.step < config.num_steps:
        position = run.manifest.position
        refuse_end(run.dataset, config, position=position, step=run.step)
        for batch in meter.watch(reader.read_steps(position, num_steps=config.num_steps - run.step)):
            learning_rate = learning_rate_at(run.step + 1, config)
            loss, grad_norm = train_step(run, batch, learning_rate=learning_rate, stop=stop)
            count_step(run)
            stop.has_work = True
            after_step()
            is_validated = validation and is_due(run, config.valid_every)
            is_logged, is_saved = is_validated or is_due(run, config.log_every), is_due(run, config.checkpoint_every)
            if (is_logged or is_saved) and is_rolled_back(run):
                break
            if is_logged:
                record = measure(run, meter, loss=loss, grad_norm=grad_norm, learning_rate=learning_rate)
                with meter.paused():
                    if is_validated:
                        record["valid_loss"] = validation_losses(run, validation, before_each=stop.check)
                    log(run, record, watchers)
            if is_saved:
                with meter.paused():
                    save(run)


def train_step(run: Run, batch: list[MicroBatch], *, learning_rate: float, stop: StopRequest) -> tuple[Tensor, Tensor]:
    """One update. Returns the mean loss and the norm of all gradients, over all ranks; both stay on the device. The
    loss is divided by the targets of the whole step. The update is skipped, on all ranks alike, where the loss or the
    norm is not finite. Raises StopRequestedError between micro-batches."""
    device, num_targets = run.placement.device, run.config.tokens_per_step
    if run.config.packing == "best-fit":
        num_targets = sum_over_ranks(torch.tensor(sum(each.num_targets for each in batch), device=device))
    loss = torch.zeros((), device=device)
    for number, micro_batch in enumerate(batch, start=1):
        stop.check()
        exchange_gradients(run.model, is_last=number == len(batch))
        moved = micro_batch.to(device)
        part = run.model(moved.inputs, targets=moved.targets, cu_seqlens=moved.cu_seqlens) / num_targets
        part.backward()
        loss += part.detach()
    loss = sum_over_ranks(loss)
    grad_norm = clip_gradients(run.model, run.config.grad_clip)
    is_bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
    run.bad_in_a_row = (run.bad_in_a_row + 1) * is_bad
    run.bad_in_all = run.bad_in_all + is_bad
    update_weights(run.optimizer, learning_rate=learning_rate, is_skipped=is_bad)
    return loss, grad_norm


def count_step(run: Run) -> None:
    """Count the step that was just done: its samples, and the tokens of each source."""
    before, end = run.manifest, run.manifest.position + run.config.samples_per_step
    samples = run.dataset.locate(range(before.position, end))
    tokens, counts = before.tokens_per_source, count_tokens(samples, run.dataset)
    run.manifest = replace(
        before,
        step=before.step + 1,
        position=end,
        tokens=before.tokens + run.config.tokens_per_step,
        tokens_per_source=tokens | {source: tokens.get(source, 0) + counts[source] for source in counts},
        samples_hash=extend_hash(before.samples_hash, samples),
    )


def is_due(run: Run, every: int) -> bool:
    """Whether something that is done every so many steps, and at the last, is to be done now."""
    return run.step == run.config.num_steps or (every > 0 and run.step % every == 0)


def measure(run: Run, meter: Meter, *, loss: Tensor, grad_norm: Tensor, learning_rate: float) -> Record:
    """The metrics of this step. The host waits for the device here."""
    config, device = run.config, run.placement.device
    loss_value, grad_norm_value = loss.item(), grad_norm.item()
    speed = meter.read(tokens_per_step=config.tokens_per_step)
    flops = speed["tokens_per_second"] * run.model.config.flops_per_token(config.seq_len)
    peak = peak_flops(device_name(device))
    return {
        "step": run.step,
        "loss": loss_value,
        "lr": learning_rate,
        "grad_norm": grad_norm_value,
        "tokens": run.manifest.tokens,
        **speed,
        **({"mfu": flops / (run.placement.world_size * peak)} if peak else {}),
        **({"memory_bytes": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}),
        "skipped_updates": int(run.bad_in_all),
        "tokens_per_source": run.manifest.tokens_per_source,
    }


def open_validation(run: Run) -> Validation:
    """The validation split of each source alone, so that its positions are its windows. Empty where it is off; a source
    with less than one window of it is left out, and that is said."""
    config, opened = run.config, {}
    for source in run.dataset.sources if config.valid_every else ():
        tokens = [shard["tokens"] for shard in run.dataset.shards(source, "validation")]
        if max(tokens, default=0) > config.seq_len:
            opened[source] = PackedDataset(config.data, seq_len=config.seq_len, mix={source: 1.0}, split="validation")
        else:
            finding = f"{sum(tokens):,} validation tokens hold no window of {config.seq_len + 1:,}"
            run.placement.say(f"valid   not on {source}: {finding}")
    return opened


@torch.no_grad()
def validation_losses(
    run: Run, validation: Validation, *, before_each: Callable[[], None], max_windows: int | None = None
) -> dict[str, float]:
    """The mean loss per target of each source, of all ranks together. Raises AlikeError if one is not finite.
    `before_each` is called before every micro-batch, as often on all ranks; it may raise."""
    losses, place, rows = {}, run.placement, run.config.micro_batch_size
    for source, dataset in validation.items():
        num_windows = min(max_windows or run.config.valid_windows, dataset.num_windows(source))
        # All ranks have as many chunks, or the sharded model would hang: the last ones are filled up.
        num_rounds = -(-num_windows // (rows * place.world_size))
        positions = np.arange(num_rounds * place.world_size * rows).reshape(num_rounds, place.world_size, rows)
        loss = torch.zeros((), device=place.device)
        for chunk in positions[:, place.rank]:
            before_each()
            readable = np.minimum(chunk, num_windows - 1)
            batch = read_micro_batch(dataset, readable, has_mask=run.config.document_mask == "on").to(place.device)
            is_filler = torch.from_numpy(chunk >= num_windows).to(place.device)
            targets = batch.targets.masked_fill(is_filler[:, None], IGNORED)
            loss += run.model(batch.inputs, targets=targets, cu_seqlens=batch.cu_seqlens)
        losses[source] = sum_over_ranks(loss).item() / (num_windows * run.config.seq_len)
        if not math.isfinite(losses[source]):
            raise not_finite(run, f"the validation loss of {source} is {losses[source]} at step {run.step:,}")
    return losses


def save(run: Run) -> None:
    """Begin a checkpoint of this step, if there is none. Raises AlikeError if the last update broke a weight."""
    if run.saver.last_step != run.step:
        if not math.isfinite(weight_norm(run.model)):
            raise not_finite(run, f"the weights are not finite after step {run.step:,}")
        run.saver.save(run.manifest)
        if not int(run.bad_in_a_row):
            run.num_rollbacks = 0


def log(run: Run, record: Record, watchers: list[Watcher]) -> None:
    """Write a step's metrics to the file, to the screen and to the watchers, on rank 0."""
    if run.placement.rank:
        return
    if not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"])):
        run.placement.say(f"skipped the update of step {run.step:,}: its loss or gradient is not finite")
        return
    append_metrics(run.config.out / METRICS, record)
    run.placement.say(format_record(record, num_steps=run.config.num_steps))
    for watch in watchers:
        watch(record)
