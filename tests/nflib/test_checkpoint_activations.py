"""Layers that are computed once more for the backward pass: the same numbers, less that is kept."""

import pytest
import torch

from nflib.flows import Flow, TARFlow
from nflib.networks import TransformerLayer, checkpoint_activations
from nflib.training import TrainingConfig, fit
from tests.perturb import perturb
from tests.quiet import QUIET


def a_flow(dropout=0.0):
    torch.manual_seed(0)
    flow = perturb(TARFlow((1, 8, 8), patch_size=2, channels=16, num_blocks=2, layers_per_block=3, head_dim=8))
    for layer in (part for part in flow.modules() if isinstance(part, TransformerLayer)):
        layer.dropout.p = dropout
    return flow.train()


def kept_bytes(function):
    """Of the distinct tensors that autograd keeps between the passes."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = function()
    return value, sum(kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equal_values_and_gradients_in_less_memory(dropout):
    """Of dropout as well, whose random numbers are drawn once more."""
    flow, x, found = a_flow(dropout), torch.randn(8, 1, 8, 8), []
    for enabled in (False, True):
        flow.zero_grad()
        torch.manual_seed(1)
        with checkpoint_activations(flow, enabled=enabled):
            value, size = kept_bytes(lambda: flow.log_prob(x).sum())
            value.backward()
        found.append((value.detach(), [parameter.grad.clone() for parameter in flow.parameters()], size))
    (plain, gradients, size), (other, others, smaller) = found
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(others, gradients, rtol=1e-6, atol=1e-6)
    assert smaller < size / 2
    assert not any(part.recomputes for part in flow.modules() if isinstance(part, TransformerLayer))


def test_second_derivatives():
    """As score matching takes them."""
    flow, x, found = a_flow(), torch.randn(2, 1, 8, 8, requires_grad=True), []
    for enabled in (False, True):
        flow.zero_grad()
        with checkpoint_activations(flow, enabled=enabled):
            (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
            score.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in flow.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_together_with_half_precision_averaging_and_accumulation(tmp_path):
    """A run has the weights that it would have had, and what is saved says nothing of it."""
    torch.manual_seed(2)
    data, saved = torch.randn(32, 1, 8, 8), []
    for enabled in (False, True):
        how = {"precision": "bf16-mixed", "checkpoint_activations": enabled}
        config = TrainingConfig(batch_size=16, accumulation=2, max_steps=5, ema_decay=0.9, **how, **QUIET)
        fit(a_flow(0.1), data, data, config=config, output=tmp_path / str(enabled))
        saved.append(tmp_path / str(enabled) / "model")
    plain, other = (Flow.from_pretrained(folder).state_dict() for folder in saved)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-6)
    configs = [(folder / "config.json").read_text() for folder in saved]
    assert configs[0] == configs[1]
