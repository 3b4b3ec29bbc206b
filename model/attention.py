"""Causal attention: rotary positions, document masks and three backends with one meaning.

Documents that share a window do not see each other when a DocumentMask is given. Rotary positions are not restarted at
a document's start: the rotation acts on differences of positions, so a masked window gives what each document alone
would. Knows no files and no ranks.

Shapes: B rows, T tokens of a row, H query heads, K key/value heads (H a multiple of K), D head size.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DocumentMask:
    """Which tokens of a micro-batch belong to the same document, in the forms that the backends want."""

    cu_seqlens: Tensor
    """int32, (N + 1,): 0, then each document's end in the B * T tokens; padded by repeating the last."""
    max_seq_len: int
    """T: no document is longer. A constant, so that nothing is compiled twice."""
    allowed: Tensor | None
    """bool, (B, 1, T, T): whether a query may see a key. Only `sdpa` has one; built once for all layers."""


AttentionFunction = Callable[[Tensor, Tensor, Tensor, DocumentMask | None], Tensor]
Rope = tuple[Tensor, Tensor]
"""Cosine and sine, each (T, 1, D)."""


class KeyValueCache:
    """The keys and values of the tokens so far, per layer; for generation only."""

    def __init__(self, num_layers: int) -> None:
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    @property
    def num_tokens(self) -> int:
        """Tokens held by every layer."""
        return 0 if self.layers[0] is None else self.layers[0][0].shape[1]

    def append(self, layer: int, *, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer after these (B, T, K, D) are added."""
        if self.layers[layer] is not None:
            past_key, past_value = self.layers[layer]
            key, value = torch.cat([past_key, key], dim=1), torch.cat([past_value, value], dim=1)
        self.layers[layer] = (key, value)
        return key, value


def build_document_mask(cu_seqlens: Tensor, *, num_rows: int, seq_len: int, backend: str) -> DocumentMask:
    """The mask of a micro-batch of num_rows * seq_len tokens, on the device of `cu_seqlens`.

    Every row's end must be a document's end, so that no document runs from one row into the next.
    """
    allowed = None
    if backend == "sdpa":
        tokens = torch.arange(num_rows * seq_len, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
        document = torch.searchsorted(cu_seqlens[1:], tokens, right=True).view(num_rows, seq_len)
        is_past = torch.ones(seq_len, seq_len, dtype=torch.bool, device=cu_seqlens.device).tril()
        allowed = (document[:, None, :, None] == document[:, None, None, :]) & is_past
    return DocumentMask(cu_seqlens=cu_seqlens, max_seq_len=seq_len, allowed=allowed)


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


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor, documents: DocumentMask | None) -> Tensor:
    """Torch's own attention: (B, T, H, D) from query (B, T, H, D) and key, value (B, S, K, D). The reference.

    Without documents it is plainly causal; a single query then is the newest token and sees every key.
    """
    mask = None if documents is None else documents.allowed
    output = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
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

    def attend(query: Tensor, key: Tensor, value: Tensor, documents: DocumentMask | None) -> Tensor:
        if documents is None:
            return sdpa_attention(query, key, value, None)
        ends, longest = documents.cu_seqlens, documents.max_seq_len
        flat = (x.flatten(0, 1) for x in (query, key, value))
        return attend_flat(*flat, ends, ends, longest, longest).view_as(query)

    return attend


def flash_attention() -> Callable[..., Tensor]:
    """The flash-attn package (CUDA, bf16), over documents end to end. Raises ImportError."""
    from flash_attn import flash_attn_varlen_func

    return partial(flash_attn_varlen_func, causal=True)


def varlen_attention() -> Callable[..., Tensor]:
    """Torch's own FlashAttention-2 over documents end to end (CUDA, bf16; torch 2.10 and later). Raises ImportError.

    Its signature differs by version: 2.10 has `is_causal`, later ones `window_size`; grouped heads came with 2.12.
    Since 2.15 torch prefers cuDNN's kernels on Hopper and Blackwell, where query and key have the very same ends.
    """
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    if "enable_gqa" in parameters:
        return partial(varlen_attn, **options, enable_gqa=True)

    def attend_flat(query: Tensor, key: Tensor, value: Tensor, *lengths: Tensor | int) -> Tensor:
        group_size = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group_size, dim=1) for x in (key, value))
        return varlen_attn(query, key, value, *lengths, **options)

    return attend_flat


FLAT_BACKENDS = {"flash": flash_attention, "varlen": varlen_attention}
"""Each gives a function of query (N, H, D), key and value (N, K, D), document ends and longest document, each twice."""


def choose_backend(wanted: str, *, device_type: str) -> str:
    """The backend to use: the wanted one, or for `auto` the best that is present on this device.

    Raises ValueError where the wanted one cannot run.
    """
    present = [backend for backend in (*FLAT_BACKENDS, "sdpa") if _is_present(backend, device_type)]
    if wanted == "auto":
        return present[0]
    if wanted not in present:
        raise ValueError(f"attention {wanted!r} cannot run on {device_type} here: {', '.join(present)} can, or auto")
    return wanted


def _is_present(backend: str, device_type: str) -> bool:
    """Whether a backend is made for the device and its package can be loaded: a flash-attn built for another torch
    is installed, and its import fails."""
    if backend == "sdpa" or device_type != "cuda":
        return backend == "sdpa"
    try:
        FLAT_BACKENDS[backend]()
    except ImportError:
        return False
    return True
