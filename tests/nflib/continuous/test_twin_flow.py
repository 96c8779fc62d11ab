"""TwinFlow: one step by hand, the exact map as its fixed point, and a generator that learns by rectification alone."""

import math

import pytest
import torch
from torch import nn

from nflib.continuous import Distill, Euler, FlowMap, FlowMatching, MLPFlowMap, MLPVelocity, ODEFlow, TwinFlow
from nflib.continuous.couplings import noise_like
from nflib.distributions import draw
from nflib.training import TrainingConfig, fit
from tests.nflib.continuous.normal_map import MEAN, STD, NormalMap, normal_data
from tests.quiet import QUIET


def nothing(flow, batch, generator):
    """An objective of zero, so that what TwinFlow adds is seen alone."""
    return torch.zeros(()), {}


class Affine(nn.Module):
    """``a x + b r + c t``."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.tensor(value).double()) for value in (-0.4, 0.7, 0.2))

    def forward(self, x, r, t):
        return self.a * x + (self.b * r + self.c * t)[:, None]


def test_one_step_by_hand():
    network, weight, clip = Affine(), 0.5, 0.8
    flow, data = FlowMap(network, (2,)), normal_data(64).double()
    objective = TwinFlow(nothing, weight=weight, clip=clip)
    loss, scalars = objective(flow, {"inputs": data}, torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(loss, [network.a, network.b, network.c])

    a, b, c = (float(p.detach()) for p in network.parameters())
    generator = torch.Generator().manual_seed(1)
    z = draw(flow._distribution, 64, None, generator).double()
    y = z + a * z + c  # one jump from 0 to 1
    t = torch.rand(64, generator=generator).double()[:, None]
    fresh = noise_like(y, flow, None, generator)
    x, velocity = (1 - t) * fresh + t * y, y - fresh
    error = a * x + (b + c) * (2 - t) - velocity  # of the twin, at times 2 - t
    change = ((b + c) * (2 * t - 2)).clamp(-clip, clip).expand_as(z)  # from the twin's velocity to that of the data
    assert bool((change == -clip).any()) and bool((change != -clip).any())
    assert float(scalars["twin"]) == pytest.approx(float(error.square().mean()), rel=1e-12)
    assert float(scalars["rectification"]) == pytest.approx(float(change.square().mean()), rel=1e-12)
    expected = [
        2 * (error * x).mean() - 2 * weight * (change * z).mean(),
        2 * (error * (2 - t)).mean(),  # the jump begins at r = 0
        2 * (error * (2 - t)).mean() - 2 * weight * change.mean(),
    ]
    for each, value in zip(gradients, expected, strict=True):
        assert float(each) == pytest.approx(float(value), rel=1e-10)


class Three(nn.Module):
    """A jump from noise to data, the velocity of the data, which is exact, and the twin: three normal maps."""

    def __init__(self, mean, std):
        super().__init__()
        self.jump, self.twin = NormalMap(mean, std), NormalMap(mean, std)
        self.data = NormalMap(MEAN, STD).requires_grad_(False)

    def forward(self, x, r, t):
        if bool((r > 1).all()):
            return self.twin(x, 2 - r, 2 - t)
        return self.data(x, r, t) if torch.equal(r, t) else self.jump(x, r, t)


def test_the_exact_map_is_a_fixed_point_and_the_twin_has_its_least_loss():
    flow, twins = FlowMap(Three(MEAN, STD), (2,)), []
    for seed in range(30):
        loss, scalars = TwinFlow(nothing)(flow, {"inputs": normal_data(2000)}, torch.Generator().manual_seed(seed))
        twins.append(scalars["twin"])
        assert float(scalars["rectification"]) < 1e-12
        gradients = torch.autograd.grad(loss, list(flow._transform.velocity.jump.parameters()))
        assert all(float(gradient.abs()) < 1e-6 for gradient in gradients)
    twins = torch.stack(twins)
    assert abs(float(twins.mean()) - math.pi * STD / 2) < 3 * float(twins.std()) / 30**0.5


def test_the_rectification_alone_brings_a_generator_to_the_data(tmp_path):
    flow = FlowMap(Three(0.2, 0.9), (2,), num_steps=1)
    config = TrainingConfig(batch_size=512, max_steps=200, learning_rate=2e-2, weight_decay=0, ema_decay=0.9, **QUIET)
    fit(flow, normal_data(5000), config=config, objective=TwinFlow(nothing), output=tmp_path)
    samples = flow.sample(20_000, seed=0)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(samples.std(0).mean()) == pytest.approx(STD, abs=0.05)


def test_contexts_steer_both_velocities(tmp_path):
    flow = FlowMap(MLPFlowMap(2, channels=16, num_layers=1, context_size=3), (2,), context_shape=(3,))
    config = TrainingConfig(batch_size=32, max_steps=3, **QUIET)
    data = {"inputs": normal_data(64), "context": torch.randn(64, 3)}
    assert fit(flow, data, config=config, objective=TwinFlow(), output=tmp_path).steps == 3


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="weight"):
        TwinFlow(weight=-1.0)
    with pytest.raises(ValueError, match="clip"):
        TwinFlow(clip=0.0)
    with pytest.raises(ValueError, match="data"):
        TwinFlow(Distill(ODEFlow(MLPVelocity(2), (2,))))


def energy_distance(x, y):
    return float(2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean())


@pytest.mark.slow
def test_one_step_samples_of_eight_gaussians_are_nearer_than_those_of_flow_matching(tmp_path):
    angles = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    generator = torch.Generator().manual_seed(0)
    data = centres[torch.randint(8, (21_000,), generator=generator)]
    data = data + 0.2 * torch.randn(data.shape, generator=generator)
    config = TrainingConfig(batch_size=256, max_steps=600, learning_rate=2e-3, ema_decay=0.99, **QUIET)
    torch.manual_seed(0)
    plain = ODEFlow(MLPVelocity(2, channels=64), (2,), solver=Euler(1))
    twin = FlowMap(MLPFlowMap(2, channels=64), (2,), num_steps=1)
    distances = []
    for flow, objective in ((plain, FlowMatching()), (twin, TwinFlow())):
        fit(flow, data[:20_000], config=config, objective=objective, output=tmp_path / type(objective).__name__)
        distances.append(energy_distance(flow.sample(1000, seed=0), data[20_000:]))
    assert distances[1] < 0.2 * distances[0]
