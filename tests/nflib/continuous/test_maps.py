"""Flow maps: exact densities of jumps, closed forms, round trips, what is no map."""

import math

import pytest
import torch

from nflib.continuous import FlowMap, Invertible, MeanFlow, MLPFlowMap
from nflib.flows import Flow
from nflib.training import TrainingConfig, fit
from tests.nflib.continuous.cases import check_density_of_map
from tests.nflib.continuous.normal_map import NormalMap
from tests.perturb import perturb
from tests.quiet import QUIET


def mixture():
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.5], [1.0, -1.5]])
    widths = torch.tensor([[0.3, 0.6], [0.6, 0.3], [0.4, 0.4]])
    parts = torch.distributions.Independent(torch.distributions.Normal(means, widths), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.tensor([0.5, 0.3, 0.2])), parts)


def rough_map(seed=0):
    torch.manual_seed(seed)
    return perturb(MLPFlowMap(2, channels=16, num_layers=1), 0.05)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_exact_map_has_the_normal_density(num_steps):
    flow = FlowMap(NormalMap(), (3,), num_steps=num_steps).double()
    x, log_prob = flow.sample_and_log_prob(50, seed=0)
    expected = torch.distributions.Normal(torch.ones_like(x), 0.5 * torch.ones_like(x)).log_prob(x).sum(1)
    torch.testing.assert_close(log_prob, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(flow.log_prob(x), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(flow.sample(50, seed=0), x)


def test_the_density_is_that_of_the_jumps_whatever_the_network():
    flow = FlowMap(rough_map(), (2,), num_steps=3).double().requires_grad_(False)
    check_density_of_map(flow)


def test_the_density_integrates_to_one():
    flow = FlowMap(rough_map(1), (2,), num_steps=2).double().requires_grad_(False)
    line = torch.linspace(-7, 7, 71, dtype=torch.float64)
    log_prob = flow.log_prob(torch.cartesian_prod(line, line))
    assert float(log_prob.exp().sum() * 0.2**2) == pytest.approx(1, abs=1e-4)


def test_gradients_of_the_density_reach_all_parameters():
    flow = FlowMap(rough_map(), (2,), num_steps=2)
    flow.log_prob(torch.randn(4, 2)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in flow.parameters())


def test_another_number_of_steps_shares_the_weights():
    flow = FlowMap(rough_map(), (2,), num_steps=2)
    more = flow.with_num_steps(8)
    assert more._transform.num_steps == 8 and flow._transform.num_steps == 2
    assert more._transform.velocity is flow._transform.velocity


def test_saved_and_loaded(tmp_path):
    flow = FlowMap(rough_map(), (2,), num_steps=3)
    flow.save_pretrained(tmp_path)
    x = torch.randn(5, 2)
    torch.testing.assert_close(Flow.from_pretrained(tmp_path).log_prob(x), flow.log_prob(x))


def test_another_number_of_steps_is_saved_with_the_flow(tmp_path):
    flow, x = FlowMap(rough_map(), (2,), num_steps=3).with_num_steps(1), torch.randn(5, 2)
    flow.save_pretrained(tmp_path)
    assert flow.config["num_steps"] == 1
    assert torch.equal(Flow.from_pretrained(tmp_path).log_prob(x), flow.log_prob(x))


def test_weights_in_half_precision_have_densities_of_single():
    flow = FlowMap(rough_map(), (2,), num_steps=2).bfloat16()
    x, log_prob = flow.sample_and_log_prob(20, seed=0)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-4, rtol=1e-4)


def test_contexts_steer_the_map():
    torch.manual_seed(0)
    network = perturb(MLPFlowMap(2, channels=16, num_layers=1, context_size=3), 0.05)
    flow = FlowMap(network, (2,), num_steps=2, context_shape=(3,))
    context = torch.randn(4, 3)
    x, log_prob = flow.sample_and_log_prob(6, context, seed=0)
    rows = context.repeat_interleave(6, 0)
    torch.testing.assert_close(flow.log_prob(x.flatten(0, 1), rows).view(4, 6), log_prob, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(flow.given(context[1]).log_prob(x[1]), log_prob[1], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="context"):
        flow.log_prob(x[0])


def test_what_is_no_map_is_told():
    def folds(x, r, t):
        return -2 * x * (r < t)[:, None]

    def moves_only_forwards(x, r, t):
        return torch.where((r < t)[:, None], 5.0, 0.0) * torch.ones_like(x)

    with pytest.raises(ValueError, match="one-to-one"):
        FlowMap(folds, (1,), num_steps=1).sample_and_log_prob(20, seed=0)
    with pytest.raises(ValueError, match="back in time"):
        FlowMap(moves_only_forwards, (1,), num_steps=1).sample_and_log_prob(20, seed=0)
    with pytest.raises(ValueError, match="shape"):
        FlowMap(lambda x, r, t: x[:, :1], (2,)).sample(3)
    with pytest.raises(ValueError, match="not finite"):
        FlowMap(lambda x, r, t: x * math.nan, (2,)).sample(3)
    for num_steps in (0, 2.5):
        with pytest.raises(ValueError, match="num_steps must be an integer of 1 or more"):
            FlowMap(folds, (1,), num_steps=num_steps)
    with pytest.raises(ValueError, match="0 … 1|from 0"):
        FlowMap(NormalMap(), (1,)).jump(torch.zeros(1, 1), 0.0, 1.5)


def mean_weight(flow, target, num_samples):
    x, log_prob = flow.requires_grad_(False).sample_and_log_prob(num_samples, seed=1)
    weights = (target.log_prob(x) - log_prob).exp()
    return (
        float(weights.mean()),
        float(weights.std() / num_samples**0.5),
        float(weights.sum() ** 2 / weights.square().sum()),
    )


@pytest.mark.slow
def test_a_trained_map_has_mean_weight_one_at_four_and_eight_steps(tmp_path):
    """FALCON's proof, on a mixture of normals: weights are right in expectation, and not degenerate."""
    target = mixture()
    torch.manual_seed(0)
    flow = FlowMap(MLPFlowMap(2, channels=64, num_layers=2), (2,))
    config = TrainingConfig(batch_size=256, max_steps=800, learning_rate=2e-3, ema_decay=0.99, **QUIET)
    fit(
        flow,
        target.sample((10_000,)),
        config=config,
        objective=Invertible(MeanFlow(share_instant=0.5)),
        output=tmp_path,
    )
    for num_steps in (4, 8):
        mean, error, effective = mean_weight(flow.with_num_steps(num_steps), target, 4000)
        assert abs(mean - 1) < 3 * error
        assert error < 0.05
        assert effective > 800


def test_densities_under_autocast_are_those_of_single_precision() -> None:
    flow = FlowMap(rough_map(), (2,), num_steps=2)
    x, log_prob = flow.sample_and_log_prob(20, seed=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn, drawn_log_prob = flow.sample_and_log_prob(20, seed=0)
        found = flow.log_prob(x)
    torch.testing.assert_close(drawn, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn_log_prob, log_prob, rtol=0, atol=1e-5)
    torch.testing.assert_close(found, log_prob, rtol=0, atol=1e-4)


def test_what_cannot_be_guided_is_told() -> None:
    with pytest.raises(ValueError, match="can be guided"):
        FlowMap(MLPFlowMap(2, channels=8, context_size=3), (2,)).guided(2.0, torch.zeros(1, 3))
