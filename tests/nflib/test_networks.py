"""The parts of the causal transformer, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from nflib.networks import (
    MLP,
    AdaptiveLayerNorm,
    CausalSelfAttention,
    ClassEmbedding,
    GatedMLP,
    KeyValueCache,
    LearnedPositions,
    RMSNorm,
    Rotary,
    SinusoidalPositions,
    SoftClip,
    Step,
    grid_coordinates,
)
from nflib.networks.backends import causal_attention
from nflib.networks.norms import LayerNorm
from tests.nflib.cases import headwise_norm

# --- attention ---


def written_out_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention in which query i of L sees keys 0 … S - L + i, one query at a time."""
    new, total = query.shape[-2], key.shape[-2]
    rows = []
    for i in range(new):
        seen = total - new + i + 1
        logits = (query[..., i : i + 1, :] * key[..., :seen, :]).sum(-1) / math.sqrt(query.shape[-1])
        rows.append((logits.softmax(-1).unsqueeze(-1) * value[..., :seen, :]).sum(-2))
    return torch.stack(rows, dim=-2)


@pytest.mark.parametrize("new", [1, 2, 4, 6])
def test_causal_attention_closed_form(new):
    query = torch.randn(2, 3, new, 4, dtype=torch.float64)
    key, value = torch.randn(2, 2, 3, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(
        causal_attention(query, key, value), written_out_attention(query, key, value), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("key_value_heads", [1, 2])
@pytest.mark.parametrize("query_key_norm", [None, headwise_norm], ids=["none", "headwise"])
@torch.no_grad()
def test_grouped_heads_equal_explicit_repetition(key_value_heads, query_key_norm):
    channels, head_dim, heads = 32, 8, 4
    rotary = Rotary(grid_coordinates((5,)), head_dim)
    settings = {"query_key_norm": query_key_norm, "rotary": rotary}
    grouped = CausalSelfAttention(channels, head_dim, num_key_value_heads=key_value_heads, **settings).double()
    full = CausalSelfAttention(channels, head_dim, **settings).double()

    def repeated(qkv: Tensor) -> Tensor:
        query, key, value = qkv.split([channels, key_value_heads * head_dim, key_value_heads * head_dim])
        groups = [
            part.unflatten(0, (key_value_heads, head_dim)).repeat_interleave(heads // key_value_heads, 0)
            for part in (key, value)
        ]
        return torch.cat([query, *(part.flatten(0, 1) for part in groups)])

    state = grouped.state_dict()
    full.load_state_dict(state | {name: repeated(state[name]) for name in ("qkv.weight", "qkv.bias")})
    x = torch.randn(2, 5, channels, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), rtol=0, atol=1e-13)
    cache = KeyValueCache(1, 2, key_value_heads, 5, head_dim, dtype=torch.float64, device=x.device)
    chunks = [grouped(x[:, a:b], Step(a, cache)) for a, b in ((0, 2), (2, 5))]
    torch.testing.assert_close(torch.cat(chunks, dim=1), full(x), rtol=0, atol=1e-13)


def test_attention_closed_form():
    """The whole module from its weights: query, key and value heads stand in this order."""
    attention = CausalSelfAttention(8, 4).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    projected = x @ attention.qkv.weight.T + attention.qkv.bias
    query, key, value = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    heads = written_out_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), heads @ attention.proj.weight.T + attention.proj.bias, rtol=0, atol=1e-13)


# --- cache ---


def test_cache_writes_in_place_and_never_grows():
    cache = KeyValueCache(2, 3, 4, 7, 5, dtype=torch.float32, device=torch.device("cpu"))
    assert cache.storage.shape == (2, 3, 8, 7, 5) and cache.length == 7
    address = cache.storage.data_ptr()
    key_value = torch.randn(3, 8, 7, 5)
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        for layer in (0, 1):
            seen = cache.write(layer, start, key_value[..., start:stop, :] + layer)
            assert torch.equal(seen, key_value[..., :stop, :] + layer)
            assert all(view.untyped_storage().data_ptr() == address for view in seen)
    assert cache.storage.data_ptr() == address and cache.length == 7


# --- positions ---


def test_grid_coordinates_run_in_raster_order():
    expected = [[a, b, c] for a in range(2) for b in range(3) for c in range(2)]
    assert grid_coordinates((2, 3, 2)).tolist() == expected


