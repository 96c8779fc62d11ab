"""Muon beside AdamW: which weights each has, how far a step goes, and that a run with both goes on bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nflib.training import TrainingConfig, checkpoints, fit
from nflib.training.optimizer import make_optimizers
from tests.nflib import train_tiny_flow as tiny
from tests.nflib.training_cases import Record, configuration, normal

CPU = torch.device("cpu")


def settings(**changes: object) -> TrainingConfig:
    return configuration(**({"optimizer": "muon", "weight_decay": 0.0} | changes))


def test_muon_has_the_matrices_and_adamw_the_rest() -> None:
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 4),
            "norm": nn.LayerNorm([2, 3]),
            "embedding": nn.Embedding(5, 3),
            "conv": nn.Conv1d(2, 2, 3),
        }
    )
    named = make_optimizers(model, settings(weight_decay=0.1), CPU)
    (group,) = named["muon"].param_groups
    assert [id(p) for p in group["params"]] == [id(model["linear"].weight)] and group["weight_decay"] == 0.1
    decayed, spared = named["optimizer"].param_groups
    assert [id(p) for p in decayed["params"]] == [id(model["conv"].weight)] and len(spared["params"]) == 5
    assert set(make_optimizers(model, configuration(), CPU)) == {"optimizer"}
    assert set(make_optimizers(model["norm"], settings(), CPU)) == {"optimizer"}  # nothing for it to do


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
def test_a_step_has_one_length_in_every_direction(shape: tuple[int, int]) -> None:
    layer = nn.Linear(*shape, bias=False)
    before = layer.weight.detach().clone()
    left, right = torch.linalg.qr(normal(shape[1], shape[1]))[0], torch.linalg.qr(normal(shape[0], shape[0], seed=1))[0]
    rank = min(shape)
    gradient = left[:, :rank] * torch.logspace(0, -1, rank) @ right[:rank]
    layer.weight.grad = gradient.clone()
    make_optimizers(layer, settings(learning_rate=0.01), CPU)["muon"].step()
    step = (before - layer.weight.detach()) / (0.01 * 0.2 * max(shape) ** 0.5)
    # Five Newton-Schulz iterations in bfloat16 bring singular values to about one.
    lengths = torch.linalg.svdvals(step)
    assert lengths.min() > 0.6 and lengths.max() < 1.3
    # Along the gradient's own singular vectors.
    assert (
        torch.linalg.matrix_norm(
            step - left[:, :rank] * (left[:, :rank].T @ step @ right[:rank].T).diagonal() @ right[:rank]
        )
        < 0.1
    )


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, second = Record(), Record()
    fit(tiny.tiny_flow(), normal(50, 3), config=settings(), output=tmp_path / "whole", callbacks=[whole])
    with pytest.raises(InterruptedError):
        fit(
            tiny.tiny_flow(), normal(50, 3), config=settings(), output=tmp_path / "parts", callbacks=[Record(fail_at=8)]
        )
    fit(tiny.tiny_flow(), normal(50, 3), config=settings(), output=tmp_path / "parts", callbacks=[second])
    assert second.losses == whole.losses[5:] and len(set(whole.losses)) == 12


def test_one_optimizer_does_not_go_on_for_the_other(tmp_path: Path) -> None:
    fit(tiny.tiny_flow(), normal(50, 3), config=configuration(weight_decay=0.0), output=tmp_path)
    with pytest.raises(ValueError, match="optimizer='adamw', not 'muon'"):
        fit(tiny.tiny_flow(), normal(50, 3), config=settings(max_steps=20), output=tmp_path)
    with pytest.raises(ValueError, match="optimizer must be one of adamw, muon, not 'sgd'"):
        settings(optimizer="sgd")


@pytest.mark.parametrize("fault", ["gone", "list", "shape", "infinite", "moment"])
def test_a_damaged_state(tmp_path: Path, fault: str) -> None:
    fit(tiny.tiny_flow(), normal(50, 3), config=settings(max_steps=2), output=tmp_path)
    path = tmp_path / "checkpoints" / "step-000000002" / checkpoints.TRAINING
    record = torch.load(path, weights_only=True)
    state = record["muon"]["state"][0]
    if fault == "gone":
        del record["muon"]
    elif fault == "list":
        record["muon"] = []
    elif fault == "shape":
        state["momentum_buffer"] = torch.zeros(7)
    elif fault == "infinite":
        state["momentum_buffer"][0, 0] = torch.inf
    else:
        state["exp_avg"] = state["momentum_buffer"]
    torch.save(record, path)
    with pytest.raises(ValueError, match="step-000000002 is damaged"):
        fit(tiny.tiny_flow(), normal(50, 3), config=settings(), output=tmp_path)


def test_a_checkpoint_from_before_there_was_a_choice(tmp_path: Path) -> None:
    fit(tiny.tiny_flow(), normal(50, 3), config=configuration(max_steps=2), output=tmp_path)
    path = tmp_path / "checkpoints" / "step-000000002" / checkpoints.TRAINING
    record = torch.load(path, weights_only=True)
    del record["config"]["optimizer"]
    torch.save(record, path)
    assert fit(tiny.tiny_flow(), normal(50, 3), config=configuration(), output=tmp_path).steps == 12
