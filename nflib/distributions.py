"""Base distributions of flows, as nflows `Distribution`s that draw from a given generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from nflows.distributions import Distribution
from scipy.special import betaln
from torch import Tensor, nn

from nflib.contexts import num_rows
from nflib.devices import table_device
from nflib.dtypes import FullPrecisionBuffers, Tables, widened
from nflib.events import check_event_shape, flattened, per_row
from nflib.random import globally_seeded


class NormalNoise(Tables, Distribution):
    """Base class of distributions of independent standard normal numbers, some of which may be padding.

    A subclass defines the shape of an event (`event_shape`) and, where there is padding, `token_mask`.
    """

    uses_context = False
    can_be_scaled = True
    location: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Says on which device, and in which dtype, to draw.
        self.register_buffer("location", torch.zeros((), device=table_device()), persistent=False)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        """The shape of an event, given the context (None where there is none)."""
        raise NotImplementedError

    def token_mask(self, context: Any) -> Tensor | None:
        """Which tokens are no padding, ``(B, T)``; None where all are."""
        return None

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        """Log-densities ``(B,)``, in nats. Raises ValueError for inputs of another shape."""
        shape = self.event_shape(context)
        check_event_shape(inputs, shape)
        inputs = widened(inputs)
        mask = self.token_mask(context)
        if mask is None:
            dimensions: float | Tensor = math.prod(shape)
        else:
            inputs = inputs.masked_fill(~mask.unsqueeze(-1), 0.0)
            dimensions = mask.sum(-1).to(inputs.dtype) * shape[-1]
        return -0.5 * (flattened(inputs).square().sum(-1) + dimensions * math.log(2 * math.pi))

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        return self.draw(num_samples, context)

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Random draws; padding is zero.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, where the flow has one.
            generator: source of the random numbers (default: torch's global one). It may be on any device, and draws
                there, so that one seed gives the same numbers for models on several devices.

        Returns:
            ``(num_samples, *event_shape)``, or ``(rows, num_samples, *event_shape)`` with a context.
        """
        rows = (num_samples,) if context is None else (num_rows(context), num_samples)
        device = self.location.device if generator is None else generator.device
        shape = (*rows, *self.event_shape(context))
        dtype = torch.promote_types(self.location.dtype, torch.float32)  # noise in half precision would not be normal
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        noise = noise.to(self.location.device)
        mask = self.token_mask(context)
        return noise if mask is None else noise.masked_fill(~mask[:, None, :, None], 0.0)


