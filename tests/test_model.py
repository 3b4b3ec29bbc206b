"""The model: parameter counts, transformers' logits, the chunked loss, first weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from train_fixtures import compile_counted

import model.loss
from model.config import NAMED_SIZES, ModelConfig, named_size
from model.huggingface import to_huggingface, to_huggingface_config
from model.loss import IGNORED, linear_cross_entropy, score_rows, score_rows_at_once
from model.transformer import Transformer

SMALL = replace(named_size("demo"), vocab_size=128, hidden_size=48, intermediate_size=80, num_heads=6, num_kv_heads=2)


def build(config, seed=0):
    model = Transformer(config, attention_backend="sdpa")
    model.init_weights(seed)
    return model


def test_the_published_models_have_exactly_their_parameters():
    assert named_size("tinyllama-1.1b").num_parameters() == 1_100_048_384
    assert named_size("litellama-460m").num_parameters() == 461_685_760


@pytest.mark.parametrize("name", NAMED_SIZES)
def test_the_parameter_formula_counts_what_is_built(name):
    with torch.device("meta"):
        model = Transformer(NAMED_SIZES[name], attention_backend="sdpa")
    assert sum(p.numel() for p in model.parameters()) == NAMED_SIZES[name].num_parameters()


def test_flops_per_token_follow_the_palm_convention():
    assert named_size("tinyllama-1.1b").flops_per_token(2048) == 7_313_817_600


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ValueError, match=r"no model size 'tinylama-1.1b': did you mean 'tinyllama-1.1b'"):
        named_size("tinylama-1.1b")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_layers", 0, "num_layers must be positive, not 0"),
        ("num_heads", 5, "hidden_size 48 is not a multiple of num_heads 5"),
        ("num_kv_heads", 4, "num_heads 6 is not a multiple of num_kv_heads 4"),
        ("num_heads", 16, "rotary positions need an even head size"),
    ],
)
def test_an_impossible_shape_is_refused_with_the_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **{field: value})


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_logits_equal_those_of_transformers(tie_embeddings):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = replace(SMALL, tie_embeddings=tie_embeddings, norm_eps=1e-6, rope_base=5000.0)
    ours = build(config)
    settings = transformers.LlamaConfig(**to_huggingface_config(config, bos_id=1, eos_id=2))
    theirs = transformers.LlamaForCausalLM(settings)
    missing = theirs.load_state_dict(to_huggingface(ours.state_dict()), strict=False).missing_keys
    assert missing == (["lm_head.weight"] if tie_embeddings else [])
    theirs.tie_weights()
    tokens = torch.randint(0, 128, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_logits_of_weights_given_by_formula_are_those_that_transformers_computed():
    """The numbers are those of LlamaForCausalLM of transformers 5.23 for the same weights."""
    config = ModelConfig(
        vocab_size=8, hidden_size=16, intermediate_size=12, num_layers=2, num_heads=4, num_kv_heads=2,
        max_seq_len=8, norm_eps=0.1, rope_base=100.0,
    )  # fmt: skip
    model = Transformer(config, attention_backend="sdpa")
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            wave = torch.sin(1 + number + 0.7 * torch.arange(parameter.numel(), dtype=torch.float64))
            parameter.copy_(0.8 * wave.view(parameter.shape) + (parameter.ndim == 1))
        logits = model(torch.tensor([[3, 1, 4, 1, 5]]))[0]
    expected = torch.tensor([
        [0.3217, -0.1674, -0.3897, 0.0092, 0.3934, 0.1505, -0.3323, -0.2854],
        [-4.6442, -1.7116, 3.9493, 3.3150, -2.6033, -4.3720, 0.8283, 4.7083],
        [-3.5063, -2.6252, 2.4405, 3.6160, -0.9723, -4.0108, -0.6561, 3.7444],
        [-4.6011, -1.7310, 3.8983, 3.3138, -2.5529, -4.3503, 0.7866, 4.6696],
        [-3.7411, -2.7201, 2.6368, 3.7906, -1.0977, -4.2363, -0.6223, 3.9837],
    ])  # fmt: skip
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("score", [score_rows, score_rows_at_once])
@pytest.mark.parametrize("rows_per_chunk", [1, 7, 512])
def test_the_chunked_loss_and_its_gradients_are_those_of_cross_entropy(score, rows_per_chunk, monkeypatch):
    monkeypatch.setitem(model.loss.ROWS_PER_CHUNK, "cpu", rows_per_chunk)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(20, 8, generator=generator), torch.randn(50, 8, generator=generator)
    targets = torch.randint(0, 50, (20,), generator=generator)
    targets[3] = IGNORED
    results = []
    for chunked in (True, False):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        logits = x @ w.T
        loss = F.cross_entropy(logits, targets, reduction="sum")
        if chunked:
            with torch.no_grad():
                assert linear_cross_entropy(x, w, targets, score) == pytest.approx(loss.item(), rel=1e-5)
            loss = linear_cross_entropy(x, w, targets, score)
        (loss / 7).backward()
        results.append((loss.detach(), x.grad, w.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)


def test_no_gradient_is_computed_for_a_loss_that_needs_none():
    asked = []

    def score(logits, targets, needs_gradient):
        asked.append(needs_gradient)
        return score_rows(logits, targets, needs_gradient)

    hidden, weight, targets = (
        torch.randn(4, 8),
        torch.nn.Parameter(torch.randn(50, 8)),
        torch.zeros(4, dtype=torch.int64),
    )
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, score)
    linear_cross_entropy(hidden, weight, targets, score)
    assert asked == [False, True]


def test_first_weights_depend_on_seed_and_name_alone():
    first = build(SMALL)
    torch.manual_seed(123)
    torch.rand(5)
    again, other = build(SMALL), build(SMALL, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    # Another MLP and a tied head: other weights are drawn before and after, those of the same name stay the same.
    changed = build(replace(SMALL, intermediate_size=96, tie_embeddings=True))
    for name in ("embedding.weight", "blocks.0.attention.query.weight", "blocks.3.attention.output.weight"):
        assert torch.equal(first.get_parameter(name), changed.get_parameter(name))
    assert not torch.equal(first.blocks[0].mlp.up.weight, first.blocks[1].mlp.up.weight)
    assert all(torch.isfinite(p).all() for p in first.parameters())


def loss_and_gradients(model, tokens, ends):
    cu_seqlens = torch.tensor([0, *ends], dtype=torch.int32)
    loss = model(tokens[:, :-1], targets=tokens[:, 1:], cu_seqlens=cu_seqlens)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_changes_no_number_and_selective_repeats_no_matrix_product(recompute):
    tokens = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(0))
    results, operations = [], []
    for kind in ("off", recompute):
        model = Transformer(SMALL, attention_backend="sdpa", recompute=kind)
        model.init_weights(0)
        with FlopCounterMode(display=False) as counter:
            results.append(loss_and_gradients(model, tokens, [5, 16, 32, 32]))
        operations.append(counter.get_flop_counts()["Global"][torch.ops.aten.mm])
    assert all(map(torch.equal, *results))
    assert (operations[1] == operations[0]) == (recompute == "selective")


@pytest.mark.parametrize("recompute", ["off", pytest.param("selective", marks=pytest.mark.long)])
def test_one_compilation_serves_all_blocks_and_every_batch(recompute):
    plain, model = (Transformer(SMALL, attention_backend="sdpa", recompute=recompute) for _ in range(2))
    compiled = compile_counted(model)
    for each in (plain, model):
        each.init_weights(0)
    tokens = torch.randint(0, 128, (2, 17), generator=torch.Generator().manual_seed(0))
    for ends in ([5, 16, 32, 32], [16, 20, 32, 32], [7, 16, 21, 32]):
        ours, reference = (loss_and_gradients(each, tokens, ends) for each in (model, plain))
        for a, b in zip(ours, reference, strict=True):
            torch.testing.assert_close(a, b)
    assert len(compiled) == 2  # a block, and the loss
