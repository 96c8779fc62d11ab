"""What computes attention: who decides, grouped heads, masks, and the layout in which xformers is called."""

from __future__ import annotations

import importlib.machinery
import math
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nflib.decoding import GaussSeidelJacobi, Jacobi, Sequential
from nflib.networks import CausalSelfAttention, KeyValueCache, Step, backends, use_attention_backend
from nflib.networks.backends import causal_attention
from nflib.networks.cache import causal_mask, padded_causal_mask
from tests.nflib.cases import AUTOREGRESSIVE, autoregressive, headwise_norm, solve
from tests.perturb import perturb

WINDOWED = [
    case
    for case in AUTOREGRESSIVE
    if case.name in ("plain", "heads-grouped-query", "heads-one-key", "query-key-norm", "prefix", "everything")
]


class LowerTriangularFromBottomRightMask:
    """Stands in for the mask of that name in ``xformers.ops.fmha.attn_bias``."""


class Calls(list):
    """The shapes of the queries and keys that the stand-in for xformers was called with."""


@pytest.fixture
def xformers(monkeypatch) -> Iterator[Calls]:
    """A module named xformers whose attention checks what the real one requires, and computes in torch.

    The real signature, shapes ``(B, M, H, K)`` or, for grouped heads, ``(B, M, G, H, K)`` without broadcasting, and
    checks are those of ``xformers.ops.fmha`` (`memory_efficient_attention`, `Inputs.validate_inputs`).
    """
    calls = Calls()

    def memory_efficient_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Any = None,
        p: float = 0.0,
        scale: float | None = None,
        *,
        op: Any = None,
        output_dtype: torch.dtype | None = None,
    ) -> Tensor:
        assert query.ndim == key.ndim == value.ndim and query.ndim in (4, 5)
        assert query.dtype == key.dtype == value.dtype and query.dtype != torch.float64
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:] and key.shape == value.shape
        assert type(attn_bias) is LowerTriangularFromBottomRightMask
        calls.append((tuple(query.shape), tuple(key.shape)))
        new, total, dtype = query.shape[1], key.shape[1], query.dtype
        query, key, value = (part.movedim(1, -2).float() for part in (query, key, value))
        logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        seen = torch.ones(new, total, dtype=torch.bool).tril(total - new)
        attended = logits.masked_fill(~seen, -math.inf).softmax(-1) @ value
        return attended.movedim(-2, 1).to(output_dtype or dtype)

    modules = {}
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha", "xformers.ops.fmha.attn_bias"):
        modules[name] = ModuleType(name)
        modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        modules[name].__path__ = []
        monkeypatch.setitem(sys.modules, name, modules[name])
    modules["xformers"].ops = modules["xformers.ops"]
    modules["xformers.ops"].fmha = modules["xformers.ops.fmha"]
    modules["xformers.ops"].memory_efficient_attention = memory_efficient_attention
    modules["xformers.ops.fmha"].attn_bias = modules["xformers.ops.fmha.attn_bias"]
    modules["xformers.ops.fmha.attn_bias"].LowerTriangularFromBottomRightMask = LowerTriangularFromBottomRightMask
    backends._has_xformers.cache_clear()
    yield calls
    backends._has_xformers.cache_clear()


