"""Wasserstein distances between weighted samples in any dimension, exactly, by linear programming."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nflib.errors import ComputationError
from nflib.metrics.bottleneck import bottleneck
from nflib.metrics.one_dimensional import NARROWEST, quantile_distances, wasserstein_of_quantiles
from nflib.metrics.samples import as_pair, as_weights, check_order, power_of_two
from nflib.optional import require

__all__ = ["euclidean", "torus", "wasserstein"]

# Elements of the temporary (rows, m, d) while a cost matrix is filled: 32 MB.
_CHUNK = 4_000_000
# Of W_p^p, between a plan found and the bound that its dual proves: met but for costs of many orders of magnitude.
_GAP = 1e-9

Metric = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def wasserstein(
    x: Tensor,
    y: Tensor,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    order: float = 2,
    metric: str | Metric = "euclidean",
    period: float = 2 * math.pi,
    max_iterations: int = 100_000_000,
) -> Tensor:
    """The Wasserstein distance W_p between two sets of weighted samples in any dimension, exactly.

        W_p^p = min_P sum_ij P_ij d(x_i, y_j)^p,   P >= 0,  P 1 = x_weights,  P' 1 = y_weights
        W_inf = min_P max_{P_ij > 0} d(x_i, y_j)

    solved by the network simplex of POT (`pip install pot`), which holds the n x m cost matrix and runs on the CPU, and
    checked by its dual; on the line (d = 1, Euclidean) the sorted samples give it directly and POT is not needed. W_inf
    is a bisection over the distances, for equal weights. As the distance of what finite samples were drawn from it is
    too large on average (by the order of n^(-1/d) for d > 2p): compare sets of one size.

    Args:
        x: samples, `(n, d)`, or `(n,)` on the line.
        y: samples, `(m, d)`, or `(m,)`.
        x_weights: `(n,)`, not necessarily normalised; None means equal weights. Samples of zero weight are left out of
            the program; shares below 1e-15 are lost in the rounding of weights.
        y_weights: `(m,)`, likewise.
        order: p, a number from 1 up, or `math.inf`.
        metric: "euclidean"; "torus", for angles: the Euclidean length of the differences wrapped into
            [-period/2, period/2]; or a function from `(n, 1, d)` and `(1, m, d)` to distances `(n, m)`.
        period: of every coordinate on the torus.
        max_iterations: of the network simplex.

    Returns:
        A float64 scalar, in the unit of the metric.

    Raises:
        ValueError: shapes that disagree, non-finite samples, bad weights, an unknown metric, an order below 1, order
            inf with unequal weights in more than one dimension.
        ImportError: POT is needed and not installed.
        ComputationError: no optimum within `max_iterations`.

    Warns:
        RuntimeWarning: the distances span so many orders of magnitude that W_p^p is only known to more than 1e-9 of it
            and to more than the rounding of the weights; says between which numbers W_p lies.

    >>> import torch
    >>> wasserstein(torch.zeros(4), torch.ones(3))
    tensor(1., dtype=torch.float64)
    """
    check_order("wasserstein", order)
    distance = _resolve(metric, period)
    x, y = as_pair("wasserstein", x, y)
    x_weights = as_weights("wasserstein", "x_weights", x_weights, len(x), x.device)
    y_weights = as_weights("wasserstein", "y_weights", y_weights, len(y), x.device)
    if x.shape[1] == 1 and distance is euclidean:
        return wasserstein_of_quantiles(*quantile_distances(x[:, 0], y[:, 0], x_weights, y_weights), order)
    if order == math.inf:
        _refuse_unequal(x_weights, y_weights)
    transport = None if order == math.inf else import_pot()
    x, x_mass = _support(x, x_weights)
    y, y_mass = _support(y, y_weights)
    distances = _distance_matrix(x, y, distance).cpu().numpy()
    if transport is None:
        result = bottleneck(distances)
    else:
        result = _transported(transport, x_mass.cpu().numpy(), y_mass.cpu().numpy(), distances, order, max_iterations)
    return torch.tensor(result, dtype=torch.float64, device=x.device)


def _transported(
    transport: Any, x_mass: np.ndarray, y_mass: np.ndarray, distances: np.ndarray, order: float, max_iterations: int
) -> float:
    """W_p by linear programs, in units of the largest distance.

    Beside costs far larger than those that matter, the potentials of the simplex lose their digits and with them the
    optimum. A program whose costs are cut off has smaller potentials, a feasible plan, and a dual solution that is
    feasible too: its bounds are bounds of the whole.
    """
    scale = float(distances.max()) or 1.0
    cost = (distances / scale) ** order
    upper, lower = math.inf, 0.0
    for limit in (1.0, *_cut_offs(cost)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what POT warns of is in the log, and raised below
            plan, log = transport.emd(
                x_mass, y_mass, np.minimum(cost / limit, 1.0), numItermax=max_iterations, log=True
            )
        if log["warning"] is not None:
            raise ComputationError(
                f"wasserstein: the solver found no optimum for {len(x_mass)} x {len(y_mass)} samples: {log['warning']}"
            )
        plan[plan < NARROWEST] = 0.0  # rounding of the weights
        upper = min(upper, float((plan * cost).sum()))
        potential = (cost - limit * log["u"][:, None]).min(axis=0)
        other = (cost - potential).min(axis=1)
        rounding = 8 * np.finfo(np.float64).eps * (np.abs(other).max() + np.abs(potential).max())
        lower = max(lower, float(x_mass @ other + y_mass @ potential - rounding))
        if upper - lower <= _GAP * upper:
            return scale * upper ** (1.0 / order)
    # Weights are rounded as well: so much of them may go anywhere among the bulk of the samples.
    if upper - lower > np.finfo(np.float64).eps * sum(cost.shape) * np.median(cost):
        bounds = [scale * bound ** (1.0 / order) for bound in (lower, upper)]
        warnings.warn(
            f"wasserstein: the distances span too many orders of magnitude; W_{order:g} lies between {bounds[0]:.12g} "
            f"and {bounds[1]:.12g}, and the latter is returned. Leave the farthest samples out, or use order=1.",
            RuntimeWarning,
            stacklevel=4,
        )
    return scale * upper ** (1.0 / order)


def _cut_offs(cost: np.ndarray) -> Iterator[float]:
    """Costs to cut off at: from what every sample has to pay at least, up to the largest."""
    positive = np.where(cost > 0, cost, np.inf)
    limit = max(cost.min(axis=1).max(), cost.min(axis=0).max(), float(np.median(positive.min(axis=1))))
    while 0 < limit < cost.max():
        limit *= 100
        yield limit


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """The Euclidean metric: distances `(n, m)` of points `(n, 1, d)` and `(1, m, d)`."""
    return _length(x - y)


def torus(period: float = 2 * math.pi) -> Metric:
    """The metric of a flat torus, for angles: the Euclidean length of the differences wrapped into one period.

    Args:
        period: of every coordinate; the default is for radians.

    Returns:
        A function from points `(n, 1, d)` and `(1, m, d)` to distances `(n, m)`, such as `wasserstein` takes.

    Raises:
        ValueError: a period that is not positive and finite.

    >>> import torch
    >>> torus()(torch.tensor([[[0.1]]]), torch.tensor([[[2 * torch.pi]]]))
    tensor([[0.1000]])
    """
    if not 0 < period < math.inf:
        raise ValueError(f"torus: the period is {period}; give a positive number, 2 pi for angles in radians.")

    def distance(x: Tensor, y: Tensor) -> Tensor:
        difference = x - y
        return _length(difference - period * torch.round(difference / period))

    return distance


def _length(difference: Tensor) -> Tensor:
    """Norms along the last dimension, also where squares are beyond the range of numbers."""
    scale = power_of_two(difference.abs().amax(dim=-1, keepdim=True))
    return torch.linalg.vector_norm(difference / scale, dim=-1) * scale.squeeze(-1)


def import_pot() -> Any:
    """POT's module `ot`, which only the exact distances in more than one dimension need."""
    return require("ot", "exact Wasserstein distances in more than one dimension need POT,", extra="metrics")


