"""Stochastic interpolants against the closed forms of mixtures; symmetric flow matching on a joint normal."""

import math

import pytest
import torch
from scipy.integrate import quad

from nflib.continuous import (
    RK4,
    DiffusionProposal,
    FlowMatching,
    InterpolantFlow,
    InterpolantMatching,
    LinearPath,
    MLPVelocity,
    ODEFlow,
    Pairs,
    SymmetricMatching,
    TwoSidedPath,
)
from nflib.montecarlo import importance_sample
from nflib.training import TrainingConfig, fit
from tests.nflib.continuous.gaussian_mixtures import THREE, TWO, Exact
from tests.perturb import perturb
from tests.quiet import QUIET

PATH = TwoSidedPath(0.8)
EXACT = Exact(PATH, TWO, THREE)
BASE = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(TWO.weights),
    torch.distributions.MultivariateNormal(TWO.means, TWO.covariances),
)


def interpolant(velocity=EXACT.velocity, score=EXACT.score, **options) -> InterpolantFlow:
    return InterpolantFlow(velocity, score, (2,), path=PATH, distribution=BASE, **options)


def loss_of(flow, number=4000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {"inputs": THREE.sample(number, generator)}
    return InterpolantMatching()(flow, batch, generator)[1]


def test_pairs_of_the_data_are_taken(tmp_path) -> None:
    flow = InterpolantFlow(MLPVelocity(2, channels=8), MLPVelocity(2, channels=8), (2,))
    data = {"inputs": torch.randn(32, 2), "noise": torch.randn(32, 2)}
    config = TrainingConfig(batch_size=16, max_steps=2, **QUIET)
    assert fit(flow, data, config=config, objective=InterpolantMatching(Pairs()), output=tmp_path).steps == 2
    with pytest.raises(ValueError, match="'noise', but the objective InterpolantMatching reads"):
        fit(flow, data, config=config, objective=InterpolantMatching(), output=tmp_path / "without")


def test_closed_form_is_the_score_of_the_interpolant() -> None:
    x, t = torch.randn(20, 2, dtype=torch.float64), torch.rand(20, dtype=torch.float64)
    by_autograd = torch.func.grad(lambda x: EXACT.log_prob(x, t).sum())(x)
    torch.testing.assert_close(EXACT.score(x, t), by_autograd, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["drift", "score"])
def test_losses_have_their_minimum_at_the_closed_forms(name) -> None:
    best = {"drift": EXACT.velocity, "score": EXACT.score}
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    curves = []
    for seed in range(12):
        for change in (lambda x, t: x, lambda x, t: torch.sin(2 * x.flip(1)) * t[:, None]):

            def moved(x, t, change=change):
                return best[name](x, t) + scale * change(x, t)

            flow = interpolant(**{{"drift": "velocity", "score": "score"}[name]: moved})
            generator = torch.Generator().manual_seed(seed)
            loss, _ = InterpolantMatching()(flow, {"inputs": THREE.sample(1000, generator)}, generator)
            curves.append(float(torch.autograd.grad(loss, scale)[0]))
    slopes = torch.tensor(curves).view(12, 2)
    assert (slopes.mean(0).abs() < 3.5 * slopes.std(0) / math.sqrt(12)).all()


def test_values_at_the_minimum() -> None:
    runs = [loss_of(interpolant(), seed=seed) for seed in range(8)]
    generator = torch.Generator().manual_seed(100)
    t = torch.rand(40_000, generator=generator, dtype=torch.float64)
    x0, x1 = TWO.sample(len(t), generator), THREE.sample(len(t), generator)
    x = PATH.interpolate(x0, x1, t, torch.randn(len(t), 2, generator=generator, dtype=torch.float64))
    for name, field in (("drift", EXACT.velocity), ("score", EXACT.score)):
        square = field(x, t).square().sum(1)
        values = torch.stack([run[name] for run in runs])
        error = math.hypot(float(values.std()) / math.sqrt(8), float(square.std()) / 2 / math.sqrt(len(t)))
        assert abs(float(values.mean() + square.mean() / 2)) < 3.5 * error


def test_antithetic_latents_stay_finite_at_the_ends() -> None:
    class Ends:
        def sample(self, number, generator=None):
            return (torch.arange(number) % 2).double()

    flow = interpolant()
    loss, _ = InterpolantMatching(times=Ends())(
        flow, {"inputs": THREE.sample(100, torch.Generator())}, torch.Generator()
    )
    assert math.isfinite(loss)


def test_all_equations_carry_one_density_to_the_other() -> None:
    flow = interpolant(solver=RK4(20))
    x = THREE.sample(50, torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.log_prob(x), THREE.log_prob(x), rtol=0, atol=5e-3)
    proposal = DiffusionProposal(flow, 0.3, 40, score=flow.path_score)
    weights = importance_sample(proposal, THREE, 4000, seed=0).log_weights.exp()
    assert abs(weights.mean() - 1) < 3 * weights.std() / math.sqrt(4000)
    assert weights.sum() ** 2 / weights.square().sum() > 0.7 * 4000


def test_gradients_reach_both_networks() -> None:
    flow = InterpolantFlow(MLPVelocity(2, channels=8), MLPVelocity(2, channels=8), (2,))
    loss, _ = InterpolantMatching()(flow, {"inputs": torch.randn(32, 2)}, torch.Generator().manual_seed(0))
    loss.backward()
    for net in (flow._transform.velocity, flow.score_field):
        assert net.network.proj_out.weight.grad.abs().sum() > 0


# ---- SymmFlow, of standard normal x and y with this correlation

CORRELATION = 0.8


def symmetric_velocity(u, t):
    """E[(x - noise, noise' - y) | x_t, y_t] in closed form."""
    r, t = CORRELATION, t.to(u.dtype)
    own, cross = t**2 + (1 - t) ** 2, t * (1 - t) * r
    covariance = torch.stack([own, cross, cross, own], dim=-1).view(-1, 2, 2)
    along = torch.stack([2 * t - 1, (1 - t) * r, -t * r, 2 * t - 1], dim=-1).view(-1, 2, 2)
    return (along @ torch.linalg.solve(covariance, u[..., None]))[..., 0]


def test_symmetric_loss_has_its_minimum_at_the_closed_form() -> None:
    factor = torch.linalg.cholesky(torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64))
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    slopes = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        data = torch.randn(2000, 2, generator=generator, dtype=torch.float64) @ factor.T
        flow = ODEFlow(lambda u, t: symmetric_velocity(u, t) + scale * u.flip(1) * t[:, None], (2,))
        slopes.append(float(torch.autograd.grad(SymmetricMatching(1)(flow, {"inputs": data}, generator)[0], scale)[0]))
    slopes = torch.tensor(slopes)
    assert abs(slopes.mean()) < 3.5 * slopes.std() / math.sqrt(12)
    with pytest.raises(ValueError, match="takes vectors of x"):
        SymmetricMatching(2)(flow, {"inputs": data}, generator)