class StandardNormal(NormalNoise):
    """The standard normal distribution of events of a given shape; log-densities are in float32 or better.

    Args:
        shape: of an event.

    >>> base = StandardNormal((4, 2))
    >>> base.log_prob(base.draw(5)).shape
    torch.Size([5])
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.shape = tuple(shape)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return self.shape


class NormalsAndAngles(StandardNormal):
    """Independent numbers, some standard normal, the others angles that are uniform on [-pi, pi).

    Args:
        shape: of an event, ``(..., C)``.
        is_angle: which numbers of the last dimension are angles, C bools.

    >>> base = NormalsAndAngles((4, 2), [False, True])
    >>> base.draw(5).shape
    torch.Size([5, 4, 2])
    """

    can_be_scaled = False
    is_angle: Tensor

    def __init__(self, shape: Sequence[int], is_angle: Sequence[bool]):
        super().__init__(shape)
        self.register_buffer("is_angle", torch.tensor(is_angle, device=table_device()), persistent=False)
        self.num_angles = sum(is_angle) * math.prod(self.shape[:-1])

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        # An angle as the number zero has the density 1 / sqrt(2 pi), and 1 / (2 pi) as an angle.
        log_prob = super().log_prob(torch.where(self.is_angle.to(inputs.device), 0.0, inputs), context)
        return log_prob - 0.5 * math.log(2 * math.pi) * self.num_angles

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        noise = super().draw(num_samples, context, generator)
        return torch.where(self.is_angle, math.pi * torch.erf(noise * math.sqrt(0.5)), noise)


class PaddedNormal(NormalNoise):
    """The standard normal distribution of padded tokens, of which the context says how many each sample has.

    Padding carries no density.

    Args:
        token_size: how many numbers a token has.
        mask: a module that makes the mask ``(B, T)``, False at padding, from the context.

    Raises:
        ValueError: there is no context.
    """

    uses_context = True

    def __init__(self, token_size: int, mask: nn.Module):
        super().__init__()
        self.token_size = token_size
        self.mask = mask

    def token_mask(self, context: Any) -> Tensor:
        if context is None:
            raise ValueError("the number of tokens comes from the context; pass the flow a context.")
        return self.mask(context)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return (self.token_mask(context).shape[1], self.token_size)


class ScaledNoise(FullPrecisionBuffers, Distribution):
    """Normal noise of which each number is multiplied by a scale, chosen at random and independently from a few.

    With one scale s it is the noise at temperature s^2; with (1, 1.5) and weights (0.97, 0.03) it is nearly the noise
    itself, but with tails that fall more slowly.

    Args:
        noise: normal noise, which gives the shape and padding of an event.
        scales: positive factors.
        weights: how often each is chosen, of sum 1 (default: equally).

    Raises:
        ValueError: a base of another kind, scales or weights that are not positive, or weights that do not sum to 1.
    """

    scales: Tensor
    log_weights: Tensor

    def __init__(self, noise: NormalNoise, scales: Sequence[float], weights: Sequence[float] | None = None):
        super().__init__()
        if not getattr(noise, "can_be_scaled", False):
            raise ValueError(f"only normal noise can be scaled, but this base is a {type(noise).__name__}.")
        shares = [1.0 / max(len(scales), 1)] * len(scales) if weights is None else list(weights)
        if not shares or len(shares) != len(scales) or not all(0.0 < x < math.inf for x in (*scales, *shares)):
            raise ValueError(f"scales {list(scales)} and their weights {shares} must be positive, one weight a scale.")
        if abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(f"the weights {shares} of the scales must sum to 1.")
        self.noise = noise
        self.uses_context = noise.uses_context
        # Saved with a model, whose own arguments do not tell of them.
        device = noise.location.device
        self.register_buffer("scales", torch.tensor(scales, device=device))
        self.register_buffer("log_weights", torch.tensor(shares, device=device).log())

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return self.noise.event_shape(context)

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        """Log-densities ``(B,)``, in nats."""
        constant = self.noise.log_prob(torch.zeros_like(inputs), context)  # -N log(2 pi) / 2
        scales, log_weights = self.scales.to(constant.dtype), self.log_weights.to(constant.dtype).log_softmax(0)
        # Each number by itself: as a difference from the standard normal's, digits would be lost in the tails.
        squares = (inputs.to(constant.dtype)[..., None] / scales).square()
        log_prob = torch.logsumexp(log_weights - scales.log() - 0.5 * squares, dim=-1)
        mask = self.noise.token_mask(context)
        log_prob = log_prob if mask is None else log_prob.masked_fill(~mask.unsqueeze(-1), 0.0)
        return constant + flattened(log_prob).sum(-1)

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        return self.draw(num_samples, context)

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws as those of the noise; padding is zero."""
        noise = self.noise.draw(num_samples, context, generator)
        device = noise.device if generator is None else generator.device
        uniform = torch.rand(noise.shape, generator=generator, dtype=torch.float32, device=device).to(noise.device)
        chosen = torch.searchsorted(self.log_weights.float().softmax(0).cumsum(0)[:-1], uniform, right=True)
        return noise * self.scales[chosen].to(noise.dtype)


