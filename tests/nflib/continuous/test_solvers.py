"""Solvers: their orders, scipy and torchdiffeq as peers, every sample by itself, and what stops them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp

from nflib.continuous import RK4, Dopri5, Euler, Heun, Solver
from tests.nflib.continuous.cases import steered, swirl

SOLVERS = [Euler(3), Heun(3), RK4(3), Dopri5(1e-4, 1e-4)]


def field(x, t, context):
    return swirl(x, t)


def conditioned(x, t, context):
    return steered(x, t, context[0]) * context[1]


def start(number: int = 5) -> torch.Tensor:
    return torch.randn(number, 3, dtype=torch.float64)


def reference(x: torch.Tensor, first: float = 0.0, last: float = 1.0) -> torch.Tensor:
    def of_scipy(t: float, y: np.ndarray) -> np.ndarray:
        return swirl(torch.from_numpy(y)[None], torch.tensor([t], dtype=torch.float64))[0].numpy()

    ends = [solve_ivp(of_scipy, (first, last), row, rtol=1e-12, atol=1e-12, method="DOP853").y[:, -1] for row in x]
    return torch.from_numpy(np.stack(ends))


@pytest.mark.parametrize(("kind", "order"), [(Euler, 1), (Heun, 2), (RK4, 4)])
@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (0.9, 0.2)])
def test_order(kind: type, order: int, first: float, last: float) -> None:
    x = start()
    exact = reference(x, first, last)
    errors = [float((kind(n).solve(field, x, first, last).state - exact).norm()) for n in (16, 32)]
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.15
    stages = {Euler: 1, Heun: 2, RK4: 4}[kind]
    assert kind(16).solve(field, x, first, last).evaluations.tolist() == [16 * stages] * len(x)


@pytest.mark.parametrize(("first", "last"), [(0.0, 1.0), (0.9, 0.2)])
def test_dopri5_meets_its_tolerance(first: float, last: float) -> None:
    x = start()
    exact, evaluations = reference(x, first, last), []
    for tolerance in (1e-4, 1e-7, 1e-10):
        solution = Dopri5(tolerance, tolerance).solve(field, x, first, last)
        assert (solution.state - exact).abs().max() < 10 * tolerance
        evaluations.append(int(solution.evaluations.max()))
    assert evaluations == sorted(evaluations) and evaluations[-1] < 500


def test_one_step_is_that_of_scipy() -> None:
    x, h = start(1), 0.3
    peer = RK45(
        lambda t, y: swirl(torch.from_numpy(y)[None], torch.tensor([t], dtype=torch.float64))[0].numpy(),
        0.0,
        x[0].numpy(),
        h,
        rtol=1.0,
        atol=1.0,
        first_step=h,
    )
    peer.step()
    solver = Dopri5(1.0, 1.0)
    zero = torch.zeros(1).double()
    candidate, slope, error = solver._step(field, x, field(x, zero, None), zero, zero + h, None)
    np.testing.assert_allclose(candidate[0], peer.y, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(slope[0], peer.K[-1], rtol=1e-14, atol=1e-14)
    scale = 1.0 + np.maximum(abs(x[0].numpy()), abs(peer.y))
    np.testing.assert_allclose(float(error), peer._estimate_error_norm(peer.K, h, scale), rtol=1e-12)


def test_against_torchdiffeq() -> None:
    import torchdiffeq

    x = start()
    for solver, method, options in [
        (Euler(8), "euler", {"step_size": 1 / 8}),
        (Heun(8), "heun2", {"step_size": 1 / 8}),
        (Dopri5(1e-10, 1e-10), "dopri5", {}),
    ]:
        peer = torchdiffeq.odeint(
            lambda t, x: swirl(x, t.expand(len(x))), x, torch.tensor([0.0, 1.0]).double(), method=method,
            rtol=1e-10, atol=1e-10, options=options,
        )[-1]  # fmt: skip
        assert (solver.solve(field, x, 0.0, 1.0).state - peer).abs().max() < (1e-12 if solver.is_map else 1e-8)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_alone_as_in_any_batch(solver: Solver) -> None:
    x = start(8) * torch.tensor([1.0, 5.0, 0.1, 1.0, 30.0, 1.0, 2.0, 1.0]).double()[:, None]
    context = (torch.randn(8, 3).double(), torch.linspace(0.1, 8, 8).double()[:, None])
    whole = solver.solve(conditioned, x, 0.0, 1.0, context)
    for index in range(8):
        row = slice(index, index + 1)
        alone = solver.solve(conditioned, x[row], 0.0, 1.0, (context[0][row], context[1][row]))
        torch.testing.assert_close(alone.state, whole.state[row], rtol=1e-12, atol=1e-12)
        assert alone.evaluations == whole.evaluations[index]
    shuffled = torch.randperm(8)
    again = solver.solve(conditioned, x[shuffled], 0.0, 1.0, (context[0][shuffled], context[1][shuffled]))
    torch.testing.assert_close(again.state, whole.state[shuffled], rtol=1e-12, atol=1e-12)
    if isinstance(solver, Dopri5):
        assert len(set(whole.evaluations.tolist())) > 1


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(solver: Solver, dtype: torch.dtype) -> None:
    for shape in [(4,), (4, 1), (4, 2, 3), (0, 2)]:
        x = torch.randn(shape, dtype=dtype)
        state, _ = solver.solve(lambda x, t, _: -x, x, 0.0, 1.0)
        assert state.dtype == dtype and state.shape == x.shape
        torch.testing.assert_close(state, x * torch.exp(torch.tensor(-1.0)), rtol=0.3, atol=1e-3)
    assert torch.equal(solver.solve(lambda x, t, _: -x, x, 0.5, 0.5).state, x)


def test_gradients() -> None:
    """Of what is computed, rejected steps and all."""
    x = start(3).requires_grad_()
    for solver in SOLVERS:
        assert torch.autograd.gradcheck(lambda x, s=solver: s.solve(field, x, 0.0, 1.0).state, x, atol=1e-3)


def test_pieces_are_cut_at_edges() -> None:
    assert RK4(2).pieces(0.0, 1.0, [0.5, 0.75]) == [(0.0, 0.5), (0.5, 0.75), (0.75, 1.0)]
    assert Dopri5().pieces(1.0, 0.0, [0.25, 2.0]) == [(1.0, 0.25), (0.25, 0.0)]
    times = [first for first, _ in Euler(7).pieces(0.0, 1.0)]
    assert np.allclose(times, np.arange(7) / 7)


def test_a_stiff_field_is_told_with_its_time() -> None:
    def stiff(x, t, _):
        return torch.where(t[:, None] < 0.5, -x, -1e7 * (x - torch.sin(1e3 * t)[:, None]))

    with pytest.raises(ValueError, match=r"gave up at step 100 for 2 samples, the first of them at t = 0\.5") as error:
        Dopri5(1e-6, 1e-6, max_steps=100).solve(stiff, torch.ones(2, 1).double(), 0.0, 1.0)
    assert "too stiff" in str(error.value)
    # x' = x^2 from 2 reaches infinity at t = 0.5; a sample beside it does not.
    with pytest.raises(ValueError, match=r"for 1 samples, the first of them at t = 0\.5"):
        Dopri5(1e-6, 1e-6).solve(lambda x, t, _: x * x, torch.tensor([[2.0], [0.1]]).double(), 0.0, 1.0)


def test_a_trial_step_that_leaves_the_field_is_tried_again() -> None:
    # The root of x' = -100 sqrt(x) is NaN where a long step overshoots; exactly x = (1 - 50 t)^2 until 0.
    state, _ = Dopri5(1e-8, 1e-8).solve(lambda x, t, _: -100 * x.sqrt(), torch.ones(1, 1).double(), 0.0, 0.019)
    torch.testing.assert_close(state, torch.tensor([[0.05**2]]).double(), rtol=1e-5, atol=0)


def test_errors() -> None:
    def spoilt(x, t, _):
        return torch.where(t[:, None] < 0.5, x, torch.nan)

    with pytest.raises(ValueError, match=r"not finite at t = 0\.7 for 2 of 2"):
        Dopri5().solve(spoilt, torch.ones(2, 1), 0.7, 1.0)
    with pytest.raises(ValueError, match=r"t = 0\.(5|49999).* not finite"):
        Dopri5().solve(spoilt, torch.ones(2, 1), 0.0, 1.0)
    for steps in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="positive number of steps"):
            Euler(steps)
    assert Euler(np.int64(4)).pieces(0.0, 1.0) == Euler(4).pieces(0.0, 1.0)
    for settings in ({"atol": 0.0}, {"rtol": -1.0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="Dopri5 needs"):
            Dopri5(**settings)
