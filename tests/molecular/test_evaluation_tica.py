"""TICA on processes with known slow coordinates, and k-means."""

from __future__ import annotations

import math

import pytest
import scipy.linalg
import torch

from molecular.analysis.tica import fit_tica, kmeans, nearest, torsion_features

DECAY = torch.tensor([0.95, 0.8, 0.3], dtype=torch.float64)


@pytest.fixture(scope="module")
def trajectories():
    """Three independent autoregressive processes of unit variance, mixed linearly: 4 trajectories of 20,000 frames."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 4, 3, generator=generator, dtype=torch.float64) * (1 - DECAY**2).sqrt()
    state, frames = torch.randn(4, 3, generator=generator, dtype=torch.float64), []
    for kick in noise:
        state = DECAY * state + kick
        frames.append(state)
    sources = torch.stack(frames, dim=1)  # (4, T, 3)
    mixing = torch.tensor([[1.0, 0.5, 0.2], [-0.3, 2.0, 0.1], [0.4, 0.4, 0.7]], dtype=torch.float64)
    return sources, sources @ mixing + 5.0


@pytest.mark.parametrize("lag", [1, 3])
def test_finds_the_slow_processes(trajectories, lag):
    sources, mixed = trajectories
    tica = fit_tica(list(mixed), lag)
    torch.testing.assert_close(tica.eigenvalues, DECAY[:2] ** lag, rtol=0, atol=0.02)
    coordinates = tica(mixed.flatten(0, 1))
    torch.testing.assert_close(coordinates.std(0), tica.eigenvalues, rtol=2e-2, atol=0)
    correlation = torch.corrcoef(torch.cat([coordinates, sources.flatten(0, 1)], dim=1).T)[:2, 2:].abs()
    assert correlation[0, 0] > 0.99 and correlation[1, 1] > 0.99


def test_equals_the_generalised_eigenproblem(trajectories):
    _, mixed = trajectories
    lag, parts = 2, [mixed[0, :500], mixed[1, :300], mixed[2, :2]]  # the last one is too short and left out
    now, later = torch.cat([p[:-lag] for p in parts[:2]]), torch.cat([p[lag:] for p in parts[:2]])
    mean = (now.mean(0) + later.mean(0)) / 2
    now, later = (now - mean).numpy(), (later - mean).numpy()
    values, vectors = scipy.linalg.eigh(now.T @ later + later.T @ now, now.T @ now + later.T @ later)
    tica = fit_tica(parts, lag, dim=3)
    assert tica.eigenvalues.tolist() == pytest.approx(values[::-1].tolist(), rel=1e-9)
    for ours, theirs in zip(tica.components.T.numpy(), vectors.T[::-1], strict=True):
        cosine = ours @ theirs / math.sqrt((ours @ ours) * (theirs @ theirs))
        assert abs(cosine) == pytest.approx(1.0, abs=1e-9)


def test_a_constant_feature_changes_nothing(trajectories):
    _, mixed = trajectories
    padded = torch.cat([mixed, torch.full_like(mixed[..., :1], 3.0), mixed[..., :1]], dim=-1)  # and a copy of another
    torch.testing.assert_close(
        fit_tica(list(padded), 1)(padded[0]).abs(), fit_tica(list(mixed), 1)(mixed[0]).abs(), rtol=1e-6, atol=1e-6
    )


def test_mistakes():
    with pytest.raises(ValueError, match="the lag is 0 frames"):
        fit_tica([torch.randn(9, 2)], 0)
    with pytest.raises(ValueError, match="the longest trajectory 9"):
        fit_tica([torch.randn(9, 2), torch.randn(4, 2)], 9)
    rounded = torch.tensor([0.1, 0.7], dtype=torch.float64).expand(39, 2)  # in its mean
    for still in (torch.ones(9, 2), rounded):
        with pytest.raises(ValueError, match="do not move"):
            fit_tica([still], 1)
    with pytest.raises(ValueError, match="5 clusters of 3 points"):
        kmeans(torch.zeros(3, 2), 5, torch.Generator())


def test_features_do_not_jump_at_the_seam():
    below, above = torch.tensor([[math.pi - 1e-4]]), torch.tensor([[-math.pi + 1e-4]])
    assert (torsion_features(below) - torsion_features(above)).abs().max() < 3e-4


def test_kmeans_finds_separated_blobs():
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    label = torch.arange(400) % 4
    points = corners[label] + 0.1 * torch.randn(400, 2, generator=generator)
    centres = kmeans(points, 4, generator)
    assignment = nearest(points, centres)
    for blob in range(4):
        assert len(assignment[label == blob].unique()) == 1
        torch.testing.assert_close(
            centres[assignment[label == blob][0]], points[label == blob].double().mean(0), rtol=1e-9, atol=1e-9
        )
    again = kmeans(points, 4, torch.Generator().manual_seed(7))
    torch.testing.assert_close(again, kmeans(points, 4, torch.Generator().manual_seed(7)), rtol=0, atol=0)
    assert kmeans(torch.zeros(6, 2), 3, generator).shape == (3, 2)
