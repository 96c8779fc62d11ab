"""Training by an energy alone: the reverse Kullback-Leibler divergence and its estimators of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Gamma, Independent

from nflib.flows import TARFlow
from nflib.montecarlo import BoltzmannDensity
from nflib.training import ReverseKL, fit, maximum_likelihood, objectives
from nflib.transforms.inversion import invert
from tests.nflib.training_cases import Gaussian, Record, configuration, generator, normal
from tests.perturb import perturb

MEAN, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
LOG_Z = float(SCALE.log().sum()) + math.log(2 * math.pi)


def energy(x: Tensor) -> Tensor:
    """Of N(MEAN, SCALE^2), in kT, without the normaliser: log Z is LOG_Z."""
    return 0.5 * (((x - MEAN.to(x)) / SCALE.to(x)) ** 2).sum(dim=1)


def wavy(x: Tensor) -> Tensor:
    return (0.3 * x**4 - x.prod(dim=1, keepdim=True)).sum(dim=1) + torch.sin(3 * x).sum(dim=1)


def gaussian() -> Gaussian:
    flow = Gaussian().double()
    with torch.no_grad():
        flow.mean.copy_(torch.tensor([0.3, -0.2]))
        flow.log_scale.copy_(torch.tensor([0.1, -0.4]))
    return flow


def gradients(loss: Tensor, flow: nn.Module) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(flow.parameters()))])


def finite_differences(function: Callable[[], Tensor], flow: nn.Module, step: float = 1e-6) -> Tensor:
    slopes = []
    with torch.no_grad():
        for parameter in flow.parameters():
            for number in parameter.view(-1).split(1):
                number += step
                above = function()
                number -= 2 * step
                below = function()
                number += step
                slopes.append((above - below) / (2 * step))
    return torch.stack(slopes)


def test_the_total_derivative_is_that_of_the_loss() -> None:
    flow, objective = gaussian(), ReverseKL(BoltzmannDensity(wavy), 16, "total")
    loss, scalars = objective(flow, {}, generator())
    expected = finite_differences(lambda: objective(flow, {}, generator())[0], flow)
    torch.testing.assert_close(gradients(loss, flow), expected, rtol=1e-7, atol=1e-7)
    x = flow.rsample(16, generator=generator())
    torch.testing.assert_close(loss, (flow.log_prob(x) + wavy(x)).mean())
    assert scalars["rejected_energies"] == 0 and not scalars["reverse_kl"].requires_grad


def test_the_path_derivative_leaves_the_parameters_of_the_density_alone() -> None:
    flow, frozen = gaussian(), gaussian()
    objective = ReverseKL(BoltzmannDensity(wavy), 16)

    def along_the_path() -> Tensor:
        x = flow.rsample(16, generator=generator())
        return (frozen.log_prob(x) + wavy(x)).mean().detach()

    loss, _ = objective(flow, {}, generator())
    expected = finite_differences(along_the_path, flow)
    torch.testing.assert_close(gradients(loss, flow), expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(loss, ReverseKL(BoltzmannDensity(wavy), 16, "total")(flow, {}, generator())[0])


def modes(x: Tensor) -> Tensor:
    """Of two normals a long way from each other, with next to nothing between, that hold 1/4 and 3/4."""
    logits = torch.stack([-(x - 20).square().sum(1) / 2, -(x + 20).square().sum(1) / 2 + math.log(3)])
    return -logits.logsumexp(0)


class Mixture(nn.Module):
    """The same two normals; the one parameter is the logit of the first one's share. Its samples cannot follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def rsample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        shares = torch.rand(num_samples, 1, generator=generator, dtype=torch.float64)
        centre = torch.where(shares < self.logit.detach().sigmoid(), 20.0, -20.0)
        return centre + torch.randn(num_samples, 2, generator=generator, dtype=torch.float64) + 0 * self.logit

    def log_prob(self, x: Tensor, context: None = None) -> Tensor:
        share = torch.where(x[:, 0] > 0, self.logit, -self.logit)
        return nn.functional.logsigmoid(share) - (x.abs() - 20).square().sum(1) / 2 - math.log(2 * math.pi)


