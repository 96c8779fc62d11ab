"""Three peptides of no structure, and a transferable flow fitted to them."""

from functools import cache

import torch

from molecular import InternalProse
from molecular.molecule.features import pad
from molecular.molecule.internal_context import internal_context
from tests.molecular.peptide_topologies import draw_positions, make_topology
from tests.perturb import perturb

SEQUENCES = ("GG", "AP", "SAG")
TOPOLOGIES = [make_topology(sequence) for sequence in SEQUENCES]
CONTEXTS = [internal_context(topology) for topology in TOPOLOGIES]
BATCH = pad(CONTEXTS)
POSITIONS = [draw_positions(topology, 1, seed) for seed, topology in enumerate(TOPOLOGIES)]


def make_flow(**settings):
    """A small flow away from the identity, its marginals fitted to conformations of three peptides."""
    torch.manual_seed(0)
    defaults = {"channels": 16, "num_blocks": 2, "layers_per_block": 1, "head_dim": 8, "expansion": 2}
    defaults |= {"condition_channels": 8, "marginal_bins": 8, "units": 4}
    flow = perturb(InternalProse(**(defaults | settings)), 0.05)
    offsets, marginals = fitted_state()
    flow.coordinates.load_state_dict(offsets)
    flow.marginals.load_state_dict(marginals)
    return flow


@cache
def fitted_state():
    flow = InternalProse(channels=2, num_blocks=1, layers_per_block=1, head_dim=2, marginal_bins=8)
    flow.fitted(batches())
    return flow.coordinates.state_dict(), flow.marginals.state_dict()


def batches(count=80):
    return [
        {"inputs": draw_positions(topology, count, seed, torch.float32), "context": context.expand(count, -1, -1)}
        for seed, (topology, context) in enumerate(zip(TOPOLOGIES, CONTEXTS, strict=True))
    ]
