"""The checks that nflows runs on its own transforms, on ours, as an nflows user would write them.

nflows' test harness turns a transform around, composes it with itself by nflows' own InverseTransform and
CompositeTransform, and wants the identity, with a log-determinant of zero, finite, in the inputs' shapes.
"""

from __future__ import annotations

import math

import pytest
import torch
from nflows.flows import Flow as NFlowsFlow
from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import Tensor

from tests.nflib.cases import FLOWS, TRANSFORMS


class Harness:
    """What nflows asks of a transform; tolerance on values and log-determinants, absolute."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance

    def check_tensor(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        assert isinstance(tensor, Tensor)
        assert tuple(tensor.shape) == tuple(shape)
        assert tensor.isfinite().all()

    def check_pair(self, pair: tuple[Tensor, Tensor], shape: tuple[int, ...]) -> None:
        outputs, logabsdet = pair
        self.check_tensor(outputs, shape)
        self.check_tensor(logabsdet, shape[:1])

    def check_identity(self, transform: Transform, inputs: Tensor, context: Tensor | None) -> None:
        """`transform` leaves the inputs as they are, without a change of volume."""
        outputs, logabsdet = transform(inputs, context)
        self.check_pair((outputs, logabsdet), tuple(inputs.shape))
        torch.testing.assert_close(outputs, inputs, rtol=0, atol=self.tolerance)
        torch.testing.assert_close(logabsdet, torch.zeros(len(inputs)), rtol=0, atol=self.tolerance)

    def check(self, transform: Transform, inputs: Tensor, noise: Tensor, context: Tensor | None = None) -> None:
        """Forward and inverse are each other's, in both orders, starting from inputs and from noise."""
        inverse = InverseTransform(transform)
        self.check_pair(transform(inputs, context), tuple(noise.shape))
        self.check_pair(transform.inverse(noise, context), tuple(inputs.shape))
        self.check_identity(CompositeTransform([transform, inverse]), inputs, context)
        self.check_identity(CompositeTransform([inverse, transform]), noise, context)


HARNESS = Harness(tolerance=1e-4)


@pytest.mark.parametrize("case", [*TRANSFORMS, *FLOWS], ids=str)
def test_forward_and_inverse_are_consistent(case, perturb):
    module = perturb(case.build())
    for context in case.contexts(10):
        transform = module
        if isinstance(module, NFlowsFlow):
            transform, context = module._transform, module._embedding_net(context)
        noise, _ = transform(case.inputs(10), context)
        HARNESS.check(transform, case.inputs(10), noise.detach(), context)


class TwiceAsFar(Transform):
    """Doubles its inputs, and is wrong about one thing that the harness must find."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return 2 * inputs, inputs.new_full((len(inputs),), inputs[0].numel() * math.log(2))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs, logabsdet = inputs / 2, inputs.new_full((len(inputs),), -inputs[0].numel() * math.log(2))
        match self.fault:
            case "value":
                outputs = outputs + 1e-3
            case "sign":
                logabsdet = -logabsdet
            case "shape":
                logabsdet = logabsdet.unsqueeze(-1)
            case "infinite":
                outputs = outputs / 0
        return outputs, logabsdet


@pytest.mark.parametrize("fault", ["value", "sign", "shape", "infinite"])
def test_the_harness_finds_faults(fault):
    x = torch.randn(4, 3)
    HARNESS.check(TwiceAsFar("none"), x, x)
    with pytest.raises(AssertionError):
        HARNESS.check(TwiceAsFar(fault), x, x)