def test_mixed_moves_mass_between_modes_where_paths_do_not() -> None:
    flow, count = Mixture(), 100_000
    path, _ = ReverseKL(BoltzmannDensity(modes), count)(flow, {}, generator())
    assert gradients(path, flow).abs() < 1e-12
    loss, _ = ReverseKL(BoltzmannDensity(modes), count, "mixed")(flow, {}, generator())
    # KL of (s, 1 - s) from (1/4, 3/4), s = sigmoid(logit); the paths' gradient here is not that of the divergence,
    # so that the score's is the derivative at 1/2, log(3) / 4, times its weight. Var(w) is (log(3) / 2)^2.
    expected = math.log(3) / 4 / (1 + (math.log(3) / 2) ** 2)
    assert float(gradients(loss, flow)) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("estimator", ["path", "total", "mixed"])
def test_all_estimate_the_gradient_of_the_divergence(estimator: str) -> None:
    flow, count = gaussian(), 200_000
    loss, _ = ReverseKL(BoltzmannDensity(energy), count, estimator)(flow, {}, generator())
    # KL(N(m, s) | N(M, S)) = log(S / s) + (s^2 + (m - M)^2) / (2 S^2) - 1/2 a coordinate
    scale, width = flow.log_scale.exp(), SCALE.double()
    divergence = ((width / scale).log() + (scale**2 + (flow.mean - MEAN) ** 2) / (2 * width**2) - 0.5).sum()
    torch.testing.assert_close(loss, divergence - LOG_Z, rtol=0, atol=0.06)
    torch.testing.assert_close(gradients(loss, flow), gradients(divergence, flow), rtol=0, atol=0.06)


def test_at_the_target_every_draw_has_path_gradient_zero() -> None:
    flow = gaussian()
    with torch.no_grad():
        flow.mean.copy_(MEAN)
        flow.log_scale.copy_(SCALE.log())
    for seed in range(3):
        loss, _ = ReverseKL(BoltzmannDensity(energy), 1)(flow, {}, generator(seed))
        assert gradients(loss, flow).abs().max() < 1e-6  # MEAN and SCALE are float32
        assert float(loss.detach()) == pytest.approx(-LOG_Z, abs=1e-6)
        total, _ = ReverseKL(BoltzmannDensity(energy), 1, "total")(flow, {}, generator(seed))
        assert gradients(total, flow).abs().max() > 1e-2


def cliff(value: float) -> Callable[[Tensor], Tensor]:
    """Energies of this value, and infinite forces, where the first coordinate is above 0.5."""

    def function(x: Tensor) -> Tensor:
        energies, above = energy(x).clone(), x[:, 0] > 0.5
        energies[above] = value + torch.sqrt(x[above, 0] - x[above, 0].detach())
        return energies

    return function


@pytest.mark.parametrize("estimator", ["path", "total"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 1.0])  # of 1.0 the energy is finite, and the force is not
def test_draws_without_a_finite_energy_are_left_out(estimator: str, value: float) -> None:
    flow = gaussian()
    x = flow.rsample(32, generator=generator())
    kept = x[:, 0] <= 0.5
    assert 0 < kept.sum() < 32
    loss, scalars = ReverseKL(BoltzmannDensity(cliff(value)), 32, estimator)(flow, {}, generator())
    density = (gaussian() if estimator == "path" else flow).log_prob(x[kept])
    expected = (density + energy(x[kept])).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, flow), gradients(expected, flow))
    assert float(scalars["rejected_energies"]) == pytest.approx(1 - kept.double().mean())


