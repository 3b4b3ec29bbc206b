"""Cross-entropy from hidden states, without ever holding the logits of all tokens.

At 16,384 tokens and 32,000 ids the logits alone are 2.1 GB in float32; here they exist for one chunk of rows at a
time. The gradients are computed in the same pass, so no chunk is computed twice.

Written by hand: torch has the like only from 2.13 on (torch.nn.functional.linear_cross_entropy with chunking options),
torch.compile falls back to eager at it, and on a CPU it takes longer (benchmarks/train.py has the table).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # A target with this id adds nothing to the loss.

ROWS_PER_CHUNK = {"cpu": 512, "cuda": 4096}
"""Tokens whose logits are held at once: 262 MB in bfloat16 on a GPU at 32,000 ids, and as much for the gradient. Fewer
make slow matrix products, and each chunk adds to the whole gradient of the weight; more leave a CPU's caches."""

Scorer = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def score_rows(logits: Tensor, targets: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The loss summed over rows of logits (n, vocabulary), float32, and if asked its gradient, in the logits' dtype:
    probabilities - one_hot(targets), rows of ignored targets zero."""
    logits_32 = logits.float()
    # Over the logits themselves where that is tried: a tenth of the time on a CPU.
    out = logits_32 if logits.device.type == "cpu" else None
    log_probabilities = torch.log_softmax(logits_32, dim=-1, out=out)
    loss = F.nll_loss(log_probabilities, targets, ignore_index=IGNORED, reduction="sum")
    if not needs_gradient:
        return loss, None
    grad = log_probabilities.exp_()
    grad[torch.arange(len(grad), device=grad.device), targets.clamp(min=0)] -= 1.0
    return loss, grad.mul_((targets != IGNORED)[:, None]).to(logits.dtype)


def score_rows_at_once(logits: Tensor, targets: Tensor, needs_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The same for torch.compile: all between reading the logits and writing their gradient becomes one kernel."""
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    is_target = targets[:, None] == torch.arange(logits.shape[1], device=logits.device)
    loss = -log_probabilities.where(is_target, 0.0).sum()
    if not needs_gradient:
        return loss, None
    grad = (log_probabilities.exp() - is_target.float()) * (targets != IGNORED)[:, None]
    return loss, grad.to(logits.dtype)


class LinearCrossEntropy(torch.autograd.Function):
    """The loss summed over targets, a float32 scalar: sum(cross_entropy(hidden @ weight.T, targets)), chunk by chunk.

    hidden (N, C), weight (vocabulary, C), targets int64 (N,); those equal to IGNORED add nothing. Differentiable once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, score: Scorer, needs_gradient: bool
    ) -> Tensor:
        """The loss, and in ctx if asked both gradients for a gradient of one."""
        chunk_rows = ROWS_PER_CHUNK[hidden.device.type]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_gradient else None
        # float32, since a bfloat16 sum over many chunks would lose the small ones.
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        for start in range(0, hidden.shape[0], chunk_rows):
            chunk = slice(start, start + chunk_rows)
            chunk_loss, logits_grad = score(F.linear(hidden[chunk], weight), targets[chunk], needs_gradient)
            loss += chunk_loss
            if needs_gradient:
                torch.mm(logits_grad, weight, out=hidden_grad[chunk])
                if hidden.dtype == weight_grad.dtype:
                    weight_grad.addmm_(logits_grad.T, hidden[chunk])
                else:
                    weight_grad += logits_grad.T @ hidden[chunk]
        if needs_gradient:
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """The gradients of hidden and weight; in bfloat16 `grad` is rounded, for all weights of a model alike."""
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad.to(hidden_grad.dtype), weight_grad * grad.to(weight_grad.dtype), None, None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, score: Scorer = score_rows) -> Tensor:
    """See LinearCrossEntropy; `score` is score_rows, or score_rows_at_once compiled."""
    # Asked here, since within forward no gradient is ever wanted, and the context tells of the weight alone.
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return LinearCrossEntropy.apply(hidden, weight, targets, score, needs_gradient)
