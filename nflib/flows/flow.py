"""A flow: a base density carried through an invertible map, with exact log-densities and reproducible samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, Self

import torch
from nflows.distributions import Distribution
from nflows.flows import Flow as NFlowsFlow
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from nflib.contexts import Context, as_context, check_shape, map_context, num_rows, repeated
from nflib.decoding.reports import is_reporting, record_round_trip
from nflib.distributions import ScaledNoise, as_base, draw
from nflib.dtypes import as_dtype, check_half_precision
from nflib.errors import at_least, check_object
from nflib.events import flattened, per_row
from nflib.flows.given import GivenFlow
from nflib.inference import differentiates, within_torch_func
from nflib.interfaces import Decoder
from nflib.io.arguments import changed
from nflib.io.pretrained import Pretrained
from nflib.random import given_generator
from nflib.transforms.guided import Guidance, PairedContext, guide
from nflib.transforms.inversion import forward, input_shape, invert, uses_context


class Flow(Pretrained, NFlowsFlow):
    """A normalizing flow: the density that a base distribution has when carried through an invertible transform.

    ``log_prob(x) = log base(z) + logabsdet`` with ``z, logabsdet = transform(x)``, in nats, summed over the event.
    Any nflows transform will do, and any distribution of nflows or `torch.distributions`.

    Args:
        transform: the map from data to noise.
        distribution: the base distribution, of the noise.
        embedding_net: a network that each context goes through first, once a call (default: none).
        context_shape: the shape of one context, None where a size is free; `()` for a number, D for ``(D,)``. By
            default contexts are not checked, and are refused where no part reads them.

    Raises:
        ValueError: a torch distribution with a batch shape, which is many densities.

    >>> import torch
    >>> from nflib.flows import TARFlow
    >>> flow = TARFlow(event_shape=(6,), patch_size=2, channels=32, num_blocks=2, layers_per_block=1, head_dim=16)
    >>> x, log_prob = flow.sample_and_log_prob(5, seed=0)
    >>> torch.allclose(log_prob, flow.log_prob(x), atol=1e-4)
    True
    """

    _transform: Transform
    _distribution: Distribution
    _embedding_net: nn.Module

    def __init__(
        self,
        transform: Transform,
        distribution: Distribution | torch.distributions.Distribution,
        embedding_net: nn.Module | None = None,
        *,
        context_shape: Sequence[int | None] | int | None = None,
    ):
        super().__init__(transform, as_base(distribution), embedding_net)
        sizes = context_shape if isinstance(context_shape, Sequence | None) else [context_shape]
        self.context_shape = None if sizes is None else tuple(sizes)
        self._takes_context = embedding_net is not None or uses_context(transform) or self._base_uses_context()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one sample. Raises ValueError where it depends on the context; see `given`."""
        return self._event_shape(None)

    @property
    def stochastic_density(self) -> bool:
        """Whether log_prob is only a random estimate, as of a part; importance weights need an exact one."""
        parts = (part for whole in (self._transform, self._distribution) for part in whole.modules())
        return any(getattr(part, "stochastic_density", False) for part in parts)

    @property
    def uses_context(self) -> bool:
        """Whether the flow takes a context; also asked by a flow that has this one as its base."""
        return self._takes_context

    def log_prob(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """Log-density of each input.

        Args:
            inputs: ``(B, *event_shape)``. Integers and numbers in half precision are converted to the flow's dtype.
            context: a row for each input, where the flow takes one.
            batch_size: at most so many inputs are computed at once (default: all), which bounds the memory, also that
                of the gradient.

        Returns:
            ``(B,)``, in nats, in float32 or better.

        Raises:
            ValueError: the inputs have another event shape, or float64 where the flow has float32; one lies outside the
                domain of a part, such as `Logit` (Monte Carlo and mixtures take its log-density for -inf); the context
                has another shape or number of rows, is missing, or is one that the flow does not take.
        """
        inputs = self._as_own_dtype(inputs)
        # Of a graph that is traced, shape keeps the batch size open where len() would be a constant.
        context = self._checked_context(context, inputs.shape[0])
        if batch_size is None or inputs.shape[0] <= at_least(1, "batch_size", batch_size):
            return self._log_prob_given(inputs, self._embedded(context))
        pieces = []
        for x, c in self._batches(inputs, context, batch_size):
            # Where it is differentiated, of each batch only the inputs are kept, and the rest is computed again.
            pieces.append(
                checkpoint(self._log_prob_of, x, c, use_reentrant=False)
                if torch.is_grad_enabled() and not within_torch_func()
                else self._log_prob_of(x, c)
            )
        return torch.cat(pieces)

    def forward(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """`log_prob`, so that a flow can be called, compiled, exported and wrapped as any module."""
        return self.log_prob(inputs, context, batch_size)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        context: Any = None,
        batch_size: int | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """Samples without gradients; `rsample` gives them with gradients.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, where the flow takes one.
            batch_size: at most so many are decoded at once (default: all).
            generator: source of the random numbers (default: torch's global one).
            seed: instead of a generator; the same seed gives the same samples on the same device.
            decoding: how the autoregressive maps are inverted, such as `decoding.Jacobi()` (default: as each of them
                is set).

        Returns:
            ``(num_samples, *event_shape)``, or ``(rows, num_samples, *event_shape)`` with a context.

        Raises:
            ValueError: num_samples < 0 or batch_size < 1, a generator and a seed at once, a context that does not fit,
                or a flow in training mode whose dropout would make another density of every call.
        """
        return self._generate(num_samples, context, batch_size, generator, seed, decoding)[0]

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        num_samples: int,
        context: Any = None,
        batch_size: int | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities, without gradients.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, where the flow takes one.
            batch_size: at most so many are decoded at once (default: all).
            generator: as for `sample`.
            seed: as for `sample`.
            decoding: as for `sample`.

        Returns:
            The samples, and their log-densities in nats: ``(num_samples,)``, or ``(rows, num_samples)`` with a context.
            These are the log-densities of the very samples returned, whatever the tolerance of the decoder.

        Raises:
            ValueError: as for `sample`.
        """
        return self._generate(num_samples, context, batch_size, generator, seed, decoding, with_log_prob=True)

    def rsample(
        self,
        num_samples: int,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """Samples with gradients to the flow's parameters and the context (reparametrised, as in torch).

        The gradient is that of the equations which decoding solves (implicit differentiation); its memory is that of
        one pass of log_prob with gradient, whatever the number of sweeps.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, where the flow takes one.
            generator: as for `sample`.
            seed: as for `sample`.
            decoding: as for `sample`.

        Returns:
            ``(num_samples, *event_shape)``, or ``(rows, num_samples, *event_shape)`` with a context.

        Raises:
            ValueError: as for `sample`.
        """
        return self._generate(num_samples, context, None, generator, seed, decoding)[0]

    def rsample_and_log_prob(
        self,
        num_samples: int,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples with gradients, and their log-densities.

        The log-densities are differentiable too, both through the samples and through the parameters directly.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, where the flow takes one.
            generator: as for `sample`.
            seed: as for `sample`.
            decoding: as for `sample`.

        Returns:
            The samples, as `rsample` gives them, and their log-densities in nats, of the leading dimensions.

        Raises:
            ValueError: as for `sample`.
        """
        samples, _ = self._generate(num_samples, context, None, generator, seed, decoding)
        if context is None:
            return samples, self.log_prob(samples)
        rows = repeated(as_context(context), num_samples)
        return samples, self.log_prob(samples.flatten(0, 1), rows).view(samples.shape[:2])

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Samples with gradients, as a flow that has this one as its base draws them.

        As `rsample`, but of a context that this flow does not take only the number of rows counts.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, or None.
            generator: as for `sample`.
        """
        if context is None or self._takes_context:
            return self.rsample(num_samples, context, generator=generator)
        rows = num_rows(context)
        return self.rsample(rows * num_samples, generator=generator).unflatten(0, (rows, num_samples))

    @differentiates
    def score(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """The score, ``d log_prob(x) / dx``; works under `torch.no_grad` as well.

        Args:
            inputs: ``(B, *event_shape)``. If they require a gradient, the score can be differentiated again.
            context: as for `log_prob`.
            batch_size: as for `log_prob`.

        Returns:
            A tensor of the shape of the inputs.

        Raises:
            ValueError: as for `log_prob`.
        """
        inputs = self._as_own_dtype(inputs)
        context = self._checked_context(context, len(inputs))
        is_differentiated = torch.is_grad_enabled() and inputs.requires_grad
        scores = []
        with torch.enable_grad():
            for x, c in self._batches(inputs, context, batch_size):
                x = x if is_differentiated else x.detach().requires_grad_()
                log_prob = self._log_prob_of(x, c).sum()
                scores.append(torch.autograd.grad(log_prob, x, create_graph=is_differentiated)[0])
        return torch.cat(scores)

    def bits_per_dim(
        self, inputs: Tensor, context: Any = None, batch_size: int | None = None, *, bin_width: float = 1.0
    ) -> Tensor:
        """Negative log-likelihood in bits per dimension, the usual figure for images.

        ``-(log_prob + D log bin_width) / (D log 2)``, D numbers an event. The mean over inputs that are uniformly
        dequantised, each level over its bin, bounds the bits of a lossless code; that at the levels alone bounds none.

        Args:
            inputs: ``(B, *event_shape)``.
            context: as for `log_prob`.
            batch_size: as for `log_prob`.
            bin_width: distance of two quantisation levels, in the unit of the inputs. Of levels k = 0 … 255 it is 2/255
                for inputs ``k / 127.5 - 1``, and 2/256 for ``(k + u) / 128 - 1`` with u uniform on [0, 1), which is how
                the released TARFlows with uniform noise take pixels.

        Returns:
            ``(B,)``.

        Raises:
            ValueError: bin_width is not positive, or as for `log_prob`.
        """
        if not bin_width > 0:
            raise ValueError(f"bin_width is the width of one quantisation level, a positive number; got {bin_width!r}.")
        inputs = self._as_own_dtype(inputs)
        dimensions = math.prod(inputs.shape[1:])
        return -(self.log_prob(inputs, context, batch_size) / dimensions + math.log(bin_width)) / math.log(2)

    @torch.no_grad()
    def encode(self, inputs: Tensor, context: Any = None, batch_size: int | None = None) -> Tensor:
        """The noise that the transform maps inputs to, without gradients; the inverse of `decode`.

        Args:
            inputs: ``(B, *event_shape)``.
            context: as for `log_prob`.
            batch_size: as for `log_prob`.

        Returns:
            The noise, a row for each input; NaN where the map has no inverse (its log-determinant is NaN).

        Raises:
            ValueError: as for `log_prob`.
        """
        inputs = self._as_own_dtype(inputs)
        context = self._checked_context(context, len(inputs))
        pieces = []
        for x, c in self._batches(inputs, context, batch_size):
            noise, logabsdet = self._to_noise(x, self._embedded(c))
            pieces.append(torch.where(per_row(logabsdet.isnan(), noise), torch.nan, noise))
        return torch.cat(pieces)

    @torch.no_grad()
    def decode(
        self, noise: Tensor, context: Any = None, batch_size: int | None = None, *, decoding: Decoder | None = None
    ) -> Tensor:
        """The x that the transform maps to `noise`, without gradients or log-densities; the inverse of `encode`.

        Args:
            noise: in the shape of the base's draws, a row for each x.
            context: a row for each row of noise, where the flow takes one.
            batch_size: as for `sample`.
            decoding: as for `sample`.

        Returns:
            ``(B, *event_shape)``.

        Raises:
            ValueError: batch_size < 1, float64 noise where the flow has float32, a context that does not fit, or a
                flow in training mode that has dropout.
        """
        self._check_evaluation()
        noise = self._as_own_dtype(noise, "noise values")
        context, decoder = self._checked_context(context, len(noise)), check_decoder(decoding)
        batches = self._batches(noise, context, batch_size)
        return torch.cat(
            [invert(self._transform, z, self._embedded(c), decoder, density=False).tokens for z, c in batches]
        )

    def noise_and_log_prob(
        self, num_samples: int, context: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Noise drawn from the base distribution, and its log-densities there; `decode` turns noise into samples.

        A learnt base keeps its gradients.

        Args:
            num_samples: how many, for each row of the context.
            context: rows of contexts, where the flow takes one.
            generator: source of the random numbers (default: torch's global one).

        Returns:
            The noise, ``(num_samples, *shape)`` or ``(rows, num_samples, *shape)`` with a context, and its
            log-densities in nats, of the leading dimensions.
        """
        noise, embedded, shape = self._noise(num_samples, context, generator)
        return noise.unflatten(0, shape), self._base_log_prob(noise, embedded).unflatten(0, shape)

    def given(self, context: Any = None) -> GivenFlow:
        """This flow with its context fixed: a `torch.distributions.Distribution` on the same weights.

        Args:
            context: a label, a vector, a sequence, an image …: one context, with a batch dimension of 1 or without
                where the flow knows its context's shape. None for a flow, or a class, without one.

        Raises:
            ValueError: the flow takes no context, or another one.

        >>> from nflib.flows import TARFlow
        >>> flow = TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16, num_classes=10)
        >>> three = flow.given(3)
        >>> three.sample((5,)).shape
        torch.Size([5, 6])
        """
        context = as_context(context)
        if context is not None and self.context_shape is not None:
            tokens = context if isinstance(context, Tensor) else context[0]
            if tokens.dim() == len(self.context_shape):
                context = map_context(lambda part: part.unsqueeze(0), context)
        context = self._checked_context(context)
        if context is not None and num_rows(context) != 1:
            raise ValueError(f"given() takes one context, got {num_rows(context)} rows; call it once for each.")
        return GivenFlow(self, context, self._event_shape(self._embedded(context)))

    def guided(self, guidance: Guidance, unconditional: Any = None) -> Flow:
        """This flow under classifier-free guidance: a new flow on the same weights, with an exact density of its own.

        The guided flow takes the same contexts as this one.

        Args:
            guidance: such as `nflib.transforms.LinearGuidance(1.5)`.
            unconditional: the context of the unconditional branch, one for all rows or one a row, of the contexts'
                shape; a pair for tokens with a padding mask. Default, for class labels alone: -1.

        Raises:
            ValueError: no map of the flow that uses a context can be guided, or contexts are not class labels and the
                unconditional one is left out.

        >>> from nflib.flows import TARFlow
        >>> from nflib.transforms import LinearGuidance
        >>> flow = TARFlow(event_shape=(6,), channels=32, num_blocks=2, head_dim=16, num_classes=10)
        >>> flow.guided(LinearGuidance(1.5)).sample(5, torch.tensor([3])).shape
        torch.Size([1, 5, 6])
        """
        if unconditional is None and self._takes_context:
            if self.context_shape != ():
                raise ValueError("this flow's contexts are no class labels; pass the unconditional context.")
            unconditional = -1
        return GuidedFlow(self, guidance, as_context(unconditional))

    def with_scaled_noise(self, *scales: float, weights: Sequence[float] | None = None) -> Self:
        """This flow with its noise scaled: a new flow on the same weights, with an exact density of its own.

        Args:
            scales: one factor for all numbers of the noise, such as ``sqrt(T)`` for temperature T; or several, of which
                each number takes one at random, so that tails fall more slowly.
            weights: how often each scale is taken, of sum 1 (default: equally).

        Raises:
            ValueError: the base is no standard normal, or scales and weights do not fit.

        >>> from nflib.flows import TARFlow
        >>> flow = TARFlow(event_shape=(6,), patch_size=2, channels=32, num_blocks=1, head_dim=16)
        >>> x, log_prob = flow.with_scaled_noise(1.0, 1.5, weights=(0.97, 0.03)).sample_and_log_prob(5, seed=0)
        """
        return changed(self, _distribution=ScaledNoise(self._distribution, scales, weights))

    def _generate(
        self,
        num_samples: int,
        context: Any,
        batch_size: int | None,
        generator: torch.Generator | None,
        seed: int | None,
        decoding: Decoder | None,
        *,
        with_log_prob: bool = False,
    ) -> tuple[Tensor, Tensor]:
        generator = given_generator(generator, seed)
        decoder = check_decoder(decoding)
        self._check_evaluation()
        noise, embedded, shape = self._noise(num_samples, context, generator)
        pieces = [
            self._decoded(z, own, decoder, with_log_prob) for z, own in self._batches(noise, embedded, batch_size)
        ]
        samples, log_prob = (torch.cat(column) for column in zip(*pieces, strict=True))
        return samples.unflatten(0, shape), log_prob.unflatten(0, shape)

    def _noise(
        self, num_samples: int, context: Any, generator: torch.Generator | None
    ) -> tuple[Tensor, Any, tuple[int, ...]]:
        """Draws of the base, the embedded context of each, and the shape of samples that these become."""
        num_samples = at_least(0, "num_samples", num_samples)
        embedded = self._encoded(context)
        noise = draw(self._distribution, num_samples, self._base_context(embedded), generator)
        # Bases of others draw in a dtype and on a device of their own.
        if (dtype := self._dtype()) is not None:
            noise = noise.to(next(self.parameters()).device, torch.promote_types(dtype, torch.float32))
        if embedded is None:
            return noise, None, (num_samples,)
        return noise.flatten(0, 1), repeated(embedded, num_samples), tuple(noise.shape[:2])

    def _decoded(
        self, noise: Tensor, embedded: Any, decoder: Decoder | None, with_log_prob: bool
    ) -> tuple[Tensor, Tensor]:
        """The samples x of this noise and, with_log_prob, their log-densities."""
        samples, logabsdet, residual, _ = invert(self._transform, noise, embedded, decoder, density=with_log_prob)
        log_prob = _one_a_row(self._base_log_prob(noise, embedded), -logabsdet, noise) if with_log_prob else logabsdet
        if is_reporting() or (with_log_prob and residual != 0):
            # What x was decoded within a tolerance from `noise` to comes from other noise, with its own density.
            with torch.no_grad():
                own_noise, logabsdet = self._to_noise(samples, embedded)
                is_finite = flattened(samples).isfinite().all(-1)
                error = torch.where(is_finite[:, None], flattened(own_noise - noise).abs(), 0.0)
                if len(samples):
                    record_round_trip(float(error.max()))
                if with_log_prob and residual != 0:
                    log_prob = _one_a_row(self._base_log_prob(own_noise, embedded), logabsdet, samples)
        return samples, log_prob

    def _log_prob_of(self, inputs: Tensor, context: Any) -> Tensor:
        return self._log_prob_given(inputs, self._embedded(context))

    def _log_prob_given(self, inputs: Tensor, embedded: Any) -> Tensor:
        noise, logabsdet = self._to_noise(inputs, embedded)
        return _one_a_row(self._base_log_prob(noise, embedded), logabsdet, inputs)

    def _encoded(self, context: Any, rows: int | None = None) -> Any:
        """The context as the parts take it, if it is one that the flow takes, and of as many rows."""
        return self._embedded(self._checked_context(context, rows))

    def _embedded(self, context: Any) -> Any:
        try:
            return self._embedding_net(context)
        except (AttributeError, TypeError) as error:
            if context is not None:
                raise
            net = type(self._embedding_net).__name__
            raise ValueError(f"the embedding net of this flow, a {net}, needs a context; pass the flow one.") from error

    def _to_noise(self, inputs: Tensor, embedded: Any) -> tuple[Tensor, Tensor]:
        return forward(self._transform, inputs, embedded)

    def _base_log_prob(self, noise: Tensor, embedded: Any) -> Tensor:
        # A flow as the base refuses a context that it does not take.
        context = self._base_context(embedded) if self._base_uses_context() else None
        return self._distribution.log_prob(noise, context=context)

    def _base_context(self, embedded: Any) -> Any:
        """Of a context as the transform takes it, that of the base: in a guided flow the conditional one of a pair."""
        net = self._embedding_net
        return net.conditional(embedded) if isinstance(net, PairedContext) else embedded

    def _batches(self, values: Tensor, context: Any, batch_size: int | None) -> Iterator[tuple[Tensor, Any]]:
        """Rows of both, at most batch_size at once; of no rows one batch, which is empty."""
        step = max(len(values), 1) if batch_size is None else at_least(1, "batch_size", batch_size)
        for first in range(0, max(len(values), 1), step):
            rows = slice(first, first + step)
            yield values[rows], map_context(itemgetter(rows), context)

    def _checked_context(self, context: Any, rows: int | None = None) -> Any:
        """The context with a batch dimension, where the flow is, if it is one that it takes, and of as many rows."""
        context = as_context(context)
        if context is None:
            return None
        if not self._takes_context:
            raise ValueError("this flow takes no context; leave it out, or make a flow that is conditioned on one.")
        if self.context_shape is not None:
            check_shape(context, self.context_shape)
        if rows is not None and num_rows(context) != rows:
            raise ValueError(
                f"{rows} inputs need a context of as many rows, got {num_rows(context)}; for one that all share, use "
                "given()."
            )
        weight = next(self.parameters(), None)
        return context if weight is None else map_context(lambda part: part.to(weight.device), context)

    def _as_own_dtype(self, inputs: Tensor, name: str = "inputs") -> Tensor:
        """Inputs in the dtype of the flow's arithmetic; raises ValueError where that would lose digits."""
        return as_dtype(inputs, self._dtype(), name)

    def _dtype(self) -> torch.dtype | None:
        """The weights' dtype, None without weights; raises ValueError for one in which a part does not compute."""
        weight = next(self.parameters(), None)
        if weight is None:
            return None
        if weight.dtype.itemsize < 4:
            check_half_precision(self._transform)
        return weight.dtype

    def _event_shape(self, embedded: Any) -> tuple[int, ...]:
        base = getattr(self._distribution, "event_shape", None)
        if base is None:
            base = getattr(self._distribution, "_shape", None)
        if base is None:
            raise ValueError(f"the base {type(self._distribution).__name__} does not say what shape its events have.")
        return input_shape(self._transform, tuple(base(self._base_context(embedded)) if callable(base) else base))

    def _base_uses_context(self) -> bool:
        return bool(getattr(self._distribution, "uses_context", True))

    def _check_evaluation(self) -> None:
        if self.training and any(isinstance(part, _DropoutNd) and part.p > 0 for part in self.modules()):
            raise ValueError(
                "this flow has dropout and is in training mode, where it has no density; call eval() first."
            )


class GuidedFlow(Flow):
    """A flow under classifier-free guidance, made by `Flow.guided`, on the weights of the flow that it guides.

    Args:
        flow: the flow to guide.
        guidance: how the conditional and the unconditional branch are combined.
        unconditional: the context of the unconditional branch, of the contexts' shape; one row, or one for each.
    """

    def __init__(self, flow: Flow, guidance: Guidance, unconditional: Context):
        embedding = PairedContext(unconditional, flow._embedding_net)
        transform = guide(flow._transform, guidance)
        super().__init__(transform, flow._distribution, embedding, context_shape=flow.context_shape)


def check_decoder(decoder: Decoder | None) -> Decoder | None:
    """The decoder, if it can be called; raises ValueError otherwise."""
    if decoder is not None:
        check_object("decoding", decoder, "decoding.Jacobi()", "__call__")
    return decoder


def _one_a_row(log_prob: Tensor, logabsdet: Tensor, inputs: Tensor) -> Tensor:
    """The sum; raises ValueError where broadcasting, as of columns ``(B, 1)``, made other than one number a row."""
    total = log_prob + logabsdet
    if total.shape != inputs.shape[:1]:
        raise ValueError(
            f"the base gave log-densities of shape {tuple(log_prob.shape)} and the transform log-determinants of "
            f"{tuple(logabsdet.shape)} for {len(inputs)} inputs; return one number for each, summed over the event."
        )
    return total
