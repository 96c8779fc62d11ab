"""Contexts of every kind, right and wrong: what a flow is told, and the one sentence where it cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nflib import Flow
from nflib.contexts import map_context
from nflib.decoding import Auto, GaussSeidelJacobi, Jacobi, Sequential
from nflib.flows import TARFlow
from nflib.networks.conditioning import ImagePrefix, TokenPrefix, VectorEmbedding
from nflib.transforms import LinearGuidance, ProductGuidance
from tests.nflib.cases import NUM_CLASSES, SMALL
from tests.nflib.messages import message_of
from tests.perturb import perturb

LENGTH, SIZE = 4, 3
TO_ROUNDING = {"rtol": 1e-11, "atol": 1e-10}


def labels(rows: int) -> Tensor:
    return torch.arange(rows) % NUM_CLASSES


def vectors(rows: int) -> Tensor:
    return torch.randn(rows, SIZE)


def sequences(rows: int) -> Tensor:
    return torch.randn(rows, LENGTH, SIZE)


def padded(rows: int) -> tuple[Tensor, Tensor]:
    """Sequences of which each row has another number of tokens: 1, 2, …"""
    lengths = 1 + torch.arange(rows) % LENGTH
    return sequences(rows), torch.arange(LENGTH) >= lengths[:, None]


def images(rows: int) -> Tensor:
    return torch.randn(rows, 2, 4, 8)


@dataclass(frozen=True)
class Kind:
    """A kind of context: the settings of a flow that takes it, and how to draw some."""

    name: str
    settings: dict[str, Any]
    draw: Callable[[int], Any]

    def __str__(self) -> str:
        return self.name

    def flow(self, event_shape: tuple[int, ...], **settings: Any) -> TARFlow:
        """In float64, and far enough from its start for the context to matter."""
        return perturb(TARFlow(event_shape, **(SMALL | self.settings | settings)), 0.3).double()

    def context(self, rows: int) -> Any:
        return map_context(lambda part: part.double() if part.is_floating_point() else part, self.draw(rows))


LABELS = Kind("labels", {"num_classes": NUM_CLASSES}, labels)
VECTOR = Kind("vector", {"context_shape": SIZE}, vectors)
SEQUENCE = Kind("sequence", {"context_shape": (LENGTH, SIZE)}, sequences)
ANY_LENGTH = Kind("sequence-of-any-length", {"context_shape": (None, SIZE)}, sequences)
PADDED = Kind("padded-sequence", {"context_shape": (None, SIZE)}, padded)
IMAGE = Kind("image", {"context_shape": (2, 4, 8)}, images)
KINDS = [LABELS, VECTOR, SEQUENCE, ANY_LENGTH, PADDED, IMAGE]
TENSORS = [VECTOR, SEQUENCE, ANY_LENGTH, IMAGE]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_conditional = pytest.mark.parametrize("conditional", ["affine", "spline"])


def rows_of(context: Any, rows: Any) -> Any:
    return map_context(lambda part: part[rows], context)


# --- right contexts ---


@every_kind
@every_conditional
def test_the_density_given_a_context_integrates_to_one(kind, conditional):
    flow = perturb(TARFlow((1,), conditional=conditional, **SMALL, **kind.settings)).double()
    assert_integrates_to_one(flow, torch.linspace(-10, 10, 2001, dtype=torch.float64)[:, None], 0.01, kind.context(3))


@pytest.mark.parametrize("kind", [VECTOR, PADDED], ids=str)
@pytest.mark.parametrize("settings", [{"patch_size": 1}, {"patch_size": 2}], ids=["two-tokens", "one-token"])
@every_conditional
def test_the_density_integrates_to_one_in_two_dimensions(kind, settings, conditional):
    settings = SMALL | kind.settings | settings | {"num_blocks": 1}
    flow = perturb(TARFlow((2,), conditional=conditional, **settings), 0.05).double()
    axis = torch.linspace(-6, 6, 121, dtype=torch.float64)
    assert_integrates_to_one(flow, torch.cartesian_prod(axis, axis), 0.01, kind.context(3))


@torch.no_grad()
def assert_integrates_to_one(flow: TARFlow, grid: Tensor, volume: float, context: Any) -> None:
    """Given the first and given the third context, which give two densities."""
    one, other = (flow.given(rows_of(context, slice(row, row + 1))).log_prob(grid).exp() for row in (0, 2))
    for density in (one, other):
        assert float(density.sum() * volume) == pytest.approx(1, abs=1e-3)
    assert float((one - other).abs().max()) > 1e-4, "the context changes nothing"


@every_kind
@every_conditional
def test_every_number_depends_on_the_context(kind, conditional):
    flow = kind.flow((3,), conditional=conditional, num_blocks=1)
    context, noise = kind.context(2), torch.zeros(2, 3, 1, dtype=torch.float64)
    one, other = flow.decode(noise, rows_of(context, [0, 1])), flow.decode(noise, rows_of(context, [1, 0]))
    # Without a start token the first number of labels' flow is mapped by the identity.
    assert ((one - other).abs()[:, kind is LABELS :] > 1e-6).all()


@every_kind
@every_conditional
@pytest.mark.parametrize(
    "decoder", [Sequential(), Jacobi(1e-13), GaussSeidelJacobi(2, 1e-13), Auto()], ids=lambda d: type(d).__name__
)
def test_samples_and_their_densities_agree(kind, conditional, decoder):
    flow = kind.flow((6,), conditional=conditional, patch_size=2)
    context = kind.context(3)
    x, log_prob = flow.sample_and_log_prob(4, context, seed=0, decoding=decoder)
    assert x.shape == (3, 4, 6)
    repeated = map_context(lambda part: part.repeat_interleave(4, 0), context)
    torch.testing.assert_close(flow.log_prob(x.flatten(0, 1), repeated), log_prob.flatten(), rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(x, flow.sample(4, context, seed=0, decoding=Sequential()), rtol=1e-8, atol=1e-7)
    noise = flow.encode(x[:, 0], context)
    torch.testing.assert_close(flow.decode(noise, context, decoding=decoder), x[:, 0], rtol=1e-8, atol=1e-7)


@every_kind
def test_each_row_has_its_own_context(kind):
    flow = kind.flow((6,), patch_size=2)
    x, context = torch.randn(5, 6, dtype=torch.float64), kind.context(5)
    whole = flow.log_prob(x, context)
    torch.testing.assert_close(flow.log_prob(x, context, batch_size=2), whole, **TO_ROUNDING)
    alone = [flow.given(rows_of(context, slice(row, row + 1))).log_prob(x[row]) for row in range(5)]
    torch.testing.assert_close(torch.stack(alone), whole, **TO_ROUNDING)
    back = torch.arange(4, -1, -1)
    torch.testing.assert_close(flow.log_prob(x[back], rows_of(context, back)), whole[back], **TO_ROUNDING)
    assert flow.log_prob(x[:0], rows_of(context, slice(0))).shape == (0,)


@pytest.mark.parametrize("kind", [VECTOR, SEQUENCE, PADDED, IMAGE], ids=str)
def test_gradients_by_the_context(kind):
    flow = kind.flow((4,), patch_size=2)
    x, context = torch.randn(2, 4, dtype=torch.float64), kind.context(2)
    values, *mask = context if isinstance(context, tuple) else (context,)
    values.requires_grad_()
    is_finite_difference = torch.autograd.gradcheck(
        lambda v: flow.log_prob(x, (v, *mask) if mask else v), (values,), atol=1e-6
    )
    assert is_finite_difference
    flow.log_prob(x, context).sum().backward()
    if mask:
        assert (values.grad[mask[0]] == 0).all() and (values.grad[~mask[0]] != 0).any()


@every_kind
def test_saved_and_loaded(kind, tmp_path):
    flow = kind.flow((6,), patch_size=2)
    flow.save_pretrained(tmp_path / "flow")
    loaded = Flow.from_pretrained(tmp_path / "flow")
    assert type(loaded) is TARFlow and loaded.context_shape == flow.context_shape
    x, context = torch.randn(3, 6, dtype=torch.float64), kind.context(3)
    assert torch.equal(loaded.double().log_prob(x, context), flow.log_prob(x, context))


# --- padding ---


@every_conditional
@pytest.mark.parametrize("decoder", [Sequential(), Jacobi(0.0)], ids=["sequential", "jacobi"])
def test_what_stands_at_padding_changes_nothing(conditional, decoder):
    flow = PADDED.flow((6,), conditional=conditional, patch_size=2)
    tokens, mask = PADDED.context(4)
    x = torch.randn(4, 6, dtype=torch.float64)
    expected, samples = flow.log_prob(x, (tokens, mask)), flow.sample(2, (tokens, mask), seed=0, decoding=decoder)
    for filling in (0.0, 1e30, torch.nan, torch.inf):
        other = (tokens.masked_fill(mask.unsqueeze(-1), filling), mask)
        assert torch.equal(flow.log_prob(x, other), expected)
        assert torch.equal(flow.sample(2, other, seed=0, decoding=decoder), samples)


def test_padding_is_as_good_as_no_token():
    flow = PADDED.flow((6,), patch_size=2)
    tokens, mask = PADDED.context(4)
    x = torch.randn(4, 6, dtype=torch.float64)
    padded_log_prob = flow.log_prob(x, (tokens, mask))
    for row, length in enumerate((~mask).sum(-1).tolist()):
        cut = flow.log_prob(x[row : row + 1], tokens[row : row + 1, :length])
        torch.testing.assert_close(padded_log_prob[row : row + 1], cut, **TO_ROUNDING)
    more = torch.nn.functional.pad(tokens, (0, 0, 0, 3)), torch.nn.functional.pad(mask, (0, 3), value=True)
    torch.testing.assert_close(flow.log_prob(x, more), padded_log_prob, **TO_ROUNDING)
    nothing_hidden = (tokens, torch.zeros_like(mask))
    torch.testing.assert_close(flow.log_prob(x, nothing_hidden), flow.log_prob(x, tokens), **TO_ROUNDING)
    # A row of padding alone, and a sequence of no tokens: nothing is said.
    empty = flow.log_prob(x, tokens[:, :0])
    torch.testing.assert_close(flow.log_prob(x, (tokens, torch.ones_like(mask))), empty, **TO_ROUNDING)


def test_a_flow_given_padded_tokens_is_that_of_the_tokens():
    flow = PADDED.flow((6,), patch_size=2)
    tokens, mask = PADDED.context(1)
    x = flow.given((tokens[0], mask[0])).sample((5,), seed=0)
    torch.testing.assert_close(flow.given(tokens[0, :1]).sample((5,), seed=0), x, **TO_ROUNDING)


# --- guidance ---


@every_kind
@pytest.mark.parametrize("guidance", [LinearGuidance(0.8), ProductGuidance(1.5)], ids=["linear", "product"])
def test_guided_by_every_kind(kind, guidance):
    flow = kind.flow((4,), patch_size=2)
    context, other = kind.context(3), kind.context(1)
    guided = flow.guided(guidance, other)
    x, log_prob = guided.sample_and_log_prob(2, context, seed=0, decoding=Jacobi(1e-13))
    repeated = map_context(lambda part: part.repeat_interleave(2, 0), context)
    torch.testing.assert_close(guided.log_prob(x.flatten(0, 1), repeated), log_prob.flatten(), rtol=1e-9, atol=1e-8)
    assert float((flow.log_prob(x[:, 0], context) - log_prob[:, 0]).detach().abs().max()) > 1e-3
    # The branches agree where the context is the unconditional one, and there is nothing to guide.
    same = map_context(lambda part: part.expand(3, *part.shape[1:]), other)
    torch.testing.assert_close(guided.log_prob(x[:, 0], same), flow.log_prob(x[:, 0], same), **TO_ROUNDING)


def test_padding_of_either_branch_changes_nothing():
    flow = PADDED.flow((4,), patch_size=2)
    x, (tokens, mask) = torch.randn(2, 4, dtype=torch.float64), PADDED.context(2)
    longer = torch.nn.functional.pad(tokens, (0, 0, 0, 2)), torch.nn.functional.pad(mask, (0, 2), value=True)
    one = flow.guided(LinearGuidance(1.0), (tokens[1], mask[1])).log_prob(x, (tokens, mask))
    other = flow.guided(LinearGuidance(1.0), (longer[0][1], longer[1][1])).log_prob(x, longer)
    torch.testing.assert_close(other, one, **TO_ROUNDING)


def test_branches_that_do_not_fit():
    x, guidance = torch.zeros(2, 2, dtype=torch.float64), LinearGuidance(1.0)
    tokens, mask = PADDED.context(2)
    flow = PADDED.flow((2,))
    assert "neither" in message_of(lambda: flow.guided(guidance, tokens[:1]).log_prob(x, (tokens, mask)))
    assert "neither" in message_of(lambda: flow.guided(guidance, (tokens, mask)).log_prob(x, tokens))
    assert "agree" in message_of(lambda: flow.guided(guidance, tokens[:1, :2]).log_prob(x, tokens))
    three = VECTOR.context(3)
    assert "agree" in message_of(lambda: VECTOR.flow((2,)).guided(guidance, three).log_prob(x, three[:2]))
    assert "integers" in message_of(lambda: LABELS.flow((2,)).guided(guidance, 0.5).log_prob(x, labels(2)))


# --- dtypes ---


@pytest.mark.parametrize("kind", TENSORS, ids=str)
def test_integers_and_half_precision_are_converted(kind):
    flow = kind.flow((2,)).float()
    x, context = torch.randn(3, 2), (4 * kind.draw(3)).round()
    expected = flow.log_prob(x, context)
    for dtype in (torch.int64, torch.int8, torch.float16, torch.bfloat16):
        assert torch.equal(flow.log_prob(x, context.to(dtype)), expected)
    signs = context > 0
    assert torch.equal(flow.log_prob(x, signs), flow.log_prob(x, signs.float()))
    torch.testing.assert_close(flow.double().log_prob(x, context), expected.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_are_integers_of_any_size(dtype):
    flow = LABELS.flow((2,))
    x = torch.randn(3, 2, dtype=torch.float64)
    assert torch.equal(flow.log_prob(x, labels(3).to(dtype)), flow.log_prob(x, labels(3)))
    assert torch.equal(flow.log_prob(x, [0, 1, 2]), flow.log_prob(x, labels(3)))


@pytest.mark.parametrize("kind", TENSORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_digits_are_not_lost_silently(kind, dtype):
    flow = TARFlow((2,), **SMALL, **kind.settings)
    message = message_of(lambda: flow.log_prob(torch.randn(3, 2), kind.draw(3).to(dtype)))
    assert str(dtype).removeprefix("torch.") in message and "contexts" in message


# --- wrong contexts ---


@pytest.mark.parametrize("labels", [torch.tensor([-0.9, 2.99]), torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_labels_that_are_no_integers(labels):
    flow = TARFlow((2,), **SMALL, **LABELS.settings)
    for call in (lambda: flow.log_prob(torch.zeros(2, 2), labels), lambda: flow.sample(1, labels)):
        assert "integers" in message_of(call)


@pytest.mark.parametrize("label", [NUM_CLASSES, -2, 100])
def test_labels_out_of_range(label):
    flow = TARFlow((2,), **SMALL, **LABELS.settings)
    for call in (
        lambda: flow.log_prob(torch.zeros(2, 2), torch.tensor([0, label])),
        lambda: flow.sample(1, label),
        lambda: flow.given(label).sample((2,)),
    ):
        message = message_of(call)
        assert f"0 … {NUM_CLASSES - 1}" in message and str(label) in message


@pytest.mark.parametrize("kind", [VECTOR, SEQUENCE, ANY_LENGTH, IMAGE], ids=str)
def test_a_context_that_is_missing(kind):
    flow = TARFlow((2,), **SMALL, **kind.settings)
    for call in (
        lambda: flow.log_prob(torch.zeros(2, 2)),
        lambda: flow.sample(2),
        lambda: flow.given().log_prob(torch.zeros(2, 2)),
        lambda: flow.encode(torch.zeros(2, 2)),
        lambda: flow.score(torch.zeros(2, 2)),
    ):
        assert re.search("pass (it|the flow) one, or ", message_of(call))


@every_kind
def test_a_context_of_another_shape(kind):
    flow = TARFlow((2,), **SMALL, **kind.settings)
    tokens = kind.draw(3)
    tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    for wrong in (tokens.unsqueeze(-1), torch.cat([tokens, tokens], dim=-1) if tokens.dim() > 1 else tokens[:, None]):
        assert str(tuple(wrong.shape)) in message_of(lambda: flow.log_prob(torch.zeros(3, 2), wrong))  # noqa: B023
    assert "3 inputs" in message_of(lambda: flow.log_prob(torch.zeros(3, 2), rows_of(kind.draw(3), slice(2))))
    assert "one context" in message_of(lambda: flow.given(kind.draw(2)))


@every_kind
@pytest.mark.parametrize(
    "context", ["three", {"labels": 1}, ("three",), (), object()], ids=["text", "dict", "texts", "nothing", "object"]
)
def test_what_is_no_context(kind, context):
    flow = TARFlow((2,), **SMALL, **kind.settings)
    for call in (lambda: flow.log_prob(torch.zeros(1, 2), context), lambda: flow.sample(1, context)):
        assert "tensor" in message_of(call)


def test_a_padding_mask_that_does_not_fit():
    flow = TARFlow((2,), **SMALL, **PADDED.settings)
    tokens, mask = PADDED.draw(3)
    for wrong in (mask.float(), mask.long(), mask[:, 1:], mask[:2], mask.unsqueeze(-1), (mask, mask)):
        context = (tokens, *wrong) if isinstance(wrong, tuple) else (tokens, wrong)
        assert "True at padding" in message_of(lambda: flow.log_prob(torch.zeros(3, 2), context))  # noqa: B023
    assert "True at padding" in message_of(lambda: flow.log_prob(torch.zeros(3, 2), (tokens,)))


@pytest.mark.parametrize("kind", [LABELS, VECTOR, IMAGE], ids=str)
def test_only_sequences_have_padding(kind):
    flow = TARFlow((2,), **SMALL, **kind.settings)
    for context in ((kind.draw(3),), (kind.draw(3), torch.zeros(3, LENGTH, dtype=torch.bool))):
        assert "True at padding" in message_of(lambda: flow.log_prob(torch.zeros(3, 2), context))  # noqa: B023


@pytest.mark.parametrize(
    "shape",
    [0, -1, 2.5, True, "ab", (), (0,), (None,), (None, None), (3, None), (2.5,), (1, 2, 3, 4), (None, 4, 4)],
    ids=str,
)
def test_shapes_that_no_context_has(shape):
    assert "context_shape" in message_of(lambda: TARFlow((2,), **SMALL, context_shape=shape))


def test_settings_of_a_context():
    assert "not both" in message_of(lambda: TARFlow((2,), **SMALL, num_classes=3, context_shape=4))
    assert "context_patch_size 3" in message_of(
        lambda: TARFlow((2,), **SMALL, context_shape=(1, 4, 8), context_patch_size=3)
    )


@pytest.mark.parametrize(
    "build", [lambda: VectorEmbedding(3, 8), lambda: TokenPrefix(3, 8), lambda: ImagePrefix((3, 4, 4), 2, 8)]
)
def test_the_parts_compute_in_the_dtype_of_their_weights(build):
    part = build().to(torch.bfloat16)
    shape = {VectorEmbedding: (2, 3), TokenPrefix: (2, 5, 3), ImagePrefix: (2, 3, 4, 4)}[type(part)]
    assert part(torch.randn(shape)).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_an_embedded_vector_starts_as_large_as_a_token(scale):
    embedded = VectorEmbedding(8, 64)(scale * torch.randn(500, 8)).detach()
    assert embedded.shape == (500, 1, 64)
    torch.testing.assert_close(embedded.square().mean(-1), torch.ones(500, 1), rtol=0, atol=2e-2)
