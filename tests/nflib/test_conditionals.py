"""Conditionals by name, and angles among numbers: their base, their marginals, and no seam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nflib.distributions import NormalsAndAngles
from nflib.flows import TARFlow
from nflib.transforms import UniformizeCircles
from nflib.transforms.conditionals import CONDITIONALS
from tests.perturb import perturb

SMALL = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8, "num_bins": 4}


def make(event_shape: tuple[int, ...], strength: float = 0.3, **settings: object) -> TARFlow:
    torch.manual_seed(0)
    return perturb(TARFlow(event_shape, **(SMALL | settings)), strength).double()


@pytest.mark.parametrize("conditional", CONDITIONALS)
def test_every_name_gives_an_exact_density(conditional):
    flow = make((6,), patch_size=3, conditional=conditional)
    x, log_prob = flow.sample_and_log_prob(50, seed=0)
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-8)


@pytest.mark.parametrize("conditional", [["spline", "circular"], ["circular", "mixture"], ["circular", "circular"]])
def test_densities_of_angles_and_numbers_integrate_to_one(conditional):
    """By the trapezoidal rule, which errs by the square of a step where slopes jump."""
    flow = make((2,), 0.1, patch_size=2, conditional=conditional, start_token=True)
    axes, widths = [], []
    for name in conditional:
        half = math.pi if name == "circular" else 9.0
        axis = torch.linspace(-half, half, 301, dtype=torch.float64)[:-1]
        axes.append(axis)
        widths.append(2 * half / 300)
    grid = torch.cartesian_prod(*axes)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum().item() * widths[0] * widths[1]
    assert total == pytest.approx(1.0, abs=1e-4)


def test_densities_are_continuous_through_pi():
    """Where an angle is the first of its token, so that the others are given it, and the last; in both visits."""
    flow = make((4, 3), patch_size=3, conditional=["circular", "spline", "circular"], start_token=True)
    x = flow.sample(20, seed=1)
    plain = make((4, 3), patch_size=3, conditional="spline", start_token=True)
    for token in range(4):
        for number in (0, 2):
            ahead, behind = x.clone(), x.clone()
            ahead[:, token, number], behind[:, token, number] = math.pi - 1e-12, -math.pi + 1e-12
            with torch.no_grad():
                torch.testing.assert_close(flow.log_prob(ahead), flow.log_prob(behind), rtol=0, atol=1e-6)
                assert (plain.log_prob(ahead) - plain.log_prob(behind)).abs().max() > 1e-2
    turns = torch.zeros_like(x)
    turns[..., [0, 2]] = 2 * math.pi * torch.arange(-1.0, 3.0, dtype=torch.float64).view(1, 4, 1)
    with torch.no_grad():  # the flow is so steep, 1e7 a radian, that rounding x + turns moves its density
        torch.testing.assert_close(flow.log_prob(x + turns), flow.log_prob(x), rtol=0, atol=1e-6)


def test_base_of_normals_and_angles():
    base = NormalsAndAngles((3, 2), [False, True]).double()
    x = base.draw(20_000, None, torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    expected = normal.log_prob(x[..., 0]).sum(-1) - 3 * math.log(2 * math.pi)
    torch.testing.assert_close(base.log_prob(x), expected)
    shares = (x[..., 1].flatten() / (2 * math.pi) + 0.5).sort().values
    assert (shares - torch.linspace(0, 1, len(shares))).abs().max() < 1.63 / len(shares) ** 0.5  # Kolmogorov, 1 %
    assert (x[..., 1].abs() <= math.pi).all() and x[..., 0].var().item() == pytest.approx(1, abs=0.03)


# --- marginals of angles


def two_modes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    kappa = 0.35 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    centres = torch.where(torch.rand(count, 1, generator=generator) < 0.3, -1.2, 1.4)
    return torch.remainder(kappa + centres + math.pi, 2 * math.pi) - math.pi


def test_circles_become_uniform_without_a_seam():
    data = two_modes(20_000)
    transform = UniformizeCircles.fit(data, num_bins=32)
    u, _ = transform(data)
    shares = (u.flatten() / (2 * math.pi) + 0.5).sort().values
    assert (shares - torch.linspace(0, 1, len(shares))).abs().max() < 0.02
    grid = torch.linspace(-math.pi, math.pi, 200_001, dtype=torch.float64)[:, None]
    z, logabsdet = transform(grid)
    assert z[0].item() == -math.pi and z[-1].item() == math.pi and (z.diff(dim=0) > 0).all()
    assert torch.trapezoid(logabsdet.exp() / (2 * math.pi), grid[:, 0]).item() == pytest.approx(1, abs=1e-6)
    assert logabsdet[0].item() == pytest.approx(logabsdet[-1].item(), abs=1e-12)
    torch.testing.assert_close(transform.inverse(z)[0], grid, rtol=0, atol=1e-10)


def test_angles_of_other_turns_are_the_same_angles():
    data, turns = two_modes(500), 2 * math.pi * torch.tensor([[-2.0], [-1.0], [1.0], [3.0], [0.0]]).double()
    transform = UniformizeCircles.fit(data)
    for turn in turns:
        for found, expected in zip(transform(data + turn), transform(data), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(transform.inverse(data + turn)[0], transform.inverse(data)[0], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"UniformizeCircles.fit: angle 0 has data outside \[-3.14159, 3.14159\]"):
        UniformizeCircles.fit(data + 4)
    with pytest.raises(ValueError, match=r"UniformizeCircles.fit: data has shape \(5, 1\)"):
        UniformizeCircles.fit(data[:5])


def test_a_new_instance_is_the_identity():
    angles = torch.linspace(-math.pi, math.pi, 50)[:, None]
    outputs, logabsdet = UniformizeCircles(1)(angles)
    torch.testing.assert_close(outputs, angles, rtol=0, atol=1e-6)
    assert logabsdet.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("conditional", "message"),
    [
        ("linear", "conditional must be one of affine, spline, quadratic, binned, mixture, circular, got 'linear'"),
        (["spline", "linear"], "got 'linear'"),
        (["spline"], "each of the 2 numbers of a token"),
        (["affine", "spline"], "other than affine for each"),
    ],
)
def test_mistakes(conditional, message):
    with pytest.raises(ValueError, match=message):
        TARFlow((4,), 2, **SMALL, conditional=conditional)
