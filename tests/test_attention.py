"""Attention: document masks, the choice of a backend, the cache; backends against the reference."""

import pytest
import torch

from model.attention import (
    KeyValueCache,
    attention_function,
    build_document_mask,
    choose_backend,
    rope_tables,
    rotate,
    sdpa_attention,
)
from model.config import ModelConfig
from model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
    max_seq_len=16, norm_eps=1e-5, rope_base=10000.0, tie_embeddings=False,
)  # fmt: skip


@pytest.fixture
def model():
    model = Transformer(CONFIG, attention_backend="sdpa")
    model.init_weights(0)
    return model.eval()


def tokens_of(num_rows, seq_len):
    return torch.randint(0, 64, (num_rows, seq_len), generator=torch.Generator().manual_seed(1))


def test_a_masked_window_gives_what_each_document_alone_gives(model):
    tokens = tokens_of(2, 12)
    # Row 0 holds documents of 5 and 7 tokens, row 1 of 3, 1 and 8; the end is repeated as padding.
    cu_seqlens = torch.tensor([0, 5, 12, 15, 16, 24, 24, 24], dtype=torch.int32)
    documents = build_document_mask(cu_seqlens, num_rows=2, seq_len=12, backend="sdpa")
    together = model(tokens, documents=documents).flatten(0, 1)
    for start, end in ((0, 5), (5, 12), (12, 15), (15, 16), (16, 24)):
        alone = model(tokens.flatten()[None, start:end])[0]
        torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)


def test_a_mask_of_one_document_per_row_is_plain_causal_attention(model):
    tokens = tokens_of(2, 12)
    documents = build_document_mask(
        torch.tensor([0, 12, 24], dtype=torch.int32), num_rows=2, seq_len=12, backend="sdpa"
    )
    torch.testing.assert_close(model(tokens, documents=documents), model(tokens), atol=1e-5, rtol=1e-5)


def test_without_a_mask_documents_see_each_other_but_never_the_future(model):
    tokens = tokens_of(1, 12)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 64
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[:8], after[:8])
    assert not torch.allclose(before[9:], after[9:])


def test_rotation_depends_on_the_difference_of_positions_alone():
    query, key = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(query_position, key_position):
        at = [rope_tables(torch.tensor([p]), head_dim=8, base=10000.0) for p in (query_position, key_position)]
        return (rotate(query, at[0]) * rotate(key, at[1])).sum()

    torch.testing.assert_close(score(9, 4), score(5, 0))


def test_generating_with_the_cache_gives_the_same_logits_as_all_at_once(model):
    tokens = tokens_of(1, 10)
    cache = KeyValueCache(CONFIG.num_layers)
    parts = [model(tokens[:, :6], cache=cache)] + [model(tokens[:, i : i + 1], cache=cache) for i in range(6, 10)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_auto_is_the_reference_on_a_cpu():
    assert choose_backend("auto", device_type="cpu") == "sdpa"


def test_a_backend_that_cannot_run_is_refused_with_those_that_can():
    with pytest.raises(ValueError, match="'varlen' cannot run on cpu here: sdpa can"):
        choose_backend("varlen", device_type="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_a_gpu_backend_gives_the_reference_output_and_gradients(backend):
    try:
        choose_backend(backend, device_type="cuda")
    except ValueError as error:
        pytest.skip(str(error))
    heads = torch.randn(3, 2, 128, 4, 64, device="cuda", dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, 50, 128, 129, 256, 256], dtype=torch.int32, device="cuda")
    results = []
    for name, attend in ((backend, attention_function(backend)), ("sdpa", sdpa_attention)):
        query, key, value = (x.clone().requires_grad_() for x in (heads[0], heads[1, :, :, :2], heads[2, :, :, :2]))
        output = attend(query, key, value, build_document_mask(cu_seqlens, num_rows=2, seq_len=128, backend=name))
        results.append([output, *torch.autograd.grad(output.float().square().sum(), (query, key, value))])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=5e-2, rtol=5e-2)
