"""Contexts that training leaves out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nflib.training import ContextDropout, LogVariance, maximum_likelihood
from nflib.training.context_dropout import dropped


def test_context_dropout_leaves_out_its_share_in_training_alone() -> None:
    seen = []

    def objective(flow, batch, generator):
        seen.append(batch["context"])
        return torch.zeros(()), {}

    flow, labels = nn.Module(), torch.arange(4000) % 7
    left_out = ContextDropout(objective, share=0.3)
    left_out(flow.train(), {"inputs": torch.zeros(4000, 1), "context": labels}, torch.Generator().manual_seed(0))
    left_out(flow.eval(), {"inputs": torch.zeros(4000, 1), "context": labels}, torch.Generator())
    trained, validated = seen
    assert (trained == -1).double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(trained[trained != -1], labels[trained != -1]) and torch.equal(validated, labels)


def test_context_dropout_takes_tokens_and_their_mask_out_together() -> None:
    tokens, mask = torch.randn(50, 3, 2), torch.zeros(50, 3, dtype=torch.bool)
    none = torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool)
    found = dropped((tokens, mask), none, 0.5, torch.Generator().manual_seed(0))
    is_dropped = found[1].all(1)
    assert 0 < is_dropped.sum() < 50 and bool((found[0][is_dropped] == 0).all())
    assert torch.equal(found[0][~is_dropped], tokens[~is_dropped])


def test_labels_without_a_sign_are_left_out_as_none() -> None:
    """-1 of 8 bits without a sign was class 255."""
    found = dropped(torch.arange(200, dtype=torch.uint8), torch.tensor([-1]), 0.5, torch.Generator().manual_seed(0))
    assert set(found[found != torch.arange(200)].tolist()) == {-1} and (found == -1).any()
    vectors = dropped(torch.ones(4, 3).half(), torch.zeros(3), 0.5, torch.Generator().manual_seed(0))
    assert vectors.dtype == torch.float16 and vectors.shape == (4, 3)


def test_context_dropout_asks_what_its_objective_asks_and_names_mistakes() -> None:
    assert ContextDropout().keys == maximum_likelihood.keys and ContextDropout(LogVariance()).whole_batch
    batch, generator = {"inputs": torch.zeros(2, 3)}, torch.Generator()
    with pytest.raises(ValueError, match="the data have none"):
        ContextDropout()(nn.Module(), batch, generator)
    with pytest.raises(ValueError, match=r"has the shape \(1, 4\), but the context is of \(2, 3\)"):
        ContextDropout(unconditional=torch.zeros(1, 4))(nn.Module(), batch | {"context": torch.zeros(2, 3)}, generator)
    with pytest.raises(ValueError, match="a tensor, or a pair"):
        ContextDropout()(nn.Module(), batch | {"context": (torch.zeros(2, 3), torch.zeros(2))}, generator)
    with pytest.raises(ValueError, match="from 0 to less than 1"):
        ContextDropout(share=1.0)
    with pytest.raises(ValueError, match="unconditional context"):
        ContextDropout(unconditional=None)
