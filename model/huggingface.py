"""Names and settings of this model in transformers' LlamaForCausalLM, both ways.

Only renames: query and key rows have the same order in both, so no weight is permuted. Knows no files.
"""

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


def huggingface_names(config: ModelConfig) -> dict[str, str]:
    """Each of our weight names with transformers' name for it; a tied head has none of its own in either."""
    names = {ours: theirs for ours, theirs in OUTER_NAMES.items() if ours != "head.weight" or not config.tie_embeddings}
    for layer in range(config.num_layers):
        for ours, theirs in BLOCK_NAMES.items():
            names[f"blocks.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return names


def to_huggingface(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our weights under transformers' names; the tensors themselves, not copies."""
    return {theirs: weights[ours] for ours, theirs in huggingface_names(config).items()}


def from_huggingface(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Transformers' weights under our names, as `load_state_dict` takes them. Raises ValueError if one is missing."""
    names = huggingface_names(config)
    missing = sorted(set(names.values()) - set(weights))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} first: not a Llama of this shape")
    return {ours: weights[theirs] for ours, theirs in names.items()}


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


def from_huggingface_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json of transformers describes.

    Raises ValueError for what this model does not compute: another architecture, scaled positions, biases.
    """
    if settings.get("model_type") != "llama":
        raise ValueError(f"model_type is {settings.get('model_type')!r}: only 'llama' can be read")
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type is {rope['rope_type']!r}: only unscaled rotary positions can be read")
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ValueError("the model has biases: only Llamas without them can be read")
    return ModelConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["hidden_size"],
        intermediate_size=settings["intermediate_size"],
        num_layers=settings["num_hidden_layers"],
        num_heads=settings["num_attention_heads"],
        num_kv_heads=settings.get("num_key_value_heads") or settings["num_attention_heads"],
        max_seq_len=settings["max_position_embeddings"],
        norm_eps=settings["rms_norm_eps"],
        rope_base=settings.get("rope_theta") or rope.get("rope_theta", 10000.0),
        tie_embeddings=settings.get("tie_word_embeddings", False),
    )