@pytest.mark.parametrize("energy", [wavy, cliff(math.inf), cliff(1.0)])
def test_mixed_is_the_mean_of_path_and_score_by_the_variance_of_their_difference(
    energy: Callable[[Tensor], Tensor],
) -> None:
    flow, frozen = gaussian(), gaussian()
    x = flow.rsample(32, generator=generator())
    x = x if energy is wavy else x[x[:, 0] <= 0.5]
    path = gradients((frozen.log_prob(x) + energy(x)).mean(), flow)
    log_q = flow.log_prob(x.detach())
    w = (log_q + energy(x)).detach()
    others = torch.stack([w[torch.arange(len(w)) != i].mean() for i in range(len(w))])
    score = gradients(((w - others) * log_q).mean(), flow)
    loss, _ = ReverseKL(BoltzmannDensity(energy), 32, "mixed")(flow, {}, generator())
    torch.testing.assert_close(loss, w.mean())
    torch.testing.assert_close(gradients(loss, flow), (w.var() * path + score) / (1 + w.var()))


def test_mixed_is_path_where_the_variance_overflows() -> None:
    flow, target = Gaussian(), BoltzmannDensity(lambda x: 1e25 * energy(x))
    expected = gradients(ReverseKL(target, 32)(flow, {}, generator())[0], flow)
    loss, _ = ReverseKL(target, 32, "mixed")(flow, {}, generator())
    assert expected.isfinite().all()
    torch.testing.assert_close(gradients(loss, flow), expected)


def test_fit_reaches_a_target_without_any_data(tmp_path: Path) -> None:
    flow, record = Gaussian(), Record()
    objective = ReverseKL(BoltzmannDensity(energy), 64)
    settings = {"max_steps": 600, "learning_rate": 3e-2, "ema_decay": 0.0, "log_interval": 100, "weight_decay": 0.0}
    config = configuration(**settings)
    result = fit(flow, config=config, objective=objective, output=tmp_path, callbacks=[record])
    assert record.steps == list(range(1, 601))
    torch.testing.assert_close(flow.mean, MEAN, atol=1e-3, rtol=0)
    torch.testing.assert_close(flow.log_scale.exp(), SCALE, atol=1e-3, rtol=1e-3)
    assert result.loss == pytest.approx(-LOG_Z, abs=1e-3)


