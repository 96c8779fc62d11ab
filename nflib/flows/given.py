"""A flow with its context bound: a distribution as torch and Monte Carlo know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from nflib.contexts import repeated
from nflib.dtypes import as_tensor
from nflib.interfaces import ConditionalDensity, Decoder


class GivenFlow(Distribution):
    """A flow with its context fixed: a torch distribution of ``batch_shape ()``, made by `Flow.given`.

    It shares the flow's weights.

    Args:
        flow: the flow.
        context: one context, with a batch dimension of 1; None for a flow without one.
        event_shape: the shape of one sample for this context.

    >>> from nflib.flows import TARFlow
    >>> flow = TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16, context_shape=(5,))
    >>> posterior = flow.given(torch.zeros(5))
    >>> x, log_prob = posterior.sample_and_log_prob(4, seed=0)
    >>> x.shape, log_prob.shape
    (torch.Size([4, 6]), torch.Size([4]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012, as torch has it
    has_rsample = True

    def __init__(self, flow: ConditionalDensity, context: Any, event_shape: Sequence[int]):
        super().__init__(torch.Size(), torch.Size(event_shape), validate_args=False)
        self.flow = flow
        self.context = context

    @property
    def stochastic_density(self) -> bool:
        """Whether log_prob is a random estimate; see `Flow.stochastic_density`."""
        return bool(getattr(self.flow, "stochastic_density", False))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor, batch_size: int | None = None) -> Tensor:
        """Log-density of each value.

        Args:
            value: ``(*sample_shape, *event_shape)``.
            batch_size: at most so many values are computed at once (default: all).

        Returns:
            ``sample_shape``, in nats.

        Raises:
            ValueError: values of another event shape, or as of `Flow.log_prob`.
        """
        value = as_tensor(value)
        rows = self._rows(value)
        return self.flow.log_prob(rows, repeated(self.context, len(rows)), batch_size).view(self._sample_shape(value))

    def score(self, value: Tensor, batch_size: int | None = None) -> Tensor:
        """The score, ``d log_prob(x) / dx``; see `Flow.score`.

        Args:
            value: ``(*sample_shape, *event_shape)``.
            batch_size: at most so many values are computed at once (default: all).

        Returns:
            A tensor of the shape of the values.
        """
        value = as_tensor(value)
        rows = self._rows(value)
        return self.flow.score(rows, repeated(self.context, len(rows)), batch_size).view(value.shape)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = (), **options: Any) -> Tensor:
        """Samples without gradients, ``(*sample_shape, *event_shape)``.

        Args:
            sample_shape: leading dimensions of the samples (default: one sample, without any).
            options: batch_size, generator, seed and decoding, as for `Flow.sample`.
        """
        return self._shaped(self.flow.sample(self._count(sample_shape), self.context, **options), sample_shape)

    def rsample(self, sample_shape: Sequence[int] = (), **options: Any) -> Tensor:
        """Samples with gradients to the flow's parameters and the context, ``(*sample_shape, *event_shape)``.

        Args:
            sample_shape: leading dimensions of the samples (default: one sample, without any).
            options: generator, seed and decoding, as for `Flow.rsample`.
        """
        return self._shaped(self.flow.rsample(self._count(sample_shape), self.context, **options), sample_shape)

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        num_samples: int,
        *,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities, without gradients.

        Args:
            num_samples: how many.
            batch_size: at most so many are decoded at once (default: all).
            generator: as for `Flow.sample`.
            seed: as for `Flow.sample`.
            decoding: as for `Flow.sample`.

        Returns:
            The samples ``(num_samples, *event_shape)``, and their log-densities ``(num_samples,)`` in nats.
        """
        samples, log_prob = self.flow.sample_and_log_prob(
            num_samples, self.context, batch_size, generator=generator, seed=seed, decoding=decoding
        )
        return (samples, log_prob) if self.context is None else (samples[0], log_prob[0])

    def _rows(self, value: Tensor) -> Tensor:
        shape = self._sample_shape(value)
        return value.reshape(shape.numel(), *self.event_shape)

    def _sample_shape(self, value: Tensor) -> torch.Size:
        number = value.dim() - len(self.event_shape)
        if number < 0 or value.shape[number:] != self.event_shape:
            raise ValueError(
                f"expected values of shape (…, {', '.join(map(str, self.event_shape))}), got {tuple(value.shape)}."
            )
        return value.shape[:number]

    def _count(self, sample_shape: Sequence[int]) -> int:
        if isinstance(sample_shape, int):
            raise ValueError(f"sample_shape is a shape, as in torch.distributions; pass ({sample_shape},).")
        return torch.Size(sample_shape).numel()

    def _shaped(self, samples: Tensor, sample_shape: Sequence[int]) -> Tensor:
        samples = samples if self.context is None else samples[0]
        return samples.view(*sample_shape, *self.event_shape)
