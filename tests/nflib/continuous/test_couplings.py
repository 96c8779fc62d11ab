"""Couplings: which noise goes to which data, with their contexts."""

import itertools

import pytest
import torch
from nflows.distributions import ConditionalDiagonalNormal

from nflib.continuous import (
    FlowCoupling,
    FlowMatching,
    IndependentCoupling,
    LinearPath,
    MLPVelocity,
    ODEFlow,
    OptimalTransportCoupling,
    Pairs,
    VarianceExplodingPath,
    pairs_of,
)
from nflib.flows import TARFlow
from nflib.training import TrainingConfig, fit
from tests.perturb import perturb
from tests.quiet import QUIET


@pytest.fixture
def flow():
    return ODEFlow(MLPVelocity(2, channels=8, num_layers=1), (2,))


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return perturb(TARFlow((2,), 1, channels=16, num_blocks=2, layers_per_block=1, head_dim=8, num_classes=3))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_optimal_transport_costs_least_of_all_pairings(flow):
    x1 = torch.randn(6, 2, generator=generator(1))
    x0, same, _ = OptimalTransportCoupling()(flow, {"inputs": x1}, generator())
    drawn, _, _ = IndependentCoupling()(flow, {"inputs": x1}, generator())
    assert same is x1
    assert sorted(x0.tolist()) == sorted(drawn.tolist())
    least = min(float((x1 - drawn[list(order)]).square().sum()) for order in itertools.permutations(range(6)))
    assert float((x1 - x0).square().sum()) == pytest.approx(least)


def test_optimal_transport_pairs_within_each_context(flow):
    # Noise must not tell of the context: that of each class is the very noise which the class had drawn.
    x1, labels = torch.randn(40, 2, generator=generator(1)), torch.arange(40) % 2
    x1[:, 0] += 4 * labels
    x0, _, context = OptimalTransportCoupling()(flow, {"inputs": x1, "context": labels}, generator())
    drawn, _, _ = IndependentCoupling()(flow, {"inputs": x1}, generator())
    assert context is labels
    for label in (0, 1):
        assert sorted(x0[labels == label].tolist()) == sorted(drawn[labels == label].tolist())


def test_optimal_transport_refuses_weights(flow):
    """Noise that goes to heavy rows would be weighted with them: a flow of +-1 weighted 0.9 and 0.1 gave halves."""
    batch = {"inputs": torch.randn(4, 2), "weights": torch.ones(4)}
    with pytest.raises(ValueError, match="resample the rows by their weights"):
        FlowMatching(OptimalTransportCoupling())(flow, batch, generator())


def test_pairs_are_those_of_the_data(flow, teacher):
    pairs = pairs_of(teacher, 4, torch.tensor([0, 2]), seed=0, batch_size=3)
    assert pairs["inputs"].shape == (8, 2)
    assert pairs["context"].tolist() == [0] * 4 + [2] * 4
    x0, x1, context = Pairs()(flow, pairs, generator())
    torch.testing.assert_close(teacher.encode(x1, context).flatten(1), x0, atol=1e-5, rtol=1e-5)
    assert pairs_of(teacher, 0, torch.tensor([0, 2]), seed=0)["inputs"].shape == (0, 2)
    with pytest.raises(ValueError, match="pairs_of"):
        Pairs()(flow, {"inputs": x1}, generator())


def test_noise_of_a_flow_is_what_it_makes_of_noised_data(flow, teacher):
    batch = {"inputs": torch.randn(5, 2, generator=generator(1)), "context": torch.tensor([0, 1, 2, 0, -1])}
    x0, x1, context = FlowCoupling(teacher)(flow, batch, generator())
    assert x1 is batch["inputs"]
    torch.testing.assert_close(x0, teacher.encode(x1, context).flatten(1))
    added = torch.randn(5, 2, generator=generator())
    noised, _, _ = FlowCoupling(teacher, noise=0.1, width=2.0)(flow, batch, generator())
    torch.testing.assert_close(noised, teacher.encode(x1 + 0.1 * added, context).flatten(1) / 2)
    assert not x0.requires_grad
    with pytest.raises(ValueError, match="noise"):
        FlowCoupling(teacher, noise=-1.0)


