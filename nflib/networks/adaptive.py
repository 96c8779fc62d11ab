"""Transformer layers steered by a condition of each token: adaptive norms before, gates behind (adaLN-Zero)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nflib.io.arguments import keep_arguments
from nflib.networks.attention import CausalSelfAttention
from nflib.networks.layers import TransformerLayer
from nflib.networks.norms import AdaptiveLayerNorm
from nflib.networks.step import Step


@keep_arguments
class ConditionalGate(nn.Module):
    """A gate ``x * sigmoid(W c + b)``, given a condition c of each token (after Peebles & Xie 2023).

    W starts at zero and b at `initial_bias`, so that a new gate is nearly shut, for every condition alike.

    Args:
        channels: of x, ``(B, L, channels)``.
        condition_channels: of the condition, ``(B or 1, L, condition_channels)``.
        initial_bias: the initial b.
    """

    def __init__(self, channels: int, condition_channels: int, initial_bias: float = -2.0):
        super().__init__()
        self.gate = nn.Linear(condition_channels, channels)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, initial_bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(condition))


@keep_arguments
class SwiGLU(nn.Module):
    """Gated linear unit with a SiLU gate, ``down(silu(b) * a)`` with ``(a, b) = up(x)``; no biases (Shazeer 2020).

    Args:
        channels: of inputs and outputs.
        expansion: hidden channels, as a multiple of channels.
    """

    def __init__(self, channels: int, expansion: float = 4):
        super().__init__()
        hidden = int(channels * expansion)
        self.up = nn.Linear(channels, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(nn.functional.silu(gate) * value)


@keep_arguments
class AdaptiveTransformerLayer(nn.Module):
    """A transformer layer, then a transition, each between an adaptive norm and a gate, and each with a residual.

    ``x + gate(layer(norm(x; c)); c)``, and the same of the transition (the layer of Prose, arXiv 2508.18175).

    Args:
        layer: a transformer layer, which keeps its own norms and residuals.
        transition: such as `SwiGLU`, ``(B, L, channels) -> (B, L, channels)``.
        channels: of x.
        condition_channels: of the condition of each token.

    Raises:
        ValueError: it is called without a condition of each token.
    """

    def __init__(self, layer: TransformerLayer, transition: nn.Module, channels: int, condition_channels: int):
        super().__init__()
        self.layer_norm = AdaptiveLayerNorm(channels, condition_channels)
        self.layer = layer
        self.layer_gate = ConditionalGate(channels, condition_channels)
        self.transition_norm = AdaptiveLayerNorm(channels, condition_channels)
        self.transition = transition
        self.transition_gate = ConditionalGate(channels, condition_channels)

    @property
    def attention(self) -> CausalSelfAttention:
        """The self-attention of the layer inside, which keeps the keys and values."""
        return self.layer.attention

    def forward(self, x: Tensor, step: Step, index: int = 0) -> Tensor:
        condition = step.condition
        x = x + self.layer_gate(self.layer(self.layer_norm(x, condition), step, index), condition)
        return x + self.transition_gate(self.transition(self.transition_norm(x, condition)), condition)
