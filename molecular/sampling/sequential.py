"""Sequential Monte Carlo from a flow to a molecule's Boltzmann distribution, in the flow's own coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import Tensor

from molecular.flows.conformations import split_coordinates
from molecular.molecule.molecule import Molecule
from molecular.sampling.targets import energy_for
from nflib import montecarlo
from nflib.montecarlo import (
    HMC,
    MALA,
    ULA,
    BoltzmannDensity,
    Chains,
    IndependentMetropolis,
    Kernel,
    Proposal,
    SMCSamples,
    StepSizes,
    Temperatures,
    TransformedProposal,
    TransformedTarget,
    WeightedSamples,
    run_chains,
    score_scales,
    transform_back,
)
from nflib.transforms import Standardize

KERNELS: dict[str, Kernel] = {
    # First steps about as long as those of a small peptide's flow turn out: searching for them costs energies.
    "mala": MALA(step_size=0.5),
    "hmc": HMC(step_size=0.3, num_leapfrog=5),
    "ula": ULA(step_size=0.2),
    "independent": IndependentMetropolis(),
}


# Of the flow, to find the lengths of its coordinates: they cost no energies.
SCALE_DRAWS = 100


class SplitFlow(Protocol):
    """A flow on conformations modulo rigid motion whose fixed coordinates can be split off, such as `MoleculeFlow`."""

    def split_coordinates(self) -> tuple[Transform, Proposal]:
        """A fixed map from positions ``(B, n, 3)`` in nm to unconstrained coordinates, and the flow on those."""
        ...


def smc(
    flow: SplitFlow,
    molecule: Molecule,
    num_samples: int,
    *,
    kernel: Kernel | str = "mala",
    temperatures: Temperatures | Sequence[float] | None = None,
    moves: int = 1,
    final_moves: int = 0,
    num_draws: int | None = None,
    draws: WeightedSamples | None = None,
    step_sizes: StepSizes | None = None,
    resampling_threshold: float = 0.5,
    batch_size: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> SMCSamples:
    """Sequential Monte Carlo: draws of a flow, moved to the molecule's Boltzmann distribution at its temperature.

    A conformation's density is taken modulo rigid motion, so particles move in the unconstrained coordinates y of
    `flow.split_coordinates()`, each divided by its length in the flow's density (`nflib.montecarlo.score_scales`): from
    that density of y to `exp(-U(x(y)) / kT) |dx/dy|`, by `nflib.montecarlo.smc`.

    Args:
        flow: the proposal, given the molecule: `load_flow` or `load_proposal`.
        molecule: whose System and temperature are the target.
        num_samples: particles.
        kernel: how particles move: "mala", "hmc", "ula", "independent", or a kernel of `nflib.montecarlo`.
        temperatures: rising inverse temperatures that end in 1, or a rule; default `AdaptiveTemperatures()`.
        moves: kernel steps at each temperature.
        final_moves: further steps in the force field alone, which cost no pass through the flow.
        num_draws: draws of the flow, of which num_samples are resampled; default num_samples.
        draws: in place of num_draws, samples of this flow that `molecular.sampling.sample` weighted, from which
            to begin.
        step_sizes: a rule; default `AcceptanceTarget()`.
        resampling_threshold: resample below this fraction of effective samples.
        batch_size: conformations that the flow or the energy sees at once.
        seed: of the run; with `draws`, another one than theirs.
        device: where the flow is; the energy is computed there too.
        checkpoint: an .npz file that is kept up to date; a run that finds it goes on where it was stopped.
        progress: show a progress bar.

    Returns:
        x ``(num_samples, n, 3)`` in nm, with weights, densities of conformations, ancestors and the run's history.
        Conformations whose energy is not finite have weight zero and are counted.

    Raises:
        ValueError: an unknown kernel, a flow that cannot be split or was given another molecule, and what
            `nflib.montecarlo.smc` refuses.
    """
    kernel = named_kernel(kernel)
    fixed, proposal, target = _in_own_coordinates(flow, molecule, torch.Generator().manual_seed(seed), device)
    if draws is not None:
        draws = transform_back(draws, InverseTransform(fixed), batch_size)
        draws = replace(draws, x=draws.x.to(device))
    samples = montecarlo.smc(
        proposal,
        target,
        num_samples,
        kernel=kernel,
        temperatures=temperatures,
        moves=moves,
        final_moves=final_moves,
        num_draws=num_draws,
        draws=draws,
        step_sizes=step_sizes,
        resampling_threshold=resampling_threshold,
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
        labels={"temperature_K": molecule.temperature},
        progress=progress,
    )
    return transform_back(samples, fixed, batch_size)


def move_at_target(
    flow: SplitFlow,
    molecule: Molecule,
    positions: Tensor,
    num_steps: int,
    *,
    kernel: Kernel | str = "mala",
    batch_size: int = 1000,
    generator: torch.Generator,
    device: str = "cpu",
) -> Chains:
    """Markov chains in the force field: conformations, moved in the coordinates in which `smc` moves them.

    What represents the Boltzmann distribution still does so afterwards, with the weights it had.

    Args:
        flow: given the molecule; it says the coordinates.
        molecule: whose System and temperature are the target.
        positions: ``(B, n, 3)`` in nm, where the chains start.
        num_steps: kernel steps of each chain.
        kernel: as of `smc`.
        batch_size: conformations moved at once.
        generator: of the random numbers.
        device: where the flow is; the energy is computed there too.

    Returns:
        What `nflib.montecarlo.run_chains` gives: x are positions in nm, log_target is minus their reduced energy.

    Raises:
        ValueError: as `smc` and `run_chains` do.
    """
    fixed, _, target = _in_own_coordinates(flow, molecule, generator, device)
    with torch.no_grad():
        y = torch.cat([fixed(part.to(device))[0] for part in positions.split(batch_size)])
    chains = run_chains(target, y, num_steps, kernel=named_kernel(kernel), batch_size=batch_size, generator=generator)
    moved = WeightedSamples(chains.x, torch.zeros_like(chains.log_target), log_target=chains.log_target)
    back = transform_back(moved, fixed, batch_size)
    assert back.log_target is not None
    return chains._replace(x=back.x.to(positions), log_target=back.log_target.to(positions.device))


def named_kernel(kernel: Kernel | str) -> Kernel:
    """A kernel, or the one of `KERNELS` of this name; raises ValueError for another name."""
    if not isinstance(kernel, str):
        return kernel
    if kernel not in KERNELS:
        raise ValueError(f"there is no kernel {kernel!r}; choose one of {', '.join(KERNELS)}.")
    return KERNELS[kernel]


def _in_own_coordinates(
    flow: SplitFlow, molecule: Molecule, generator: torch.Generator, device: str
) -> tuple[Transform, Proposal, TransformedTarget]:
    """The map from positions to the coordinates that particles move in, and there the flow and the target."""
    fixed, proposal = split_coordinates(flow)
    energy = energy_for(flow, molecule, device)
    scales = score_scales(proposal, SCALE_DRAWS, generator=generator)
    scaled = Standardize(torch.zeros_like(scales), scales).to(scales.device)
    fixed = CompositeTransform([fixed, scaled])
    target = TransformedTarget(BoltzmannDensity(energy), fixed)
    return fixed, TransformedProposal(proposal, scaled), target
