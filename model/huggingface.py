"""Names and settings of this model in transformers' LlamaForCausalLM. Only renames: query and key rows have the same
order in both, so no weight is permuted. Knows no files."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ModelConfig

OUTER_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}

BLOCK_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}


def to_huggingface(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under transformers' names; the tensors themselves, not copies. A tied head has no name in either."""
    renamed = {}
    for name, weight in weights.items():
        if name in OUTER_NAMES:
            renamed[OUTER_NAMES[name]] = weight
        else:
            _, layer, inner = name.split(".", maxsplit=2)
            renamed[f"model.layers.{layer}.{BLOCK_NAMES[inner]}"] = weight
    return renamed


def to_huggingface_config(config: ModelConfig, *, bos_id: int | None, eos_id: int) -> dict[str, Any]:
    """The content of transformers' config.json for this model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }
