"""The shape of a Llama-family model, the sizes that have a name, and what follows by formula. Needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one model; everything that its weights' shapes and its arithmetic depend on. Where nothing else is
    said: Llama 2's vocabulary, context, epsilon and rotary base."""

    hidden_size: int  # Width of the residual stream.
    intermediate_size: int  # Width inside the SwiGLU.
    num_layers: int  # Number of blocks.
    num_heads: int  # Query heads; head_dim is hidden_size / num_heads.
    num_kv_heads: int  # Key and value heads; each serves num_heads / num_kv_heads query heads (GQA).
    vocab_size: int = 32000  # Rows of the embedding and of the head; a padded vocabulary counts its padding.
    max_seq_len: int = 2048  # The longest window that the model is made for.
    norm_eps: float = 1e-5  # Added to the mean square inside RMSNorm.
    rope_base: float = 10000.0  # Base of the rotary frequencies.
    tie_embeddings: bool = False  # Whether the head uses the embedding's matrix.

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "tie_embeddings" and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"hidden_size / num_heads is {self.head_dim}: rotary positions need an even head size")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    def num_matmul_parameters(self) -> int:
        """Weights that a token is multiplied with: the blocks' matrices and the head, not the embedding's rows."""
        kv_size = self.num_kv_heads * self.head_dim
        attention = 2 * self.hidden_size * self.hidden_size + 2 * self.hidden_size * kv_size
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size

    def num_parameters(self) -> int:
        """All weights, a tied matrix counted once."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return self.num_matmul_parameters() + norms + embedding

    def flops_per_token(self, seq_len: int) -> int:
        """Floating point operations of one trained token, forward and backward. Attention is not halved for causality:
        PaLM's convention (appendix B), as in TinyLlama, nanochat, torchtitan."""
        return 6 * self.num_matmul_parameters() + 12 * self.num_layers * self.hidden_size * seq_len


NAMED_SIZES: dict[str, ModelConfig] = {
    "demo": ModelConfig(192, 512, 4, 6, 2, vocab_size=8192, max_seq_len=256),
    "15m": ModelConfig(288, 768, 6, 6, 6, tie_embeddings=True),  # 15,191,712, the shape of llama2.c's stories15M
    "60m": ModelConfig(512, 1376, 8, 8, 8),  # 58,073,600
    "160m": ModelConfig(768, 3072, 12, 12, 12),  # 162,417,408, the shape of JackFram/llama-160m
    "400m": ModelConfig(1024, 2816, 26, 16, 16),  # 399,561,728
    "tinyllama-1.1b": ModelConfig(2048, 5632, 22, 32, 4),  # 1,100,048,384
    "3b": ModelConfig(2560, 6912, 36, 20, 20),  # 3,018,775,040
    # GPT-2's 50,257 ids padded to a multiple of 64; the published config.json gives epsilon 1e-6: 461,685,760.
    "litellama-460m": ModelConfig(1024, 4096, 24, 16, 2, vocab_size=50304, max_seq_len=1024, norm_eps=1e-6),
}


def named_size(name: str) -> ModelConfig:
    """The shape with this name. Raises ValueError with the nearest names for any other."""
    if name not in NAMED_SIZES:
        raise ValueError(f"there is no model size {name!r}: {nearest(name, NAMED_SIZES)}")
    return NAMED_SIZES[name]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the known one nearest to it, or all of them."""
    names = list(known)
    matches = get_close_matches(name, names, n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"known are {', '.join(names)}"