def test_symmetric_flow_both_ways_in_closed_form() -> None:
    r = CORRELATION
    flow = ODEFlow(symmetric_velocity, (2,), solver=RK4(60))
    forwards = flow.decode(torch.eye(2, dtype=torch.float64)).T  # of (noise, y) to (x, noise)
    backwards = flow.encode(torch.eye(2, dtype=torch.float64)).T
    torch.testing.assert_close(forwards @ forwards.T, torch.eye(2).double(), atol=1e-6, rtol=0)  # marginals are right
    angle = quad(lambda t: r / 2 / math.sqrt((t * t + (1 - t) ** 2) ** 2 - (t * (1 - t) * r) ** 2), 0, 1)[0]
    assert float(forwards[0, 1]) == pytest.approx(math.sin(angle), abs=1e-6)  # x of y
    assert float(backwards[1, 0]) == pytest.approx(math.sin(angle), abs=1e-6)  # y of x
    assert abs(math.sin(angle) - r) > 0.1  # which is not the conditional's


def test_guided_flow_guides_its_score(tmp_path) -> None:
    flow = perturb(InterpolantFlow(*(MLPVelocity(2, channels=8, context_size=3) for _ in range(2)), (2,)))
    none, x, t, context = torch.zeros(4, 3), torch.randn(4, 2), torch.rand(4), torch.randn(4, 3)
    flow.guided(2.0, none[:1]).save_pretrained(tmp_path)
    guided = InterpolantFlow.from_pretrained(tmp_path)
    for name in ("velocity", "path_score"):
        field = getattr(flow, name)
        torch.testing.assert_close(getattr(guided, name)(x, t, context), 2 * field(x, t, context) - field(x, t, none))


def test_a_path_without_a_latent_is_refused() -> None:
    velocities = (MLPVelocity(2, channels=8), MLPVelocity(2, channels=8))
    with pytest.raises(ValueError, match="a path with a latent, as TwoSidedPath.*; LinearPath has none"):
        InterpolantFlow(*velocities, (2,), path=LinearPath())


def test_flow_matching_of_a_path_with_a_latent_is_refused() -> None:
    """It fitted the path without the latent."""
    flow = InterpolantFlow(MLPVelocity(2, channels=8), MLPVelocity(2, channels=8), (2,))
    with pytest.raises(ValueError, match="TwoSidedPath has a latent.*InterpolantMatching"):
        FlowMatching()(flow, {"inputs": torch.randn(8, 2)}, torch.Generator())
