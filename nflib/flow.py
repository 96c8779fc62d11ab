"""A flow: a base density carried through an invertible map, with exact log-densities and reproducible samples."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from nflows.distributions import Distribution
from nflows.flows import Flow as NFlowsFlow
from nflows.transforms import Transform
from nflows.utils import torchutils
from torch import Tensor, nn

from nflib.decoding import Decoder, report, using
from nflib.decoding.reports import is_reporting, record_round_trip
from nflib.distributions import NormalNoise
from nflib.io.pretrained import Pretrained
from nflib.transforms.guided import Guidance, PairedContext, guide


class Flow(Pretrained, NFlowsFlow):
    """An `nflows.flows.Flow` whose samples come from a generator or seed, in batches.

    ``log_prob(x) = log base(z) + logabsdet`` with ``z, logabsdet = transform(x)``, in nats, summed over the event.
    Any nflows transform and distribution will do. `sample` and `sample_and_log_prob` carry no gradient.

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
        distribution: Distribution,
        embedding_net: nn.Module | None = None,
    ):
        super().__init__(transform, distribution, embedding_net)

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of each input, ``(B,)``, in nats, summed over the event, in float32 or better.

        Raises ValueError for inputs of another event shape, or a context of another number of rows.
        """
        return NFlowsFlow.log_prob(self, inputs, context)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> Tensor:
        """Samples ``(num_samples, *event)``, or ``(len(context), num_samples, *event)`` with a context.

        At most `batch_size` of them are decoded at once. The same seed (or generator state) gives the same
        samples on the same device. decoding: how the autoregressive maps are inverted, such as `decoding.Jacobi()`
        (default: as each of them is set). Raises ValueError for num_samples or batch_size < 1, or a generator and a
        seed at once.
        """
        with using(decoding):
            samples, _ = self._generate(num_samples, context, batch_size, generator, seed, with_log_prob=False)
        return samples

    @torch.no_grad()
    def sample_and_log_prob(
        self,
        num_samples: int,
        context: Tensor | None = None,
        batch_size: int | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        decoding: Decoder | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples, as `sample` gives them, and their log-densities: ``(num_samples,)``, or with the context's rows.

        The log-densities are those of the samples returned, whatever the tolerance with which they were decoded.
        """
        with using(decoding):
            return self._generate(num_samples, context, batch_size, generator, seed, with_log_prob=True)

    def _generate(
        self,
        num_samples: int,
        context: Tensor | None,
        batch_size: int | None,
        generator: torch.Generator | None,
        seed: int | None,
        *,
        with_log_prob: bool,
    ) -> tuple[Tensor, Tensor]:
        if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
            raise ValueError(f"num_samples must be a positive integer, got {num_samples!r}.")
        num_samples = int(num_samples)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer, or None for all, got {batch_size!r}.")
        if generator is not None and seed is not None:
            raise ValueError("pass either a generator or a seed to sample, not both.")
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
        embedded = self._embedding_net(None if context is None else torch.as_tensor(context))
        noise = self._draw(num_samples, embedded, generator)
        if embedded is not None:
            noise = torchutils.merge_leading_dims(noise, num_dims=2)
            embedded = torchutils.repeat_rows(embedded, num_reps=num_samples)
        pieces = []
        step = batch_size or len(noise)
        for first in range(0, len(noise), step):
            rows = slice(first, first + step)
            rows_context = None if embedded is None else embedded[rows]
            pieces.append(self._decoded(noise[rows], rows_context, with_log_prob))
        samples, log_prob = (torch.cat(column) for column in zip(*pieces, strict=True))
        if embedded is not None:
            samples = torchutils.split_leading_dim(samples, shape=[-1, num_samples])
            log_prob = torchutils.split_leading_dim(log_prob, shape=[-1, num_samples])
        return samples, log_prob

    def _decoded(self, noise: Tensor, context: Tensor | None, with_log_prob: bool) -> tuple[Tensor, Tensor]:
        """The samples x of this noise and their log-densities, which are not exact unless with_log_prob."""
        with report() as inversion:
            samples, logabsdet = self._transform.inverse(noise, context=context)
        is_exact = inversion.residual == 0
        log_prob = self._distribution.log_prob(noise, context=context) - logabsdet
        if is_reporting() or (with_log_prob and not is_exact):
            # What x was decoded within a tolerance from `noise` to comes from other noise, with its own density.
            own_noise, logabsdet = self._transform(samples, context=context)
            is_finite = samples.isfinite().flatten(1).all(-1)
            error = torch.where(is_finite[:, None], (own_noise - noise).flatten(1).abs(), 0.0)
            record_round_trip(float(error.max()))
            if not is_exact:
                log_prob = self._distribution.log_prob(own_noise, context=context) + logabsdet
        return samples, log_prob

    def _draw(self, num_samples: int, context: Tensor | None, generator: torch.Generator | None) -> Tensor:
        if isinstance(self._distribution, NormalNoise):
            return self._distribution.draw(num_samples, context, generator)
        if generator is None:
            return self._distribution.sample(num_samples, context=context)
        # nflows' own distributions know only torch's global generator: seed that, and put it back afterwards.
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
            return self._distribution.sample(num_samples, context=context)

    def score(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """The score, ``d log_prob(x) / dx``: same shape as inputs; works under `torch.no_grad` as well."""
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_(True)
            log_prob = self.log_prob(inputs, context)
            (gradient,) = torch.autograd.grad(log_prob.sum(), inputs)
        return gradient

    def bits_per_dim(self, inputs: Tensor, context: Tensor | None = None, *, bin_width: float = 1.0) -> Tensor:
        """Negative log-likelihood in bits for each dimension, ``(B,)``: the usual figure for images.

        ``-(log_prob + D log bin_width) / (D log 2)``; bin_width is the width that one quantisation level has in the
        inputs: 2/256 for 8-bit images scaled to [-1, 1].
        """
        dimensions = inputs[0].numel()
        return -(self.log_prob(inputs, context) / dimensions + math.log(bin_width)) / math.log(2)

    def decode(self, noise: Tensor, context: Tensor | None = None, *, decoding: Decoder | None = None) -> Tensor:
        """The x that the transform maps to `noise`: the inverse alone, without a log-density."""
        with torch.no_grad(), using(decoding):
            return self._transform.inverse(noise, context=self._embedding_net(context))[0]

    def guided(self, guidance: Guidance, unconditional: Tensor) -> Flow:
        """This flow under classifier-free guidance, on the same weights: a flow of its own, with its exact density.

        guidance: such as `nflib.transforms.LinearGuidance(1.5)`. unconditional: the context of the other branch, one
        for all rows or one a row: for class labels ``torch.tensor(-1)``. The guided flow takes the same contexts as
        this one. Raises ValueError where no map of the flow uses a context.
        """
        return GuidedFlow(self, guidance, unconditional)


class GuidedFlow(Flow):
    """What `Flow.guided` gives. It keeps the flow that it guides, on shared weights, as its constructor's argument."""

    def __init__(self, flow: Flow, guidance: Guidance, unconditional: Tensor):
        embedding = PairedContext(unconditional, flow._embedding_net)
        super().__init__(guide(flow._transform, guidance), flow._distribution, embedding)
