"""The mean of flows on internal coordinates."""

import math

import pytest
import torch

from molecular import InternalProse, Prose
from molecular.flows.averaged import AveragedProse
from molecular.flows.mixture import GivenMixture
from molecular.sampling.proposals import combined
from nflib.decoding import Auto, Jacobi
from nflib.flows import Flow
from tests.molecular.three_peptides import BATCH, CONTEXTS, POSITIONS, TOPOLOGIES, make_flow
from tests.perturb import perturb


def make_flows(number: int = 3, *, turns: bool = True) -> list[InternalProse]:
    """Flows of different weights and marginals, which also cut circles in different places."""
    flows = []
    for seed in range(number):
        flow = perturb(make_flow(num_blocks=1), 0.1, seed)
        if turns:
            generator = torch.Generator().manual_seed(seed)
            turned = torch.rand(flow.coordinates.offsets.shape, generator=generator) < 0.5
            flow.coordinates.offsets += seed * turned * (flow.coordinates.offsets != 0)
        flow.marginals.slopes *= 1 + 0.1 * seed
        flows.append(flow.double())
    return flows


def log_prob_of_numbers(flow: InternalProse, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """The log-density of each internal coordinate given those before it, ``(B, T, 3)``, in the order of the visit."""
    u, _ = flow.coordinates(x, context)
    z, log_slope = flow.marginals.forward_by_kind(u, flow.marginals.kinds(context))
    visit, part, _ = flow.blocks
    noise, logabsdet = part.by_numbers(visit(z, context)[0], context)
    return torch.distributions.Normal(0.0, 1.0).log_prob(noise) + logabsdet + visit(log_slope, context)[0]


@pytest.mark.parametrize("turns", [False, True])
@pytest.mark.parametrize("index", [0, 2])
def test_density_is_the_mean_of_the_conditional_densities(index, turns):
    flows, x, context = make_flows(turns=turns), POSITIONS[index], CONTEXTS[index][None]
    own = torch.stack([log_prob_of_numbers(flow, x, context) for flow in flows])
    expected = (own.logsumexp(0) - math.log(len(flows))).sum((1, 2)) + flows[0].coordinates(x, context)[1]
    torch.testing.assert_close(AveragedProse(flows).log_prob(x, context), expected)
    assert own.std(0).max() > 0.1
    # Whichever comes first, whose coordinates and cuts the mean has.
    torch.testing.assert_close(AveragedProse(flows[::-1]).log_prob(x, context), expected)


def test_samples_have_their_density_and_the_inverse_their_noise():
    flow = AveragedProse(make_flows())
    for topology in TOPOLOGIES:
        given = flow.given(topology)
        x, log_prob = given.sample_and_log_prob(32, seed=1)
        torch.testing.assert_close(given.log_prob(x), log_prob, atol=1e-6, rtol=1e-8)
        noise, logabsdet = flow._transform(x, given.context.expand(32, -1, -1))
        back, of_inverse = flow._transform.inverse(noise, given.context.expand(32, -1, -1))
        torch.testing.assert_close(back, x, atol=1e-7, rtol=0)
        torch.testing.assert_close(of_inverse, -logabsdet, atol=1e-6, rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rare_noise_of_torsions_that_are_cut_elsewhere(dtype):
    """Samples of rare noise still have it: no torsion rounds over the end of its circle."""
    flow = AveragedProse([flow.to(dtype) for flow in make_flows()])
    context = CONTEXTS[0][None].expand(200, -1, -1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, len(CONTEXTS[0]) - 2, 3, generator=generator, dtype=dtype)
    part, rows = flow.blocks[1], torch.arange(200)
    token = 1 + rows % (noise.shape[1] - 1)  # one of each sample, lest atoms fall together
    for size in (-5.6, -5.0, 5.0, 5.6):
        noise[rows, token, 2] = size
        with torch.no_grad():
            tokens = part.invert(noise, context).tokens
            error = (part(tokens, context)[0] - noise).abs()[rows, token, 2]
        # The ends of fitted circles are those of float32, whatever the dtype: some 1e-8 of a probability.
        assert error.max() < 0.2, size


@pytest.mark.parametrize("decoder", [Auto(), Jacobi(warmup=torch.bfloat16)])
def test_decoders(decoder):
    flow = AveragedProse([flow.float() for flow in make_flows()])
    context = flow.context(TOPOLOGIES[0])
    expected = flow.sample(6, context, seed=0)
    torch.testing.assert_close(flow.sample(6, context, seed=0, decoding=decoder), expected, atol=1e-3, rtol=0)


def test_noise_of_a_torsion_that_is_cut_elsewhere_is_the_integral_of_its_density():
    flow, context = AveragedProse(make_flows()), CONTEXTS[0][None]
    u, _ = flow.coordinates(POSITIONS[0], context)
    tokens, _ = flow.blocks[0](flow.marginals(u, context)[0], context)
    part = flow.blocks[1]
    conditionals = part.conditionals(tokens, part.encode_context(context))
    assert all((own.turn != 0).any() for own in conditionals[1:])
    torsions = part.number_map(2, tokens, conditionals)
    grid = torch.linspace(-8.0, 8.0, 8001, dtype=torch.float64)
    with torch.no_grad():
        mapped = [torsions.to_noise(point.expand(tokens.shape[:2])) for point in grid]
    noise, log_slope = (torch.stack(outputs) for outputs in zip(*mapped, strict=True))
    normal = torch.distributions.Normal(0.0, 1.0)
    density = (normal.log_prob(noise) + log_slope).exp()
    # It jumps where a flow cuts the circle, which costs the sum a step of the grid.
    below = torch.cumulative_trapezoid(density, grid, dim=0)
    torch.testing.assert_close(normal.cdf(noise[1:]), below, atol=1e-3, rtol=0)
    torch.testing.assert_close(below[-1], torch.ones_like(below[-1]), atol=1e-3, rtol=0)


def test_logabsdet_is_that_of_autograd():
    flow, context = AveragedProse(make_flows()), CONTEXTS[0][None]
    u, _ = flow.coordinates(POSITIONS[0], context)
    z, _ = flow.marginals(u, context)

    def forward(z):
        for block in flow.blocks:
            z, _ = block(z, context)
        return z

    _, logabsdet = flow.blocks[1](flow.blocks[0](z, context)[0], context)
    jacobian = torch.autograd.functional.jacobian(forward, z).reshape(z.numel(), z.numel())
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], logabsdet[0], atol=1e-6, rtol=1e-8)


