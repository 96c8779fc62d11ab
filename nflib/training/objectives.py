"""What training minimises: a callable (flow, batch, generator) -> (loss, scalars to log)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

Objective = Callable[[nn.Module, dict[str, Tensor], torch.Generator], tuple[Tensor, dict[str, Tensor]]]


def log_density(flow: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """log q(x | context) of the batch's "inputs", given "context" if there is one: (B,), in nats, float32 or
    float64.
    """
    log_prob = flow.log_prob(batch["inputs"], context=batch.get("context"))  # type: ignore[operator]
    return log_prob.to(torch.promote_types(log_prob.dtype, torch.float32))


def maximum_likelihood(
    flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the batch of -log q(x), in nats per sample."""
    loss = -log_density(flow, batch).mean()
    return loss, {"negative_log_likelihood": loss.detach()}


@dataclass(frozen=True)
class LogVariance:
    """Likelihood of data, plus the log-variance divergence from a Boltzmann distribution known by its energy.

    The batch holds "inputs" x (B, ...), their reduced "energy" u(x) in kT (B,), optionally "context", and
    optionally "is_data" (B,), a mask of the rows that count for the likelihood. With d = log q(x) + u(x),
    which is a constant where q(x) = exp(-u(x)) / Z,

        loss = likelihood_weight * mean(-log q(x)) + energy_weight * min_c mean(h(d - c)),

    where h(r) = r^2 for |r| <= clip, and 2 clip |r| - clip^2 beyond. Without `clip` the second term is the
    variance of d about its mean (Richter et al. 2020, "VarGrad", arXiv:2010.10436); with it, c is Huber's
    estimate of location and outliers pull with a bounded force. The minimum over c is found in all processes
    together, so that a run on several gives the loss of one. Rows of infinite or NaN energy have no weight in
    the second term, and their share is logged.

    Raises ValueError for a batch without "energy", negative weights or a clip that is not positive.
    """

    energy_weight: float = 1.0
    likelihood_weight: float = 1.0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.energy_weight < 0 or self.likelihood_weight < 0:
            raise ValueError("the weights of LogVariance must be zero or more.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, or None for the plain variance, not {self.clip!r}.")

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if "energy" not in batch:
            raise ValueError("LogVariance needs 'energy', the reduced energies in kT, beside 'inputs' in every batch.")
        log_prob = log_density(flow, batch)
        energy = batch["energy"].to(log_prob.dtype)
        is_data = batch.get("is_data", torch.ones_like(log_prob)).to(log_prob.dtype)
        finite = torch.isfinite(energy)
        weight = finite.to(log_prob.dtype)
        difference = torch.where(finite, log_prob + torch.where(finite, energy, 0.0), 0.0)

        counts = _total(torch.stack([is_data.sum(), weight.sum()]))
        likelihood = (-log_prob * is_data).sum() * _world_size() / counts[0].clamp(min=1)
        penalty = squared_or_clipped(difference - _location(difference.detach(), weight, self.clip), self.clip)
        variance = (penalty * weight).sum() * _world_size() / counts[1].clamp(min=1)
        loss = self.likelihood_weight * likelihood + self.energy_weight * variance
        return loss, {
            "negative_log_likelihood": likelihood.detach(),
            "log_variance": variance.detach(),
            "rejected_energies": 1 - weight.mean(),
        }


def squared_or_clipped(residual: Tensor, clip: float | None) -> Tensor:
    """h of `LogVariance`: twice Huber's function, so that small residuals count as in a variance."""
    if clip is None:
        return residual**2
    return 2 * functional.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=clip)


def huber_location(values: Tensor, clip: float) -> Tensor:
    """The c that minimises the sum of h(value - c), h as in `LogVariance`; zero of no values."""
    if len(values) == 0:
        return values.new_zeros(())
    centre = values.median()
    smallest = torch.finfo(values.dtype).eps * values.abs().median()
    for _ in range(50):  # a monotone fixed-point iteration; each step lowers the sum
        change = (values - centre).clamp(-clip, clip).mean()
        centre = centre + change
        if bool(change.abs() <= smallest):
            break
    return centre


def _location(values: Tensor, weight: Tensor, clip: float | None) -> Tensor:
    """The c that minimises the sum of h(value - c) over all processes; h(r) = r^2 without `clip`."""
    total = _total(weight.sum()).clamp(min=1)
    if clip is None:
        return _total((values * weight).sum()) / total
    everywhere = _gathered(values), _gathered(weight)
    return huber_location(everywhere[0][everywhere[1] > 0], clip)


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _total(value: Tensor) -> Tensor:
    """The sum of a tensor without gradient over all processes."""
    if _world_size() > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
    return value.detach()


def _gathered(values: Tensor) -> Tensor:
    """Equally long vectors of all processes, one after the other."""
    if _world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
