"""Gradients through samples: implicit differentiation against autograd through sequential decoding, and differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nflib.decoding import Jacobi, Sequential
from nflib.distributions import PaddedNormal
from nflib.flows import Flow, TARFlow
from nflib.transforms import implicit
from nflib.transforms.implicit import solve_transposed
from nflib.transforms.inversion import invert
from tests.nflib.cases import FirstTokens, autoregressive
from tests.perturb import perturb


def make(conditional: str, **settings) -> TARFlow:
    torch.manual_seed(1)
    sizes = {"channels": 16, "num_blocks": 3, "layers_per_block": 1, "head_dim": 8}
    return perturb(TARFlow((8,), 2, **sizes, conditional=conditional, **settings), 0.2).double()


def token_by_token(flow: TARFlow, noise: Tensor, context: Tensor | None) -> Tensor:
    """The inverse by plain autograd: every token from those before it, nothing solved implicitly."""
    x = noise
    for part in reversed(list(flow._transform._transforms)):
        if not hasattr(part, "conditionals"):
            x = part.inverse(x, context)[0]
            continue
        encoded, known = part.encode_context(context), []
        for t in range(x.shape[1]):
            tokens = torch.cat([*known, torch.zeros_like(x[:, t:])], dim=1)
            own = (None if c is None else c[:, t : t + 1] for c in part.conditionals(tokens, encoded))
            known.append(part.from_noise(x[:, t : t + 1], tuple(own))[0])
        x = torch.cat(known, dim=1)
    return x


@pytest.mark.parametrize("conditional", ["affine", "spline"])
@pytest.mark.parametrize("decoder", [Sequential(), Jacobi(1e-14)], ids=["sequential", "jacobi"])
def test_gradients_are_those_of_sequential_decoding(conditional, decoder):
    flow = make(conditional, context_shape=3)
    context = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(4, *flow._distribution.shape, dtype=torch.float64, requires_grad=True)
    expected = token_by_token(flow, noise, context)
    found = invert(flow._transform, noise, context, decoder).tokens
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    cotangent = torch.randn_like(expected)
    wanted = [noise, context, *flow.parameters()]
    for one, other in zip(
        *(torch.autograd.grad(x, wanted, cotangent, allow_unused=True) for x in (found, expected)), strict=True
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max().clamp_min(1.0)))


@pytest.mark.parametrize("conditional", ["affine", "spline"])
def test_gradients_are_finite_differences(conditional):
    flow = make(conditional, context_shape=3)
    context = torch.randn(1, 3, dtype=torch.float64)
    weight = flow._transform._transforms[1].network.proj_out.weight
    direction = torch.randn_like(weight)

    def loss() -> Tensor:
        return flow.rsample(3, context, seed=0).sin().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            weight += step * direction
            values.append(loss())
    numerical = (values[0] - values[1]) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), numerical, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("conditional", ["affine", "spline"])
def test_log_densities_of_rsamples_have_the_whole_gradient(conditional):
    """log q(x(theta); theta) by differences in one weight, with the noise held."""
    flow = make(conditional)
    bias = flow._transform._transforms[1].network.proj_out.bias
    x, log_prob = flow.rsample_and_log_prob(3, seed=0)
    torch.testing.assert_close(log_prob, flow.log_prob(x))
    (gradient,) = torch.autograd.grad(log_prob.sum(), bias)
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            bias[1] += step
            values.append(flow.sample_and_log_prob(3, seed=0)[1].sum())
    torch.testing.assert_close(gradient[1], (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_with_contexts_and_shapes():
    flow = make("affine", context_shape=3)
    context = torch.randn(2, 3, dtype=torch.float64)
    x, log_prob = flow.rsample_and_log_prob(5, context, seed=0)
    assert x.shape == (2, 5, 8) and log_prob.shape == (2, 5)
    torch.testing.assert_close(x.detach(), flow.sample(5, context, seed=0))
    torch.testing.assert_close(log_prob.detach(), flow.sample_and_log_prob(5, context, seed=0)[1], rtol=0, atol=1e-9)


def test_padding_takes_no_gradient():
    torch.manual_seed(0)
    block = perturb(autoregressive(token_mask=FirstTokens()), 0.2)
    flow = Flow(block, PaddedNormal(2, FirstTokens())).double()
    lengths = torch.tensor([2, 6])
    (x,) = (flow.rsample(1, lengths, seed=0)[:, 0],)
    (gradient,) = torch.autograd.grad(x[0, 2:].sum(), block.network.proj_out.weight, retain_graph=True)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(x.sum(), block.network.proj_out.weight)
    assert gradient.isfinite().all() and gradient.any()


def test_tokens_that_are_not_finite_leave_the_gradients_of_other_samples_alone(monkeypatch):
    flow, sweeps = make("affine"), []
    noise = torch.randn(4, *flow._distribution.shape, dtype=torch.float64)
    spoilt = noise.clone()
    spoilt[1, 3] = torch.inf

    def counting(transposed, diagonal, cotangent):
        def counted(w: Tensor) -> Tensor:
            sweeps.append(w)
            return transposed(w)

        return solve_transposed(counted, diagonal, cotangent)

    monkeypatch.setattr(implicit, "solve_transposed", counting)
    (expected,) = torch.autograd.grad(
        invert(flow._transform, noise[[0, 2, 3]]).tokens.sum(), flow._transform._transforms[1].network.proj_out.weight
    )
    of_three = len(sweeps)
    found = invert(flow._transform, spoilt).tokens
    assert found[[0, 2, 3]].isfinite().all() and not found[1].isfinite().all()
    (gradient,) = torch.autograd.grad(found[[0, 2, 3]].sum(), flow._transform._transforms[1].network.proj_out.weight)
    torch.testing.assert_close(gradient, expected)
    assert len(sweeps) == 2 * of_three


def test_cotangents_that_overflow_on_the_way_are_found_all_the_same():
    """Strongly coupled: the plain iteration passes 1e300 before its first numbers are exact.

    Of integers and powers of two, so that nothing is rounded: else the solution itself would be lost in its rounding.
    """
    size = 60
    jacobian = torch.eye(size) + 2.0**40 * torch.randint(-1, 2, (size, size)).tril(-1)
    jacobian, w = jacobian.double(), torch.randint(-3, 4, (1, size, 1)).double()
    overflown = []

    def transposed(v: Tensor) -> Tensor:
        overflown.append(not v.isfinite().all() or bool((v.abs() > 1e290).any()))
        return (jacobian.T @ v[0]).unsqueeze(0)

    cotangent = (jacobian.T @ w[0]).unsqueeze(0)
    assert torch.equal(solve_transposed(transposed, torch.ones_like(w), cotangent), w)
    assert any(overflown)
