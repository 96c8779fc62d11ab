"""Restoration under a normal prior, of which the posterior is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from nflib.continuous import ODEFlow
from nflib.montecarlo import HMC
from video.flows.images import GaussianizedTARFlow, as_clips
from video.restore import Degradation, blur, downsampling, inpainting, restore, restored_mode

SHAPE = (1, 4, 4)
DEGRADATIONS = {
    "inpainting": inpainting(torch.arange(16).view(4, 4) % 3 > 0, 0.3),
    "blur": blur(0.7, 0.3),
    "downsampling": downsampling(2, 0.3),
}


def covariance() -> Tensor:
    """Of neighbouring pixels that are alike."""
    place = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).view(16, 2).double()
    return torch.exp(-0.25 * (place[:, None] - place).square().sum(-1)) + 0.1 * torch.eye(16).double()


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """Exact, of the linear path to this normal."""
    values, vectors = torch.linalg.eigh(covariance())
    a, b = (1 - t)[:, None], t[:, None]
    z = x.flatten(1) @ vectors
    return (((b * values - a) / (a**2 + b**2 * values) * z) @ vectors.mT).view_as(x)


def posterior(degradation: Degradation, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    matrix = degradation.operator(torch.eye(16).double().view(16, *SHAPE)).flatten(1).mT
    precision = torch.linalg.inv(covariance()) + matrix.mT @ matrix / degradation.noise**2
    spread = torch.linalg.inv(precision)
    return spread @ matrix.mT @ observed.flatten() / degradation.noise**2, spread


def observation(degradation: Degradation) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.linalg.cholesky(covariance()) @ torch.randn(16, generator=generator).double()
    y = degradation.operator(x.view(1, *SHAPE))[0]
    return y + degradation.noise * torch.randn(y.shape, generator=generator).double()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_mode_of_a_normal_posterior(name: str) -> None:
    degradation = DEGRADATIONS[name]
    observed = observation(degradation)
    flow = ODEFlow(velocity, SHAPE).double()
    mean, _ = posterior(degradation, observed)
    found = [restored_mode(flow, observed, degradation, num_modes=2, steps=steps).flatten(1) for steps in (4, 40)]
    assert (found[0] - mean).abs().max() < 0.05
    assert (found[1] - mean).abs().max() < 0.01


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_smc_samples_a_normal_posterior(name: str) -> None:
    degradation = DEGRADATIONS[name]
    observed = observation(degradation)
    prior = torch.distributions.MultivariateNormal(torch.zeros(16).double(), covariance())

    class Pictures:
        """The prior, of pictures."""

        def log_prob(self, x: Tensor) -> Tensor:
            return prior.log_prob(x.flatten(1))

        def sample_and_log_prob(
            self, num_samples: int, *, generator: torch.Generator | None = None
        ) -> tuple[Tensor, Tensor]:
            x = torch.randn(num_samples, 16, generator=generator).double() @ torch.linalg.cholesky(covariance()).mT
            return x.view(-1, *SHAPE), prior.log_prob(x)

    samples = restore(Pictures(), observed, degradation, 2000, kernel=HMC(), moves=2, seed=0)
    mean, spread = posterior(degradation, observed)
    x = samples.x.flatten(1)
    weights = samples.weights
    found = (weights[:, None] * x).sum(0)
    assert (found - mean).abs().max() < 5 * (spread.diagonal().max() / 1000).sqrt()
    second = (weights[:, None, None] * (x - found)[:, :, None] * (x - found)[:, None]).sum(0)
    assert (second - spread).abs().max() < 0.15 * spread.diagonal().max()


def test_pixels_stay_within_the_bounds_of_their_flow() -> None:
    """Uniform pixels in -1 … 1, seen as 1 with noise: the posterior is half a normal distribution."""
    torch.manual_seed(0)
    flow = GaussianizedTARFlow((1, 2, 2), patch_size=1, channels=16, num_blocks=1, layers_per_block=1, head_dim=16)
    flow.fit_marginals(torch.linspace(-1, 1, 1001)[:, None, None, None].expand(-1, 1, 2, 2), (-1.0, 1.0))
    mask = torch.tensor([[255, 255], [0, 0]], dtype=torch.uint8)
    for prior, shape in ((flow.eval(), (1, 2, 2)), (as_clips(flow), (1, 1, 2, 2))):
        samples = restore(prior, torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(shape), inpainting(mask, 0.3), 500, seed=0)
        assert samples.x.shape[1:] == shape and samples.x.abs().max() <= 1
        mean = (samples.weights[:, None] * samples.x.flatten(1)).sum(0)
        assert (mean - torch.tensor([0.7606, 0.7606, 0.0, 0.0])).abs().max() < 0.1


def test_blur_is_a_gaussian() -> None:
    picture = torch.rand(9, 11).double()
    found = blur(1.5, 0.1).operator(picture[None, None])[0, 0]
    np.testing.assert_allclose(found, gaussian_filter(picture, 1.5, mode="constant", radius=5), atol=1e-12)


def test_masks_may_be_of_numpy() -> None:
    assert inpainting(np.array([[255, 0]]), 0.3).operator(torch.ones(1, 1, 2)).tolist() == [[[1.0, 0.0]]]


def test_log_prob_is_normal() -> None:
    picture, observed = torch.rand(2, *SHAPE), torch.rand(SHAPE)
    expected = torch.distributions.Normal(picture, 0.3).log_prob(observed).flatten(1).sum(1)
    mask = torch.ones(4, 4)
    torch.testing.assert_close(inpainting(mask, 0.3).log_prob(observed, picture), expected)


def test_adjoints() -> None:
    for degradation in DEGRADATIONS.values():
        x, generator = torch.randn(2, *SHAPE).double(), torch.Generator().manual_seed(0)
        y = torch.randn(degradation.operator(x).shape, generator=generator).double()
        left, right = (degradation.operator(x) * y).sum(), (x * degradation.adjoint(y, x)).sum()
        assert torch.allclose(left, right)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="noise of a degradation"):
        Degradation(lambda x: x, 0.0)
    with pytest.raises(ValueError, match="makes pictures of shape"):
        downsampling(2, 0.1).log_prob(torch.zeros(SHAPE), torch.zeros(3, *SHAPE))
    with pytest.raises(ValueError, match="width of a blur"):
        blur(0.0, 0.1)
    with pytest.raises(ValueError, match="factor of a downsampling"):
        downsampling(0, 0.1)
    with pytest.raises(ValueError, match="4 × 4 are no squares of 3"):
        downsampling(3, 0.1).log_prob(torch.zeros(1, 1, 1), torch.zeros(3, *SHAPE))
    flow = ODEFlow(velocity, SHAPE).double()
    for restoring in (restore, restored_mode):
        with pytest.raises(ValueError, match="not finite; where nothing is seen, put zero"):
            restoring(flow, torch.full(SHAPE, torch.nan), DEGRADATIONS["blur"], 2)
    for shape in ((1, 1, 1), SHAPE[1:]):  # which would be broadcast
        with pytest.raises(ValueError, match="makes pictures of shape"):
            restored_mode(flow, torch.zeros(shape).double(), DEGRADATIONS["downsampling"], times=[0.5])
    with pytest.raises(ValueError, match="solve_steps must be positive"):
        restored_mode(flow, torch.zeros(SHAPE), DEGRADATIONS["blur"], solve_steps=0)
    with pytest.raises(ValueError, match="times must rise"):
        restored_mode(flow, torch.zeros(SHAPE), DEGRADATIONS["blur"], times=[0.5, 0.2])
    with pytest.raises(ValueError, match="draws"):
        restored_mode(flow, torch.zeros(SHAPE), DEGRADATIONS["blur"], draws=3)
