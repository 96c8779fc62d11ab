"""What Monte Carlo needs of its two densities: a proposal to draw from, a target that need not be normalised."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from nflows.transforms import InputOutsideDomain
from torch import Tensor
from torch.distributions import Distribution

from nflib.distributions import TorchBase, is_estimate
from nflib.events import finite_rows, flattened
from nflib.interfaces import Proposal, Target
from nflib.random import globally_seeded
from nflib.transforms.domain import rows_inside

__all__ = ["BoltzmannDensity", "Proposal", "Target", "as_proposal", "as_target"]


class BoltzmannDensity:
    """The Boltzmann distribution `exp(-u(x))` of a reduced energy u, as an unnormalised target.

    Args:
        reduced_energy: u, a function from `(n, *event_shape)` to `(n,)`, in units of kT.

    >>> import torch
    >>> harmonic = BoltzmannDensity(lambda x: 0.5 * x.square().sum(dim=-1))
    >>> harmonic.log_prob(torch.ones(1, 2))
    tensor([-1.])
    """

    def __init__(self, reduced_energy: Callable[[Tensor], Tensor]) -> None:
        self.reduced_energy = reduced_energy

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        return -self.reduced_energy(inputs)


def as_proposal(density: Any, *, allow_stochastic: bool = False) -> Proposal:
    """The density as a `Proposal`: one of torch or nflows is adapted, anything else is taken as it is.

    Args:
        density: any `torch.distributions.Distribution` without batch dimensions, an nflows flow or distribution (both
            draw from torch's global generator, which is seeded for the purpose and restored afterwards), or an object
            with the methods of a `Proposal`.
        allow_stochastic: also take one whose log-densities are estimates, as `Flow.stochastic_density` says.

    Raises:
        ValueError: a distribution with batch dimensions, an object that cannot be sampled by generator, or estimated
            log-densities.

    >>> import torch
    >>> proposal = as_proposal(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    >>> x, log_prob = proposal.sample_and_log_prob(3, generator=torch.Generator().manual_seed(0))
    >>> x.shape, log_prob.shape
    (torch.Size([3, 2]), torch.Size([3]))
    """
    if not allow_stochastic:
        _refuse_estimate("proposal", density)
    method = getattr(density, "sample_and_log_prob", None)
    if method is not None:
        # Who wrote the method decides: a flow that inherits from nflows, but draws by generator, is at home here.
        if (method.__module__ or "").startswith("nflows."):
            return _ByGlobalGenerator(density, method)
        parameters = inspect.signature(method).parameters.values()
        if not any(one.name == "generator" or one.kind is one.VAR_KEYWORD for one in parameters):
            raise ValueError(
                f"the proposal's sample_and_log_prob ({type(density).__name__}) takes no generator; give it the "
                "keyword argument generator, a torch.Generator of which to draw."
            )
        return density
    if isinstance(density, Distribution):
        return _of_torch(density)
    raise ValueError(
        f"the proposal ({type(density).__name__}) has no sample_and_log_prob(num_samples, generator=...); pass a "
        "flow, a torch.distributions.Distribution, or an object with that method and log_prob(x)."
    )


def as_evaluated(density: Any) -> Proposal:
    """As `as_proposal`, of a density that can be asked for its log-density anywhere.

    Raises ValueError, too, for one that knows it of its own draws alone, such as `DiffusionProposal`.
    """
    proposal = as_proposal(density)
    if not hasattr(proposal, "log_prob"):
        raise ValueError(
            f"the proposal ({type(proposal).__name__}) has no log_prob(x), which is needed here; give it to "
            "importance_sample or smc as it is."
        )
    return proposal


def as_target(density: Any) -> Target:
    """The density as a `Target`: anything with `log_prob(x)`.

    Args:
        density: an object with `log_prob(x)`, unnormalised or not. A `torch.distributions.Distribution` has log-density
            `-inf` outside its support, where it would raise by itself, and so has a flow where its transform refuses x.

    Raises:
        ValueError: a distribution with batch dimensions, an object without `log_prob`, or estimated log-densities.
    """
    _refuse_estimate("target", density)
    if isinstance(density, Distribution) and not hasattr(density, "sample_and_log_prob"):
        return _of_torch(density)
    if not isinstance(density, Target):
        raise ValueError(
            f"the target ({type(density).__name__}) has no log_prob; wrap a reduced energy in kT as "
            "BoltzmannDensity(energy)."
        )
    return density


def _refuse_estimate(name: str, density: Any) -> None:
    if is_estimate(density):
        raise ValueError(
            f"the {name} estimates its log-density (Hutchinson's trace), so weights are wrong in expectation; use "
            "density='map' or 'trace' (importance_sample and smc take such a proposal with allow_stochastic=True)."
        )


class _ByGlobalGenerator:
    """A density that draws by torch's global generator alone, here reproducibly by another."""

    def __init__(self, density: Any, draw: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        self.density, self.draw = density, draw

    def log_prob(self, inputs: Tensor, /) -> Tensor:
        log_prob: Tensor = self.density.log_prob(inputs)
        return log_prob

    def sample_and_log_prob(
        self, num_samples: int, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        with globally_seeded(generator):
            return self.draw(num_samples)


def _of_torch(distribution: Distribution) -> Proposal:
    density = TorchBase(distribution)

    def draw(num_samples: int) -> tuple[Tensor, Tensor]:
        x = distribution.sample((num_samples,))
        return x, density.log_prob(x)

    return _ByGlobalGenerator(density, draw)


class Batch(NamedTuple):
    """Draws of a proposal: x `(n, *event_shape)`, their log q, and which have finite x and log q, both `(n,)`."""

    x: Tensor
    log_prob: Tensor
    usable: Tensor


def draw(proposal: Proposal, num_samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """So many draws of the proposal, with their log-densities.

    Raises ValueError unless it returns as many positions, and one log-density for each.
    """
    x, log_prob = proposal.sample_and_log_prob(num_samples, generator=generator)
    check_log_density("the proposal's sample_and_log_prob", log_prob, num_samples)
    if not isinstance(x, Tensor) or x.shape[:1] != (num_samples,):
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise ValueError(
            f"the proposal's sample_and_log_prob returned positions of {found} for {num_samples} samples; return a "
            f"tensor ({num_samples}, *event_shape)."
        )
    return x, log_prob


def draw_batches(proposal: Proposal, num_samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """`num_samples` draws, at most `batch_size` at once, without gradients.

    Raises ValueError as `draw` does.
    """
    for first in range(0, num_samples, batch_size):
        size = min(batch_size, num_samples - first)
        with torch.no_grad():
            x, log_prob = draw(proposal, size, generator)
        yield Batch(x, log_prob, finite_rows(x) & torch.isfinite(log_prob))


def log_prob_where(
    log_prob: Callable[[Tensor], Tensor], x: Tensor, usable: Tensor, name: str = "the target's log_prob"
) -> Tensor:
    """Log-densities `(n,)`, NaN at points that are not `usable` `(n,)`: these are not asked for.

    Raises ValueError, which calls the function by this name, unless it returns one number a sample.
    """
    if not usable.any():
        return torch.full((len(x),), torch.nan, device=x.device)
    return placed(log_densities(log_prob, x if usable.all() else x[usable], name), usable, torch.nan)


def log_densities(log_prob: Callable[[Tensor], Tensor], x: Tensor, name: str = "the target's log_prob") -> Tensor:
    """Log-densities `(n,)`, `-inf` at points outside the domain of a transform, such as that of a flow of bounded data.

    Raises ValueError, which calls the function by this name, unless it returns one number a sample, and with a gradient
    where x requires one.
    """
    try:
        values = log_prob(x)
    except InputOutsideDomain:
        inside = rows_inside(log_prob, x)
        if not inside.any():
            return (0.0 * flattened(x)).sum(dim=1) - torch.inf  # in the graph
        return placed(log_densities(log_prob, x[inside], name), inside, -torch.inf)
    except (RuntimeError, BufferError) as error:
        if not (x.requires_grad and "tensor.detach()" in str(error)):  # what numpy is given
            raise
        raise _no_gradient(name) from error
    check_log_density(name, values, len(x))
    if x.requires_grad and torch.is_grad_enabled() and not values.requires_grad:
        raise _no_gradient(name)
    return values


def placed(values: Tensor, where: Tensor, fill: float) -> Tensor:
    """Values of the rows at which the mask `where` `(n,)` is true as those of all n, the others filled."""
    if len(values) == len(where):
        return values
    return values.new_full((len(where), *values.shape[1:]), fill).index_put((where.to(values.device),), values)


def _no_gradient(name: str) -> ValueError:
    return ValueError(
        f"{name} carries no gradient in x; pass a density that autograd can follow (no torch.no_grad, no numpy), or to "
        "Monte Carlo a kernel that needs none, IndependentMetropolis."
    )


def check_log_density(name: str, values: Tensor, count: int) -> None:
    """Raises ValueError unless `values` is a tensor with one number a sample."""
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} returned a {type(values).__name__}; return a tensor, one number a sample.")
    if values.shape != (count,):
        raise ValueError(
            f"{name} returned log-densities of shape {tuple(values.shape)} for {count} samples; return one number a "
            "sample, summed over event dimensions."
        )
