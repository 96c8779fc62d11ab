"""Energies as labels of one molecule: what batches hold before the first samples, and after."""

import pytest
import torch

from molecular import Peptide
from molecular.data.ensembles import Ensemble
from molecular.energy.reduced import ReducedEnergy
from molecular.training.fit_molecule import FramesAndSamples


def test_batches_are_of_frames_until_there_are_samples():
    peptide = Peptide("Ace-G-Nme")
    reduced = ReducedEnergy(peptide)
    noise = torch.randn(6, peptide.num_atoms, 3, generator=torch.Generator().manual_seed(0))
    positions = torch.as_tensor(peptide.positions, dtype=torch.float32) + 0.002 * noise
    zeros = torch.zeros(6, dtype=torch.int64)
    frames = Ensemble(positions, reduced(positions) * peptide.kT, torch.arange(6), zeros.double(), zeros)
    source = FramesAndSamples(frames, peptide, num_samples=4)

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
