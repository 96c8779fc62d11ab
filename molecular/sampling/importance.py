"""Importance sampling: draws of a flow, weighted to a molecule's Boltzmann distribution."""

from __future__ import annotations

from molecular.molecule.molecule import Molecule
from molecular.sampling.targets import energy_for
from nflib.montecarlo import BoltzmannDensity, Proposal, WeightedSamples, importance_sample


def sample(
    flow: Proposal,
    molecule: Molecule,
    num_samples: int,
    *,
    batch_size: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> WeightedSamples:
    """Importance sampling: draws of a flow, weighted to the molecule's Boltzmann distribution at its temperature.

    Args:
        flow: the proposal, of positions ``(n, 3)`` in nm: what `load_flow` or `load_proposal` gives, or
            ``flow.given(molecule)``.
        molecule: whose System and temperature are the target.
        num_samples: how many to draw.
        batch_size: conformations drawn and weighted at once.
        seed: of the draws; the same seed and batch_size give the same samples.
        device: where the flow is; the energy is computed there too.
        progress: show a progress bar.

    Returns:
        x ``(num_samples, n, 3)`` in nm with their log-weights ``-U(x) / kT - log q(x)``. Samples whose energy is not
        finite have weight zero and are counted.

    Raises:
        ValueError: a flow that was given another molecule.

    >>> from molecular import Peptide
    >>> from molecular.sampling import load_flow
    >>> peptide = Peptide("Ace-A-Nme")
    >>> samples = sample(load_flow(peptide), peptide, 10, seed=0)
    >>> samples.x.shape, samples.log_weights.shape
    (torch.Size([10, 22, 3]), torch.Size([10]))
    """
    target = BoltzmannDensity(energy_for(flow, molecule, device))
    return importance_sample(flow, target, num_samples, batch_size=batch_size, seed=seed, progress=progress)