def test_padding_changes_nothing():
    flow = AveragedProse(make_flows())
    padded = torch.zeros(len(POSITIONS), BATCH.shape[1], 3, dtype=torch.float64)
    for row, x in enumerate(POSITIONS):
        padded[row, : x.shape[1]] = x[0]
    expected = [flow.log_prob(x, context[None]) for x, context in zip(POSITIONS, CONTEXTS, strict=True)]
    torch.testing.assert_close(flow.log_prob(padded, BATCH), torch.cat(expected))


def test_saved_and_loaded(tmp_path):
    flow = AveragedProse([flow.float() for flow in make_flows()])
    flow.save_pretrained(tmp_path)
    again = Flow.from_pretrained(tmp_path)
    x = POSITIONS[1].float()
    assert torch.equal(again.log_prob(x, CONTEXTS[1][None]), flow.log_prob(x, CONTEXTS[1][None]))
    # As earlier versions named settings and orderings.
    config = tmp_path / "config.json"
    text = config.read_text().replace("local_environment", "surroundings").replace("z-matrix", "walk")
    assert text.count('"surroundings"') == 3 and '"walk_flip"' in text
    config.write_text(text)
    again = Flow.from_pretrained(tmp_path)
    assert again.flows[0].orderings == flow.flows[0].orderings
    assert torch.equal(again.log_prob(x, CONTEXTS[1][None]), flow.log_prob(x, CONTEXTS[1][None]))


def test_split_coordinates_are_the_flow():
    given = AveragedProse(make_flows()).given(TOPOLOGIES[1])
    fixed, rest = given.split_coordinates()
    y, logabsdet = fixed(POSITIONS[1])
    torch.testing.assert_close(rest.log_prob(y) + logabsdet, given.log_prob(POSITIONS[1]))


def test_flows_that_have_no_mean_are_mixed():
    one, two = make_flows(2)
    deep = make_flow(num_blocks=2).double()
    assert isinstance(combined([one.given(TOPOLOGIES[0]), two.given(TOPOLOGIES[0])]).flow, AveragedProse)
    assert isinstance(combined([one.given(TOPOLOGIES[0]), deep.given(TOPOLOGIES[0])]), GivenMixture)
    with pytest.raises(ValueError, match="one has 2 blocks"):
        AveragedProse([one, deep])
    scaled = two.with_scaled_noise(1.3)
    assert isinstance(combined([one.given(TOPOLOGIES[0]), scaled.given(TOPOLOGIES[0])]), GivenMixture)
    with pytest.raises(ValueError, match="scale that of the average"):
        AveragedProse([one, scaled])
    with pytest.raises(ValueError, match="different dtypes"):
        AveragedProse([one, make_flow(num_blocks=1)])
    with pytest.raises(ValueError, match="each of the flows must be an object such as InternalProse"):
        AveragedProse([one, Flow(one._transform, one._distribution)])
    with pytest.raises(ValueError, match="one is a Prose, not an InternalProse"):
        AveragedProse([one, Prose(channels=16, num_blocks=1, layers_per_block=1, head_dim=8)])
    with pytest.raises(ValueError, match="there are none"):
        AveragedProse([])
    with pytest.raises(ValueError, match="different orderings"):
        AveragedProse([one, make_flow(num_blocks=1, orderings=("z-matrix",)).double()])
    with pytest.raises(ValueError, match="another molecule"):
        combined([one.given(TOPOLOGIES[0]), two.given(TOPOLOGIES[1])])
