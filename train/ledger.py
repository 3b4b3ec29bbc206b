"""What a checkpoint has seen: recomputed from its settings, compared with what it recorded.

    python train/ledger.py runs/tinyllama
    python train/ledger.py runs/tinyllama --step 12345

Tokens per source and the running hash of the samples follow from settings and dataset alone; exits with 1 where they
differ. With --step the samples of one step, and in their shards the documents, by number; the shard's .docs.parquet
leads from a number to the raw file and row, and so does pipeline/explain.py --run.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # started as `python train/ledger.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import tyro

from pipeline.dataset import PackedDataset
from train.data import count_tokens, extend_hash, open_dataset
from train.manifest import Manifest, find_checkpoint, read_manifest


@dataclass(frozen=True)
class LedgerFlags:
    """Say which windows and documents a checkpoint has seen."""

    run: Annotated[Path, tyro.conf.Positional]  # A run's folder (its newest checkpoint), or one checkpoint.
    step: int | None = None  # List the windows of this step, 1 being the first, instead of checking all.
    data: str | None = None  # The dataset, where it is no longer at the place that the run names.


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    flags = tyro.cli(LedgerFlags, args=arguments)
    try:
        manifest = read_manifest(find_checkpoint(flags.run, reads_weights=False))
        path, wanted = flags.data or manifest.config["data"], manifest.dataset["fingerprint"]
        dataset = open_dataset(path, manifest.config)
        if dataset.fingerprint != wanted:
            raise ValueError(f"{path} is the dataset {dataset.fingerprint[:16]}, the run was trained on {wanted[:16]}")
        lines = check(manifest, dataset) if flags.step is None else list_step(manifest, dataset, step=flags.step)
        print(*lines, sep="\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def step_positions(manifest: Manifest) -> Iterator[range]:
    """The positions of each trained step in order; those left out are passed over."""
    num_samples = manifest.config["tokens_per_step"] // manifest.config["seq_len"]
    skipped, position = dict(manifest.skipped), 0
    for _ in range(manifest.step):
        while position in skipped:
            position = skipped[position]
        yield range(position, position + num_samples)
        position += num_samples


def check(manifest: Manifest, dataset: PackedDataset) -> list[str]:
    """Lines for a person. Raises ValueError where samples or tokens are not those that were recorded."""
    tokens, samples_hash = Counter(), ""
    for positions in step_positions(manifest):
        samples = dataset.locate(positions)
        tokens.update(count_tokens(samples, dataset))
        samples_hash = extend_hash(samples_hash, samples)
    recorded = {source: count for source, count in manifest.tokens_per_source.items() if count}
    if samples_hash != manifest.samples_hash or +tokens != recorded:
        raise ValueError(
            f"the checkpoint recorded {recorded} and samples {manifest.samples_hash[:16]}, its settings give"
            f" {dict(+tokens)} and {samples_hash[:16]}: it was trained on other samples than they say"
        )
    lines = [f"samples   as recorded, {samples_hash}  {manifest.step:,} steps, {manifest.tokens:,} tokens"]
    for source, count in recorded.items():
        epochs = count / dataset.seq_len / dataset.num_windows(source)
        lines.append(f"{source}  {count:,} tokens  {epochs:.4f} epochs of {dataset.num_windows(source):,} windows")
    return lines + [f"left out  positions {first:,} to {end - 1:,}" for first, end in manifest.skipped]


def list_step(manifest: Manifest, dataset: PackedDataset, *, step: int) -> list[str]:
    """The windows of one step and their documents. Raises ValueError for a step that was not trained."""
    if not 1 <= step <= manifest.step:
        raise ValueError(f"--step {step:,} was not trained: the checkpoint has the steps 1 to {manifest.step:,}")
    positions = next(islice(step_positions(manifest), step - 1, None))
    return [
        f"position {position:,}  {describe_sample(dataset, dataset.sources[source], int(epoch), int(sample))}"
        for position, source, epoch, sample in zip(positions, *dataset.locate(positions), strict=True)
    ]


def describe_sample(dataset: PackedDataset, source: str, epoch: int, sample: int) -> str:
    """A sample's number and its documents, each by its shard, its number there, and the first of its tokens."""
    opened = dataset.windows[source]
    words = [f"{source} epoch {epoch} sample {sample:,}"]
    for start in opened.piece_starts(epoch, sample):
        document = opened.find_document(start + 1) - 1
        shard, number = opened.locate_document(document)
        token = start - opened.document_start(document)
        words.append(f"{opened.shards[shard]['path']} document {number:,} from token {token:,}")
    return "  ".join(words)


if __name__ == "__main__":
    sys.exit(main())
