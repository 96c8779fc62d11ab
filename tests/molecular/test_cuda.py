"""Molecules on a GPU: energies, forces and shipped flows give what the CPU gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from molecular.flows.molecule_flow import MoleculeFlow
from nflib.decoding import GaussSeidelJacobi, Jacobi, Sequential

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
SHIPPED = Path(__file__).parents[2] / "molecular" / "shipped" / "Ace-A-Nme"


@pytest.mark.parametrize("sequence", ["Ace-A-Nme", "AA"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_energies_and_forces(sequence, dtype, tolerance):
    for package in ("openmm", "rdkit", "mdtraj"):
        pytest.importorskip(package)
    from molecular import Peptide
    from molecular.energy import compile_system

    torch.manual_seed(0)
    peptide = Peptide(sequence)
    x = torch.as_tensor(peptide.positions) + 0.003 * torch.randn(300, peptide.num_atoms, 3, dtype=torch.float64)
    expected, its_force = compile_system(peptide.system, torch.float64).energy_and_force(x)
    energy, force = compile_system(peptide.system, dtype, DEVICE, batch_size=128).energy_and_force(x.to(DEVICE, dtype))
    assert energy.device.type == force.device.type == DEVICE and energy.dtype == dtype
    assert (energy.cpu() - expected).abs().max() < tolerance * expected.abs().max()
    assert (force.cpu() - its_force).abs().max() < tolerance * its_force.abs().max()


@torch.no_grad()
def test_a_shipped_flow():
    flow = MoleculeFlow.from_pretrained(SHIPPED)
    x, log_prob = flow.sample_and_log_prob(64, seed=0)
    other = MoleculeFlow.from_pretrained(SHIPPED, DEVICE)
    found = other.log_prob(x.to(DEVICE))
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), log_prob, rtol=0, atol=0.05)  # of hundreds of nats
    for decoder in (Sequential(), GaussSeidelJacobi(4, 1e-6), Jacobi(1e-6)):
        torch.testing.assert_close(other.sample(64, seed=0, decoding=decoder).cpu(), x, rtol=0, atol=1e-3)
