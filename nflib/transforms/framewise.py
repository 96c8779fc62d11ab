"""A map whose scope is one frame: the same for every frame of a sequence, and for none but its tokens."""

from typing import Any

from nflows.transforms import Transform
from torch import Tensor

from nflib.errors import at_least
from nflib.interfaces import Decoder, Inversion
from nflib.transforms.inversion import invert


class Framewise(Transform):
    """Applies one transform to each frame of a sequence ``(B, F * frame_length, C)`` by itself.

    The frames stand side by side in one batch, so that a decoder inverts them all in parallel. The transform gets no
    context (STARFlow-V's shallow blocks are unconditional). logabsdet is summed over frames.

    Args:
        transform: maps the tokens of a frame, ``(B, frame_length, C)``.
        frame_length: tokens of a frame.

    Raises:
        ValueError: frame_length is no positive integer, or the tokens do not fill whole frames.
    """

    uses_context = False

    def __init__(self, transform: Transform, frame_length: int):
        super().__init__()
        self.transform = transform
        self.frame_length = at_least(1, "frame_length", frame_length)

    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = self.by_frames(inputs)
        return outputs, logabsdet.sum(-1)

    def by_frames(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, but with the logabsdet of each frame, ``(B, F)``, in place of their sum."""
        return self._joined(inputs, *self.transform(self._frames(inputs)))

    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = self._joined(inputs, *self.transform.inverse(self._frames(inputs)))
        return outputs, logabsdet.sum(-1)

    def invert(self, inputs: Tensor, context: Any = None, decoder: Decoder | None = None) -> Inversion:
        """As `nflib.transforms.invert`, all frames of the batch at once."""
        inversion = invert(self.transform, self._frames(inputs), None, decoder)
        outputs, logabsdet = self._joined(inputs, inversion.tokens, inversion.logabsdet)
        return inversion._replace(tokens=outputs, logabsdet=logabsdet.sum(-1))

    def _frames(self, inputs: Tensor) -> Tensor:
        if inputs.dim() != 3 or inputs.shape[1] % self.frame_length:
            raise ValueError(
                f"tokens of shape {tuple(inputs.shape)} do not fill frames of {self.frame_length}; pass whole frames."
            )
        return inputs.unflatten(1, (-1, self.frame_length)).flatten(0, 1)

    def _joined(self, inputs: Tensor, outputs: Tensor, logabsdet: Tensor) -> tuple[Tensor, Tensor]:
        return outputs.reshape(inputs.shape), logabsdet.reshape(inputs.shape[0], inputs.shape[1] // self.frame_length)
