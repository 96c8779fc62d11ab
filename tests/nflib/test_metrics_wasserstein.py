"""Exact Wasserstein distances against closed forms, linear programs of scipy, and each other."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment, linprog

from nflib.metrics import torus, wasserstein, wasserstein_1d


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_program(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The transport problem by scipy's HiGHS."""
    n, m = cost.shape
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    result = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, b]), bounds=(0, None))
    assert result.success
    return result.fun


# --- on the line


def test_w1_equals_scipy_for_weighted_and_unweighted_samples():
    x, y, a, b = normal(60), 2 * normal(45, seed=1) + 1, uniform(60, seed=2), uniform(45, seed=3)
    assert wasserstein_1d(x, y, order=1).item() == pytest.approx(stats.wasserstein_distance(x, y), rel=1e-12)
    expected = stats.wasserstein_distance(x.numpy(), y.numpy(), a.numpy(), b.numpy())
    assert wasserstein_1d(x, y, a, b, order=1).item() == pytest.approx(expected, rel=1e-12)
    expected = stats.wasserstein_distance(x.numpy(), y.numpy(), a.numpy(), None)
    assert wasserstein_1d(x, y, 7 * a, order=1).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3.5])
def test_line_equals_a_linear_program(order):
    x, y, a, b = normal(12), normal(9, seed=1) + 0.5, uniform(12, seed=2), uniform(9, seed=3)
    a, b = a / a.sum(), b / b.sum()
    cost = (x[:, None] - y[None]).abs().pow(order).numpy()
    weighted = linear_program(cost, a.numpy(), b.numpy()) ** (1 / order)
    assert wasserstein_1d(x, y, a, b, order=order).item() == pytest.approx(weighted, rel=1e-7)
    equal = linear_program(cost, np.full(12, 1 / 12), np.full(9, 1 / 9)) ** (1 / order)
    assert wasserstein_1d(x, y, order=order).item() == pytest.approx(equal, rel=1e-7)
    assert wasserstein(x, y, a, b, order=order).item() == pytest.approx(weighted, rel=1e-7)


def test_integer_weights_are_repetitions():
    x, y = normal(20), normal(31, seed=1)
    counts = torch.arange(20) % 4
    repeated = x.repeat_interleave(counts)
    for order in (1, 2):
        weighted = wasserstein_1d(x, y, counts, order=order)
        torch.testing.assert_close(weighted, wasserstein_1d(repeated, y, order=order), rtol=1e-12, atol=0)


def test_two_normals_reach_their_closed_form():
    """W_2^2 = (m - m')^2 + (s - s')^2, here between quantiles of both."""
    levels = (np.arange(200_000) + 0.5) / 200_000
    x = torch.from_numpy(stats.norm.ppf(levels, 1.0, 2.0))
    y = torch.from_numpy(stats.norm.ppf(levels, -1.0, 0.5))
    assert wasserstein_1d(x, y).item() == pytest.approx(math.sqrt(4 + 2.25), rel=1e-4)


def test_leading_dimensions_are_separate_problems():
    x, y, a = normal(2, 3, 11), normal(2, 3, 8, seed=1), uniform(11, seed=2)
    for weights in (None, a):
        together = wasserstein_1d(x, y, weights)
        assert together.shape == (2, 3) and together.dtype == torch.float64
        one_by_one = torch.stack([wasserstein_1d(x[i, j], y[i, j], weights) for i in range(2) for j in range(3)])
        torch.testing.assert_close(together.flatten(), one_by_one, rtol=1e-13, atol=0)


def test_not_finite_means_infinite_unless_its_weight_is_zero():
    x, y = torch.tensor([0.0, torch.inf, torch.nan]), torch.tensor([1.0, 1.0])
    assert wasserstein_1d(x, y) == torch.inf
    assert wasserstein_1d(y, x, x_weights=None) == torch.inf
    assert wasserstein_1d(x, y, torch.tensor([1.0, 0.0, 0.0])) == 1.0


