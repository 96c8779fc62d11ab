"""Potentials against plane and spherical waves."""

import math

import torch

from nflib.continuous import potential_step, wave_residual

Z = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
T = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
K = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
SPEED = 1.3


def plane(z, t):
    return torch.sin(z @ K - SPEED * K.norm() * t)


def spherical(z, t):
    radius = z.norm(dim=1)
    return torch.cos(2 * (radius - SPEED * t)) / radius


def test_waves_have_no_residual() -> None:
    for wave in (plane, spherical):
        assert wave_residual(wave, Z, T, SPEED).abs().max() < 1e-9


def test_another_speed_leaves_the_laplacian() -> None:
    expected = (2.0**2 - SPEED**2) * K.square().sum() * plane(Z, T)
    torch.testing.assert_close(wave_residual(plane, Z, T, 2.0), expected)


def test_step_along_the_gradient() -> None:
    expected = Z + K * torch.cos(Z @ K - SPEED * K.norm() * T)[:, None]
    torch.testing.assert_close(potential_step(plane, Z, T), expected)


def test_speed_of_a_wave_is_found() -> None:
    speed = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([speed], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        wave_residual(plane, Z, T, speed).square().mean().backward()
        optimizer.step()
    assert math.isclose(speed.item(), SPEED, abs_tol=1e-3)


def test_gradients_reach_a_network() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def potential(z, t):
        return net(torch.cat([z, t[:, None]], dim=1))[:, 0]

    loss = wave_residual(potential, Z, T, 1.0).square().mean() + potential_step(potential, Z, T).square().mean()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in list(net.parameters())[:3])
