"""Names and settings of this model in transformers' LlamaForCausalLM. Only renames: query and key rows have the same
order in both, so no weight is permuted. Knows no files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ModelConfig

THEIR_NAMES = {
    "embedding": "model.embed_tokens", "blocks": "model.layers", "norm": "model.norm", "head": "lm_head",
    "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "attention": "self_attn",
    "query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj",
    "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
}  # fmt: skip
"""Of each part of a weight's name; parts that are not here are the same in both."""


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names; the tensors themselves, not copies. A tied head has no name in either."""
    return {".".join(THEIR_NAMES.get(part, part) for part in name.split(".")): weights[name] for name in weights}


def to_huggingface_config(config: ModelConfig, *, bos_id: int | None, eos_id: int) -> dict[str, Any]:
    """The content of transformers' config.json for this model."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": config.vocab_size, "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base, "hidden_act": "silu",
        "tie_word_embeddings": config.tie_embeddings, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": bos_id, "eos_token_id": eos_id,
    }  # fmt: skip
