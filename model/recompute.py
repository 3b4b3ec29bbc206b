"""Activation checkpointing: what the backward pass computes again instead of keeping it. Knows no model."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["off", "selective", "full"]

KEPT = (
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "flash_attn::_flash_attn_varlen_forward",
)
"""What `selective` keeps, since it is most of a block's work: matrix products and attention. All else is quick."""


def run_block(compute: Callable[[Tensor], Tensor], x: Tensor, *, recompute: Recompute) -> Tensor:
    """compute(x), whose inner results are computed again in the backward pass: all, or all but KEPT (selective)."""
    options: dict[str, Any] = {}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _choose)
    return checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False, **options)


def _choose(context: Any, operator: torch._ops.OpOverload, *args: Any, **options: Any) -> CheckpointPolicy:
    """Keep an operator's result, or compute it again."""
    is_kept = operator.name().split(".")[0] in KEPT
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
