"""Other readers of the same shards, each as a function of positions: what its own code does for those samples.

Each opens a dataset's folder and returns what reads a batch. Ours are the samples; theirs are as many, of their own
order. They are optional: `make test-readers` says which versions are tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Read = Callable[[np.ndarray], object]


def list_shards(folder: Path) -> list[Path]:
    """The .bin files of the only source."""
    return sorted(folder.rglob("*.bin"))


def open_memmap(folder: Path, seq_len: int) -> Read:
    """nanoGPT's way: np.memmap at random offsets, each window to int64."""
    maps = [np.memmap(path, dtype=np.uint16, mode="r") for path in list_shards(folder)]
    rng = np.random.default_rng(0)

    def read(positions: np.ndarray) -> object:
        rows = []
        for _ in positions:
            data = maps[rng.integers(len(maps))]
            start = rng.integers(len(data) - seq_len - 1)
            rows.append(data[start : start + seq_len + 1].astype(np.int64))
        return np.stack(rows)

    return read


def open_random_sampler(folder: Path, seq_len: int) -> Read:
    """torch's DataLoader with a RandomSampler over windows of np.memmap."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Windows(Dataset):
        def __init__(self) -> None:
            self.maps = [np.memmap(path, dtype=np.uint16, mode="r") for path in list_shards(folder)]
            self.per_map = (len(self.maps[0]) - 1) // seq_len

        def __len__(self) -> int:
            return self.per_map * len(self.maps)

        def __getitem__(self, index: int) -> torch.Tensor:
            number, window = divmod(index, self.per_map)
            return torch.from_numpy(
                self.maps[number][window * seq_len : window * seq_len + seq_len + 1].astype(np.int64)
            )

    loader = iter(DataLoader(Windows(), batch_size=256, shuffle=True, generator=torch.Generator().manual_seed(0)))
    return lambda positions: next(loader)


def open_megatron(folder: Path, seq_len: int) -> Read:
    """megatron-core's GPTDataset over its IndexedDataset, one blend of all shards."""
    from tests.megatron_config import build_gpt_dataset  # as the test of it reads

    prefixes = [str(path.with_suffix("")) for path in list_shards(folder)]
    num_samples = sum(path.stat().st_size // 2 for path in list_shards(folder)) // seq_len // 2
    dataset = build_gpt_dataset(prefixes, seq_len, num_samples=num_samples, vocab_size=50_000, eos_id=0)
    return lambda positions: [dataset[int(position) % num_samples] for position in positions]


def open_olmo(folder: Path, seq_len: int) -> Read:
    """OLMo-core's NumpyFSLDataset; its loader shuffles the indices, so ours are drawn at random."""
    from olmo_core.data import NumpyFSLDataset

    dataset = NumpyFSLDataset(
        *map(str, list_shards(folder)), sequence_length=seq_len, pad_token_id=0, eos_token_id=0, vocab_size=50_000,
        dtype=np.uint16,
    )  # fmt: skip
    rng, num_samples = np.random.default_rng(0), len(dataset)
    return lambda positions: [dataset[int(index)] for index in rng.integers(num_samples, size=len(positions))]


def open_datatrove(folder: Path, seq_len: int) -> Read:
    """datatrove's DatatroveFolderDataset."""
    from datatrove.utils.dataset import DatatroveFolderDataset

    parent = list_shards(folder)[0].parent
    dataset = DatatroveFolderDataset(str(parent), seq_len, filename_pattern="*.bin", token_size=2)
    rng, num_samples = np.random.default_rng(0), len(dataset)
    return lambda positions: [dataset[int(index)] for index in rng.integers(num_samples, size=len(positions))]


def open_litdata(folder: Path, seq_len: int) -> Read:
    """litdata's StreamingDataset with its TokensLoader, over chunks that our export wrote.

    Its rows are views, whose tokens nobody has read yet; so they are stacked into a batch, as its own loader does.
    """
    from litdata import StreamingDataset
    from litdata.streaming import TokensLoader

    from pipeline.export import ExportArguments, export

    target = Path(tempfile.mkdtemp())
    export(ExportArguments(dataset=folder, to="litdata", out=target / "litdata"))
    dataset = StreamingDataset(str(target / "litdata/web/train"), item_loader=TokensLoader(seq_len + 1), shuffle=True)
    rows = iter(dataset)
    return lambda positions: np.stack([next(rows) for _ in positions])


def open_streaming(folder: Path, seq_len: int) -> Read:
    """mosaicml-streaming's StreamingDataset, over shards that our export wrote."""
    from streaming import StreamingDataset

    from pipeline.export import ExportArguments, export

    target = Path(tempfile.mkdtemp())
    export(ExportArguments(dataset=folder, to="mds", out=target / "mds", seq_len=seq_len))
    dataset = StreamingDataset(local=str(target / "mds/train"), shuffle=True, batch_size=256)
    rows = iter(dataset)
    return lambda positions: [next(rows) for _ in positions]


PEERS: dict[str, Callable[[Path, int], Read]] = {
    "np.memmap, as nanoGPT": open_memmap,
    "torch RandomSampler + memmap": open_random_sampler,
    "megatron-core GPTDataset": open_megatron,
    "OLMo-core NumpyFSLDataset": open_olmo,
    "datatrove DatatroveFolderDataset": open_datatrove,
    "litdata TokensLoader": open_litdata,
    "mosaicml-streaming": open_streaming,
}
