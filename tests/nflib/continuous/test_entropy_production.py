"""Entropy production of linear systems, against closed forms, with exact and with learnt scores."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from scipy.linalg import solve_continuous_lyapunov

from nflib.metrics import (
    ImplicitScoreMatching,
    entropy_production_bound,
    entropy_production_rate,
    linear_entropy_production_rate,
)
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
    of_arrays = entropy_production_rate(
        x.numpy(), lambda x: x @ A.T, lambda x: -torch.linalg.solve(covariance, x.T).T, diffusion
    )
    assert of_arrays == rate and linear_entropy_production_rate(A.numpy(), diffusion) == exact


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=["number", "vector", "matrix"])
def test_bounds_are_apart_by_the_error_of_a_score(diffusion) -> None:
    x, covariance = stationary(diffusion, 20_000)
    exact = linear_entropy_production_rate(A, diffusion)
    value = torch.as_tensor(diffusion).double()
    matrix = value if value.dim() == 2 else torch.diag(value.expand(3))
    precision = torch.linalg.inv(covariance)
    gradient = torch.tensor([[0.2, 0.1, 0.0], [0.1, -0.3, 0.2], [0.0, 0.2, 0.1]], dtype=torch.float64)
    rotation = torch.tensor([[0.0, 0.4, 0.0], [-0.4, 0.0, 0.3], [0.0, -0.3, 0.0]], dtype=torch.float64)
    for wrong, is_gradient in ((0 * gradient, True), (gradient, True), (rotation, False)):
        # E[d . D d] of the error d = wrong x.
        error = float(torch.trace(wrong.T @ matrix @ wrong @ covariance))
        score = lambda x, wrong=wrong: x @ (wrong - precision).T  # noqa: E731
        lower, upper = (
            of(x, lambda x: x @ A.T, score, diffusion) for of in (entropy_production_bound, entropy_production_rate)
        )
        assert abs(lower.value - (exact - error)) < 3.5 * lower.error and lower.error < 0.05 * exact
        if is_gradient:
            assert abs(upper.value - (exact + error)) < 3.5 * upper.error


def test_two_oscillators_by_hand() -> None:
    # A rotation w around a round well of stiffness k: v = w J x and E|x|^2 = 2 D / k, so 2 w^2 / k whatever D.
    for k, w, d in ((1.0, 0.5, 2.0), (3.0, 2.0, 0.1)):
        rotation = torch.tensor([[-k, w], [-w, -k]])
        assert linear_entropy_production_rate(torch.nn.Parameter(rotation), d) == pytest.approx(2 * w**2 / k, rel=1e-6)
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


def test_benchmark(monkeypatch, capsys) -> None:
    benchmarks = Path(__file__).parents[3] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    options = ["--threads", "1", "--heights", "0", "4", "--samples", "200", "--steps", "2", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["entropy_production.py", *options])
    runpy.run_path(str(benchmarks / "entropy_production.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[:2] for row in rows] == [["0", "2.222"], ["4", ""]]
    # Scores that are hardly trained are told by bounds that lie far apart.
    assert all(float(row[-2].split()[0]) < float(row[-1].split()[0]) - 1 for row in rows)


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


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 1, 3)])
def test_a_diffusion_of_each_number_has_the_shape_of_the_event(shape) -> None:
    diffusion = torch.tensor([1.0, 0.5, 0.3])
    samples, _ = stationary(diffusion, 100)

    def rate(shape, value):
        def drift(x):
            return (x.reshape(-1, 3) @ A.T).reshape(-1, *shape)

        return entropy_production_rate(samples.reshape(-1, *shape), drift, lambda x: -x, value)

    assert rate(shape, diffusion.reshape(shape)) == rate((3,), diffusion)
