"""Flows of molecules small enough for tests."""

import torch

from molecular import InternalProse
from molecular.flows.molecule_flow import MoleculeFlow
from tests.perturb import perturb

SETTINGS = {"channels": 8, "num_blocks": 1, "layers_per_block": 1, "head_dim": 4}


def make_tiny_flow(peptide, **settings):
    """An untrained `InternalProse` whose marginals are those of small noise about the peptide's own structure.

    That is near enough to the structure for finite energies.
    """
    torch.manual_seed(0)
    flow = InternalProse(**SETTINGS, condition_channels=8, units=4, marginal_bins=8, **settings)
    x = torch.from_numpy(peptide.positions).float() + 0.003 * torch.randn(200, peptide.num_atoms, 3)
    flow.fitted([{"inputs": x, "context": flow.context(peptide).expand(200, -1, -1)}])
    return flow.eval()


def make_molecule_flow(peptide, frames, coordinates, conditional="spline", **settings):
    """A flow of one molecule away from the identity, its coordinates fitted to frames."""
    torch.manual_seed(1)
    sizes = {"channels": 32, "num_blocks": 2, "layers_per_block": 1, "head_dim": 16}
    flow = MoleculeFlow.of(peptide, coordinates=coordinates, conditional=conditional, **sizes, **settings)
    flow.fit_coordinates(frames)
    return perturb(flow, 0.05)
