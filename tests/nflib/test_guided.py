"""Classifier-free guidance: formulas, exact densities, shared weights."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from nflows.transforms import CompositeTransform
from torch import Tensor, nn

from nflib import Flow, decoding
from nflib.continuous import RatioAware
from nflib.decoding import Auto, GaussSeidelJacobi, Jacobi, Sequential
from nflib.distributions import StandardNormal
from nflib.flows import TARFlow
from nflib.networks import CausalSelfAttention, Rotary, Step, grid_coordinates
from nflib.transforms import (
    Framewise,
    GuidedAutoregressive,
    LinearGuidance,
    PairedContext,
    ProductGuidance,
    Reverse,
    TransformerAffineAutoregressive,
)
from tests.nflib.cases import (
    NUM_CLASSES,
    SMALL,
    autoregressive,
    dense_logabsdet,
    embedded_context,
    headwise_norm,
    pairs_of_labels,
    pairs_of_texts,
    solve,
    texts,
)
from tests.perturb import perturb

NO_CLASS = torch.tensor(-1)
GUIDANCES = [
    LinearGuidance(1.5),
    LinearGuidance(0.7, "a", ramp=3),
    LinearGuidance(0.7, "b", attention_temperature=1.5),
    ProductGuidance(2.0),
    ProductGuidance(0.8, attention_temperature=0.625),
]
every_guidance = pytest.mark.parametrize("guidance", GUIDANCES, ids=lambda g: f"{type(g).__name__}-{g.weight}")


def parameters(number: int = 4, length: int = 5) -> tuple[Tensor, Tensor]:
    """Shifts and log-scales ``(B, L, C)`` of one branch."""
    return tuple(torch.randn(2, number, length, 3, dtype=torch.float64) / torch.tensor([1.0, 2.0])[:, None, None, None])


@pytest.fixture
def flow() -> TARFlow:
    return perturb(TARFlow((1, 4, 6), 2, num_classes=NUM_CLASSES, **SMALL)).double()


def test_without_a_class_unless_it_is_said(flow):
    x, labels = torch.randn(4, 1, 4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, -1])
    guided = flow.guided(LinearGuidance(1.5))
    assert torch.equal(guided.log_prob(x, labels), flow.guided(LinearGuidance(1.5), NO_CLASS).log_prob(x, labels))
    with pytest.raises(ValueError, match="pass the unconditional context"):
        TARFlow((6,), 2, context_shape=(3,), **SMALL).guided(LinearGuidance(1.5), None)
    with pytest.raises(ValueError, match="nothing to guide"):
        TARFlow((6,), 2, **SMALL).guided(LinearGuidance(1.5))


# --- formulas ---


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0, 3.0])
def test_a_product_of_gaussians_normalised_on_a_grid(weight):
    """Where the conditional is the narrower, ``N_c^(1 + w) N_u^(-w)`` is a Gaussian: its mean and spread by sums."""
    conditional, unconditional = parameters(), parameters()
    narrow = unconditional[1] - (conditional[1] - unconditional[1]).abs() / 2 - 0.05
    shift, log_scale = ProductGuidance(weight)((conditional[0], narrow), unconditional, 0)
    grid = torch.linspace(-60, 60, 40_001, dtype=torch.float64)

    def log_density(mean: Tensor, log_scale: Tensor) -> Tensor:
        standard = (grid - mean.unsqueeze(-1)) * torch.exp(-log_scale.unsqueeze(-1))
        return -0.5 * standard.square() - log_scale.unsqueeze(-1)

    product = (1 + weight) * log_density(conditional[0], narrow) - weight * log_density(*unconditional)
    density = product.softmax(-1)
    mean = (density * grid).sum(-1)
    spread = (density * (grid - mean.unsqueeze(-1)).square()).sum(-1).sqrt()
    inside = mean.abs() + 6 * spread < 60
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(shift[inside], mean[inside], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_scale.exp()[inside], spread[inside], rtol=1e-6, atol=1e-6)


def test_a_product_stays_a_gaussian_where_the_conditional_is_the_wider():
    """The ratio of scales is bound to one: the mean is extrapolated, the scale kept."""
    conditional, unconditional = parameters(), parameters()
    wide = unconditional[1] + 1 + conditional[1].abs()
    shift, log_scale = ProductGuidance(2.5)((conditional[0], wide), unconditional, 0)
    torch.testing.assert_close(shift, 3.5 * conditional[0] - 2.5 * unconditional[0])
    torch.testing.assert_close(log_scale, wide)


def test_a_product_is_the_narrower_the_larger_the_weight():
    conditional, unconditional = parameters(), parameters()
    scales = [ProductGuidance(w)(conditional, unconditional, 0)[1] for w in (0.0, 0.5, 2.0, 50.0, 1e4)]
    torch.testing.assert_close(scales[0], conditional[1])
    for wider, narrower in pairwise(scales):
        assert (narrower <= wider + 1e-12).all() and narrower.isfinite().all()


@pytest.mark.parametrize("guide", ["a", "b", "ab"])
@pytest.mark.parametrize("start", [0, 2, 7])
@pytest.mark.parametrize("ramp", [None, 1, 4])
def test_linear_guidance_closed_form(guide, start, ramp):
    conditional, unconditional = parameters(), parameters()
    shift, log_scale = LinearGuidance(1.5, guide, ramp=ramp)(conditional, unconditional, start)
    for index in range(5):
        weight = 1.5 * (1.0 if ramp is None else min((start + index) / ramp, 1.0))
        for name, guided, plain, other in (
            ("b", shift, conditional[0], unconditional[0]),
            ("a", log_scale, conditional[1], unconditional[1]),
        ):
            expected = plain + weight * (plain - other) if name in guide else plain
            torch.testing.assert_close(guided[:, index], expected[:, index])


@every_guidance
def test_a_branch_guided_by_its_like_is_unchanged(guidance):
    conditional = parameters()
    shift, log_scale = guidance(conditional, conditional, 0)
    torch.testing.assert_close(shift, conditional[0])
    torch.testing.assert_close(log_scale, conditional[1])


# --- the map ---


@pytest.mark.parametrize("guidance", [LinearGuidance(0.0), ProductGuidance(0.0)], ids=lambda g: type(g).__name__)
def test_weight_zero_is_the_conditional_map(guidance):
    transform = perturb(autoregressive(num_classes=NUM_CLASSES)).double()
    guided = GuidedAutoregressive(transform, guidance)
    u, context = torch.randn(4, 6, 2, dtype=torch.float64), pairs_of_labels(4)
    for result, expected in zip(guided(u, context), transform(u, context[:, 0]), strict=True):
        torch.testing.assert_close(result, expected)
    for result, expected in zip(guided.inverse(u, context), transform.inverse(u, context[:, 0]), strict=True):
        torch.testing.assert_close(result, expected)


@every_guidance
@pytest.mark.parametrize("kind", ["labels", "texts", "texts-rotary"])
def test_a_guided_map_combines_its_two_branches(guidance, kind):
    """Each branch by itself; where a temperature is set, the unconditional one with its queries divided by it."""
    settings: dict[str, dict[str, Any]] = {
        "labels": {"num_classes": NUM_CLASSES, "start_token": True},
        "texts": {"prefix": True, "num_key_value_heads": 1},
        "texts-rotary": {"prefix": True, "start_token": True, "positions": "rotary", "grid": (9,)},
    }
    transform = perturb(autoregressive(**settings[kind])).double()
    context = pairs_of_labels(4) if kind == "labels" else pairs_of_texts(4).double()
    cooled = copy.deepcopy(transform)
    with torch.no_grad():
        for layer in cooled.network.layers:
            for tensor in (layer.attention.qkv.weight, layer.attention.qkv.bias):
                tensor[: layer.attention.num_heads * layer.attention.head_dim] /= guidance.attention_temperature
        u = torch.randn(4, 6, 2, dtype=torch.float64)
        conditional = transform.conditionals(u, transform.encode_context(context[:, 0]))
        unconditional = cooled.conditionals(u, cooled.encode_context(context[:, 1]))
        shift, log_scale = guidance(conditional, unconditional, 0)
        z, logabsdet = GuidedAutoregressive(transform, guidance)(u, context)
    torch.testing.assert_close(z, (u - shift) * (-log_scale).exp(), rtol=0, atol=1e-10)
    torch.testing.assert_close(logabsdet, -log_scale.sum((1, 2)), rtol=0, atol=1e-10)
    if guidance.attention_temperature != 1:
        plain = transform.conditionals(u, transform.encode_context(context[:, 1]))
        assert (plain[0] - unconditional[0]).abs().max() > 1e-4  # or the temperature would not be tested


@pytest.mark.parametrize("query_key_norm", [None, headwise_norm], ids=["none", "headwise"])
@torch.no_grad()
def test_attention_at_a_temperature_is_that_of_scaled_logits(query_key_norm):
    rotary = Rotary(grid_coordinates((6,)), 8)
    attention = CausalSelfAttention(16, 8, query_key_norm=query_key_norm, rotary=rotary).double()
    x, temperature = torch.randn(2, 6, 16, dtype=torch.float64), torch.tensor([1.0, 1.7], dtype=torch.float64)

    def heads(part: Tensor) -> Tensor:
        return part.unflatten(-1, (2, 8)).transpose(1, 2)

    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    if query_key_norm is not None:
        query, key = attention.query_norm(query), attention.key_norm(key)
    query, key, value = rotary(heads(query), 0), rotary(heads(key), 0), heads(value)
    logits = query @ key.transpose(-1, -2) / math.sqrt(8) / temperature.view(-1, 1, 1, 1)
    logits = logits.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -math.inf)
    expected = attention.proj((logits.softmax(-1) @ value).transpose(1, 2).flatten(2))
    result = attention(x, Step(temperature=temperature.view(-1, 1, 1, 1)))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@every_guidance
def test_every_decoder_finds_the_guided_solution(guidance):
    transform = GuidedAutoregressive(
        perturb(autoregressive(12, 2, num_classes=NUM_CLASSES, start_token=True)), guidance
    )
    z, context = torch.randn(4, 12, 2), pairs_of_labels(4)
    expected, _ = solve(Sequential(), transform, z, context)
    back, logabsdet = transform(expected, context)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-4)
    for decoder in (Jacobi(0.0), Jacobi(0.0, initial_guess="zeros"), *(GaussSeidelJacobi(n, 0.0) for n in (2, 3, 5))):
        u, log_scale = solve(decoder, transform, z, context)
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(log_scale, -logabsdet, rtol=0, atol=1e-4)


def test_the_log_determinant_is_that_of_the_written_out_jacobian():
    for guidance in GUIDANCES:
        transform = GuidedAutoregressive(perturb(autoregressive(4, 2, num_classes=NUM_CLASSES)), guidance).double()
        u, context = torch.randn(3, 4, 2, dtype=torch.float64), pairs_of_labels(3)
        torch.testing.assert_close(transform(u, context)[1], dense_logabsdet(transform, u, context), rtol=0, atol=1e-9)


# --- the flow ---


@every_guidance
@pytest.mark.parametrize(
    "decoder", [None, Jacobi(1e-2), GaussSeidelJacobi(2, 0.3), Auto()], ids=lambda d: type(d).__name__
)
def test_log_prob_of_guided_samples_is_exact(guidance, decoder, flow):
    guided = flow.guided(guidance, NO_CLASS)
    context = torch.tensor([0, 2])
    x, log_prob = guided.sample_and_log_prob(3, context, seed=0, decoding=decoder)
    assert x.shape == (2, 3, 1, 4, 6) and log_prob.shape == (2, 3)
    rows = context.repeat_interleave(3)
    torch.testing.assert_close(guided.log_prob(x.flatten(0, 1), rows), log_prob.flatten(), rtol=0, atol=1e-8)


def test_a_guided_density_is_normalised():
    """Of one token on a line, after a learned start: the sum over a grid is one, with and without a class."""
    transform = perturb(autoregressive(1, 1, num_classes=NUM_CLASSES, start_token=True), 0.3)
    flow = Flow(CompositeTransform([transform]), StandardNormal((1, 1))).double()
    flow.requires_grad_(False)
    grid = torch.linspace(-30, 30, 6001, dtype=torch.float64).view(-1, 1, 1)
    for guidance in GUIDANCES:
        for label in (0, -1):
            context = torch.tensor(label).expand(len(grid))
            total = flow.guided(guidance, NO_CLASS).log_prob(grid, context).exp().sum() * 0.01
            assert float(total) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("guidance", [LinearGuidance(0.0), ProductGuidance(0.0)], ids=lambda g: type(g).__name__)
def test_a_flow_guided_with_weight_zero_is_the_conditional_flow(guidance, flow):
    guided, context = flow.guided(guidance, NO_CLASS), torch.tensor([1, 2])
    x = flow.sample(3, context, seed=0)
    torch.testing.assert_close(guided.sample(3, context, seed=0), x)
    rows = context.repeat_interleave(3)
    torch.testing.assert_close(guided.log_prob(x.flatten(0, 1), rows), flow.log_prob(x.flatten(0, 1), rows))


def test_without_a_class_guidance_changes_nothing(flow):
    context = torch.tensor([-1, -1])
    x = flow.sample(2, context, seed=0)
    for guidance in (LinearGuidance(2.0), ProductGuidance(2.0)):
        torch.testing.assert_close(flow.guided(guidance, NO_CLASS).sample(2, context, seed=0), x)
    moved = flow.guided(LinearGuidance(2.0), NO_CLASS).sample(2, torch.tensor([0, 1]), seed=0)
    assert (moved - flow.sample(2, torch.tensor([0, 1]), seed=0)).abs().max() > 1e-2


def test_the_unconditional_context_is_one_for_all_or_one_a_row(flow):
    x, context = torch.randn(3, 1, 4, 6, dtype=torch.float64), torch.tensor([0, 1, 2])
    one = flow.guided(LinearGuidance(1.0), NO_CLASS).log_prob(x, context)
    each = flow.guided(LinearGuidance(1.0), torch.tensor([-1, -1, -1])).log_prob(x, context)
    torch.testing.assert_close(one, each)
    other = flow.guided(LinearGuidance(1.0), torch.tensor([1, 1, 0])).log_prob(x, context)
    assert (one - other).abs().min() > 1e-6


def test_texts_guide_by_an_empty_text():
    flow = Flow(CompositeTransform([perturb(autoregressive(prefix=True))]), StandardNormal((6, 2))).double()
    guided = flow.guided(ProductGuidance(1.0), torch.zeros(1, 3, 4, dtype=torch.float64))
    context = texts(4).double()
    x, log_prob = guided.sample_and_log_prob(1, context, seed=0, decoding=Jacobi(0.0))
    torch.testing.assert_close(guided.log_prob(x[:, 0], context), log_prob[:, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(guided.sample(1, context, seed=0), x, rtol=0, atol=1e-9)


def test_prefix_and_score_of_a_guided_flow(flow):
    guided, context = flow.guided(LinearGuidance(1.0), NO_CLASS), torch.tensor([0, 2])
    x = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    step = 1e-6 * torch.randn_like(x)
    change = guided.log_prob(x + step, context) - guided.log_prob(x - step, context)
    torch.testing.assert_close((guided.score(x, context) * 2 * step).sum((1, 2, 3)), change, rtol=1e-5, atol=1e-10)


# --- shared weights ---


def maps(flow: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in flow.modules() if isinstance(module, kind)]


def test_the_original_flow_stays_as_it_was(flow):
    x, context = torch.randn(3, 1, 4, 6, dtype=torch.float64), torch.tensor([0, 1, -1])
    before, modules = flow.log_prob(x, context), list(flow.modules())
    guided = flow.guided(LinearGuidance(1.0), NO_CLASS)
    guided.sample(2, context, seed=0)
    assert torch.equal(flow.log_prob(x, context), before)
    assert all(a is b for a, b in zip(flow.modules(), modules, strict=True)) and not maps(flow, GuidedAutoregressive)
    assert len(maps(guided, GuidedAutoregressive)) == len(maps(flow, TransformerAffineAutoregressive)) == 2
    assert isinstance(guided, Flow)


def test_training_one_changes_the_other(flow):
    x, context = torch.randn(5, 1, 4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    guided = flow.guided(LinearGuidance(1.0), NO_CLASS)
    assert {id(p) for p in guided.parameters()} == {id(p) for p in flow.parameters()}
    for trained, other in ((flow, guided), (guided, flow)):
        before = other.log_prob(x, context).detach()
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-2)
        (-trained.log_prob(x, context).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert (other.log_prob(x, context) - before).abs().max() > 1e-4
    fresh = flow.guided(LinearGuidance(1.0), NO_CLASS)
    assert torch.equal(fresh.log_prob(x, context), guided.log_prob(x, context))


def test_an_embedding_of_the_context_is_shared_and_trained_too():
    flow = perturb(embedded_context()).double()
    guided = flow.guided(LinearGuidance(1.0), torch.zeros(1, 2, dtype=torch.float64))
    assert {id(p) for p in guided.parameters()} == {id(p) for p in flow.parameters()}
    x, context = torch.randn(3, 4, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    for _ in range(2):  # each with a graph of its own
        guided.log_prob(x, context).sum().backward()
    with torch.no_grad():
        flow._embedding_net[0].bias.add_(0.5)  # all that the unconditional branch is embedded by
    fresh = flow.guided(LinearGuidance(1.0), torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(guided.log_prob(x, context), fresh.log_prob(x, context), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(guided).log_prob(x, context), guided.log_prob(x, context))


def test_a_map_that_occurs_twice_is_guided_twice():
    block = perturb(autoregressive(num_classes=NUM_CLASSES))
    twice = Flow(CompositeTransform([block, Reverse(), block]), StandardNormal((6, 2))).double()
    apart = copy.deepcopy(twice)
    apart._transform._transforms[2] = copy.deepcopy(apart._transform._transforms[0])
    guided, expected = (flow.guided(LinearGuidance(1.0), NO_CLASS) for flow in (twice, apart))
    assert len(maps(guided, GuidedAutoregressive)) == 1 and len(maps(expected, GuidedAutoregressive)) == 2
    x, context = torch.randn(3, 6, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    torch.testing.assert_close(guided.log_prob(x, context), expected.log_prob(x, context))


def test_maps_without_a_context_are_not_guided():
    """Nor are those inside a frame, which are given none."""
    transforms = [
        autoregressive(),
        Framewise(autoregressive(3, num_classes=NUM_CLASSES), 3),
        autoregressive(num_classes=NUM_CLASSES),
    ]
    flow = perturb(Flow(CompositeTransform(transforms), StandardNormal((6, 2)))).double()
    guided = flow.guided(LinearGuidance(1.0), NO_CLASS)
    assert len(maps(guided, GuidedAutoregressive)) == 1 and len(maps(guided, TransformerAffineAutoregressive)) == 3
    x, log_prob = guided.sample_and_log_prob(2, torch.tensor([1]), seed=0)
    torch.testing.assert_close(guided.log_prob(x[0], torch.tensor([1, 1])), log_prob[0], rtol=0, atol=1e-9)


def test_a_maps_own_decoder_stays_in_force():
    transform = perturb(autoregressive(num_classes=NUM_CLASSES))
    flow = Flow(CompositeTransform([transform]), StandardNormal((6, 2)))
    auto = Auto()
    for decoder in (GaussSeidelJacobi(3), auto):
        transform.decoding = decoder
        guided = flow.guided(LinearGuidance(1.0), NO_CLASS)
        with decoding.report() as report:
            guided.sample(1, torch.tensor([0]), seed=0)
        assert report.blocks[0].windows[0] == 3 or decoder is auto
    assert maps(guided, GuidedAutoregressive)[0].decoding is auto and len(auto.plan.measured) == 1


# --- what is refused ---


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearGuidance(-0.1), "weight"),
        (lambda: LinearGuidance(math.nan), "weight"),
        (lambda: ProductGuidance(-1.0), "weight"),
        (lambda: LinearGuidance(1.0, "c"), "guide"),
        (lambda: LinearGuidance(1.0, ramp=0), "ramp"),
        (lambda: LinearGuidance(1.0, attention_temperature=0.0), "attention_temperature"),
        (lambda: ProductGuidance(1.0, attention_temperature=-1.0), "attention_temperature"),
        (lambda: ProductGuidance(1.0, attention_temperature=math.nan), "attention_temperature"),
    ],
)
def test_bad_settings_are_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_guided_flow_needs_a_context(flow):
    guided = flow.guided(LinearGuidance(1.5), NO_CLASS)
    for call in (lambda: guided.sample(2), lambda: guided.log_prob(torch.zeros(2, 1, 4, 6, dtype=torch.float64))):
        with pytest.raises(ValueError, match="context"):
            call()
    with pytest.raises(ValueError, match="class labels"):
        guided.sample(2, torch.tensor([NUM_CLASSES]))


@pytest.mark.parametrize(
    "context",
    [None, torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.long), [0, 1]],
    ids=["none", "1d", "3", "list"],
)
def test_a_guided_map_needs_two_contexts_stacked(context):
    guided = GuidedAutoregressive(autoregressive(num_classes=NUM_CLASSES), LinearGuidance(1.0))
    with pytest.raises(ValueError, match="stacked"):
        guided(torch.zeros(2, 6, 2), context)
    with pytest.raises(ValueError, match="stacked"):
        guided.inverse(torch.zeros(2, 6, 2), context)


def test_there_must_be_a_map_to_guide(flow):
    for transform in (autoregressive(), Framewise(autoregressive(3, num_classes=NUM_CLASSES), 3)):
        with pytest.raises(ValueError, match="nothing to guide"):
            Flow(CompositeTransform([transform]), StandardNormal((6, 2))).guided(LinearGuidance(1.0), NO_CLASS)
    with pytest.raises(ValueError, match="nothing to guide"):
        flow.guided(LinearGuidance(1.0), NO_CLASS).guided(LinearGuidance(1.0), NO_CLASS)


def test_contexts_are_paired():
    labels = torch.tensor([0, 2])
    assert PairedContext(NO_CLASS)(labels).tolist() == [[0, -1], [2, -1]]
    assert PairedContext(torch.tensor([1, -1]))(labels).tolist() == [[0, 1], [2, -1]]
    text = torch.randn(2, 3, 4)
    paired = PairedContext(torch.zeros(1, 3, 4), nn.Linear(4, 5))
    assert paired(text).shape == (2, 2, 3, 5) and not paired.state_dict().keys() & {"unconditional"}
    torch.testing.assert_close(paired(text)[:, 1], paired.embedding.bias.expand(2, 3, 5))


@pytest.mark.parametrize("guidance", [2.0, RatioAware(2.0, 0.3)], ids=repr)
def test_guidance_of_velocities_is_refused(flow, guidance):
    with pytest.raises(ValueError, match="guided by a Guidance"):
        flow.guided(guidance, NO_CLASS)