class StudentNoise(Distribution):
    """The multivariate Student t distribution, the noise of PFGM++ (Xu et al. 2023, arXiv:2302.04265).

    Its density falls as ``(|x|^2 + r^2)^(-(N + D) / 2)``, ``r = sigma sqrt(D)``, N numbers an event: the radius is
    ``r sqrt(y / (1 - y))`` with y of Beta(N / 2, D / 2), which is that of a normal over the root of a chi-square. The
    limit of infinite D is the normal distribution.

    Args:
        shape: of an event.
        degrees_of_freedom: D, the number of further dimensions in which the data are charges.
        sigma: width; for large D the standard deviation of each number.

    Raises:
        ValueError: degrees_of_freedom or sigma that are not positive and finite.

    >>> StudentNoise((4, 2), degrees_of_freedom=64.0).draw(5).shape
    torch.Size([5, 4, 2])
    """

    uses_context = False

    def __init__(self, shape: Sequence[int], degrees_of_freedom: float, sigma: float = 1.0):
        super().__init__()
        if not (0 < degrees_of_freedom < math.inf and 0 < sigma < math.inf):
            raise ValueError(
                f"StudentNoise: degrees_of_freedom is {degrees_of_freedom} and sigma {sigma}; pass positive numbers."
            )
        self.noise = StandardNormal(shape)
        self.degrees_of_freedom, self.sigma = float(degrees_of_freedom), float(sigma)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return self.noise.event_shape(context)

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        """Log-densities ``(B,)``, in nats. Raises ValueError for inputs of another shape."""
        number, freedom = math.prod(self.event_shape(context)), self.degrees_of_freedom
        constant = self.noise.log_prob(torch.zeros_like(inputs), context)  # -N log(2 pi) / 2
        inputs = inputs.to(constant.dtype) / self.sigma
        square = flattened(inputs).square().sum(1)
        return (
            constant
            + _log_gamma_ratio(freedom / 2, number / 2)
            - number * math.log(self.sigma)
            - (number + freedom) / 2 * torch.log1p(square / freedom)
        )

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        return self.draw(num_samples, context)

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws as those of `StandardNormal`."""
        noise = self.noise.draw(num_samples, context, generator)
        shape = noise.shape[: noise.dim() - len(self.noise.shape)]
        device = noise.device if generator is None else generator.device
        half = torch.full(shape, 0.5 * self.degrees_of_freedom, dtype=noise.dtype, device=device)
        gamma = torch._standard_gamma(half, generator=generator).to(noise.device)  # type: ignore[call-arg]
        factor = self.sigma * (0.5 * self.degrees_of_freedom / gamma).sqrt()
        return noise * factor.reshape(*shape, *[1] * len(self.noise.shape))


def _log_gamma_ratio(a: float, b: float) -> float:
    """``log(Gamma(a + b) / Gamma(a) / a^b)``, also where both are so large that their difference loses all digits."""
    return math.lgamma(b) - float(betaln(a, b)) - b * math.log(a)


class TorchBase(Distribution):
    """A torch distribution as the base of a flow.

    Args:
        distribution: without batch dimensions; its event shape is that of the base.

    Raises:
        ValueError: it has a batch shape, and is many densities.
    """

    uses_context = False

    def __init__(self, distribution: torch.distributions.Distribution):
        super().__init__()
        if distribution.batch_shape:
            raise ValueError(
                f"a {type(distribution).__name__} of batch shape {tuple(distribution.batch_shape)} is many densities; "
                f"make its batch dimensions part of the event: "
                f"torch.distributions.Independent(distribution, {len(distribution.batch_shape)})."
            )
        self.distribution = distribution
        # Of a flow given its context: its weights are this base's.
        flow = getattr(distribution, "flow", None)
        self.flow = flow if isinstance(flow, nn.Module) else None
        with torch.random.fork_rng():
            self.sample_inside = distribution.sample()

    @property
    def device(self) -> torch.device:
        """Where densities are computed: other torch distributions stay where they are, wherever the flow goes."""
        weight = None if self.flow is None else next(self.flow.parameters(), None)
        return self.sample_inside.device if weight is None else weight.device

    @property
    def stochastic_density(self) -> bool:
        """Whether log_prob is a random estimate, as of a continuous flow in it; see `Flow.stochastic_density`."""
        return is_estimate(self.distribution)

    def event_shape(self, context: Any) -> tuple[int, ...]:
        return tuple(self.distribution.event_shape)

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        """Log-densities ``(B,)``, in nats: ``-inf`` outside the support, where torch's distributions raise."""
        check_event_shape(inputs, self.event_shape(context))  # torch's would broadcast
        x = inputs.to(self.device)
        # In the graph, so that gradients are zero, not missing, where the density is constant; NaN stays NaN.
        zero = flattened(0.0 * x.clamp(-1.0, 1.0)).sum(dim=1)
        if x.shape[0] == 0:  # which some of torch's do not take
            return zero.to(inputs.device)
        try:
            support = self.distribution.support
        except NotImplementedError:
            support = None
        inside = torch.ones_like(zero, dtype=torch.bool) if support is None else support.check(x)
        # Another point stands in for those outside: whether there are any is no branch, for torch.func and export.
        x = torch.where(per_row(inside, x), x, self.sample_inside.to(x))
        return (torch.where(inside, self.distribution.log_prob(x), -torch.inf) + zero).to(inputs.device)

    def _sample(self, num_samples: int, context: Any) -> Tensor:
        shape = (num_samples,) if context is None else (num_rows(context), num_samples)
        # With their gradient, where it is recorded: samples of a flow depend on its base.
        return self.distribution.rsample(shape) if self.distribution.has_rsample else self.distribution.sample(shape)


def is_estimate(density: Any) -> bool:
    """Whether a density, or one that a torch distribution is made of, says that it is a random estimate."""
    inner = (getattr(density, name, None) for name in ("base_dist", "component_distribution"))
    return getattr(density, "stochastic_density", False) or any(is_estimate(part) for part in inner if part is not None)


def as_base(distribution: Distribution | torch.distributions.Distribution) -> Distribution:
    """A distribution as flows use it: nflows' as they are, torch's as a `TorchBase`."""
    return TorchBase(distribution) if isinstance(distribution, torch.distributions.Distribution) else distribution


def draw(
    distribution: Distribution, num_samples: int, context: Any = None, generator: torch.Generator | None = None
) -> Tensor:
    """Draw from any nflows distribution by a given generator.

    Args:
        distribution: the distribution.
        num_samples: how many, for each row of the context; 0 is allowed.
        context: rows of contexts, where the distribution has one.
        generator: source of the random numbers (default: torch's global one).

    Returns:
        ``(num_samples, *event_shape)``, or ``(rows, num_samples, *event_shape)`` with a context.
    """
    own = getattr(distribution, "draw", None)
    if own is not None:
        return own(num_samples, context, generator)  # type: ignore[no-any-return]
    if context is not None and not getattr(distribution, "uses_context", True):
        rows = num_rows(context)
        return draw(distribution, rows * num_samples, None, generator).unflatten(0, (rows, num_samples))
    with globally_seeded(generator):  # others know no other generator
        draws = distribution.sample(max(num_samples, 1), context=context)  # nflows knows no zero draws
    return draws[:num_samples] if context is None else draws[:, :num_samples]
