"""Control variates for the sliced Wasserstein distance: their values, their means, and unbiased coefficients.

Nguyen & Ho, "Sliced Wasserstein Estimation with Control Variates", arXiv 2305.00402.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VARIATES", "Moments", "controlled_terms"]

# A spread this small beside the mean is rounding: the variate is constant on the sphere and explains nothing.
_CONSTANT = 1e-10
# With a leverage of one, the other directions alone do not determine the coefficients.
_LARGEST_LEVERAGE = 1.0 - 1e-9


@dataclass(frozen=True)
class Moments:
    """Moments of two samples with means m and covariances S: along L directions t, and averaged over the sphere.

    squared_shift (L,): (t' (m_x - m_y))^2. variance (L,): t' S_x t + t' S_y t. Both are quadratic forms, and
    E[t' A t] = tr(A) / d for t uniform on the sphere in d dimensions, hence the exact means (0-dimensional)

        mean_squared_shift = |m_x - m_y|^2 / d        mean_variance = (tr S_x + tr S_y) / d
    """

    squared_shift: Tensor
    variance: Tensor
    mean_squared_shift: Tensor
    mean_variance: Tensor


def lower(moments: Moments) -> tuple[Tensor, Tensor]:
    """The shift alone: Gaussians fitted to the projections have W_2^2 = shift^2 + (s_x - s_y)^2 >= shift^2."""
    return moments.squared_shift[:, None], moments.mean_squared_shift[None]


def upper(moments: Moments) -> tuple[Tensor, Tensor]:
    """Shift and variances: the same W_2^2 <= shift^2 + s_x^2 + s_y^2."""
    values = moments.squared_shift + moments.variance
    mean = moments.mean_squared_shift + moments.mean_variance
    return values[:, None], mean[None]


def both(moments: Moments) -> tuple[Tensor, Tensor]:
    """The two bounds with a coefficient each (shift and variances span the same variates)."""
    return (
        torch.stack([moments.squared_shift, moments.variance], dim=1),
        torch.stack([moments.mean_squared_shift, moments.mean_variance]),
    )


VARIATES: dict[str, Callable[[Moments], tuple[Tensor, Tensor]]] = {"lower": lower, "upper": upper, "both": both}


def controlled_terms(
    values: Tensor, variates: Tensor, means: Tensor, leave_one_out: bool = True
) -> tuple[Tensor, Tensor]:
    """Terms (L,) whose average is the estimate, and the coefficients (k,) of the regression on all directions.

        term_l = W_l - gamma' (C_l - E C)        values W (L,), variates C (L, k), means E C (k,)

    gamma is the least-squares slope of W on C. Fitted to all L directions (`leave_one_out=False`, as published) it
    depends on C_l, and the average is biased by O(1/L). Fitted to the L - 1 others, gamma_(-l) is independent of
    C_l, so every term has the mean E W and the average is unbiased for every L. All L fits follow from one: with
    centred variates c, G = sum_l c_l c_l', residuals e and leverages h_l = 1/L + c_l' G^-1 c_l,

        gamma_(-l) = gamma - G^-1 c_l e_l / (1 - h_l)
    """
    coefficients = torch.zeros_like(means)
    used = (variates - means).abs().amax(dim=0) > _CONSTANT * means.abs()
    if not used.any():
        return values, coefficients
    deviations = variates[:, used] - means[used]
    centred = deviations - deviations.mean(dim=0)
    scale = torch.linalg.vector_norm(centred, dim=0)  # unit columns: the rank is judged whatever the units
    inverse = torch.linalg.pinv((centred / scale).T @ (centred / scale), hermitian=True, rtol=1e-12)
    rows = (centred / scale) @ inverse / scale  # G^-1 c_l
    slope = rows.T @ (values - values.mean())
    coefficients[used] = slope
    if not leave_one_out:
        return values - deviations @ slope, coefficients
    residuals = values - values.mean() - centred @ slope
    leverages = 1.0 / len(values) + (rows * centred).sum(dim=1)
    slopes = slope - rows * (residuals / (1.0 - leverages.clamp(max=_LARGEST_LEVERAGE)))[:, None]
    return values - (deviations * slopes).sum(dim=1), coefficients
