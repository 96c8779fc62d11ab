"""Normalisations of transformer layers; all compute in float32 and return the dtype that they were given."""

import torch
from torch import Tensor, nn

from nflib.dtypes import widened
from nflib.networks.kernels import differentiable


class RMSNorm(nn.Module):
    """Root-mean-square norm with unit offset: ``x / rms(x) * (1 + weight)`` over the last dimension.

    The weight starts at zero, so that weight decay pulls the gain towards one (Zhang & Sennrich 2019, in the
    parametrisation that STARFlow uses).

    Args:
        channels: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        wide = widened(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed * (1 + self.weight)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm` that accepts, and ignores, a per-token condition, as every norm here does.

    Its derivatives of any order are right; torch's own are not from the third on, such as those by the parameters of
    the trace of a Hessian, or the Hessian of a score.
    """

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return differentiable(self._fast, self._explicit, x, self.weight, self.bias)

    def _fast(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def _explicit(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        last = tuple(range(-len(self.normalized_shape), 0))
        wide = widened(x)
        centred = wide - wide.mean(last, keepdim=True)
        normed = centred * torch.rsqrt(centred.square().mean(last, keepdim=True) + self.eps)
        normed = normed if weight is None else normed * weight
        return (normed if bias is None else normed + bias).to(x.dtype)


class AdaptiveLayerNorm(nn.Module):
    """Layer norm whose gain and bias come from a condition of each token (Peebles & Xie 2023).

    ``LayerNorm(x) * sigmoid(gain(c)) + bias(c)`` with ``c = LayerNorm(condition)``.

    Args:
        channels: of x, ``(B, T, channels)``.
        condition_channels: of the condition, ``(B, T, condition_channels)``.

    Raises:
        ValueError: it is called without a condition.
    """

    def __init__(self, channels: int, condition_channels: int):
        super().__init__()
        self.norm = LayerNorm(channels, elementwise_affine=False)
        self.condition_norm = LayerNorm(condition_channels)
        self.gain = nn.Linear(condition_channels, channels)
        self.bias = nn.Linear(condition_channels, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            raise ValueError("AdaptiveLayerNorm needs a condition for each token; pass the flow its context.")
        condition = self.condition_norm(condition)
        return self.norm(x) * torch.sigmoid(self.gain(condition)) + self.bias(condition)
