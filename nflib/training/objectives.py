"""What training minimises: a callable (flow, batch, generator) -> (loss, scalars to log).

An objective may have the attributes of `Demands`. One that changes during training has a method `at(progress)`, which
gives the objective of a step that begins with this share of the run behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from nflib.events import finite_rows, flattened
from nflib.flows import Flow
from nflib.interfaces import Target
from nflib.montecarlo.densities import as_target, check_log_density, log_densities

Objective = Callable[[nn.Module, dict[str, Tensor], torch.Generator], tuple[Tensor, dict[str, Any]]]


class Demands(NamedTuple):
    """What an objective asks of `fit`, and what counts where it does not say; read by `nflib.interfaces.stated`.

    Attributes:
        keys: the tensors of a batch that it reads; `fit` refuses data with others. None: any but "weights", which would
            be ignored where they are not listed.
        needs_flow: attributes of a flow that it cannot do without, and with each the flows that have it, which `fit`
            names where another is given.
        needs_data: False for one that draws its own samples, and is given empty batches.
        whole_batch: whether it is no mean over rows, so that a batch cannot be taken in parts.
    """

    keys: tuple[str, ...] | None = None
    needs_flow: Mapping[str, str] = {}
    needs_data: bool = True
    whole_batch: bool = False


def objective_at(objective: Any, progress: float) -> Any:
    """The objective of a step that begins with a share `progress` of the run behind it."""
    return objective.at(progress) if hasattr(objective, "at") else objective


def log_density(flow: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """log q(x | context) of the batch's "inputs", given "context" if there is one: (B,), in nats, float32 or
    float64.

    Raises ValueError unless it is one number a sample: beside weights or energies it would be broadcast.
    """
    # What torch compiled is `forward`, which of our flows is log_prob.
    log_prob_of: Any = flow if isinstance(getattr(flow, "_orig_mod", None), Flow) else flow.log_prob
    log_prob = log_prob_of(batch["inputs"], context=batch.get("context"))
    check_log_density("the flow's log_prob", log_prob, len(batch["inputs"]))
    return log_prob.to(torch.promote_types(log_prob.dtype, torch.float32))


def maximum_likelihood(
    flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the batch of -w log q(x), in nats per sample; w are the batch's "weights" if it has them, else 1.

    `fit` gives the weights mean one over all data: the expectation is ``sum w (-log q) / sum w``, whatever the batch.
    """
    log_prob = log_density(flow, batch)
    loss = -(log_prob * batch["weights"].to(log_prob.dtype) if "weights" in batch else log_prob).mean()
    return loss, {"negative_log_likelihood": loss.detach()}