def draw(heads: int, groups: int, new: int, total: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query ``(2, heads, new, 4)``, key and value ``(2, groups, total, 4)``."""
    return [torch.randn(2, n, length, 4, dtype=dtype) for n, length in ((heads, new), (groups, total), (groups, total))]


# --- grouped heads and masks ---


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 2, 5, 6])
def test_grouped_heads_equal_repeated_ones_over_a_window(groups, new):
    query, key, value = draw(4, groups, new)
    expected = causal_attention(query, *(part.repeat_interleave(4 // groups, dim=1) for part in (key, value)))
    torch.testing.assert_close(causal_attention(query, key, value), expected, rtol=0, atol=1e-14)
    mask = causal_mask(new, 6, query)
    torch.testing.assert_close(causal_attention(query, key, value, mask), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("new", [1, 3])
def test_no_key_is_repeated_over_a_window(groups, new, monkeypatch):
    shapes = []
    attention = backends.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        shapes.append((query.shape[1], key.shape[1], value.shape[1]))
        return attention(query, key, value, **settings)

    monkeypatch.setattr(backends, "scaled_dot_product_attention", spy)
    causal_attention(*draw(4, groups, new))
    assert shapes == [(groups, groups, groups)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_mask_is_made_where_it_is_needed_and_in_the_dtype_of_the_scores(dtype):
    like = torch.zeros(1, dtype=dtype)
    assert causal_mask(1, 5, like) is None and causal_mask(5, 5, like) is None
    mask = causal_mask(3, 5, like)
    assert mask.dtype == dtype
    assert (mask == 0).tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False], [True] * 5]
    assert (mask[mask != 0] == -math.inf).all()
    cache = KeyValueCache(1, 2, 1, 8, 4, dtype=dtype, device=like.device)
    kept = cache.mask(3, 5)
    assert torch.equal(kept, mask) and cache.mask(3, 5) is kept
    assert cache.mask(1, 6) is None and cache.mask(8, 8) is None
    assert torch.equal(cache.mask(2, 7), causal_mask(2, 7, like))


@pytest.mark.parametrize("key_value_heads", [1, 4])
@torch.no_grad()
def test_attention_in_bfloat16_over_windows(key_value_heads):
    attention = CausalSelfAttention(32, 8, num_key_value_heads=key_value_heads)
    x = torch.randn(2, 7, 32).bfloat16()
    expected = attention(x.float())
    attention.bfloat16()
    cache = KeyValueCache(1, 2, key_value_heads, 7, 8, dtype=x.dtype, device=x.device)
    chunks = [attention(x[:, a:b], Step(a, cache)) for a, b in ((0, 3), (3, 4), (4, 7))]
    result = torch.cat(chunks, dim=1)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_on_cpus_is_computed_in_single_precision(autocast):
    draws = [torch.randn(2, heads, 6, 8).bfloat16().requires_grad_() for heads in (4, 2, 2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        attended = causal_attention(*draws)
    assert attended.dtype == torch.bfloat16
    single = [part.detach().float().requires_grad_() for part in draws]
    exact = causal_attention(*single)
    assert torch.equal(attended, exact.bfloat16())
    weights = torch.randn_like(attended)
    gradients = torch.autograd.grad(attended, draws, weights)
    for gradient, expected in zip(gradients, torch.autograd.grad(exact, single, weights.float()), strict=True):
        assert torch.equal(gradient, expected.bfloat16())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(causal_attention(*draws), attended)


@pytest.mark.parametrize("case", WINDOWED, ids=str)
def test_a_map_is_decoded_in_windows_under_autocast(case):
    transform = perturb(case.build())
    z, context = case.inputs(3), case.context(3)
    expected, _ = transform.inverse(z, context)
    with torch.autocast("cpu", torch.bfloat16):
        for decoder in (Sequential(), GaussSeidelJacobi(4, 1e-2), Jacobi(1e-2)):
            u, _ = solve(decoder, transform, z, context)
            assert u.dtype == torch.float32
            torch.testing.assert_close(u, expected, rtol=0, atol=0.2)


# --- who decides ---


def test_the_backend_is_a_setting_of_each_attention(xformers):
    attention, other = CausalSelfAttention(32, 8, backend="xformers"), CausalSelfAttention(32, 8)
    x = torch.randn(2, 5, 32)
    attention(x)
    assert len(xformers) == 1
    other(x)
    assert len(xformers) == 1
    use_attention_backend(nn.ModuleList([attention, other]), "torch")
    attention(x)
    assert len(xformers) == 1
    use_attention_backend(nn.ModuleList([attention, other]), "xformers")
    other(x)
    attention(x.double().float())
    assert len(xformers) == 3


@pytest.mark.parametrize("name", ["flash", "", "Torch", None])
def test_an_unknown_backend_is_an_error(name):
    for call in (lambda: CausalSelfAttention(32, 8, backend=name), lambda: use_attention_backend(nn.Module(), name)):
        with pytest.raises(ValueError, match="torch, xformers"):
            call()


def test_a_backend_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(backends, "_has_xformers", lambda: False)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        CausalSelfAttention(32, 8, backend="xformers")
    causal_attention(*draw(2, 2, 3))


# --- derivatives ---


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 3, 6])
def test_attention_has_second_derivatives(groups, new):
    def attend(*inputs):
        return causal_attention(*inputs).square()

    inputs = [part.requires_grad_() for part in draw(4, groups, new)]
    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_a_backward_pass_may_be_repeated():
    inputs = [part.requires_grad_() for part in draw(2, 2, 6)]
    attended = causal_attention(*inputs).square().sum()
    first, second = (torch.autograd.grad(attended, inputs, retain_graph=True) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_padding_of_a_prefix_is_seen_by_nobody():
    query, key, value = draw(4, 2, 6)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    mask = padded_causal_mask(6, 6, valid, query)
    attended = causal_attention(query, key, value, mask)
    key, value = key.clone(), value.clone()
    key[0, :, 2], value[0, :, 2], key[1, :, 1:3], value[1, :, 1:3] = 9.0, -7.0, 5.0, 3.0
    again = causal_attention(query, key, value, mask)
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[:, :3] = valid
    torch.testing.assert_close(attended.transpose(1, 2)[kept], again.transpose(1, 2)[kept], rtol=0, atol=0)
    assert attended.isfinite().all()


# --- xformers ---


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 2, 5, 6])
def test_xformers_gets_its_own_layout(groups, new, xformers):
    query, key, value = draw(4, groups, new, dtype=torch.float32)
    expected = causal_attention(query, key, value)
    result = causal_attention(query, key, value, backend="xformers")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    heads = (4,) if groups == 4 else (groups, 4 // groups)
    assert xformers == [((2, new, *heads, 4), (2, 6, *heads, 4))]


def test_shared_keys_are_expanded_and_not_copied(xformers, monkeypatch):
    query, key, value = draw(4, 2, 3, dtype=torch.float32)
    ops = sys.modules["xformers.ops"]
    attention = ops.memory_efficient_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
        assert key.stride(3) == value.stride(3) == 0
        return attention(query, key, value, **settings)

    monkeypatch.setattr(ops, "memory_efficient_attention", spy)
    causal_attention(query, key, value, backend="xformers")
    assert len(xformers) == 1


@pytest.mark.parametrize("case", WINDOWED, ids=str)
def test_every_window_gives_the_same_solution_by_xformers(case, xformers):
    transform = perturb(case.build())
    z, context = case.inputs(3), case.context(3)
    expected, logabsdet = transform.inverse(z, context)
    use_attention_backend(transform, "xformers")
    for decoder in (Sequential(), GaussSeidelJacobi(3, 0.0), Jacobi(0.0)):
        u, log_scale = solve(decoder, transform, z, context)
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_scale, logabsdet, rtol=0, atol=1e-4)
    torch.testing.assert_close(transform(expected, context)[0], z, rtol=0, atol=1e-4)
    assert len(xformers) > 20


@pytest.mark.parametrize("query_key_norm", [None, headwise_norm], ids=["none", "headwise"])
def test_xformers_gets_one_dtype_under_autocast(query_key_norm, xformers):
    transform = perturb(autoregressive(8, 2, query_key_norm=query_key_norm))
    z = torch.randn(3, 8, 2)
    use_attention_backend(transform, "xformers")
    with torch.autocast("cpu", torch.bfloat16):
        u, _ = solve(GaussSeidelJacobi(4, 1e-2), transform, z)
        back, _ = transform(u)
    use_attention_backend(transform, "torch")
    torch.testing.assert_close(u, transform.inverse(z)[0], rtol=0, atol=0.2)
    torch.testing.assert_close(back, z, rtol=0, atol=0.2)
    assert xformers


def test_queries_in_float32_meet_a_cache_in_bfloat16(xformers):
    """As a norm under autocast may leave them."""
    query, key, value = draw(4, 2, 3, dtype=torch.float32)
    expected = causal_attention(query, key, value)
    result = causal_attention(query, key.bfloat16(), value.bfloat16(), backend="xformers")
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=0.05)


def test_attention_by_xformers_over_a_cache(xformers):
    attention = CausalSelfAttention(32, 8, num_key_value_heads=2)
    x = torch.randn(2, 7, 32)
    expected = attention(x)
    use_attention_backend(attention, "xformers")
    with torch.no_grad():
        cache = KeyValueCache(1, 2, 2, 7, 8, dtype=x.dtype, device=x.device)
        chunks = [attention(x[:, a:b], Step(a, cache)) for a, b in ((0, 3), (3, 4), (4, 7))]
    torch.testing.assert_close(torch.cat(chunks, dim=1), expected, rtol=0, atol=1e-6)
    assert [query[1] for query, _ in xformers] == [3, 1, 3] and [key[1] for _, key in xformers] == [3, 4, 7]