def test_sinusoidal_positions_closed_form():
    length, channels = 50, 12
    positions = SinusoidalPositions(length, channels)
    table = (positions(0, length) / positions.scale).detach()
    for position in (0, 1, 7, 49):
        for pair in range(channels // 2):
            angle = position / 10_000 ** (2 * pair / channels)
            assert float(table[position, 2 * pair]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(table[position, 2 * pair + 1]) == pytest.approx(math.cos(angle), abs=1e-5)
    assert torch.equal(positions(3, 9), positions(0, length)[3:9])


def test_learned_positions_are_the_rows_of_their_weight():
    positions = LearnedPositions(6, 4)
    assert torch.equal(positions(2, 5), positions.weight[2:5])


def test_rotary_closed_form_in_one_dimension():
    """Channels 2i and 2i + 1 turn together, by position / base^(2i / head_dim)."""
    rotary = Rotary(grid_coordinates((9,)), 6)
    x = torch.randn(1, 1, 9, 6)
    turned = rotary(x, 0)
    for position in range(9):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            a, b = x[0, 0, position, 2 * pair : 2 * pair + 2].tolist()
            expected = [
                a * math.cos(angle) - b * math.sin(angle),
                a * math.sin(angle) + b * math.cos(angle),
            ]
            assert turned[0, 0, position, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(rotary(x[..., 4:7, :], 4), turned[..., 4:7, :])


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_rotary_products_depend_on_the_difference_of_coordinates_alone(axes):
    head_dim = 12
    query, key = torch.randn(2, head_dim)
    first = 10 * torch.randn(20, axes)
    difference = torch.randn(1, axes)

    def turned(x: Tensor, coordinates: Tensor) -> Tensor:
        return Rotary(coordinates, head_dim)(x.expand(1, 1, len(coordinates), head_dim), 0)[0, 0]

    products = (turned(query, first) * turned(key, first + difference)).sum(-1)
    torch.testing.assert_close(products, products[:1].expand(20), rtol=0, atol=5e-5)
    # Every axis of the difference counts, by its sign too.
    for axis in range(axes):
        for factor in (1.5, -1.0):
            changed = difference.clone()
            changed[:, axis] *= factor
            others = (turned(query, first) * turned(key, first + changed)).sum(-1)
            assert (others - products).abs().min() > 1e-3
    torch.testing.assert_close(turned(query, first).norm(dim=-1), query.norm().expand(20))


# --- norms, MLPs, clip ---


def test_rms_norm_closed_form():
    norm = RMSNorm(6)
    x = 5 * torch.randn(4, 3, 6)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(4, 3), rtol=1e-4, atol=0)
    with torch.no_grad():
        norm.weight.normal_()
    expected = x / x.square().mean(-1, keepdim=True).sqrt() * (1 + norm.weight)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("norm", [RMSNorm(64), LayerNorm(64)], ids=["rms", "layer"])
def test_norms_compute_in_float32(norm):
    """In bfloat16 the mean of squares would be off by percents; only the result is rounded."""
    x = (torch.randn(8, 64) * 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        normed = norm(x).float()
    torch.testing.assert_close(normed, norm(x.float()), rtol=2**-8, atol=0)


def test_adaptive_layer_norm_closed_form():
    norm = AdaptiveLayerNorm(6, 3)
    x, condition = torch.randn(2, 5, 6), torch.randn(2, 5, 3)

    def standardized(y: Tensor) -> Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    c = standardized(condition)
    gain = torch.sigmoid(c @ norm.gain.weight.T + norm.gain.bias)
    torch.testing.assert_close(norm(x, condition), standardized(x) * gain + c @ norm.bias.weight.T)


def test_mlps_closed_form():
    x = torch.randn(3, 4)
    plain, gated = MLP(4, 2), GatedMLP(4, 2)

    def apply(layer: nn.Linear, y: Tensor) -> Tensor:
        return y @ layer.weight.T + layer.bias

    hidden = apply(plain.up, x)
    gelu = hidden * torch.special.ndtr(hidden)
    torch.testing.assert_close(plain(x), apply(plain.down, gelu))
    gate = apply(gated.gate, x)
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(gated(x), apply(gated.down, gelu * apply(gated.up, x)))


def test_soft_clip_is_bounded_odd_and_has_slope_one_at_zero():
    clip = SoftClip(2.5)
    x = torch.linspace(-20, 20, 401, dtype=torch.float64, requires_grad=True)
    y = clip(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert y.abs().max() <= 2.5
    torch.testing.assert_close(y, -y.flip(0))
    assert float(slope[200]) == pytest.approx(1.0) and slope.max() <= 1
    assert (slope[100:301] > 0).all()


# --- class labels ---


def test_class_embedding_of_labels_and_of_none():
    embedding = ClassEmbedding(4, 6)
    mean = embedding.weight.mean(dim=0)
    embedded = embedding(torch.tensor([2, -1, 0]))
    assert embedded.shape == (3, 1, 6)
    torch.testing.assert_close(embedded[:, 0], torch.stack([embedding.weight[2], mean, embedding.weight[0]]))
    torch.testing.assert_close(embedding(None), mean.view(1, 1, 6))
    assert embedding(torch.zeros(0, dtype=torch.long)).shape == (0, 1, 6)