def _resolve(metric: str | Metric, period: float) -> Metric:
    if metric == "euclidean":
        return euclidean
    if metric == "torus":
        return torus(period)
    if callable(metric):
        return metric
    raise ValueError(
        f"wasserstein: unknown metric {metric!r}; give 'euclidean', 'torus', or a function of two tensors."
    )


def _support(points: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    if weights is None:
        return points, points.new_full((len(points),), 1.0 / len(points))
    used = weights > 0
    return points[used], weights[used]


def _refuse_unequal(*weights: Tensor | None) -> None:
    """ValueError unless all positive weights of a set are equal."""
    for own in weights:
        if own is not None and own[own > 0].min() < own.max() * (1 - 1e-12):
            raise ValueError(
                "wasserstein: order inf is solved for equal weights only in more than one dimension; resample to equal "
                "weights, or use a finite order."
            )


def _distance_matrix(x: Tensor, y: Tensor, distance: Metric) -> Tensor:
    """d(x_i, y_j), filled a few rows at a time: the differences in between are d times as large."""
    matrix = x.new_empty(len(x), len(y))
    rows = max(1, _CHUNK // y.numel())
    for part, block in zip(x.split(rows), matrix.split(rows), strict=True):
        distances = distance(part[:, None], y[None])
        if distances.shape != block.shape:
            raise ValueError(
                f"wasserstein: the metric returned shape {tuple(distances.shape)}; it must return {tuple(block.shape)}."
            )
        block.copy_(distances)
    return matrix
