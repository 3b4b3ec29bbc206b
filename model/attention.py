"""Causal attention: rotary positions, document masks and three backends with one meaning.

Rotary positions are not restarted at a document's start: the rotation acts on differences of positions, so a masked
window gives what each document alone would. Knows no files and no ranks.

Shapes: B rows, T tokens of a row, H query heads, K key/value heads (H a multiple of K), D head size.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Rope = tuple[Tensor, Tensor]  # Cosine and sine, each (T, 1, D).
KeyValueCache = dict[int, tuple[Tensor, Tensor]]  # By layer, of the tokens so far, each (B, S, K, D); for generation.


def build_document_mask(cu_seqlens: Tensor | None, *, shape: torch.Size, backend: str) -> Tensor | None:
    """What a backend takes to keep documents apart: cu_seqlens itself, or for sdpa which keys a query may see.
    cu_seqlens, int32: 0, then each document's end in the B * T tokens, the last repeated; each row's end is one of
    them. None: all is one document. For sdpa bool, (B, 1, T, T), built once for all layers."""
    if cu_seqlens is None:
        return None
    if backend != "sdpa":
        torch._dynamo.maybe_mark_dynamic(cu_seqlens, 0)  # one compilation serves any number of documents
        return cu_seqlens
    tokens = torch.arange(shape.numel(), device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    document = torch.searchsorted(cu_seqlens[1:], tokens, right=True).view(shape)
    is_past = torch.ones(shape[1], shape[1], dtype=torch.bool, device=cu_seqlens.device).tril()
    return (document[:, None, :, None] == document[:, None, None, :]) & is_past


def rope_tables(positions: Tensor, *, head_dim: int, base: float) -> Rope:
    """Cosine and sine of the rotary angles: float32, (T, 1, D), the two halves alike (Llama's order of dimensions)."""
    dimensions = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.float()[:, None] * (1.0 / base ** (dimensions / head_dim))
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Heads (B, T, H, D) turned by their positions; in float32, returned in x's dtype."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Torch's own attention: (B, T, H, D) from query (B, T, H, D) and key, value (B, S, K, D). The reference. Without a
    mask it is plainly causal; a single query then is the newest token and sees every key."""
    output = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)),
        attn_mask=mask,
        is_causal=mask is None and query.shape[1] > 1,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return output.transpose(1, 2)


def attention_function(backend: str) -> AttentionFunction:
    """The function of a backend that `choose_backend` gave; without documents all are plainly causal."""
    if backend == "sdpa":
        return sdpa_attention
    attend_flat = FLAT_BACKENDS[backend]()

    def attend(query: Tensor, key: Tensor, value: Tensor, documents: Tensor | None) -> Tensor:
        if documents is None:
            return sdpa_attention(query, key, value, None)
        longest = query.shape[1]  # a constant, so that nothing is compiled twice
        flat = (x.flatten(0, 1) for x in (query, key, value))
        return attend_flat(*flat, documents, documents, longest, longest).view_as(query)

    return attend


def flash_attention() -> Callable[..., Tensor]:
    """The flash-attn package (CUDA, bf16), over documents end to end. Raises ImportError."""
    from flash_attn import flash_attn_varlen_func

    return partial(flash_attn_varlen_func, causal=True)


def varlen_attention() -> Callable[..., Tensor]:
    """Torch's own FlashAttention-2 over documents end to end (CUDA, bf16; torch 2.11 and later). Raises ImportError.
    From 2.12 on grouped heads must be named; before, they are taken as they come. From 2.15 on torch prefers cuDNN's
    kernels on Hopper and Blackwell, where query and key have the very same ends."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": (-1, 0)}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    return partial(varlen_attn, **options)


FLAT_BACKENDS = {"flash": flash_attention, "varlen": varlen_attention}
"""Each gives a function of query (N, H, D), key and value (N, K, D), document ends and longest document, each twice."""


def choose_backend(wanted: str, *, device_type: str) -> str:
    """The backend to use: the wanted one, or for `auto` the best present. Raises ValueError where it cannot run."""
    present = []
    for backend, load in FLAT_BACKENDS.items() if device_type == "cuda" else ():
        with suppress(ImportError):  # also of a flash-attn that is installed, and was built for another torch
            load()
            present.append(backend)
    present.append("sdpa")
    if wanted not in ("auto", *present):
        raise ValueError(f"attention {wanted!r} cannot run on {device_type} here: {', '.join(present)} can, or auto")
    return present[0] if wanted == "auto" else wanted
