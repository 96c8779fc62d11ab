"""What a user can get wrong, and the one sentence that says what, where, and what to do."""

from __future__ import annotations

import pytest
import torch

from nflib.distributions import StandardNormal
from nflib.flows import TARFlow, autoregressive_blocks
from nflib.networks import (
    AdaptiveLayerNorm,
    CausalSelfAttention,
    ClassEmbedding,
    Rotary,
    SinusoidalPositions,
    grid_coordinates,
)
from nflib.transforms import GaussianizeMarginals, ImagePatches, Permute, Reverse, Standardize, VectorPatches
from tests.nflib.cases import FLOWS, NUM_CLASSES, SMALL, TRANSFORMS, Case, autoregressive
from tests.nflib.messages import message_of


@pytest.fixture
def flow() -> TARFlow:
    return TARFlow((1, 4, 4), patch_size=2, num_classes=NUM_CLASSES, **SMALL)


# --- shapes ---


@pytest.mark.parametrize("case", [case for case in FLOWS if case.name != "spline-on-top"], ids=str)
def test_flows_refuse_events_of_another_shape(case: Case):
    flow = case.build()
    shape = (2, *case.event_shape, 1)
    message = message_of(lambda: flow.log_prob(torch.zeros(shape), case.context(2)))
    assert str(shape) in message
    shape = (2, *case.event_shape[:-1], case.event_shape[-1] + 1)
    message = message_of(lambda: flow.log_prob(torch.zeros(shape), case.context(2)))
    assert str(shape) in message


# A frame or an ordering of tokens takes tokens of any size, and Reverse any number of them.
FREE = ("framewise", "permute-by-context", "reverse", "reverse-within", "reverse-frames", "permute")


@pytest.mark.parametrize("case", [case for case in TRANSFORMS if case.name not in FREE], ids=str)
def test_transforms_refuse_inputs_of_another_shape(case: Case):
    transform = case.build()
    for method, right in ((transform.forward, case.event_shape), (transform.inverse, case.output_shape)):
        wrong = (2, *right[:-1], right[-1] + 1)
        message = message_of(lambda: method(torch.zeros(wrong), case.context(2)))  # noqa: B023
        assert str(wrong) in message and str(right[-1]) in message


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_a_sequence_longer_than_its_positions(positions):
    transform = autoregressive(num_tokens=4, positions=positions)
    for method in (transform.forward, transform.inverse):
        # Rotary coordinates are those of all four tokens, of which the network reads three.
        assert "positions were made for" in message_of(lambda: method(torch.zeros(1, 6, 2)))  # noqa: B023


def test_orderings_of_another_length():
    permute = Permute(torch.tensor([1, 0, 2]))
    for method in (permute.forward, permute.inverse):
        assert "3 tokens" in message_of(lambda: method(torch.zeros(2, 4, 1)))  # noqa: B023
        assert "3 tokens" in message_of(lambda: method(torch.zeros(2, 2, 1)))  # noqa: B023
    assert "frames of 4" in message_of(lambda: Reverse(frame_length=4)(torch.zeros(2, 6, 1)))


def test_base_density_of_another_shape():
    assert "(5, 4)" in message_of(lambda: StandardNormal((3,)).log_prob(torch.zeros(5, 4)))


# --- sampling ---


@pytest.mark.parametrize("count", [-3, 1.5, True, "4", None])
@pytest.mark.parametrize("method", ["sample", "sample_and_log_prob"])
def test_number_of_samples(flow, method, count):
    message = message_of(lambda: getattr(flow, method)(count))
    assert "num_samples" in message and repr(count) in message


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size(flow, batch_size):
    message = message_of(lambda: flow.sample(4, None, batch_size))
    assert "batch_size" in message and repr(batch_size) in message


@pytest.mark.parametrize("method", ["sample", "sample_and_log_prob"])
def test_a_generator_and_a_seed_at_once(flow, method):
    message = message_of(lambda: getattr(flow, method)(2, generator=torch.Generator(), seed=0))
    assert "generator" in message and "seed" in message


def test_adaptive_norm_without_a_condition():
    assert "context" in message_of(lambda: AdaptiveLayerNorm(4, 2)(torch.zeros(1, 3, 4)))


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"event_shape": ()}, "event_shape"),
        ({"event_shape": (1, 0, 4)}, "event_shape"),
        ({"event_shape": (-4,)}, "event_shape"),
        ({"patch_size": 0}, "patch_size 0"),
        ({"patch_size": -2}, "patch_size -2"),
        ({"patch_size": 3}, "patch_size 3"),
        ({"event_shape": (7,), "patch_size": 2}, "patch_size 2"),
        ({"channels": 0}, "channels (0)"),
        ({"channels": 12}, "head_dim (8)"),
        ({"head_dim": 0}, "head_dim (0)"),
        ({"num_blocks": 0}, "0 blocks"),
        ({"layers_per_block": 0}, "layers_per_block 0"),
        ({"layers_per_block": [1, 2, 3]}, "[1, 2, 3]"),
        ({"layers_per_block": [1, 0]}, "[1, 0]"),
        ({"num_classes": -1}, "num_classes (-1)"),
        ({"scale": "cubic"}, "exponential, softplus"),
        ({"norm": "batch_norm"}, "layer_norm, rms_norm"),
        ({"positions": "absolute"}, "learned, sinusoidal, rotary"),
        ({"mlp": "relu"}, "gelu, gated"),
        ({"positions": "rotary", "head_dim": 2}, "multiple of 4"),
        ({"positions": "sinusoidal", "channels": 7, "head_dim": 7}, "even number of channels"),
    ],
    ids=str,
)
def test_settings_of_a_flow(settings, said):
    settings = {
        "event_shape": (1, 4, 4),
        "patch_size": 2,
        "channels": 16,
        "num_blocks": 2,
        "head_dim": 8,
    } | settings
    assert said in message_of(lambda: TARFlow(**settings))


def test_settings_of_the_parts():
    assert "12" in message_of(lambda: VectorPatches((3, 4), 5))
    assert "height 4 and the width 5" in message_of(lambda: ImagePatches((1, 4, 5), 2))
    assert "height 4 and the width 6" in message_of(lambda: ImagePatches((1, 4, 6), (1, 2, 3)))
    assert "height 4 and the width 6" in message_of(lambda: ImagePatches((1, 4, 6), (2, 4)))
    assert "(4, 5)" in message_of(lambda: ImagePatches((4, 5), 2))
    assert "0 … 2" in message_of(lambda: Permute(torch.tensor([0, 0, 2])))
    assert "0 … 1" in message_of(lambda: Permute(torch.tensor([1, 2])))
    assert "frame_length" in message_of(lambda: Reverse(frame_length=0))
    assert "head_dim (3)" in message_of(lambda: CausalSelfAttention(8, 3))
    assert "4 query heads" in message_of(lambda: CausalSelfAttention(8, 2, num_key_value_heads=3))
    assert "multiple of 6" in message_of(lambda: Rotary(grid_coordinates((2, 2, 2)), 8))
    assert "got 5" in message_of(lambda: SinusoidalPositions(3, 5))
    assert "from 7 to 7" in message_of(lambda: ClassEmbedding(3, 4)(torch.tensor([7])))
    assert "4 blocks" in message_of(
        lambda: autoregressive_blocks((4, 2), channels=16, num_blocks=4, layers_per_block=[1])
    )
    assert "(1,)" in message_of(lambda: Standardize(torch.zeros(2), torch.tensor([1.0, 0.0])))
    assert "num_bins" in message_of(lambda: GaussianizeMarginals((3,), num_bins=2))
