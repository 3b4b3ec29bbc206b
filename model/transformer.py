"""The Llama transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.

Computes exactly what transformers' LlamaForCausalLM computes for the same weights. Torch only: knows no files and no
ranks. Build it under `torch.device("meta")`, shard it, give it memory with `to_empty`, then call `init_weights`.

Shapes: B rows, T tokens of a row, C hidden size, H query heads, K key/value heads, D head size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from model.attention import KeyValueCache, Rope, attention_function, build_document_mask, rope_tables, rotate
from model.config import ModelConfig
from model.loss import linear_cross_entropy, score_rows, score_rows_at_once

Recompute = Literal["off", "selective", "full"]

KEPT = (
    "aten::mm", "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn", "flash_attn::_flash_attn_varlen_forward",
)  # fmt: skip
"""What `selective` keeps, since it is most of a block's work: matrix products and attention. All else is quick."""


class Attention(nn.Module):
    """Grouped-query self-attention of one block."""

    def __init__(self, config: ModelConfig, *, layer: int, backend: str) -> None:
        super().__init__()
        self.layer, self.head_dim, self.attend = layer, config.head_dim, attention_function(backend)
        kv_size = config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.key = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.value = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.output = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: Rope, documents: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        """What each token takes from those it may see: (B, T, C) from (B, T, C)."""
        heads = (*x.shape[:2], -1, self.head_dim)
        query = rotate(self.query(x).view(heads), rope)
        key = rotate(self.key(x).view(heads), rope)
        value = self.value(x).view(heads)
        if cache is not None:
            if self.layer in cache:
                key, value = (torch.cat(pair, dim=1) for pair in zip(cache[self.layer], (key, value), strict=True))
            cache[self.layer] = (key, value)
        return self.output(self.attend(query, key, value, documents).flatten(2))


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) from (B, T, C)."""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer: attention, then the MLP, each on a normalised copy and added back."""

    def __init__(self, config: ModelConfig, *, layer: int, backend: str, recompute: Recompute) -> None:
        super().__init__()
        self.recompute = recompute
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, layer=layer, backend=backend)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """(B, T, C) from (B, T, C) and what the attention takes beside it."""
        if self.recompute == "off" or not torch.is_grad_enabled():
            return self._add(x, *context)
        choice = partial(create_selective_checkpoint_contexts, _choose)
        options = {"context_fn": choice} if self.recompute == "selective" else {}
        return checkpoint(lambda x: self._add(x, *context), x, use_reentrant=False, preserve_rng_state=False, **options)

    def _add(self, x: Tensor, *context: Any) -> Tensor:
        x = x + self.attention(self.attention_norm(x), *context)
        return x + self.mlp(self.mlp_norm(x))


def _choose(context: Any, operator: torch._ops.OpOverload, *args: Any, **options: Any) -> CheckpointPolicy:
    """Keep an operator's result, or compute it again."""
    is_kept = operator.name().split(".")[0] in KEPT
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE


class Transformer(nn.Module):
    """A Llama-family language model."""

    def __init__(self, config: ModelConfig, *, attention_backend: str, recompute: Recompute = "off") -> None:
        """`attention_backend` is one that choose_backend gave; `recompute` says what the backward pass does again."""
        super().__init__()
        self.config, self.attention_backend, self.score_rows = config, attention_backend, score_rows
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        options = {"backend": attention_backend, "recompute": recompute}
        self.blocks = nn.ModuleList(Block(config, layer=layer, **options) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        # A tied head has no weight of its own, so that sharding and checkpoints meet each weight once.
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        targets: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """The loss summed over targets (float32 scalar), or without targets the logits (B, T, vocab_size). tokens and
        targets int64 (B, T). cu_seqlens: where documents end, see build_document_mask; None: they are one. Both come
        from here because a sharded model gathers its weights when its forward is called."""
        documents = build_document_mask(cu_seqlens, shape=tokens.shape, backend=self.attention_backend)
        start = cache[0][0].shape[1] if cache else 0
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        rope = rope_tables(positions, head_dim=self.config.head_dim, base=self.config.rope_base)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, rope, documents, cache)
        x, head = self.norm(x), (self.head or self.embedding).weight
        if targets is None:
            return F.linear(x, head)
        return linear_cross_entropy(x.flatten(0, 1), head, targets.flatten(), self.score_rows)

    def compile_blocks(self, **options: Any) -> None:
        """Let torch.compile make the code of the blocks and the loss at their first call; `options` are its own."""
        self.score_rows = torch.compile(score_rows_at_once, dynamic=False, fullgraph=True, **options)
        for block in self.blocks:  # its forward, so that FSDP's hooks stay outside and one compilation serves all
            block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True, **options)

    @torch.no_grad()
    def init_weights(self, seed: int, *, write: Callable[[Tensor, Tensor], None] = Tensor.copy_) -> None:
        """Fill each weight by its name and the seed alone, by the scheme of TinyLlama's published code;
        `write(parameter, full_weight)` puts it in place: float32 on the CPU."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                write(parameter, torch.ones(parameter.shape))
                continue
            # Seed and name are hashed together, since torch's CPU generator uses the low 32 bits of its seed alone.
            generator = torch.Generator().manual_seed(crc32(f"{seed}/{name}".encode()))
            deviation = math.sqrt(2.0 / (5.0 * self.config.hidden_size))
            if name.endswith(("attention.output.weight", "mlp.down.weight")):  # these write to the residual stream
                deviation = 1.0 / (math.sqrt(self.config.hidden_size) * self.config.num_layers)
            write(parameter, torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))