def test_a_target_is_annealed_from_its_first_temperature_to_one(tmp_path: Path) -> None:
    objective = ReverseKL(BoltzmannDensity(energy), 8, temperature=5.0, annealing=0.5)
    assert [objective.at(done).temperature for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([5.0, 1 / 0.6, 1.0, 1.0])
    hot = ReverseKL(BoltzmannDensity(lambda x: energy(x) / 5), 8)
    torch.testing.assert_close(objective(Gaussian(), {}, generator())[0], hot(Gaussian(), {}, generator())[0])
    # The gradient of a hot target: the best normal is as wide as sqrt(5) times SCALE.
    flow = Gaussian()
    with torch.no_grad():
        flow.mean.copy_(MEAN)
        flow.log_scale.copy_(SCALE.log() + 0.5 * math.log(5))
    loss, _ = objective(flow, {}, generator())
    torch.testing.assert_close(gradients(loss, flow), torch.zeros(4), rtol=0, atol=1e-5)
    # fit asks for the temperature of every step: four of them here, the last two at 1.
    temperatures = []

    class Watched(ReverseKL):
        def __call__(self, *args: object) -> tuple[Tensor, dict[str, Tensor]]:
            temperatures.append(self.temperature)
            return super().__call__(*args)  # type: ignore[arg-type]

    watched = Watched(BoltzmannDensity(energy), 8, temperature=5.0, annealing=0.5)
    fit(Gaussian(), config=configuration(max_steps=4), objective=watched, output=tmp_path)
    assert temperatures == pytest.approx([5.0, 1 / 0.6, 1.0, 1.0])


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_a_run_without_data_is_resumed_bit_for_bit(tmp_path: Path, temperature: float) -> None:
    objective, config = ReverseKL(BoltzmannDensity(wavy), 8, "total", temperature), configuration()
    whole, second = Record(), Record()
    fit(Gaussian(), config=config, objective=objective, output=tmp_path / "whole", callbacks=[whole])
    with pytest.raises(InterruptedError):
        fit(Gaussian(), config=config, objective=objective, output=tmp_path / "parts", callbacks=[Record(fail_at=8)])
    fit(Gaussian(), config=config, objective=objective, output=tmp_path / "parts", callbacks=[second])
    assert second.losses == whole.losses[5:] and len(set(whole.losses)) == 12


def test_a_step_without_any_finite_energy_is_skipped(tmp_path: Path) -> None:
    nowhere = BoltzmannDensity(lambda x: x.sum(dim=1) * math.inf)
    config = configuration(max_skipped_steps=3)
    with pytest.raises(RuntimeError, match="4 steps in a row"):
        fit(Gaussian(), config=config, objective=ReverseKL(nowhere, 8), output=tmp_path)


@pytest.mark.parametrize("estimator", ["path", "mixed"])
def test_processes_share_the_draws(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    counts, flow = [], gaussian()

    class Counts(Gaussian):
        def rsample(self, num_samples: int, *args: object, **options: object) -> Tensor:
            counts.append(num_samples)
            return super().rsample(num_samples, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(objectives, "_world_size", lambda: 4)
    monkeypatch.setattr(objectives, "_total", lambda value: 4 * value)  # all alike
    shared = Counts().double()
    shared.load_state_dict(flow.state_dict())
    loss, _ = ReverseKL(BoltzmannDensity(energy), 8, estimator)(shared, {}, generator())
    monkeypatch.undo()
    assert counts == [2]
    x = flow.rsample(2, generator=generator()).repeat(4, 1)
    flow.rsample = lambda *args, **options: x  # type: ignore[method-assign]
    alone, _ = ReverseKL(BoltzmannDensity(energy), 8, estimator)(flow, {}, generator())
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(gradients(loss, shared), gradients(alone, flow))
    monkeypatch.setattr(objectives, "_world_size", lambda: 3)
    with pytest.raises(ValueError, match="num_samples=8 cannot be shared evenly by 3 processes"):
        ReverseKL(BoltzmannDensity(energy), 8)(Gaussian(), {}, generator())


def test_mistakes_are_told(tmp_path: Path) -> None:
    target = BoltzmannDensity(energy)
    with pytest.raises(ValueError, match=r"function\) has no log_prob; wrap a reduced energy"):
        ReverseKL(energy)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Gamma of batch shape \(2,\) is many densities"):
        ReverseKL(Gamma(torch.ones(2), torch.ones(2)))
    with pytest.raises(ValueError, match="'path', 'total' or 'mixed', not 'reinforce'"):
        ReverseKL(target, estimator="reinforce")
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        ReverseKL(target, 0)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        ReverseKL(target, 1, "mixed")
    with pytest.raises(ValueError, match="temperature must be a positive number, not 0"):
        ReverseKL(target, temperature=0)
    with pytest.raises(ValueError, match="annealing is a share of the run"):
        ReverseKL(target, annealing=0.0)
    with pytest.raises(ValueError, match="no gradient in x"):
        ReverseKL(BoltzmannDensity(lambda x: energy(x.detach())))(Gaussian(), {}, generator())
    with pytest.raises(ValueError, match="target's log_prob carries no gradient in x; pass a density .* no numpy"):
        ReverseKL(BoltzmannDensity(lambda x: torch.from_numpy(x.numpy() ** 2).sum(1)))(Gaussian(), {}, generator())
    for data in ((normal(8, 2), None), (None, normal(8, 2))):
        with pytest.raises(ValueError, match="ReverseKL draws its own samples; leave the data out"):
            fit(Gaussian(), *data, config=configuration(), objective=ReverseKL(target), output=tmp_path)
    with pytest.raises(ValueError, match="maximum_likelihood needs training data"):
        fit(Gaussian(), config=configuration(), objective=maximum_likelihood, output=tmp_path)


# --- a flow whose samples are decoded -------------------------------------------------------------


def tarflow(**settings: object) -> TARFlow:
    torch.manual_seed(0)
    return TARFlow((4,), patch_size=1, channels=16, num_blocks=2, layers_per_block=1, head_dim=8, **settings)


@pytest.mark.parametrize("estimator", ["path", "total"])
def test_the_derivatives_of_a_decoded_flow_are_those_of_finite_differences(estimator: str) -> None:
    flow, frozen = (perturb(tarflow()).double() for _ in range(2))
    objective = ReverseKL(BoltzmannDensity(wavy), 8, estimator)
    loss, _ = objective(flow, {}, generator())
    loss.backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    directions = [torch.randn(p.shape, generator=generator(1), dtype=p.dtype) for p in flow.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(flow.parameters(), directions, strict=True) if p.grad is not None)

    def at(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, direction in zip(flow.parameters(), directions, strict=True):
                parameter += step * direction
            x = flow.rsample(8, generator=generator())  # type: ignore[operator]
            density = (frozen if estimator == "path" else flow).log_prob(x)  # type: ignore[operator]
            for parameter, direction in zip(flow.parameters(), directions, strict=True):
                parameter -= step * direction
            return (density + wavy(x)).mean()

    expected = (at(1e-5) - at(-1e-5)) / 2e-5
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("estimator", ["path", "total", "mixed"])
def test_draws_without_a_finite_position_are_left_out(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    flow, alone = (perturb(tarflow()).double() for _ in range(2))
    noise = torch.randn(8, 4, 1, dtype=torch.float64, generator=generator())
    spoilt = noise.clone()
    spoilt[2, 1] = torch.inf
    others = torch.arange(8) != 2
    monkeypatch.setattr(flow, "rsample", lambda *args, **options: invert(flow._transform, spoilt).tokens)
    monkeypatch.setattr(alone, "rsample", lambda *args, **options: invert(alone._transform, noise[others]).tokens)
    loss, scalars = ReverseKL(BoltzmannDensity(wavy), 8, estimator)(flow, {}, generator())
    expected, _ = ReverseKL(BoltzmannDensity(wavy), 7, estimator)(alone, {}, generator())
    assert scalars["rejected_energies"] == 1 / 8
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for one, other in zip(flow.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_draws_outside_a_bounded_support_are_left_out() -> None:
    flow, objective = gaussian(), ReverseKL(Independent(Gamma(torch.full((2,), 3.0), torch.ones(2)), 1), 32)
    x = flow.rsample(32, generator=generator())
    inside = (x >= 0).all(dim=1)
    assert 0 < inside.sum() < 32
    loss, scalars = objective(flow, {}, generator())
    torch.testing.assert_close(loss, (flow.log_prob(x) - objective.target.log_prob(x.clamp_min(0)))[inside].mean())
    assert float(scalars["rejected_energies"]) == pytest.approx(1 - inside.double().mean())
    assert gradients(loss, flow).isfinite().all()


def test_fit_brings_a_decoded_flow_to_a_correlated_target(tmp_path: Path) -> None:
    covariance = torch.tensor(
        [[2.0, 0.9, 0.0, 0.3], [0.9, 1.0, -0.4, 0.0], [0.0, -0.4, 0.5, 0.1], [0.3, 0.0, 0.1, 1.5]]
    )
    target = torch.distributions.MultivariateNormal(torch.tensor([1.0, -1.0, 0.0, 0.5]), covariance)
    flow = tarflow()
    config = configuration(max_steps=400, learning_rate=1e-2, ema_decay=0.9, log_interval=100)
    fit(flow, config=config, objective=ReverseKL(target, 64), output=tmp_path)
    x, log_q = flow.sample_and_log_prob(2000, seed=0)
    weights = torch.softmax(target.log_prob(x) - log_q, dim=0)
    assert 1 / (weights**2).sum() > 0.95 * len(x)
    assert float((log_q - target.log_prob(x)).mean()) < 0.02


@pytest.mark.parametrize("keepdim", [True, None])
def test_a_target_of_another_shape_is_refused(keepdim: bool | None) -> None:
    def energy(x: torch.Tensor) -> torch.Tensor:
        return x.square().sum() if keepdim is None else x.square().sum(dim=1, keepdim=keepdim)

    with pytest.raises(ValueError, match="the target's log_prob returned log-densities of shape"):
        ReverseKL(BoltzmannDensity(energy), num_samples=2)(Gaussian(), {}, generator())
