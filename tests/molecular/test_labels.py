"""Energies as labels of one molecule: what batches hold before the first samples, and after."""

import pytest
import torch

from molecular import Peptide
from molecular.data.ensembles import Ensemble
from molecular.energy.reduced import ReducedEnergy
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.flows.prose import Prose
from molecular.sampling.targets import energy_for
from molecular.training import fit_molecule
from molecular.training.fit_molecule import FramesAndSamples, train_flow
from nflib.training import TrainingConfig

SMALL = {"channels": 8, "layers_per_block": 1, "head_dim": 4}


def test_batches_are_of_frames_until_there_are_samples():
    peptide = Peptide("Ace-G-Nme")
    reduced = ReducedEnergy(peptide)
    noise = torch.randn(6, peptide.num_atoms, 3, generator=torch.Generator().manual_seed(0))
    positions = torch.as_tensor(peptide.positions, dtype=torch.float32) + 0.002 * noise
    zeros = torch.zeros(6, dtype=torch.int64)
    frames = Ensemble(positions, reduced(positions) * peptide.kT, torch.arange(6), zeros.double(), zeros)
    source = FramesAndSamples(frames, peptide, MoleculeFlow.of(peptide, **SMALL), num_samples=4)

    before = source.batch(torch.arange(len(source)))
    assert before["is_data"].all()
    torch.testing.assert_close(before["inputs"], torch.cat([positions, positions]))
    torch.testing.assert_close(before["energy"], reduced(positions).repeat(2))

    class Turned(torch.nn.Module):
        def given(self, molecule):
            return self

        def sample(self, shape, **_):
            return positions[: shape[0]].flip(-1)

    source.refresh(Turned(), 0, torch.Generator())
    after = source.batch(torch.arange(len(source)))
    assert after["is_data"].tolist() == [True] * 6 + [False] * 6
    torch.testing.assert_close(after["inputs"][6:], positions[torch.arange(6, 12) % 4].flip(-1))
    torch.testing.assert_close(after["energy"][6:], reduced(after["inputs"][6:]), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("grid", [1e-3, None])
def test_labels_are_of_the_positions_that_are_stored(grid):
    """Energies of a simulation are of positions before XTC rounded them."""
    peptide = Peptide("Ace-G-Nme")
    reduced = ReducedEnergy(peptide)
    noise = torch.randn(20, peptide.num_atoms, 3, generator=torch.Generator().manual_seed(0))
    positions = torch.as_tensor(peptide.positions, dtype=torch.float32) + 0.002 * noise
    energies = reduced(positions) * peptide.kT
    stored = positions if grid is None else (positions / grid).round() * grid
    labels = reduced.of_frames(stored, energies)
    torch.testing.assert_close(labels, reduced(stored), rtol=0, atol=1e-4)
    assert bool((labels - energies / peptide.kT).abs().max() > 0.1) == (grid is not None)


@pytest.mark.parametrize("energy_weight", [0.0, 0.5])
def test_frames_for_a_flow_that_places_molecules_lie_where_its_target_has_them(energy_weight, tmp_path, monkeypatch):
    """A simulation has its molecule somewhere; the density of such a flow is over centroids and orientations, too."""
    peptide = Peptide("GG")
    positions = torch.as_tensor(peptide.positions, dtype=torch.float32).expand(2000, -1, -1)
    energies = ReducedEnergy(peptide)(positions[:1]).expand(2000) * peptide.kT
    zeros = torch.zeros(2000, dtype=torch.int64)
    frames = Ensemble(positions, energies, zeros, zeros.double(), zeros)
    flow = Prose(8, 1, 1, head_dim=4, scale=0.3).eval()
    given = {}
    monkeypatch.setattr(
        fit_molecule, "fit", lambda flow, train, held_out, **_: given.update(train=train, held_out=held_out)
    )
    train_flow(flow, peptide, frames, frames, tmp_path, TrainingConfig(max_steps=1), energy_weight=energy_weight)
    train = given["train"] if not energy_weight else given["train"].batch(torch.arange(2000))
    width = 0.3 / peptide.num_atoms**0.5
    for rows in (train, given["held_out"]):
        centroids = rows["inputs"].mean(1)
        torch.testing.assert_close(centroids.std(0), torch.full((3,), width), rtol=0.1, atol=0)
        assert (centroids.mean(0).abs() < 5 * width / 2000**0.5).all()
        if energy_weight:
            expected = energy_for(flow.given(peptide), peptide)(rows["inputs"])
            torch.testing.assert_close(rows["energy"], expected, rtol=0, atol=0.05)
