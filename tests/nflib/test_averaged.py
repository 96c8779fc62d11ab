"""The mean of autoregressive maps, number by number."""

import math

import numpy as np
import pytest
import scipy.special
import torch

from nflib.decoding import Auto, Jacobi
from nflib.distributions import StandardNormal
from nflib.flows import Flow, autoregressive_blocks
from nflib.networks import CausalTransformer, transformer_layers
from nflib.transforms import Autoregressive, AveragedAutoregressive
from nflib.transforms.conditionals import autoregressive_map
from nflib.transforms.normal import quantile_of_mean
from tests.perturb import perturb

SHAPE = (4, 2)
NORMAL = torch.distributions.Normal(0.0, 1.0)


def make_part(conditional: str, seed: int) -> Autoregressive:
    def network(features: int, parameters: int) -> CausalTransformer:
        layers = transformer_layers(1, 16, head_dim=8)
        return CausalTransformer(features, parameters, 16, layers, start_token=True)

    torch.manual_seed(seed)
    part = autoregressive_map((conditional,) * SHAPE[1], network, num_bins=4, units=8)
    return perturb(part, 0.1, seed).double()


def make_average(*conditionals: str) -> AveragedAutoregressive:
    return AveragedAutoregressive([make_part(name, seed) for seed, name in enumerate(conditionals)])


def tokens(number: int = 64) -> torch.Tensor:
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("names", [("affine", "spline"), ("spline", "mixture", "quadratic"), ("affine", "affine")])
def test_density_is_the_mean_of_the_conditional_densities(names):
    average, u = make_average(*names), tokens()
    own = []
    for part in average.parts:
        z, logabsdet = part.by_numbers(u)
        own.append(NORMAL.log_prob(z) + logabsdet)
    expected = torch.stack(own).logsumexp(0) - math.log(len(own))
    z, logabsdet = average.by_numbers(u)
    torch.testing.assert_close(NORMAL.log_prob(z) + logabsdet, expected)
    assert (torch.stack(own).std(0).mean() > 0.1) and not torch.allclose(expected, torch.stack(own).mean(0), atol=0.01)


@pytest.mark.parametrize("names", [("affine", "spline"), ("spline", "mixture", "binned")])
def test_logabsdet_is_that_of_autograd(names):
    average, u = make_average(*names), tokens(6)
    _, logabsdet = average(u)
    for row, expected in zip(u, logabsdet, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: average(x.view(1, *SHAPE))[0].flatten(), row.flatten())
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], expected)
        assert torch.allclose(jacobian, jacobian.tril())


@pytest.mark.parametrize("decoder", [None, Jacobi(tolerance=1e-12)])
@pytest.mark.parametrize("names", [("affine", "spline"), ("spline", "mixture", "quadratic"), ("binned", "binned")])
def test_inverse(names, decoder):
    average, z = make_average(*names), tokens()
    with torch.no_grad():
        inversion = average.invert(z, decoder=decoder)
        back, logabsdet = average(inversion.tokens)
    torch.testing.assert_close(back, z, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(inversion.logabsdet, -logabsdet, atol=1e-8, rtol=1e-9)


def test_noise_that_is_no_number_spoils_its_own_sample_alone():
    average, z = make_average("spline", "mixture"), tokens(4)
    expected = average.inverse(z)[0]
    z[1, 2] = torch.nan
    found = average.inverse(z)[0]
    torch.testing.assert_close(found[[0, 2, 3]], expected[[0, 2, 3]])
    assert found[1, 2:].isnan().all()


def test_equal_maps_have_themselves_as_mean():
    part, u = make_part("spline", 0), tokens()
    for expected, got in zip(part(u), AveragedAutoregressive([part, part])(u), strict=True):
        torch.testing.assert_close(got, expected)


def test_samples_follow_the_mean():
    """Of two normals far apart: the first number of each sample is from either, and what follows is from both."""
    average = make_average("affine", "affine")
    flow = Flow(average, StandardNormal(SHAPE))
    x, log_prob = flow.sample_and_log_prob(4000, seed=0)
    torch.testing.assert_close(log_prob, flow.log_prob(x), atol=1e-9, rtol=1e-9)
    own = [part.conditionals(x[:1], part.encode_context(None)) for part in average.parts]
    means, scales = (torch.stack([parameters[k][0, 0, 0].detach() for parameters in own]) for k in (0, 1))
    expected = means.mean()
    error = math.sqrt((scales.exp().square() + means.square()).mean() - expected.square()) / math.sqrt(len(x))
    assert abs(x[:, 0, 0].mean() - expected) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_far_tails(dtype, sign):
    """Where distribution functions are zero in their dtype, densities and the inverse are still right."""
    far = torch.tensor([5.0, 12.0, 13.5, 40.0, 120.0], dtype=dtype)
    noise = sign * torch.stack([far, far + 0.3, far + 7.0])
    found = quantile_of_mean(noise)
    expected = scipy.special.logsumexp(scipy.special.log_ndtr(-noise.abs().double().numpy()), axis=0) - math.log(3)
    np.testing.assert_allclose(scipy.special.log_ndtr(-found.abs().double().numpy()), expected, rtol=2e-6, atol=2e-6)
    assert (found.sign() == sign).all()


def test_gradients_in_the_far_tails():
    noise = torch.tensor([[-45.0, 1.0, 44.0], [-44.9, 0.5, 47.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quantile_of_mean, noise)


def test_gradients_of_density_and_samples():
    average, u = make_average("affine", "spline"), tokens(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: average(u), u)
    z = tokens(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: average.inverse(z)[0], z, atol=1e-5)


def test_maps_given_a_class():
    """Whatever the decoder, early sweeps in a lower precision among them."""
    blocks = [
        perturb(
            autoregressive_blocks(SHAPE, channels=16, num_blocks=1, layers_per_block=1, head_dim=8, num_classes=3)[0]
        )
        for _ in range(2)
    ]
    flow = Flow(AveragedAutoregressive(blocks), StandardNormal(SHAPE))
    labels = torch.tensor([0, 2])
    expected = flow.sample(5, labels, seed=0)
    for decoder in (Auto(), Jacobi(warmup=torch.bfloat16)):
        torch.testing.assert_close(flow.sample(5, labels, seed=0, decoding=decoder), expected, atol=1e-3, rtol=1e-3)


class WideMap(Autoregressive):
    token_size = 3


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([], "got no maps"),
        (["affine", WideMap()], "of one size, got 2, 3"),
        (["affine", torch.nn.Identity()], "one is a Identity"),
        (["affine", "circular"], "angles, whose noise is uniform"),
    ],
)
def test_maps_that_do_not_fit(parts, words):
    with pytest.raises(ValueError, match=words):
        AveragedAutoregressive(make_part(part, 0) if isinstance(part, str) else part for part in parts)
