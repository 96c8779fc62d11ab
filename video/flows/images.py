"""Flows of images as flows of clips of one frame; TARFlows with noise, or a first map, of their own."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from nflows.distributions import Distribution
from nflows.transforms import CompositeTransform, IdentityTransform, Transform
from torch import Tensor

from nflib.distributions import StandardNormal
from nflib.flows import Flow, TARFlow
from nflib.transforms import ClosedForm, GaussianizeMarginals, Guidance, LinearGuidance
from nflib.transforms.conditionals import REAL_CONDITIONALS, check_conditional


class OneFrame(ClosedForm):
    """Clips of one frame ``(B, 1, C, H, W)`` as images ``(B, C, H, W)``; raises ValueError for others."""

    def input_shape(self, output_shape: Sequence[int]) -> tuple[int, ...]:
        return (1, *output_shape)

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 5 or inputs.shape[1] != 1:
            raise ValueError(f"this flow is of images: clips must have one frame, got the shape {tuple(inputs.shape)}.")
        return inputs.squeeze(1), inputs.new_zeros(len(inputs))

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return inputs.unsqueeze(1), inputs.new_zeros(len(inputs))


class ImageClips(Flow):
    """A flow of images ``(C, H, W)`` as one of clips of one frame, on the same weights, for a `Pipeline`.

    Args:
        images: the flow, such as a `TARFlow`, which is also what is saved.
    """

    denoiser = None
    max_frames = 1
    has_sizes = False

    def __init__(self, images: Flow):
        transform = CompositeTransform([OneFrame(), images._transform])
        super().__init__(transform, images._distribution, images._embedding_net, context_shape=images.context_shape)
        self._takes_context = images._takes_context
        self.images = images

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return self.images.event_shape

    @property
    def patch_size(self) -> int:
        """The number of which the sides of images are multiples."""
        sides = (self.images.config or {}).get("patch_size", 1)
        return sides if isinstance(sides, int) else math.lcm(*sides)

    @property
    def frame_length(self) -> int:
        """How many tokens an image has."""
        return int(self._distribution.event_shape(None)[0])

    @property
    def text_shape(self) -> tuple[int, ...]:
        """``(number of classes,)``, or ``(0,)`` without."""
        return (int((self.images.config or {}).get("num_classes", 0)),)

    def guidance(self, weight: float) -> Guidance:
        """Classifier-free guidance of this weight as TARFlow has it, annealed over the tokens; for `guided`."""
        return LinearGuidance(weight, ramp=max(self.frame_length - 1, 1))

    def noise(self, num_frames: int) -> Distribution:
        return self._distribution

    def log_prob_of_frames(self, inputs: Tensor, context: Any = None) -> Tensor:
        """Log-density of each frame, ``(B, 1)``, in nats."""
        return self.log_prob(inputs, context).unsqueeze(1)

    def as_clips(self) -> ImageClips:
        return self

    def resized(self, event_shape: Sequence[int]) -> NoReturn:
        raise ValueError(f"this model makes images of {self.frame_shape[2]} × {self.frame_shape[1]} alone.")

    @property
    def coordinate_transform(self) -> Transform:
        """The first map, from clips of one frame to what Monte Carlo moves in: that of the flow of images."""
        return CompositeTransform([OneFrame(), getattr(self.images, "coordinate_transform", IdentityTransform())])

    @property
    def saved(self) -> Flow:
        """What is saved, and trained."""
        return self.images

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        return self.images.save_pretrained(folder, dtype)


class ScaledNormal(StandardNormal):
    """Independent normal numbers of mean 0, whose standard deviations are saved with a flow's weights."""

    can_be_scaled = False
    deviation: Tensor

    def __init__(self, shape: Sequence[int]):
        super().__init__(shape)
        self.register_buffer("deviation", torch.ones(tuple(shape)))

    def log_prob(self, inputs: Tensor, context: Any = None) -> Tensor:
        deviation = self.deviation.to(torch.promote_types(inputs.dtype, torch.float32))
        if tuple(inputs.shape[1:]) == self.shape:
            inputs = inputs / deviation
        return super().log_prob(inputs, context) - deviation.log().sum()

    def draw(self, num_samples: int, context: Any = None, generator: torch.Generator | None = None) -> Tensor:
        return super().draw(num_samples, context, generator) * self.deviation


class ScaledTARFlow(TARFlow):
    """A `TARFlow` whose base has variances of its own, as a released file may have them.

    Args:
        event_shape: as of `TARFlow`.
        settings: further arguments of `TARFlow`.
    """

    def __init__(self, event_shape: Sequence[int], **settings: Any):
        check_conditional(settings.get("conditional", "affine"), REAL_CONDITIONALS)
        super().__init__(event_shape, **settings)
        self._distribution = ScaledNormal(self._distribution.shape)


class GaussianizedTARFlow(TARFlow):
    """A `TARFlow` whose pixels are each first mapped to about normal numbers, by a spline that `fit_marginals` fits.

    What each pixel is like by itself, such as a margin that is always dark, is then known before training.

    Args:
        event_shape: as of `TARFlow`.
        num_bins_of_marginals: pieces of each spline.
        settings: further arguments of `TARFlow`.
    """

    def __init__(self, event_shape: Sequence[int], *, num_bins_of_marginals: int = 32, **settings: Any):
        check_conditional(settings.get("conditional", "affine"), REAL_CONDITIONALS)
        super().__init__(event_shape, **settings)
        self._transform = CompositeTransform(
            [GaussianizeMarginals(event_shape, num_bins_of_marginals), self._transform]
        )

    @property
    def coordinate_transform(self) -> Transform:
        """The first map, from pixels, which may have bounds, to numbers without, which Monte Carlo can move in."""
        marginals: Transform = self._transform._transforms[0]
        return marginals

    @property
    def has_bounds(self) -> bool:
        """Whether pixels are fitted between bounds, outside which the flow has no density."""
        return bool(self.coordinate_transform.is_interval.any())

    def fit_marginals(self, images: Tensor, bounds: tuple[float, float] | None = None) -> None:
        """Fit the splines of single pixels to images, in place.

        Args:
            images: ``(N, C, H, W)``.
            bounds: (low, high) between which all pixels lie; None for pixels without bounds.

        Raises:
            ValueError: too few images, or some outside the bounds.
        """
        marginals: Any = self.coordinate_transform
        is_bounded = torch.full(images.shape[1:], bounds is not None)
        fitted = GaussianizeMarginals.fit(
            images.double().cpu(), is_bounded, bounds=bounds or (-1, 1), num_bins=marginals.num_bins
        )
        marginals.load_state_dict(fitted.state_dict())


def as_clips(flow: Any) -> Any:
    """A flow of images or clips as one of clips, on the same weights; an image is a clip of one frame."""
    return flow.as_clips() if hasattr(flow, "as_clips") else ImageClips(flow)
