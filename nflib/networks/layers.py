"""Transformer layers, stacks of them, and what stands inside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nflib.networks.attention import CausalSelfAttention
from nflib.networks.norms import LayerNorm
from nflib.networks.step import Step


class MLP(nn.Module):
    """Multilayer perceptron: two linear maps around a GELU.

    Args:
        channels: of inputs and outputs.
        expansion: hidden channels, as a multiple of channels.
        bias: whether the linear maps have one.
    """

    def __init__(self, channels: int, expansion: float = 4, bias: bool = True):
        super().__init__()
        hidden = int(channels * expansion)
        self.up = nn.Linear(channels, hidden, bias=bias)
        self.down = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class GatedMLP(nn.Module):
    """Gated linear unit with a GELU gate, ``down(gelu(gate(x)) * up(x))`` (Shazeer 2020).

    Args:
        channels: of inputs and outputs.
        expansion: hidden channels, as a multiple of channels.
        bias: whether the linear maps have one.
    """

    def __init__(self, channels: int, expansion: float = 4, bias: bool = True):
        super().__init__()
        hidden = int(channels * expansion)
        self.gate = nn.Linear(channels, hidden, bias=bias)
        self.up = nn.Linear(channels, hidden, bias=bias)
        self.down = nn.Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.gate(x), approximate="tanh") * self.up(x))


class SoftClip(nn.Module):
    """Softly keeps numbers, such as the parameters of a map, within ±limit: ``limit * tanh(x / limit)``.

    Args:
        limit: positive.
    """

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return self.limit * torch.tanh(x / self.limit)


class TransformerLayer(nn.Module):
    """Pre-norm residual layer: attention, then an MLP; norms take the per-token condition, if there is one.

    Args:
        attention: the self-attention.
        mlp: the MLP, ``(B, L, channels) -> (B, L, channels)``.
        norm: makes a norm, called with ``(x, condition)``: one before the attention, one before the MLP.
        post_norm: makes a norm of each residual update, called with it alone (default: none).
        dropout: share of the numbers of each residual update that is dropped in training.

    Attributes:
        recomputes: whether the backward pass computes the layer once more rather than keep what it needs, with the very
            same numbers (Chen et al. 2016, arXiv 1604.06174); see `checkpoint_activations`.
    """

    recomputes = False

    def __init__(
        self,
        attention: CausalSelfAttention,
        mlp: nn.Module,
        norm: Callable[[], nn.Module],
        post_norm: Callable[[], nn.Module] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.attention_norm = norm()
        self.attention = attention
        self.attention_post_norm = post_norm and post_norm()
        self.mlp_norm = norm()
        self.mlp = mlp
        self.mlp_post_norm = post_norm and post_norm()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, step: Step, layer: int = 0) -> Tensor:
        if self.recomputes and step.cache is None and torch.is_grad_enabled():
            output: Tensor = checkpoint(self._forward, x, step, layer, use_reentrant=False)
            return output
        return self._forward(x, step, layer)

    def _forward(self, x: Tensor, step: Step, layer: int) -> Tensor:
        attended = self.attention(self.attention_norm(x, step.condition), step, layer)
        x = x + self._update(attended, self.attention_post_norm)
        return x + self._update(self.mlp(self.mlp_norm(x, step.condition)), self.mlp_post_norm)

    def _update(self, update: Tensor, post_norm: nn.Module | None) -> Tensor:
        update = update if post_norm is None else post_norm(update)
        return self.dropout(update) if self.training else update


@contextmanager
def checkpoint_activations(module: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Activation checkpointing: within the block, training takes less memory and more time.

    Each transformer layer keeps its inputs alone and is computed once more for the backward pass, which changes no
    number, nor what is saved.

    Args:
        module: the flow or network whose layers these are.
        enabled: False does without, within the block.

    >>> from nflib.flows import TARFlow
    >>> flow = TARFlow((1, 8, 8), patch_size=4, channels=32, num_blocks=1, layers_per_block=2, head_dim=32)
    >>> with checkpoint_activations(flow):
    ...     flow.log_prob(torch.zeros(2, 1, 8, 8)).sum().backward()
    """
    layers = [part for part in module.modules() if isinstance(part, TransformerLayer)]
    before = [layer.recomputes for layer in layers]
    for layer in layers:
        layer.recomputes = enabled
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.recomputes = value


def transformer_layers(
    num_layers: int,
    channels: int,
    *,
    head_dim: int = 64,
    expansion: float = 4,
    norm: Callable[[int], nn.Module] = LayerNorm,
    mlp: Callable[[int, float, bool], nn.Module] = MLP,
    rotary: nn.Module | None = None,
    num_key_value_heads: int | None = None,
    num_heads: int | None = None,
    query_key_norm: Callable[[int], nn.Module] | None = None,
    post_norm: Callable[[int], nn.Module] | None = None,
    bias: bool = True,
    dropout: float = 0.0,
) -> list[TransformerLayer]:
    """Make a stack of equal transformer layers.

    Args:
        num_layers: how many.
        channels: their width.
        head_dim: channels of each attention head.
        expansion: hidden channels of the MLP, as a multiple of channels.
        norm: makes a norm, given the number of channels.
        mlp: makes an MLP, given channels, expansion and bias.
        rotary: rotary position embedding of the attention (default: none).
        num_key_value_heads: as for `CausalSelfAttention`.
        num_heads: as for `CausalSelfAttention`.
        query_key_norm: as for `CausalSelfAttention`.
        post_norm: makes a norm of each residual update, given the number of channels (default: none).
        bias: whether the linear maps have one.
        dropout: as for `TransformerLayer`.
    """
    return [
        TransformerLayer(
            CausalSelfAttention(
                channels,
                head_dim,
                num_key_value_heads=num_key_value_heads,
                num_heads=num_heads,
                query_key_norm=query_key_norm,
                bias=bias,
                rotary=rotary,
            ),
            mlp(channels, expansion, bias),
            partial(norm, channels),
            partial(post_norm, channels) if post_norm else None,
            dropout,
        )
        for _ in range(num_layers)
    ]
