"""The check that nflows runs on its own transforms, on ours and those of our flows, by nflows' own compositions."""

from __future__ import annotations

import pytest
import torch
from nflows.flows import Flow as NFlowsFlow
from nflows.transforms import CompositeTransform, InverseTransform

from tests.nflib.cases import FLOWS, TRANSFORMS
from tests.perturb import perturb


@pytest.mark.parametrize("case", [*TRANSFORMS, *FLOWS], ids=str)
def test_composed_with_its_inverse_a_transform_is_the_identity(case):
    transform, embed = perturb(case.build()), torch.nn.Identity()
    if isinstance(transform, NFlowsFlow):
        transform, embed = transform._transform, transform._embedding_net
    inverse = InverseTransform(transform)
    for context in map(embed, case.contexts(10)):
        x = case.inputs(10)
        noise = transform(x, context)[0].detach()
        for parts, inputs in (([transform, inverse], x), ([inverse, transform], noise)):
            outputs, logabsdet = CompositeTransform(parts)(inputs, context)
            torch.testing.assert_close(outputs, inputs, rtol=0, atol=1e-4)
            torch.testing.assert_close(logabsdet, torch.zeros(10), rtol=0, atol=1e-4)
