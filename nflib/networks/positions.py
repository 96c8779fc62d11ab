"""Position encodings: learned or sinusoidal vectors that are added to tokens, or rotary phases in attention."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nflib.devices import table_device
from nflib.dtypes import FullPrecisionBuffers, Tables


class LearnedPositions(nn.Module):
    """A learned vector for each position; `forward(start, stop)` returns those of ``start … stop - 1``.

    Args:
        length: number of positions.
        channels: size of each vector.
    """

    decays = False  # vectors, which `nflib.training.fit` does not decay

    def __init__(self, length: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length, channels) * 1e-2)

    def forward(self, start: int, stop: int) -> Tensor:
        _check_length(stop, len(self.weight))
        return self.weight[start:stop]


class SinusoidalEmbedding(Tables):
    """Sines and cosines of numbers, interleaved, at the rates ``base^(-2i / channels)``: ``(…) -> (…, channels)``.

    The numbers may be integers; the result has the module's dtype.

    Args:
        channels: even.
        base: the slowest rate is about its reciprocal.

    Raises:
        ValueError: channels is odd.
    """

    rates: Tensor

    def __init__(self, channels: int, base: float = 10_000.0):
        super().__init__()
        if channels % 2:
            raise ValueError(f"sines and cosines fill an even number of channels, got {channels}.")
        self.base = base
        self.register_buffer("rates", _rates(channels, base, table_device()), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        rates = self.rates.to(numbers.device)
        if rates.dtype.itemsize < 4:  # by which numbers of some hundreds could not be told apart
            rates = _rates(2 * len(rates), self.base, rates.device)
        phase = numbers.unsqueeze(-1) * rates
        return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2).to(self.rates.dtype)


def _rates(channels: int, base: float, device: torch.device | None = None) -> Tensor:
    return torch.exp(torch.arange(0, channels, 2, device=device) * (-math.log(base) / channels))


class SinusoidalPositions(Tables):
    """Sines and cosines of the position (Vaswani et al. 2017), interleaved, times one learned scale.

    `forward(start, stop)` returns the vectors ``(stop - start, channels)`` of positions ``start … stop - 1``.

    Args:
        length: number of positions.
        channels: size of each vector, even.
        base: rates are ``base^(-2i / channels)``.

    Raises:
        ValueError: channels is odd, or a position beyond the length is asked for.
    """

    table: Tensor

    def __init__(self, length: int, channels: int, base: float = 10_000.0):
        super().__init__()
        table = SinusoidalEmbedding(channels, base)(torch.arange(length, device=table_device()))
        self.register_buffer("table", table, persistent=False)
        self.scale = nn.Parameter(torch.full((1,), 1e-2))

    def forward(self, start: int, stop: int) -> Tensor:
        _check_length(stop, len(self.table))
        return self.table[start:stop].to(self.scale.device) * self.scale


def grid_coordinates(shape: Sequence[int]) -> Tensor:
    """Coordinates of every cell of a grid in raster order: ``(prod(shape), len(shape))`` in float32.

    >>> grid_coordinates((2, 2)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=table_device()) for n in shape), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(-1, len(shape))


class Rotary(FullPrecisionBuffers):
    """Rotary position embedding over coordinates of any dimension (Su et al. 2021; axial for 2-D and 3-D).

    The product of a query and a key depends on the difference of their coordinates alone. `forward(x, start)` turns x
    ``(B, heads, L, head_dim)``, whose tokens stand at rows ``start … start + L - 1`` of the coordinates.

    Args:
        coordinates: of each token, ``(T, axes)``, such as `grid_coordinates` makes.
        head_dim: channels of each attention head.
        base: the i-th channel pair of an axis turns at the rate ``base^(-i / pairs)``.
        pairs: how many of the head's channel pairs turn with each axis (default: an equal share for all).

    Raises:
        ValueError: the pairs do not fill the head.
    """

    phase: Tensor

    def __init__(self, coordinates: Tensor, head_dim: int, base: float = 10_000.0, pairs: Sequence[int] | None = None):
        super().__init__()
        axes = coordinates.shape[-1]
        if pairs is None and head_dim % (2 * axes):
            raise ValueError(f"head_dim {head_dim} must be a multiple of {2 * axes} for {axes}-D rotary positions.")
        pairs = [head_dim // (2 * axes)] * axes if pairs is None else list(pairs)
        if len(pairs) != axes or 2 * sum(pairs) != head_dim:
            raise ValueError(f"pairs {pairs} must share {head_dim // 2} channel pairs among {axes} axes.")
        rates = [base ** (-torch.arange(n, dtype=torch.float32, device=coordinates.device) / n) for n in pairs]
        angle = torch.cat([coordinates[:, [axis]].float() * rate for axis, rate in enumerate(rates)], dim=-1)
        # Cosines and sines side by side: a view makes complex numbers of them. In half precision angles of thousands
        # of tokens could not be told apart.
        self.register_buffer("phase", torch.stack([angle.cos(), angle.sin()], dim=-1), persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        stop = start + x.shape[-2]
        _check_length(stop, len(self.phase))
        phase = self.phase[start:stop].to(x.device)
        if x.dtype.itemsize < 4:
            wide = torch.promote_types(
                phase.dtype, torch.float32
            )  # copies for low-precision warm-up have rounded tables
            return self._turned(x.to(wide), phase.to(wide)).to(x.dtype)
        return self._turned(x, phase)

    def _turned(self, x: Tensor, phase: Tensor) -> Tensor:
        if x.dtype == phase.dtype and not torch.compiler.is_compiling():
            # One kernel instead of eight, which at one token a step cost more than their arithmetic.
            turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.view_as_complex(phase)
            return torch.view_as_real(turned).flatten(-2)
        cos, sin = phase.to(x.dtype).unbind(-1)
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


def _check_length(stop: int, length: int) -> None:
    if stop > length:
        raise ValueError(f"the positions were made for {length} tokens, but the sequence has {stop} or more.")
