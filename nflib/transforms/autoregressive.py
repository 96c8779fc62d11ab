"""The one map every model here is made of: an affine map of each token, given the tokens before it."""

import torch
from nflows.transforms import Transform
from torch import Tensor, nn

from nflib.decoding import Decoder, Sequential, current
from nflib.networks.transformer import CausalTransformer
from nflib.transforms.scales import Exponential


class AutoregressiveTransform(Transform):
    """``z_t = (u_t - shift_t(u_<t)) / scale_t(u_<t)`` on tokens ``(B, T, C)`` (TARFlow, arXiv 2412.06329, eq. 3).

    network: strictly causal, ``(B, T, C) -> (B, T, 2C)``; its output's halves are the raw scale and the shift.
    scale: turns the raw scale into a log-scale. `forward` is one parallel pass; `inverse` solves for u with the
    decoder that `nflib.decoding.using` put in force, else with `decoding` (default: token by token). logabsdet is
    ``-sum log scale``, in float32 or better whatever the network computes in. Raises ValueError for inputs of another
    shape.
    """

    def __init__(self, network: CausalTransformer, scale: nn.Module | None = None, decoding: Decoder | None = None):
        super().__init__()
        self.network = network
        self.scale = scale or Exponential()
        self.decoding: Decoder = decoding or Sequential()

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check_shape(inputs)
        shift, log_scale = self.shift_and_log_scale(self.network(inputs, context))
        outputs = (inputs - shift) * torch.exp(-log_scale)
        return outputs, -log_scale.flatten(1).sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check_shape(inputs)
        return (current() or self.decoding)(self, inputs, context)

    def _check_shape(self, inputs: Tensor) -> None:
        token_size = self.network.out_channels // 2
        if inputs.dim() != 3 or inputs.shape[-1] != token_size:
            raise ValueError(f"expected tokens of shape (batch, tokens, {token_size}), got {tuple(inputs.shape)}.")

    def shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Split a network's output ``(B, L, 2C)`` into shift and log-scale ``(B, L, C)``, in float32 or better."""
        parameters = parameters.to(torch.promote_types(parameters.dtype, torch.float32))
        raw_scale, shift = parameters.chunk(2, dim=-1)
        return shift, self.scale(raw_scale)
