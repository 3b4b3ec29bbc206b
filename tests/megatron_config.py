"""megatron-core's GPTDataset as Megatron-LM builds it, on one process."""

from collections.abc import Sequence
from types import SimpleNamespace

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig


def build_gpt_dataset(
    prefixes: Sequence[str], seq_len: int, *, num_samples: int, vocab_size: int, eos_id: int
) -> GPTDataset:
    """The train dataset over all of these prefixes, each counted by its tokens."""
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=seq_len, blend=(list(prefixes), None), split="1,0,0",
        tokenizer=SimpleNamespace(eod=eos_id, pad=eos_id, vocab_size=vocab_size, unique_identifiers={"class": "ours"}),
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config)
    return builder.build()[0]
