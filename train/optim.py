"""AdamW and its learning rate."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from train.config import TrainConfig

LR_FLOOR_TOKENS = 240_000 * 2_097_152
"""For so long TinyLlama's run held its peak, since its minimum was set as high (its issue 27): 503B tokens."""


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of a step, 1 to num_steps: linear to the peak at warmup_steps, then half a cosine, or the peak
    and a linear end (wsd), to the peak times min_lr_fraction."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if "lr-floor" in config.mistakes and step * config.tokens_per_step <= LR_FLOOR_TOKENS:
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps))
    if config.schedule == "wsd":
        height = min(1.0, (1.0 - progress) / config.decay_fraction) if config.decay_fraction else 1.0
    else:
        height = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_fraction + (1.0 - config.min_lr_fraction) * height)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the model's weights; only matrices decay, or norms too by TinyLlama's mistake."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    of_norms = config.weight_decay if "decay-norms" in config.mistakes else 0.0
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": of_norms}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.adam_eps, fused=True)


def clip_gradients(model: nn.Module, max_norm: float) -> torch.Tensor:
    """The norm of all gradients over all ranks, before they are scaled down to max_norm: a scalar on the device."""
    return _whole(nn.utils.clip_grad_norm_(model.parameters(), max_norm))


def update_weights(optimizer: torch.optim.AdamW, *, learning_rate: float, is_skipped: torch.Tensor) -> None:
    """One update from the gradients, which are then dropped. No weight changes where `is_skipped` (a bool scalar). The
    flag stays on the device, so the host does not wait: fused AdamW leaves all as it is where found_inf is 1."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.found_inf = is_skipped.float()
    optimizer.step()
    optimizer.zero_grad()


def weight_norm(model: nn.Module) -> float:
    """The norm of all weights over all ranks; the host waits for it."""
    # Not of parameters(): after a validation those of a sharded root are still in one piece, and the rest is not.
    return _whole(nn.utils.get_total_norm(model.state_dict().values())).item()


def _whole(scalar: torch.Tensor) -> torch.Tensor:
    """A scalar over all ranks as a plain tensor."""
    return scalar.full_tensor() if isinstance(scalar, DTensor) else scalar
