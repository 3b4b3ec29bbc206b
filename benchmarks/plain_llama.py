"""The peer of benchmarks/train.py: the same Llama in plain PyTorch, written and trained the way nanoGPT does it.

Modules of torch alone, all logits at once, random windows from a memory map widened to int64 on the host, AdamW with
two groups, no document masks. It knows nothing of model/ and train/.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PlainShape:
    """The model's shape."""

    vocab_size: int
    width: int
    inner_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    norm_eps: float
    rope_base: float


class PlainBlock(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, shape: PlainShape) -> None:
        super().__init__()
        self.shape, self.head_size = shape, shape.width // shape.num_heads
        self.norm_1, self.norm_2 = (nn.RMSNorm(shape.width, eps=shape.norm_eps) for _ in range(2))
        kv_width = self.head_size * shape.num_kv_heads
        self.q, self.o = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(shape.width, kv_width, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(shape.width, shape.inner_width, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.inner_width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, T, C) from (B, T, C)."""
        rows, length, _ = x.shape
        h = self.norm_1(x)
        q, k, v = (f(h).view(rows, length, -1, self.head_size).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (x * cos + torch.cat([-x.chunk(2, -1)[1], x.chunk(2, -1)[0]], -1) * sin for x in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(rows, length, -1))
        h = self.norm_2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class PlainLlama(nn.Module):
    """The whole model; returns the mean loss."""

    def __init__(self, shape: PlainShape, *, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        half = torch.arange(0, shape.width // shape.num_heads, 2)
        angles = torch.outer(torch.arange(length), shape.rope_base ** (-half / (shape.width // shape.num_heads)))
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of (B, T) tokens."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class PlainTrainer:
    """nanoGPT's loop: a step is a random batch, forward, backward, clip, AdamW, and the loss read for the log."""

    def __init__(self, shape: PlainShape, *, shard: Path, dtype: np.dtype, length: int, num_rows: int) -> None:
        torch.manual_seed(1337)
        self.model, self.length, self.num_rows = PlainLlama(shape, length=length), length, num_rows
        self.shard, self.dtype = shard, dtype
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

    def step(self) -> float:
        """One update; the loss."""
        tokens = np.memmap(self.shard, dtype=self.dtype, mode="r")
        starts = torch.randint(len(tokens) - self.length - 1, (self.num_rows,)).tolist()
        rows = [torch.from_numpy(tokens[i : i + self.length + 1].astype(np.int64)) for i in starts]
        batch = torch.stack(rows)
        loss = self.model(batch[:, :-1], batch[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()
