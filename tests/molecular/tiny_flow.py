"""A transferable flow small enough for tests, near enough to a peptide's structure for finite energies."""

import torch

from molecular import InternalProse

SETTINGS = {"channels": 8, "num_blocks": 1, "layers_per_block": 1, "head_dim": 4}


def make_tiny_flow(peptide, **settings):
    """An untrained `InternalProse` whose marginals are those of small noise about the peptide's own structure."""

    torch.manual_seed(0)
    flow = InternalProse(**SETTINGS, condition_channels=8, units=4, marginal_bins=8, **settings)
    x = torch.from_numpy(peptide.positions).float() + 0.003 * torch.randn(200, peptide.num_atoms, 3)
    flow.fitted([{"inputs": x, "context": flow.context(peptide).expand(200, -1, -1)}])
    return flow.eval()
