"""Wasserstein distances between weighted samples in any dimension, exactly, by linear programming."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nflib.metrics.one_dimensional import wasserstein_1d_power
from nflib.metrics.samples import as_pair, as_weights, check_order

__all__ = ["euclidean", "torus", "wasserstein"]

# Elements of the temporary (rows, m, d) while a cost matrix is filled: 32 MB.
_CHUNK = 4_000_000

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
    """W_p between samples `x (n, d)` and `y (m, d)`, exactly: a float64 scalar in the unit of the metric.

        W_p^p = min_P sum_ij P_ij d(x_i, y_j)^p,   P >= 0,  P 1 = x_weights,  P' 1 = y_weights

    solved by the network simplex of POT (`pip install pot`), which holds the n x m cost matrix and runs on the CPU;
    on the line (d = 1, Euclidean) the sorted samples give it directly and POT is not needed.

    Args:
        x_weights, y_weights: `(n,)` and `(m,)`, not necessarily normalised; None means equal weights. Samples of
            zero weight are left out of the program.
        metric: "euclidean"; "torus", for angles: the Euclidean length of the differences wrapped into
            [-period/2, period/2]; or a function from `(n, 1, d)` and `(1, m, d)` to distances `(n, m)`.
        period: of every coordinate on the torus.

    Raises:
        ValueError: shapes that disagree, non-finite samples, bad weights, an unknown metric, an order below 1.
        ImportError: POT is needed and not installed.
        RuntimeError: no optimum within `max_iterations`.

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
        return wasserstein_1d_power(x[:, 0], y[:, 0], x_weights, y_weights, order) ** (1.0 / order)
    transport = import_pot()
    x, x_mass = _support(x, x_weights)
    y, y_mass = _support(y, y_weights)
    cost = _cost_matrix(x, y, distance, order)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what POT warns of is in the log, and raised below
        value, log = transport.emd2(
            x_mass.cpu().numpy(), y_mass.cpu().numpy(), cost.cpu().numpy(), numItermax=max_iterations, log=True
        )
    if log["warning"] is not None:
        raise RuntimeError(
            f"wasserstein: the solver found no optimum for {len(x)} x {len(y)} samples: {log['warning']}"
        )
    return torch.tensor(max(float(value), 0.0), dtype=torch.float64, device=x.device) ** (1.0 / order)


def euclidean(x: Tensor, y: Tensor) -> Tensor:
    """Distances `(n, m)` of points `(n, 1, d)` and `(1, m, d)`."""
    return torch.linalg.vector_norm(x - y, dim=-1)


def torus(period: float = 2 * math.pi) -> Metric:
    """The flat metric of a torus whose coordinates all have `period`: any representative of an angle will do."""
    if not 0 < period < math.inf:
        raise ValueError(f"torus: the period is {period}; give a positive number, 2 pi for angles in radians.")

    def distance(x: Tensor, y: Tensor) -> Tensor:
        difference = x - y
        return torch.linalg.vector_norm(difference - period * torch.round(difference / period), dim=-1)

    return distance


def import_pot() -> Any:
    """POT's module `ot`, which only the exact distances in more than one dimension need."""
    try:
        import ot
    except ModuleNotFoundError as error:
        if error.name != "ot":
            raise
        raise ImportError(
            "exact Wasserstein distances in more than one dimension need POT, which is not installed: run "
            "`pip install pot` or install nflib with its extra [metrics]."
        ) from error
    return ot


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


def _cost_matrix(x: Tensor, y: Tensor, distance: Metric, order: float) -> Tensor:
    """d(x_i, y_j)^p, filled a few rows at a time: the differences in between are d times as large."""
    cost = x.new_empty(len(x), len(y))
    rows = max(1, _CHUNK // y.numel())
    for part, block in zip(x.split(rows), cost.split(rows), strict=True):
        distances = distance(part[:, None], y[None])
        if distances.shape != block.shape:
            raise ValueError(
                f"wasserstein: the metric returned shape {tuple(distances.shape)}; it must return {tuple(block.shape)}."
            )
        block.copy_(distances.pow(order))
    return cost
