"""Mixtures of proposals: where one has no draws another has some, so that no weight can be large."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution

from nflib.events import finite_rows
from nflib.montecarlo.densities import Proposal, as_evaluated, draw, log_densities
from nflib.montecarlo.resampling import SCHEMES, resample

__all__ = ["Mixture"]


class Mixture:
    """The proposal `sum_k w_k q_k(x)` of proposals q_k (Hesterberg, Technometrics 37 (1995) 185).

    Each draw has the density of the whole mixture, whichever component it came from (the balance heuristic of Veach &
    Guibas, SIGGRAPH 1995), so no weight is above `target / (w_k q_k)` of any of them. Where a component's log-density
    is NaN, or the position is not finite, it counts as having none there.

    Args:
        components: what `as_proposal` takes, with `log_prob(x)`, over the same events.
        weights: one a component, of sum 1 (default: equal ones).
        resampling: how many draws each component gives, a scheme of `nflib.montecarlo.resample`. "systematic": its
            weight times the number of draws, rounded up or down at random so that the mean is exact; estimates are
            unbiased and spread less than with "multinomial", where draws are independent.

    Raises:
        ValueError: no component, another number of weights, weights that are not positive or do not sum to 1, an
            unknown scheme, or a component that `as_proposal` refuses or that has no `log_prob`.

    >>> import torch
    >>> from nflib.montecarlo import BoltzmannDensity, importance_sample
    >>> normals = [torch.distributions.Normal(torch.zeros(2), scale) for scale in (1.0, 3.0)]
    >>> narrow, wide = (torch.distributions.Independent(normal, 1) for normal in normals)
    >>> target = BoltzmannDensity(lambda x: x.abs().sum(dim=-1))  # its tails are heavier than a normal's
    >>> samples = importance_sample(Mixture([narrow, wide], [0.8, 0.2]), target, 4000, seed=0)
    >>> abs(samples.log_normalizer - 1.3863) < 3 * samples.log_normalizer_standard_error  # log 4
    True
    """

    def __init__(
        self,
        components: Sequence[Proposal | Distribution],
        weights: Sequence[float] | None = None,
        *,
        resampling: str = "systematic",
    ) -> None:
        self.components = [as_evaluated(component) for component in components]
        number = len(self.components)
        weights = [1.0 / max(number, 1)] * number if weights is None else [float(weight) for weight in weights]
        if not number or len(weights) != number:
            raise ValueError(f"Mixture: {number} components and {len(weights)} weights; pass one a component, or more.")
        if not all(weight > 0.0 for weight in weights) or abs(sum(weights) - 1.0) > 1e-6:
            raise ValueError(f"Mixture: the weights {weights} must be positive and sum to 1.")
        if resampling not in SCHEMES:
            raise ValueError(f"Mixture: unknown resampling scheme {resampling!r}; choose one of {', '.join(SCHEMES)}.")
        self.weights = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        self.resampling = resampling

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        """Log-densities `(n,)` of the mixture, `-inf` where no component has any."""
        return self._mixed([_evaluated(component, inputs) for component in self.components])

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws `(num_samples, *event_shape)` in random order, and the mixture's log-density of each."""
        chosen = resample(self.weights, num_samples, generator, self.resampling)
        counts = torch.bincount(chosen, minlength=len(self.components)).tolist()
        pieces = []
        for number, (component, count) in enumerate(zip(self.components, counts, strict=True)):
            if count == 0:
                continue
            x, own = draw(component, count, generator)
            values = [
                _counted(own, x) if other == number else _evaluated(self.components[other], x)
                for other in range(len(counts))
            ]
            pieces.append((x, self._mixed(values)))
        x, log_prob = (torch.cat(column) for column in zip(*pieces, strict=True))
        # So that any one draw, too, comes from the mixture.
        device = x.device if generator is None else generator.device
        order = torch.randperm(num_samples, generator=generator, device=device).to(x.device)
        return x[order], log_prob[order]

    def _mixed(self, log_probs: list[Tensor]) -> Tensor:
        return torch.logsumexp(
            torch.stack([math.log(w) + value for w, value in zip(self.weights.tolist(), log_probs, strict=True)]), dim=0
        )


def _evaluated(component: Proposal, x: Tensor) -> Tensor:
    return _counted(log_densities(component.log_prob, x, "the proposal's log_prob"), x)


def _counted(log_prob: Tensor, x: Tensor) -> Tensor:
    """The log-densities, `-inf` at points that are not finite or have none."""
    usable = finite_rows(x) & ~log_prob.isnan()
    return torch.where(usable, log_prob, -torch.inf)
