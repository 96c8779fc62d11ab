"""An ensemble weighted to another temperature or another force field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from molecular.analysis.ensembles import WeightedConformations
from molecular.energy.reduced import ReducedEnergy
from molecular.molecule.molecule import Molecule
from nflib.montecarlo import WeightedSamples

_BATCH = 1024
# Below this share of the effective size it had, an ensemble has lost most of what it was worth.
_FEW = 0.1


@dataclass(frozen=True)
class Reweighted:
    """The result of `reweight`.

    Attributes:
        conformations: the same, with new weights.
        effective_sample_size: Kish's, of the new weights, a count of conformations.
        pareto_k: shape of the tail of the new weights (`nflib.montecarlo.diagnostics.pareto_k`).
        warning: why estimates cannot be trusted, in a sentence; None where they can.
    """

    conformations: WeightedConformations
    effective_sample_size: float
    pareto_k: float
    warning: str | None


def reweight(
    conformations: WeightedConformations,
    present: Tensor | Callable[[Tensor], Tensor],
    wanted: Tensor | Callable[[Tensor], Tensor],
) -> Reweighted:
    """Weight conformations to another reduced energy: their weights times `exp(present - wanted)`.

    The new distribution must be positive only where the present one is, and not far from it, which the warning tells.

    Args:
        conformations: with the weights that they have.
        present: reduced energies U / kT (N,), or a function of positions (B, n, 3) in nm that returns them (B,): of
            what the weights are for.
        wanted: the same, of what they shall be for. A conformation whose energies are not finite gets no weight.

    Raises:
        ValueError: energies of another shape, or no conformation with a weight.

    >>> frames = WeightedConformations(torch.randn(4000, 3, 3, generator=torch.Generator().manual_seed(0)))
    >>> spring = lambda x: 0.5 * x.square().sum(dim=(1, 2))
    >>> colder = reweight(frames, spring, lambda x: spring(x) * 300 / 280)
    >>> mean = (colder.conformations.weights() * spring(frames.positions)).sum().item()
    >>> abs(mean - 4.5 * 280 / 300) < 0.1
    True
    """
    before, after = (_energies(conformations, energies) for energies in (present, wanted))
    old = torch.zeros(len(conformations)) if conformations.log_weights is None else conformations.log_weights
    log_weights = old.double() + before - after
    log_weights = torch.where(torch.isfinite(log_weights), log_weights, -torch.inf)
    if log_weights.max() == -torch.inf:
        raise ValueError("reweight: no conformation keeps a weight, for no energy is finite; check the molecule.")
    # Frames of a trajectory are not a family of one ancestor; how correlated they are is told with each estimate.
    ancestors = conformations.groups if conformations.time is None else None
    resamplings = conformations.resamplings
    samples = [
        WeightedSamples(old, weights, ancestors=ancestors, resamplings=resamplings) for weights in (old, log_weights)
    ]
    was, size = (one.effective_num_ancestors for one in samples)
    warning = samples[1].refusal
    if warning is None and size < _FEW * was:
        warning = (
            f"The new weights leave {size:.0f} of {was:.0f} conformations; sample or simulate at the new temperature, "
            "or in the new force field."
        )
    weighted = replace(conformations, log_weights=log_weights)
    return Reweighted(weighted, samples[1].effective_sample_size, samples[1].pareto_k, warning)


def reweight_to(
    conformations: WeightedConformations, molecule: Molecule, target: Molecule, energies: Tensor | None = None
) -> Reweighted:
    """Weight conformations to another temperature or force field.

    Args:
        conformations: with the weights that they have.
        molecule: at the temperature and in the force field that the weights are for.
        target: such as `molecule.at(330.0)`, or a `Molecule` with another System.
        energies: (N,) kJ/mol, of `molecule`; None: computed.

    Raises:
        ValueError: another molecule.
    """
    other = molecule.topology.difference(target.topology)
    if other:
        raise ValueError(f"{target.name} is another molecule than {molecule.name}: {other}.")
    if energies is None:
        present = _energies(conformations, ReducedEnergy(molecule))
    else:
        present = _energies(conformations, torch.as_tensor(energies), "kJ/mol") / molecule.kT
    same = target.system is molecule.system
    return reweight(conformations, present, present * molecule.kT / target.kT if same else ReducedEnergy(target))


@torch.no_grad()
def _energies(
    conformations: WeightedConformations, energies: Tensor | Callable[[Tensor], Tensor], unit: str = "kT"
) -> Tensor:
    if callable(energies):
        energies = torch.cat([energies(part).detach().cpu() for part in conformations.positions.split(_BATCH)])
    if energies.shape != (len(conformations),):
        raise ValueError(
            f"reweight: energies have shape {tuple(energies.shape)} for {len(conformations)} conformations; give "
            f"({len(conformations)},), in {unit}."
        )
    return energies.detach().cpu().double()
