"""Attention: document masks, the choice of a backend, the cache; backends against the reference."""

import inspect
import sys
from itertools import pairwise

import pytest
import torch
from train_fixtures import compile_counted

from model.attention import (
    FLAT_BACKENDS,
    attention_function,
    build_document_mask,
    choose_backend,
    rope_tables,
    rotate,
    sdpa_attention,
)
from model.config import ModelConfig
from model.loss import ROWS_PER_CHUNK
from model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2,
    max_seq_len=16,
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
    together = model(tokens, cu_seqlens=cu_seqlens).flatten(0, 1)
    for start, end in ((0, 5), (5, 12), (12, 15), (15, 16), (16, 24)):
        alone = model(tokens.flatten()[None, start:end])[0]
        torch.testing.assert_close(together[start:end], alone, atol=1e-5, rtol=1e-5)


def test_a_mask_of_one_document_per_row_is_plain_causal_attention(model):
    tokens = tokens_of(2, 12)
    cu_seqlens = torch.tensor([0, 12, 24], dtype=torch.int32)
    torch.testing.assert_close(model(tokens, cu_seqlens=cu_seqlens), model(tokens), atol=1e-5, rtol=1e-5)


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
    cache = {}
    parts = [model(tokens[:, :6], cache=cache)] + [model(tokens[:, i : i + 1], cache=cache) for i in range(6, 10)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


def test_auto_is_the_reference_on_a_cpu():
    assert choose_backend("auto", device_type="cpu") == "sdpa"


def test_a_backend_that_cannot_run_is_refused_with_those_that_can():
    with pytest.raises(ValueError, match="'varlen' cannot run on cpu here: sdpa can"):
        choose_backend("varlen", device_type="cpu")


def test_auto_passes_over_a_package_that_does_not_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # an import of it fails, as of one built for another torch
    assert choose_backend("auto", device_type="cuda") == "varlen"
    with pytest.raises(ValueError, match="'flash' cannot run on cuda here: varlen, sdpa can"):
        choose_backend("flash", device_type="cuda")


def attend_each_document(query, key, value, ends):
    """What FlashAttention computes over (N, H, D), document by document."""
    parts = [
        sdpa_attention(*(x[None, start:end] for x in (query, key, value)), None)[0]
        for start, end in pairwise(ends.tolist())
        if start < end
    ]
    return torch.cat(parts)


def varlen_of_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert window_size == (-1, 0) and max_q == max_k == 12
    return attend_each_document(query, key, value, cu_seq_q)


def varlen_of_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0) and max_q == max_k == 12 and enable_gqa
    return attend_each_document(query, key, value, cu_seq_q)


@pytest.mark.parametrize("signature", [varlen_of_2_11, varlen_of_2_12])
def test_varlen_is_called_as_each_version_of_torch_has_it(signature, monkeypatch):
    # The kernel itself runs on a GPU alone; here it is written out, behind the signature of a version.
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", signature)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 12, heads, 8, generator=generator) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, 5, 12, 15, 16, 24, 24, 24], dtype=torch.int32)
    outputs = [
        attention_function(backend)(
            query, key, value, build_document_mask(cu_seqlens, shape=torch.Size((2, 12)), backend=backend)
        )
        for backend in ("varlen", "sdpa")
    ]
    torch.testing.assert_close(*outputs)


def test_the_installed_torch_has_a_signature_that_is_known():
    parameters = inspect.signature(pytest.importorskip("torch.nn.attention.varlen").varlen_attn).parameters
    assert list(parameters)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert "window_size" in parameters


@torch.library.custom_op("tokenmill_tests::attend", mutates_args=())
def attend_opaquely(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """attend_each_document, of which torch.compile sees the shapes alone, as of a kernel."""
    return attend_each_document(query, key, value, ends)


attend_opaquely.register_fake(lambda query, key, value, ends: torch.empty_like(query))


def test_one_compilation_serves_any_number_of_documents(monkeypatch):
    monkeypatch.setitem(FLAT_BACKENDS, "varlen", lambda: lambda *inputs: attend_opaquely(*inputs[:4]))
    plain, model = (Transformer(CONFIG, attention_backend=name) for name in ("sdpa", "varlen"))
    compiled = compile_counted(model)
    for each in (plain, model):
        each.init_weights(0)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ends in ([0, 5, 40, 80], [0, *range(1, 41), 80], [0, 3, 10, 40, 60, 80, 80, 80]):
            cu_seqlens = torch.tensor(ends, dtype=torch.int32)
            ours, reference = (each(tokens, targets=tokens, cu_seqlens=cu_seqlens) for each in (model, plain))
            torch.testing.assert_close(ours, reference)
    assert len(compiled) == 2  # a block, and the loss


@pytest.mark.parametrize("recompute", ["off", "selective", "full"])
def test_the_installed_varlen_takes_what_the_model_gives_it(recompute, monkeypatch):
    # On tensors without data torch runs its own checks of shapes and types, and no kernel.
    monkeypatch.setitem(ROWS_PER_CHUNK, "meta", 8)
    with torch.device("meta"):
        model = Transformer(CONFIG, attention_backend="varlen", recompute=recompute).bfloat16()
        tokens = torch.zeros(2, 12, dtype=torch.int64)
        loss = model(tokens, targets=tokens, cu_seqlens=torch.zeros(9, dtype=torch.int32))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention needs a GPU")
@pytest.mark.parametrize("backend", ["varlen", "flash"])
def test_a_gpu_backend_gives_the_reference_output_and_gradients(backend):
    try:
        choose_backend(backend, device_type="cuda")
    except ValueError as error:
        pytest.skip(str(error))
    num_heads, num_kv_heads = 8, 2
    heads = torch.randn(3, 2, 512, num_heads, 64, device="cuda", dtype=torch.bfloat16)
    cu_seqlens = torch.tensor([0, 50, 512, 513, 1000, 1024, *[1024] * 11], dtype=torch.int32, device="cuda")
    results = []
    for name, dtype in ((backend, torch.bfloat16), ("sdpa", torch.float32)):
        query, key, value = (
            x.to(dtype) for x in (heads[0], heads[1, :, :, :num_kv_heads], heads[2, :, :, :num_kv_heads])
        )
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        mask = build_document_mask(cu_seqlens, shape=torch.Size((2, 512)), backend=name)
        output = attention_function(name)(*inputs, mask)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    for ours, reference in zip(*results, strict=True):
        assert (ours.float() - reference).norm() < 1e-2 * reference.norm()
