"""A linear, causal map that takes the linear correlations out of data, fitted once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nflib.dtypes import as_tensor
from nflib.events import check_event_shape
from nflib.inference import without_autocast
from nflib.transforms._marginal_fit import LARGEST, SMALLEST
from nflib.transforms.inversion import ClosedForm
from nflib.transforms.marginal import as_float64, working_dtype

__all__ = ["Whiten"]


class Whiten(ClosedForm):
    """Whitens data by a triangular linear map: ``x = L z``, for data of covariance ``L L^T``.

    Each number is regressed on those before it, in the order of the flattened event, so that an autoregressive map
    behind it has only what is not linear left to learn of stiff couplings, such as those of a ring's angles. A new
    instance is the identity; get a useful one from `fit`, or from `load_state_dict` into `Whiten(event_shape)`.

    Args:
        event_shape: the shape of an event.

    Raises:
        ValueError: an input has another event shape.

    Example:
        >>> x = torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:, 1] += 5 * x[:, 0]
        >>> z, logabsdet = Whiten.fit(x)(x)
        >>> bool((torch.corrcoef(z.flatten(1).T) - torch.eye(6)).abs().max() < 0.05)
        True
    """

    factor: Tensor  # (D, D), L

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)
        self.register_buffer("factor", torch.eye(self.event_shape.numel()))

    @classmethod
    def fit(cls, data: Tensor) -> Whiten:
        """Fit L to the covariance of data, shrunk towards its diagonal to be regular however few data there are.

        Args:
            data: ``(N, *event_shape)``, N two or more. The shrinkage is that of as many uncorrelated data as an event
                has numbers; it is computed in float64.

        Raises:
            ValueError: fewer than two data, or a coordinate that is constant, not finite, or of a scale beyond the
                range of float32, in which L is kept.
        """
        data = as_tensor(data)
        if data.dim() < 2 or data.shape[0] < 2:
            raise ValueError(f"Whiten.fit: data has shape {tuple(data.shape)}; pass (N, *event_shape) with N >= 2.")
        whiten = cls(data.shape[1:])
        values = as_float64(data).flatten(1)
        number, size = values.shape
        # Without what all have in common, so that a constant's variance is zero, and no rounding of its mean.
        covariance = torch.cov((values - values[0]).T).view(size, size)
        variances = covariance.diagonal().clone()
        bad = ~((variances >= SMALLEST**2) & (variances <= LARGEST**2))
        if bad.any():
            raise ValueError(
                f"Whiten.fit: coordinate {int(bad.nonzero()[0])} of the flattened event is constant, not finite, or of "
                f"a scale beyond the range of float32; drop it, mend the data, or rescale it to between {SMALLEST:.0e} "
                f"and {LARGEST:.0e}."
            )
        covariance *= number / (number + size)
        covariance.diagonal().copy_(variances)
        whiten.factor.copy_(torch.linalg.cholesky(covariance))
        return whiten.to(data.device)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.event_shape, "Whiten")
        factor = self.factor.to(working_dtype(inputs))
        columns = inputs.to(factor).flatten(1).T
        outputs = torch.linalg.solve_triangular(factor, columns, upper=False).T.reshape(inputs.shape)
        return outputs, -_logabsdet(factor, inputs.shape[0])

    @without_autocast
    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_event_shape(inputs, self.event_shape, "Whiten")
        factor = self.factor.to(working_dtype(inputs))
        return (inputs.to(factor).flatten(1) @ factor.T).reshape(inputs.shape), _logabsdet(factor, inputs.shape[0])


def _logabsdet(factor: Tensor, count: int) -> Tensor:
    return factor.diagonal().log().sum().expand(count)