# --- in more dimensions


def test_equal_weights_are_an_assignment():
    x, y = normal(150, 3), 0.5 * normal(150, 3, seed=1) + 0.3
    for order in (1, 2):
        cost = torch.cdist(x, y).pow(order).numpy()
        rows, columns = linear_sum_assignment(cost)
        expected = cost[rows, columns].mean() ** (1 / order)
        assert wasserstein(x, y, order=order).item() == pytest.approx(expected, rel=1e-10)


def test_weights_equal_a_linear_program():
    x, y, a, b = normal(25, 2), normal(18, 2, seed=1) + 0.3, uniform(25, seed=2), uniform(18, seed=3)
    a[3] = 0.0
    a, b = a / a.sum(), b / b.sum()
    for order in (1, 2):
        expected = linear_program(torch.cdist(x, y).pow(order).numpy(), a.numpy(), b.numpy()) ** (1 / order)
        assert wasserstein(x, y, 3 * a, b, order=order).item() == pytest.approx(expected, rel=1e-7)


def test_a_shift_is_as_long_as_it_is():
    x, shift = normal(200, 4), torch.tensor([1.0, -2.0, 0.0, 2.0])
    for order in (1, 2):
        assert wasserstein(x, x + shift, order=order).item() == pytest.approx(3.0, rel=1e-12)
    assert wasserstein(x.float(), x.float()).item() == 0.0


def test_line_and_program_agree():
    x, y, a = normal(80), normal(70, seed=1), uniform(80, seed=2)
    flat = [torch.stack([z, torch.zeros_like(z)], dim=1) for z in (x, y)]
    torch.testing.assert_close(wasserstein(*flat, a), wasserstein_1d(x, y, a), rtol=1e-10, atol=0)


# --- on the torus


def test_torus_takes_the_short_way_and_any_representative():
    x = torch.tensor([[math.pi - 0.1, 0.0], [math.pi - 0.1, 2.0]])
    y = torch.tensor([[-math.pi + 0.1, 0.0], [-math.pi + 0.1, 2.0]])
    assert wasserstein(x, y, metric="torus").item() == pytest.approx(0.2, rel=1e-5)
    angles, others = 7 * normal(60, 2), 7 * normal(50, 2, seed=1)
    turns = torch.randint(-3, 4, others.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        wasserstein(angles, others + 2 * math.pi * turns.double(), metric="torus"),
        wasserstein(angles, others, metric="torus"),
        rtol=1e-9,
        atol=0,
    )
    in_degrees = wasserstein(angles.rad2deg(), others.rad2deg(), metric="torus", period=360.0)
    torch.testing.assert_close(in_degrees.deg2rad(), wasserstein(angles, others, metric="torus"), rtol=1e-9, atol=0)


def test_torus_against_the_best_cut_of_the_circle():
    """On a circle with equal weights an optimal plan for a convex cost is a cyclic shift of the sorted points."""
    x, y = 2 * math.pi * uniform(40), 2 * math.pi * uniform(40, seed=1).square()
    x_sorted, y_sorted = x.sort().values, y.sort().values
    unrolled = torch.cat([y_sorted - 2 * math.pi, y_sorted, y_sorted + 2 * math.pi])
    best = min((x_sorted - unrolled[k : k + 40]).square().mean().item() for k in range(81))
    assert wasserstein(x, y, metric="torus").item() == pytest.approx(math.sqrt(best), rel=1e-10)


def test_rotating_all_angles_moves_by_the_rotation():
    """A narrow blob across the seam, turned by 1 rad in each of 3 angles."""
    x = math.pi + 0.05 * normal(100, 3)
    assert wasserstein(x, x + 1.0, metric="torus").item() == pytest.approx(math.sqrt(3), rel=1e-12)


