"""Cross-entropy from hidden states, without ever holding the logits of all tokens.

At 16,384 tokens and 32,000 ids the logits alone are 2.1 GB in float32; here they exist for one chunk of rows at a
time. The gradients are computed in the same pass, so no chunk is computed twice.

Written by hand, since torch has the like only from 2.13 on (torch.nn.functional.linear_cross_entropy with chunking
options), and there torch.compile falls back to eager at it. Which is faster on a GPU is not yet measured.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A target with this id adds nothing to the loss."""

LOGITS_PER_CHUNK = 1 << 24
"""Logits held at once: 64 MiB in float32."""


class LinearCrossEntropy(torch.autograd.Function):
    """sum(cross_entropy(hidden @ weight.T, targets)), chunk by chunk; see `linear_cross_entropy`."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        chunk_rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_gradient else None
        # float32, since a bfloat16 sum over many chunks would lose the small ones.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        for start in range(0, hidden.shape[0], chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = F.linear(hidden[chunk], weight).float()
            loss += F.cross_entropy(logits, targets[chunk], ignore_index=IGNORED, reduction="sum")
            if needs_gradient:
                logits_grad = _logits_gradient(logits, targets[chunk]).to(hidden.dtype)
                torch.mm(logits_grad, weight, out=hidden_grad[chunk])
                weight_grad += logits_grad.T @ hidden[chunk]
        if needs_gradient:
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return loss

    @staticmethod
    def backward(  # noqa: D102
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad.to(hidden_grad.dtype), weight_grad * grad.to(weight_grad.dtype), None


def _logits_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """softmax(logits) - one_hot(targets), rows of ignored targets zero; written over the logits."""
    torch.softmax(logits, dim=-1, out=logits)
    is_real = targets != IGNORED
    rows = torch.arange(len(targets), device=targets.device)
    logits[rows, targets.clamp(min=0)] -= 1.0
    return logits.mul_(is_real[:, None])


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The loss summed over targets: a float32 scalar.

    hidden (N, C), weight (vocabulary, C), targets int64 (N,); targets equal to IGNORED add nothing. Differentiable once
    in hidden and weight.
    """
    return LinearCrossEntropy.apply(hidden, weight, targets)
