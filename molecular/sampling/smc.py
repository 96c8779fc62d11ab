"""Sequential Monte Carlo from a flow to a molecule's Boltzmann distribution, in the flow's own coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from nflows.transforms import CompositeTransform, InverseTransform, Transform
from torch import Tensor

from molecular.molecule.molecule import Molecule
from molecular.sampling.targets import energy_for
from nflib import montecarlo
from nflib.montecarlo import (
    HMC,
    MALA,
    ULA,
    AcceptanceTarget,
    AdaptiveTemperatures,
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
    """A flow on conformations modulo rigid motion that can be taken apart, such as `MoleculeFlow`."""

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
    """Move `num_samples` draws of the flow to the Boltzmann distribution of the molecule's System at its temperature.

    A conformation's density is taken modulo rigid motion, so particles move in the unconstrained coordinates y of
    `flow.split_coordinates()`, each divided by its length in the flow's density (`nflib.montecarlo.score_scales`): from
    that density of y to `exp(-U(x(y)) / kT) |dx/dy|`, by `nflib.montecarlo.smc`, which knows the other arguments. The
    result holds positions in nm, with the densities of conformations, and the history of the run. Conformations
    whose energy is not finite have weight zero and are counted.

    draws: of this flow, as `molecular.sampling.sample.sample` weighted them, from which to begin; positions in nm.

    kernel: "mala", "hmc", "ula", "independent", or a kernel. Raises ValueError for an unknown one, a flow that cannot
    be split or was given another molecule, and what `nflib.montecarlo.smc` refuses.
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
        temperatures=AdaptiveTemperatures() if temperatures is None else temperatures,
        moves=moves,
        final_moves=final_moves,
        num_draws=num_draws,
        draws=draws,
        step_sizes=AcceptanceTarget() if step_sizes is None else step_sizes,
        resampling_threshold=resampling_threshold,
        batch_size=batch_size,
        seed=seed,
        checkpoint=checkpoint,
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
    """Conformations ``(B, n, 3)`` in nm, moved by `nflib.montecarlo.run_chains` in the coordinates that `smc` moves in.

    What represents the Boltzmann distribution still does so afterwards, with the weights it had. Of the result, x are
    positions in nm and log_target is minus their reduced energy. Raises ValueError as `smc` and `run_chains` do.
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
    if not hasattr(flow, "split_coordinates"):
        raise ValueError(
            f"a {type(flow).__name__} has no split_coordinates, so its samples cannot be moved; use importance "
            "sampling."
        )
    energy = energy_for(flow, molecule, device)
    fixed, proposal = flow.split_coordinates()
    scales = score_scales(proposal, SCALE_DRAWS, generator)
    scaled = Standardize(torch.zeros_like(scales), scales).to(scales.device)
    fixed = CompositeTransform([fixed, scaled])
    target = TransformedTarget(BoltzmannDensity(energy), fixed)
    return fixed, TransformedProposal(proposal, scaled), target