def test_own_metric_and_chunked_costs(monkeypatch):
    x, y = 5 * normal(60, 2), 5 * normal(50, 2, seed=1)
    expected = wasserstein(x, y, metric="torus")
    monkeypatch.setattr("nflib.metrics.transport._CHUNK", 350)  # three rows at a time
    assert wasserstein(x, y, metric=torus()) == expected


# --- without POT, and mistakes


def test_one_sentence_without_pot(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ModuleNotFoundError, match=r'need POT, ot: pip install "nflib\[metrics\]"\.$'):
        wasserstein(normal(5, 2), normal(5, 2))
    assert wasserstein(normal(5), normal(5)) == 0.0  # the line needs nothing


def test_import_leaves_pot_alone():
    code = "import sys, nflib.metrics; sys.exit('ot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((normal(4, 2), normal(4, 3)), {}, "x has 2 dimensions and y 3"),
        ((normal(4, 2, 2), normal(4, 2)), {}, r"x has shape \(4, 2, 2\)"),
        ((normal(0, 2), normal(4, 2)), {}, r"x has shape \(0, 2\)"),
        ((normal(4, 2), normal(4, 2), uniform(3)), {}, r"x_weights has shape \(3,\)"),
        ((normal(4, 2), normal(4, 2), None, -uniform(4)), {}, "y_weights must be finite"),
        ((normal(4, 2), normal(4, 2), torch.zeros(4)), {}, "not all zero"),
        ((normal(4, 2), normal(4, 2)), {"order": 0.5}, "order is 0.5"),
        ((normal(4, 2), normal(4, 2)), {"metric": "city"}, "unknown metric 'city'"),
        ((normal(4, 2), normal(4, 2)), {"metric": "torus", "period": -1.0}, "the period is -1.0"),
        ((normal(4, 2), normal(4, 2) / 0), {}, "4 of the 4 samples in y are not finite"),
    ],
)
def test_mistakes(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        wasserstein(*arguments, **keywords)


@pytest.mark.parametrize("size", [(20,), (20, 1)])
def test_arrays_of_numpy_are_taken(size):
    x, y, weights = normal(*size), normal(*size, seed=1), uniform(20)
    assert wasserstein(x.numpy(), y.numpy(), weights.numpy()) == wasserstein(x, y, weights)
    x, y = x.reshape(2, 10), y.reshape(2, 10)
    along = wasserstein_1d(x.numpy(), y.numpy(), None, weights[:10].tolist())
    torch.testing.assert_close(along, wasserstein_1d(x, y, None, weights[:10]))


def test_mistakes_on_the_line():
    with pytest.raises(ValueError, match="same leading dimensions"):
        wasserstein_1d(normal(2, 5), normal(3, 5))
    with pytest.raises(ValueError, match="order is nan"):
        wasserstein_1d(normal(5), normal(5), order=math.nan)


def test_no_optimum_is_an_error():
    with pytest.raises(RuntimeError, match="no optimum for 50 x 50"):
        wasserstein(normal(50, 2), normal(50, 2, seed=1), max_iterations=3)


# --- the largest distance


def brute_force_bottleneck(cost: torch.Tensor) -> float:
    return min(
        max(cost[i, j].item() for i, j in enumerate(columns)) for columns in itertools.permutations(range(len(cost)))
    )


def test_order_inf_on_the_line():
    assert wasserstein(torch.linspace(0, 1, 5), torch.linspace(5, 6, 5), order=math.inf) == 5
    assert wasserstein_1d(torch.tensor([0, 1, 5]), torch.tensor([0, 2, 9]), order=math.inf) == 4
    x, y, a = normal(30), normal(20, seed=1), uniform(30, seed=2)
    assert wasserstein(x, y, order=math.inf).item() == pytest.approx(wasserstein(x, y, order=3000).item(), rel=5e-3)
    assert wasserstein_1d(x, y, a, order=math.inf).item() == pytest.approx(
        wasserstein_1d(x, y, a, order=3000).item(), rel=5e-3
    )
    # x = 0 with weight 0.3: a rounding of cumulative weights is no step
    tenths = torch.tensor([0.1] * 10)
    x, y = torch.tensor([0.0, 100.0]), torch.tensor([0.0] * 3 + [100.0] * 7)
    assert wasserstein_1d(x, y, torch.tensor([0.3, 0.7], dtype=torch.float64), order=math.inf) == 0
    assert wasserstein_1d(y, y, tenths, order=math.inf) == 0
    zero_weight = torch.tensor([0.0, 1.0, 1.0])
    x, y = torch.tensor([1e9, 0.0, 1.0]), torch.tensor([0.0, 1.0])
    assert wasserstein_1d(x, y, zero_weight, order=math.inf) == 0


def test_order_inf_is_the_best_largest_distance():
    for seed in range(5):
        x, y = normal(6, 2, seed=seed), normal(6, 2, seed=10 + seed)
        distances = torch.cdist(x, y)
        assert wasserstein(x, y, order=math.inf).item() == pytest.approx(brute_force_bottleneck(distances), rel=1e-12)
        # samples repeated: 4 against 6 are 12 against 12
        unequal = wasserstein(x[:4], y, order=math.inf)
        repeated = wasserstein(x[:4].repeat(3, 1), y.repeat(2, 1), order=math.inf)
        assert unequal == repeated
    shift = torch.tensor([3.0, 4.0])
    assert wasserstein(x, x + shift, order=math.inf).item() == pytest.approx(5.0, rel=1e-12)
    assert wasserstein(x, x + 2 * math.pi, order=math.inf, metric="torus").item() < 1e-12
    flat = [torch.stack([z, torch.zeros_like(z)], dim=1) for z in (normal(80), normal(60, seed=1))]
    assert wasserstein(*flat, order=math.inf).item() == pytest.approx(
        wasserstein_1d(flat[0][:, 0], flat[1][:, 0], order=math.inf).item(), rel=1e-12
    )
    weights = torch.tensor([2.0] * 4 + [0.0] * 2)
    assert wasserstein(x, y, weights, 3 * torch.ones(6), order=math.inf) == wasserstein(x[:4], y, order=math.inf)
    with pytest.raises(ValueError, match="equal weights only"):
        wasserstein(x, y, uniform(6), order=math.inf)


# --- numbers of very different sizes


@pytest.mark.parametrize("far", [1e2, 1e4, 1e8, 1e10, 1e12])
@pytest.mark.parametrize("m", [100, 70])
def test_a_shared_far_point_changes_the_weights_only(far, m):
    """Both sets have a tenth of their weight at one far point, which stays: W_p^p is 0.9 times that of the rest."""
    x, y = normal(100, 3), normal(m, 3, seed=1)
    point = torch.full((1, 3), far, dtype=torch.float64)
    tenth = torch.tensor([0.1], dtype=torch.float64)
    a, b = (torch.cat([torch.full((n,), 0.9 / n, dtype=torch.float64), tenth]) for n in (100, m))
    x_far, y_far = torch.cat([x, point]), torch.cat([y, point])
    for order in (1, 2, 4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = 0.9 ** (1 / order) * wasserstein(x, y, order=order)
            torch.testing.assert_close(wasserstein(x_far, y_far, a, b, order=order), expected, rtol=1e-9, atol=0)
        expected = 0.9 ** (1 / order) * wasserstein_1d(x[:, 0], y[:, 0], order=order)
        line = wasserstein_1d(x_far[:, 0], y_far[:, 0], a, b, order=order)
        torch.testing.assert_close(line, expected, rtol=1e-9, atol=0)


def test_what_cannot_be_known_is_told(monkeypatch):
    """Bounds are compared: a plan far above what its dual proves is not called exact."""
    monkeypatch.setattr("nflib.metrics.transport._cut_offs", lambda cost: [])
    x, y = normal(50, 2), normal(50, 2, seed=1)
    point = torch.full((1, 2), 1e9, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"too many orders of magnitude; W_2 lies between 0 and "):
        wasserstein(torch.cat([x, point]), torch.cat([y, point]))


@pytest.mark.parametrize("scale", [1e-150, 1e-9, 1e9, 1e150])
def test_scale_and_offset_of_both_sets(scale):
    x, y, a = normal(40, 2), normal(30, 2, seed=1), uniform(40, seed=2)
    for order in (1, 2, 7):
        expected = wasserstein(x, y, a, order=order)
        torch.testing.assert_close(
            wasserstein(scale * x, scale * y, a, order=order) / scale, expected, rtol=1e-9, atol=0
        )
        line = wasserstein_1d(x.T, y.T, a, order=order)
        torch.testing.assert_close(wasserstein_1d(scale * x.T, scale * y.T, a, order=order) / scale, line)
    moved = wasserstein(x + 1e8, y + 1e8, a)
    torch.testing.assert_close(moved, wasserstein(x, y, a), rtol=1e-7, atol=0)  # the rounding of x + 1e8
    torch.testing.assert_close(wasserstein(x, x + 1e-9), torch.tensor(math.sqrt(2) * 1e-9).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8, torch.bool])
def test_other_dtypes_are_their_float64_values(dtype):
    x, y = (10 * uniform(20, 2)).to(dtype), (10 * uniform(15, 2, seed=1)).to(dtype)
    weights = torch.arange(20) % 3
    for order in (1, 2):
        result = wasserstein(x, y, weights.to(dtype), order=order)
        assert result.dtype == torch.float64
        torch.testing.assert_close(
            result, wasserstein(x.double(), y.double(), weights.to(dtype).double(), order=order), rtol=0, atol=0
        )
        line = wasserstein_1d(x[:, 0], y[:, 0], order=order)
        assert line == wasserstein_1d(x[:, 0].double(), y[:, 0].double(), order=order)


def test_weights_of_any_size_and_one_sample():
    x, y, a, b = normal(12), normal(9, seed=1), uniform(12, seed=2), uniform(9, seed=3)
    for factor in (1e-310, 1e-200, 1e200, 1e308):
        torch.testing.assert_close(wasserstein_1d(x, y, factor * a, b), wasserstein_1d(x, y, a, b), rtol=1e-9, atol=0)
    for order in (1, 2, math.inf):
        assert wasserstein(torch.zeros(1, 3), torch.ones(1, 3), order=order).item() == pytest.approx(3**0.5)
        assert wasserstein_1d(torch.zeros(1), torch.ones(1), order=order) == 1
    one = wasserstein(torch.zeros(1, 2), normal(9, 2))
    torch.testing.assert_close(one, normal(9, 2).square().sum(1).mean().sqrt())


def test_many_weights_lose_no_digits():
    """Equal weights written out are equal weights, however many: levels are summed without loss."""
    x, y = normal(50_000), normal(49_999, seed=1).exp()
    x[7], y[11] = 1e6, 1e6
    ones, tenths = torch.ones(50_000), torch.full((49_999,), 0.1)
    for order in (1, 2):
        torch.testing.assert_close(
            wasserstein_1d(x, y, ones, tenths, order=order), wasserstein_1d(x, y, order=order), rtol=1e-10, atol=0
        )


@pytest.mark.parametrize("order", [1, 2, math.inf])
@pytest.mark.parametrize("power", [-700, 700])
def test_squares_beyond_the_range_of_numbers(power, order):
    x, y, scale = normal(20, 3), normal(20, 3, seed=1), 2.0**power
    expected = wasserstein(x, y, order=order) * scale
    torch.testing.assert_close(wasserstein(x * scale, y * scale, order=order), expected, rtol=1e-12, atol=0)
    wrapped = wasserstein(x * scale, y * scale, order=order, metric="torus", period=scale)
    expected = wasserstein(x, y, order=order, metric="torus", period=1.0) * scale
    torch.testing.assert_close(wrapped, expected, rtol=1e-12, atol=0)
