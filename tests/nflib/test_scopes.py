"""Maps that keep to a frame, orderings of each sample's own, and a base density over as many tokens as exist."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from nflows.transforms import CompositeTransform, InverseTransform
from torch import nn

from nflib import Flow, decoding
from nflib.decoding import GaussSeidelJacobi, Jacobi, Sequential
from nflib.distributions import PaddedNormal, StandardNormal
from nflib.transforms import Framewise, Permute, PermuteByContext, Reverse
from tests.nflib.cases import FirstTokens, autoregressive, dense_logabsdet, lengths, orderings, solve
from tests.perturb import perturb

# --- frames ---


@pytest.fixture
def framewise() -> Framewise:
    return Framewise(perturb(autoregressive(3, 2)).double(), 3)


def test_a_map_of_frames_is_that_of_each_frame(framewise):
    for number in (1, 2, 5):
        x = torch.randn(4, 3 * number, 2, dtype=torch.float64)
        frames = [framewise.transform(frame) for frame in x.split(3, dim=1)]
        outputs, logabsdet = framewise(x)
        torch.testing.assert_close(outputs, torch.cat([part for part, _ in frames], dim=1))
        torch.testing.assert_close(logabsdet, torch.stack([part for _, part in frames]).sum(0))
        back, negative = framewise.inverse(outputs)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(negative, -logabsdet)


def test_frames_do_not_see_each_other(framewise):
    x = torch.randn(1, 9, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda y: framewise(y)[0], x).reshape(18, 18)
    blocks = torch.block_diag(*torch.ones(3, 6, 6, dtype=torch.float64))
    assert not jacobian[blocks == 0].any() and jacobian.diagonal().all()
    torch.testing.assert_close(framewise(x)[1], dense_logabsdet(framewise, x))


def test_decoders_invert_all_frames_side_by_side(framewise):
    z = torch.randn(4, 15, 2, dtype=torch.float64)
    expected, logabsdet = framewise.inverse(z)
    for decoder, windows in ((Sequential(), 1), (Jacobi(0.0), 3), (GaussSeidelJacobi(2, 0.0), 2)):
        with decoding.report() as report:
            u, inverse_logabsdet = solve(decoder, framewise, z)
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(inverse_logabsdet, logabsdet, rtol=0, atol=1e-12)
        (block,) = report.blocks
        assert (block.batch_size, block.num_tokens) == (20, 3)
        assert block.windows[0] == windows and block.sweeps <= 3


def test_maps_of_other_kinds_keep_to_frames_too():
    x = torch.randn(2, 6, 2)
    assert torch.equal(Framewise(Reverse(), 3)(x)[0], Reverse(frame_length=3)(x)[0])
    permuted, logabsdet = Framewise(Permute(torch.tensor([1, 0])), 2)(x)
    assert torch.equal(permuted, x[:, [1, 0, 3, 2, 5, 4]]) and logabsdet.tolist() == [0, 0]


def test_what_does_not_fill_frames_is_an_error(framewise):
    for shape in ((2, 4, 2), (2, 6), (6,)):
        for call in (framewise, framewise.inverse):
            with pytest.raises(ValueError, match="frames"):
                call(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ValueError, match="frame_length"):
        Framewise(Reverse(), 0)


# --- orderings by sample ---


def test_each_sample_is_visited_in_its_own_order():
    x, order = torch.randn(4, 6, 2), orderings(4)
    transform = PermuteByContext(nn.Identity())
    outputs, logabsdet = transform(x, order)
    for row in range(4):
        assert torch.equal(outputs[row], x[row, order[row]])
        assert torch.equal(outputs[row], Permute(order[row])(x[row : row + 1])[0][0])
    back, inverse_logabsdet = transform.inverse(outputs, order)
    assert torch.equal(back, x) and not logabsdet.any() and not inverse_logabsdet.any()
    assert logabsdet.shape == inverse_logabsdet.shape == (4,)


def test_a_flow_in_another_order_is_that_flow_of_reordered_tokens():
    transform = perturb(autoregressive()).double()
    visit = PermuteByContext(lambda context: context)
    flow = Flow(CompositeTransform([visit, transform, InverseTransform(visit)]), StandardNormal((6, 2)))
    plain = Flow(CompositeTransform([transform]), StandardNormal((6, 2)))
    x, order = torch.randn(4, 6, 2, dtype=torch.float64), orderings(4)
    reordered = torch.stack([tokens[places] for tokens, places in zip(x, order, strict=True)])
    torch.testing.assert_close(flow.log_prob(x, order), plain.log_prob(reordered))
    samples, log_prob = flow.double().sample_and_log_prob(2, order, seed=0, decoding=Jacobi(0.0))
    rows = order.repeat_interleave(2, dim=0)
    torch.testing.assert_close(flow.log_prob(samples.flatten(0, 1), rows), log_prob.flatten(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(4, 5), (3, 6), (6,)], ids=str)
def test_orderings_of_another_shape_are_errors(shape):
    order = torch.zeros(shape, dtype=torch.long)
    for call in (PermuteByContext(nn.Identity()), PermuteByContext(nn.Identity()).inverse):
        with pytest.raises(ValueError, match="orderings"):
            call(torch.zeros(4, 6, 2), order)


# --- padding ---


@pytest.fixture
def base() -> PaddedNormal:
    return PaddedNormal(2, FirstTokens()).double()


def test_the_density_is_that_of_the_tokens_that_exist(base):
    x, number = torch.randn(5, 6, 2, dtype=torch.float64), lengths(5)
    expected = [
        torch.distributions.Normal(0.0, 1.0).log_prob(tokens[:length]).sum()
        for tokens, length in zip(x, number.tolist(), strict=True)
    ]
    torch.testing.assert_close(base.log_prob(x, number), torch.stack(expected))
    for padding in (7.0, math.nan, math.inf):
        padded = x.masked_fill(~FirstTokens()(number).unsqueeze(-1), padding)
        torch.testing.assert_close(base.log_prob(padded, number), torch.stack(expected))
    everything, nothing = (base.log_prob(x, torch.full((5,), length)) for length in (6, 0))
    torch.testing.assert_close(everything, StandardNormal((6, 2)).log_prob(x))
    assert not nothing.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_density_of_padded_tokens_is_in_float32_or_better(dtype):
    x = torch.randn(3, 6, 2).to(dtype)
    log_prob = PaddedNormal(2, FirstTokens()).to(dtype).log_prob(x, lengths(3))
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), PaddedNormal(2, FirstTokens()).log_prob(x.double(), lengths(3)))


def test_draws_are_normal_where_tokens_exist_and_zero_elsewhere(base):
    number = torch.tensor([0, 2, 5, 6])
    draws = base.draw(4000, number, torch.Generator().manual_seed(0))
    assert draws.shape == (4, 4000, 6, 2) and draws.dtype == torch.float64
    exists = FirstTokens()(number)[:, None, :, None].expand_as(draws)
    assert not draws[~exists].any()
    numbers = draws[exists]
    assert abs(numbers.mean()) < 5 / math.sqrt(len(numbers)) and abs(numbers.var() - 1) < 5 * math.sqrt(
        2 / len(numbers)
    )
    assert torch.equal(base.draw(4000, number, torch.Generator().manual_seed(0)), draws)


def test_a_padded_base_needs_a_context_and_its_event_shape(base):
    with pytest.raises(ValueError, match="context"):
        base.log_prob(torch.zeros(2, 6, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="context"):
        base.draw(3)
    for shape in ((2, 5, 2), (2, 6, 3), (2, 12)):
        with pytest.raises(ValueError, match="expected inputs of shape"):
            base.log_prob(torch.zeros(shape, dtype=torch.float64), torch.tensor([1, 2]))


def test_a_padded_flow_is_the_flow_of_the_tokens_that_exist():
    """The same density whatever stands in the padding; samples are zero there, whoever decodes them."""
    transform = perturb(autoregressive(token_mask=FirstTokens())).double()
    flow = Flow(CompositeTransform([transform]), PaddedNormal(2, FirstTokens())).double()
    number = lengths(5)
    exists = FirstTokens()(number)
    x = torch.randn(5, 6, 2, dtype=torch.float64)
    log_prob = flow.log_prob(x, number)
    torch.testing.assert_close(flow.log_prob(torch.where(exists.unsqueeze(-1), x, 9.0), number), log_prob)
    unpadded = copy.deepcopy(transform)
    unpadded.network.token_mask = None
    for row, length in enumerate(number.tolist()):
        short = Flow(CompositeTransform([unpadded]), StandardNormal((length, 2)))
        torch.testing.assert_close(short.log_prob(x[row : row + 1, :length]), log_prob[row : row + 1])
    for decoder in (Sequential(), Jacobi(0.0), GaussSeidelJacobi(4, 0.0), Jacobi(0.0, warmup=torch.bfloat16)):
        samples, log_prob = flow.sample_and_log_prob(2, number, seed=0, decoding=decoder)
        assert not samples[~exists[:, None].expand(5, 2, 6)].any()
        rows = number.repeat_interleave(2)
        torch.testing.assert_close(flow.log_prob(samples.flatten(0, 1), rows), log_prob.flatten(), rtol=0, atol=1e-9)