def test_noise_of_patches_lies_where_the_patches_are():
    """A new TARFlow is the identity, whatever the number of its blocks: each pixel's noise is its own."""
    teacher = TARFlow((1, 4, 4), patch_size=2, channels=8, num_blocks=3, layers_per_block=1, head_dim=8)
    flow = ODEFlow(MLPVelocity(2), (1, 4, 4))
    x1 = torch.randn(3, 1, 4, 4, generator=generator())
    x0, _, _ = FlowCoupling(teacher)(flow, {"inputs": x1}, generator())
    torch.testing.assert_close(x0, x1)


def test_flow_matching_trains_with_each(flow, teacher, tmp_path):
    config = TrainingConfig(batch_size=32, max_steps=3, **QUIET)
    x = torch.randn(64, 2, generator=generator())
    pairs = pairs_of(TARFlow((2,), channels=16, num_blocks=1, layers_per_block=1, head_dim=8).eval(), 64, seed=0)
    for coupling, data in ((OptimalTransportCoupling(), x), (FlowCoupling(teacher, 0.05), x), (Pairs(), pairs)):
        output = tmp_path / type(coupling).__name__
        result = fit(flow, data, config=config, objective=FlowMatching(coupling), output=output)
        assert result.steps == 3 and result.skipped_steps == 0


@pytest.mark.parametrize(("path", "start"), [(VarianceExplodingPath(0.01, 50.0), 0.0), (LinearPath(), 0.2)])
def test_noise_counts_the_width_of_the_path_once(path, start):
    flow = ODEFlow(lambda x, t: -x, (2,), path=path, start=start)
    x1 = torch.zeros(20_000, 2)
    x0, _, _ = IndependentCoupling()(flow, {"inputs": x1}, torch.Generator().manual_seed(0))
    state = path.interpolate(x0, x1, torch.full((len(x1),), start))
    width = float(path.coefficients(torch.tensor([start])).alpha)
    assert state.std() == pytest.approx(width, rel=0.02)
    pairs = pairs_of(flow, 20_000, seed=0)
    x0, _, _ = Pairs()(flow, pairs, generator())
    assert x0.std() == pytest.approx(1, rel=0.02)
    torch.testing.assert_close(flow.decode(width * x0), pairs["inputs"])


def test_pairs_of_a_guided_flow_with_a_base_of_its_context():
    base = ConditionalDiagonalNormal((2,))  # whose means and log-widths are the context
    flow = ODEFlow(lambda x, t, context: context[:, :2], (2,), distribution=base, context_shape=(4,))
    context = torch.tensor([[100.0, 0, 0, 0], [-100.0, 0, 0, 0]])
    pairs = pairs_of(flow.guided(2.0, torch.zeros(1, 4)), 3, context, seed=0)
    rows = context.repeat_interleave(3, 0)
    assert torch.equal(pairs["context"], rows) and ((pairs["noise"] - rows[:, :2]).abs() < 5).all()
    torch.testing.assert_close(pairs["inputs"], pairs["noise"] + 2 * rows[:, :2])


@pytest.mark.parametrize("coupling", [IndependentCoupling(), OptimalTransportCoupling()])
def test_noise_of_a_base_of_the_context_is_each_rows_own(coupling):
    base = ConditionalDiagonalNormal((2,))  # whose means and log-widths are the context
    flow = ODEFlow(lambda x, t, context: context[:, :2], (2,), distribution=base, context_shape=(4,))
    context = torch.tensor([[100.0, 0, 0, 0], [-100.0, 0, 0, 0]]).repeat(3, 1)
    x0, _, given = coupling(flow, {"inputs": torch.zeros(6, 2), "context": context}, generator())
    assert given is context and ((x0 - context[:, :2]).abs() < 5).all()


def test_pairs_of_a_base_of_another_dtype():
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).double(), 1.0), 1)
    pairs = pairs_of(ODEFlow(MLPVelocity(2, channels=8), (2,), distribution=base), 3, seed=0)
    assert pairs["noise"].dtype == pairs["inputs"].dtype == torch.float32