maximum_likelihood.keys = ("inputs", "context", "weights")  # type: ignore[attr-defined]


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

    Raises ValueError for a batch without "energy", or with one that is not one number a row, negative weights or a clip
    that is not positive.
    """

    energy_weight: float = 1.0
    likelihood_weight: float = 1.0
    clip: float | None = None

    keys: ClassVar[tuple[str, ...]] = ("inputs", "context", "energy", "is_data")
    whole_batch: ClassVar[bool] = True

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
        for name in ("energy", "is_data"):
            if name in batch and batch[name].shape != log_prob.shape:
                shape = tuple(batch[name].shape[1:])
                raise ValueError(f"the data's {name!r} must be one number a row, not of shape {shape}.")
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


@dataclass(frozen=True)
class ReverseKL:
    """KL(q || p) of the flow q from a target p known up to its normaliser: training without data, from an energy alone.

    The loss is ``mean(log q(x) - log p(x))`` over ``x = flow.rsample(num_samples)``, in nats; at its minimum, where
    q = p, it is ``-log Z`` of the target. Being zero-forcing it may miss modes: check the effective sample size, and
    modes that you know of.

    With x = T(z; theta) its derivative is that along the path of the samples, ``d/dx [log q - log p] dT/dtheta``, plus
    the score ``d log q(x; theta) / dtheta`` at fixed x, of expectation zero. estimator="path" leaves the score out
    ("sticking the landing": Roeder et al. 2017, arXiv:1703.09194; Vaitl et al. 2022, arXiv:2206.09016), so that every
    single draw has gradient zero at q = p; "total" keeps it.

    Forces along the paths say little of how much each of several modes should hold, once these are far apart; what
    ``w = log q - log p`` is in each of them does. The score times ``w``, less its mean over the other draws (half the
    gradient of the log-variance: Richter et al. 2020, arXiv:2010.10436), estimates the same derivative, but is noisy
    while ``w`` varies much. "mixed" adds it to "path" in proportion 1 to Var(w) of the step.

    Modes are kept best by a flow that starts wider than the target, and by annealing: `fit` begins with p^(1 / T), T =
    temperature, and 1 / T rises linearly to 1.

    Draws whose position, energy or force is not finite are left out, and their share is logged; a step without any
    other is skipped by `fit`.

    Args:
        target: As `nflib.montecarlo.importance_sample` takes it: an object with `log_prob(x) -> (n,)`, differentiable
            in x, such as `nflib.montecarlo.BoltzmannDensity(reduced_energy)`, or a `torch.distributions.Distribution`.
        num_samples: Draws in each step, shared evenly between the processes.
        estimator: "path", "total" or "mixed"; the last is best where there are several modes, at the cost of "total".
        temperature: Of the target at the first step, in units of its own; 1 for no annealing.
        annealing: Share of the run after which the temperature is 1, in (0, 1].

    Raises:
        ValueError: For a target without log_prob or with batch dimensions, an estimator of another name, or numbers out
            of range.
    """

    target: Target
    num_samples: int = 256
    estimator: str = "path"
    temperature: float = 1.0
    annealing: float = 0.8

    keys: ClassVar[tuple[str, ...]] = ()
    needs_flow: ClassVar[dict[str, str]] = {"rsample": "a flow of nflib"}
    needs_data: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", as_target(self.target))
        if self.estimator not in ("path", "total", "mixed"):
            raise ValueError(f"estimator must be 'path', 'total' or 'mixed', not {self.estimator!r}.")
        fewest = 2 if self.estimator == "mixed" else 1
        if not self.num_samples >= fewest:
            raise ValueError(f"num_samples must be at least {fewest}, not {self.num_samples!r}.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, not {self.temperature!r}.")
        if not 0 < self.annealing <= 1:
            raise ValueError(f"annealing is a share of the run, above 0 and at most 1, not {self.annealing!r}.")

    def at(self, progress: float) -> ReverseKL:
        """This objective at the temperature that it has after a share `progress` of the run."""
        done = min(progress / self.annealing, 1.0)
        return replace(self, temperature=1 / (done + (1 - done) / self.temperature))

    def __call__(
        self, flow: nn.Module, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.num_samples % _world_size():
            raise ValueError(f"num_samples={self.num_samples} cannot be shared evenly by {_world_size()} processes.")
        drawn = self.num_samples // _world_size()
        x = flow.rsample(drawn, generator=generator)  # type: ignore[operator]
        usable = finite_rows(x.detach())
        if usable.any():  # else none is finite below, and densities of nothing are asked of nobody
            x = x[usable]
        # Away from its past, x has the gradient of the integrand along the path alone.
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            log_q = log_density(flow, {"inputs": points})
            log_p = log_densities(self.target.log_prob, points)
            integrand = log_q - log_p.to(log_q) / self.temperature
            (slope,) = torch.autograd.grad(integrand.sum(), points, retain_graph=self.estimator != "path")
        finite = torch.isfinite(integrand) & flattened(slope).isfinite().all(dim=1)
        count = _total(finite.sum()) / _world_size()
        value = integrand.detach()[finite].sum()
        surrogate = (slope[finite] * x[finite]).sum()
        if self.estimator == "total":
            surrogate = surrogate + log_q[finite].sum()
        elif self.estimator == "mixed":
            draws = count * _world_size()
            deviation = integrand.detach()[finite] - _total(value) / draws
            others = (draws - 1).clamp(min=1)  # a mean over the others has n / (n - 1) times the deviation
            variance = _total(deviation.square().sum()) / others
            share = 1 / (1 + variance)  # zero where the variance overflows
            score = (share * draws / others * deviation * log_q[finite]).sum()
            surrogate = (1 - share) * surrogate + score
        # The value of the one, the gradient of the other; none finite anywhere: 0 / 0, a step to skip.
        loss = (value + surrogate - surrogate.detach()) / count
        return loss, {"reverse_kl": loss.detach(), "rejected_energies": 1 - finite.sum().to(loss) / drawn}


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
