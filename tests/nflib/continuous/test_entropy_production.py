"""Entropy production of linear systems, against closed forms, with exact and with learnt scores."""

import pytest
import torch
from scipy.linalg import solve_continuous_lyapunov

from nflib.metrics import ImplicitScoreMatching, entropy_production_rate, linear_entropy_production_rate
from nflib.training import TrainingConfig, fit

A = torch.tensor([[-1.0, 2.0, 0.0], [-1.0, -1.5, 0.5], [0.3, 0.0, -0.8]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.2, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)
DIFFUSIONS = [0.7, torch.tensor([1.0, 0.5, 0.3]), MATRIX]


def stationary(diffusion, number: int, seed: int = 0):
    """Samples of dx = A x dt + sqrt(2 D) dW, and the covariance."""
    value = torch.as_tensor(diffusion).double()
    matrix = value if value.dim() == 2 else torch.diag(value.expand(3))
    covariance = torch.as_tensor(solve_continuous_lyapunov(A.numpy(), -2 * matrix.numpy()))
    noise = torch.randn(number, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise @ torch.linalg.cholesky(covariance).T, covariance


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=["number", "vector", "matrix"])
def test_linear_system_in_closed_form(diffusion) -> None:
    x, covariance = stationary(diffusion, 20_000)
    rate = entropy_production_rate(x, lambda x: x @ A.T, lambda x: -torch.linalg.solve(covariance, x.T).T, diffusion)
    exact = linear_entropy_production_rate(A, diffusion)
    assert abs(rate.value - exact) < 3 * rate.error and rate.error < 0.03 * exact


def test_two_oscillators_by_hand() -> None:
    # A rotation w around a round well of stiffness k: v = w J x and E|x|^2 = 2 D / k, so 2 w^2 / k whatever D.
    for k, w, d in ((1.0, 0.5, 2.0), (3.0, 2.0, 0.1)):
        rotation = torch.tensor([[-k, w], [-w, -k]])
        assert linear_entropy_production_rate(rotation, d) == pytest.approx(2 * w**2 / k, rel=1e-6)
    assert linear_entropy_production_rate(torch.diag(torch.tensor([-1.0, -2.0])), 0.5) == pytest.approx(0, abs=1e-12)


def test_implicit_score_matching_has_its_minimum_at_the_score() -> None:
    x, _ = stationary(0.7, 5000)
    covariance = x.T @ x / len(x)
    net = torch.nn.Linear(3, 3, bias=False).double()
    net.weight.data = -torch.linalg.inv(covariance)
    loss, _ = ImplicitScoreMatching()(net, {"inputs": x}, torch.Generator())
    loss.backward()
    assert loss.item() == pytest.approx(-float(torch.linalg.inv(covariance).trace()), rel=1e-9)  # -E|s|^2
    assert net.weight.grad.abs().max() < 1e-9


def test_rate_from_samples_alone(tmp_path) -> None:
    x, _ = stationary(0.7, 4000)
    net = torch.nn.Linear(3, 3)
    config = TrainingConfig(
        batch_size=1000, max_steps=300, learning_rate=0.03, progress_bar=False, tensorboard=False, seed=0
    )
    fit(net, x.float(), config=config, objective=ImplicitScoreMatching(), output=tmp_path)
    rate = entropy_production_rate(x.float(), lambda x: x @ A.float().T, net, 0.7)
    assert rate.value == pytest.approx(linear_entropy_production_rate(A, 0.7), rel=0.08)


def test_mistakes_are_told() -> None:
    with pytest.raises(ValueError, match="negative real parts"):
        linear_entropy_production_rate(torch.eye(2), 1.0)
    for diffusion, match in (
        (torch.ones(2), "has the shape"),
        (torch.ones(3, 3), "positive definite"),
        (-1.0, "positive definite"),
    ):
        with pytest.raises(ValueError, match=match):
            linear_entropy_production_rate(A, diffusion)
