"""What conditions a transformer token by token: numbers, lookahead, adaptive layers; against closed forms."""

import math

import pytest
import torch
from torch import nn

from nflib.networks import CausalTransformer, SinusoidalPositions
from nflib.networks.adaptive import AdaptiveTransformerLayer, ConditionalGate, SwiGLU
from nflib.networks.conditioning import Lookahead, SinusoidalEmbedding, distinct_rows
from nflib.networks.layers import transformer_layers
from nflib.networks.norms import LayerNorm
from nflib.networks.step import Step
from tests.perturb import perturb


def test_sinusoidal_embedding_closed_form():
    embedding = SinusoidalEmbedding(6, base=100.0)
    numbers = torch.tensor([[0, 3], [7, 1]])
    embedded = embedding(numbers)
    assert embedded.shape == (2, 2, 6)
    for channel in range(3):
        rate = 100.0 ** (-channel / 3)
        assert embedded[1, 0, 2 * channel].item() == pytest.approx(math.sin(7 * rate), abs=1e-6)
        assert embedded[1, 0, 2 * channel + 1].item() == pytest.approx(math.cos(7 * rate), abs=1e-6)
    positions = SinusoidalPositions(8, 6, base=100.0)
    torch.testing.assert_close(embedding(torch.arange(8)), positions.table)
    assert not embedding.state_dict()
    with pytest.raises(ValueError, match="even"):
        SinusoidalEmbedding(5)


def test_far_numbers_are_told_apart_in_half_precision():
    embedding, numbers = SinusoidalEmbedding(6), torch.arange(3000)
    expected = embedding(numbers)
    embedded = embedding.bfloat16()(numbers)
    assert embedded.dtype == torch.bfloat16
    torch.testing.assert_close(embedded.float(), expected, rtol=0, atol=4e-3)


def test_lookahead_sees_a_token_and_the_next():
    lookahead = Lookahead(3, 5)
    features = torch.randn(2, 4, 3)
    conditions = lookahead(features)
    assert conditions.shape == (2, 4, 5)
    pair = torch.cat([features[:, 1], features[:, 2]], dim=-1)
    torch.testing.assert_close(conditions[:, 1], lookahead.mlp(pair))
    torch.testing.assert_close(conditions[:, 3], lookahead.mlp(torch.cat([features[:, 3], torch.zeros(2, 3)], dim=-1)))


def test_distinct_rows():
    row = torch.randn(1, 3, 2)
    assert distinct_rows(row.expand(5, -1, -1)).shape == (1, 3, 2)
    assert distinct_rows(row.expand(5, -1, -1)[1:3]).shape == (1, 3, 2)
    repeated = row.repeat(5, 1, 1)
    assert distinct_rows(repeated) is repeated
    assert distinct_rows(row) is row


def test_gate_closed_form():
    gate = ConditionalGate(4, 3)
    x, condition = torch.randn(2, 5, 4), torch.randn(2, 5, 3)
    torch.testing.assert_close(gate(x, condition), x / (1 + math.exp(2.0)))
    nn.init.normal_(gate.gate.weight)
    opening = torch.sigmoid(condition @ gate.gate.weight.T - 2.0)
    torch.testing.assert_close(gate(x, condition), x * opening)


def test_swiglu_closed_form():
    mlp = SwiGLU(4, expansion=2)
    x = torch.randn(3, 4)
    value, gate = x @ mlp.up.weight[:8].T, x @ mlp.up.weight[8:].T
    torch.testing.assert_close(mlp(x), (value * gate / (1 + torch.exp(-gate))) @ mlp.down.weight.T)
    assert [name for name, _ in mlp.named_parameters()] == ["up.weight", "down.weight"]


def adaptive_layers(num_layers, channels=16, condition_channels=6):
    layers = transformer_layers(num_layers, channels, head_dim=8, expansion=2, query_key_norm=LayerNorm)
    return [AdaptiveTransformerLayer(layer, SwiGLU(channels, 2), channels, condition_channels) for layer in layers]


def test_adaptive_layer_is_its_parts():
    (layer,) = adaptive_layers(1)
    perturb(layer, 0.3)
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 5, 6)
    step = Step(condition=condition)
    inner = layer.layer(layer.layer_norm(x, condition), step)
    y = x + inner * torch.sigmoid(layer.layer_gate.gate(condition))
    z = y + layer.transition(layer.transition_norm(y, condition)) * torch.sigmoid(layer.transition_gate.gate(condition))
    torch.testing.assert_close(layer(x, step), z)
    shared = Step(condition=condition[:1])
    torch.testing.assert_close(layer(x[:1], shared), layer(x, shared)[:1])
    with pytest.raises(ValueError, match="context"):
        layer(x, Step())


@torch.no_grad()
def test_adaptive_layers_with_a_cache_give_the_same_numbers():
    network = CausalTransformer(
        2, 4, 16, adaptive_layers(2), positions=SinusoidalPositions(8, 16), conditioner=Lookahead(3, 6)
    )
    perturb(network)
    tokens, context = torch.randn(3, 7, 2), torch.randn(3, 7, 3)
    embedded = network.encode_context(context)
    whole = network(tokens, embedded)
    cache = network.new_cache(3, 7, embedded)
    previous = 0
    pieces = []
    for stop in (1, 2, 5, 7):
        pieces.append(network(tokens, embedded, cache, previous, stop))
        previous = stop
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
