"""The conformations that a simulation starts from: a flow's weighted draws, or frames of an earlier one."""

from __future__ import annotations

import logging
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from molecular.data.ensembles import load_ensemble
from molecular.dynamics.frames import list_shards
from molecular.dynamics.starts import UnreliableStarts
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import load_molecule
from molecular.sampling.importance import sample
from molecular.sampling.proposals import load_proposal
from nflib.montecarlo import AdaptiveTemperatures, resample

log = logging.getLogger(__name__)


class FlowStarts:
    """Start conformations for `simulate`, resampled from a flow's weighted draws.

    ``starts(molecule, number, seed)`` gives positions ``(number, n, 3)`` in nm. They have the basins that barriers keep
    simulations from, in the shares that the weights give them, so that dynamics at the molecule's temperature has no
    barrier left to cross.

    Args:
        model: folder of a trained flow; None takes what is shipped for the molecule.
        num_draws: how many to draw and weight.
        batch_size: conformations decoded at once.
        device: that the flow is on.
        min_effective: effective samples that the draws must be worth; None takes one for each start. With fewer,
            several replicas start from one draw: for training data, where dynamics tells these apart again.
        tempered: raise the weights to the highest power at which draws that are worth fewer are worth that many. The
            starts are then between the flow and the target, for dynamics that crosses the barriers between them.

    Raises:
        UnreliableStarts: when called, where the draws are worth fewer; of tempered ones, where as many have no weight.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        num_draws: int = 10_000,
        batch_size: int = 1000,
        device: str = "cpu",
        min_effective: float | None = None,
        tempered: bool = False,
    ):
        self.model, self.num_draws, self.batch_size, self.device = model, num_draws, batch_size, device
        self.min_effective, self.tempered = min_effective, tempered
        self.in_equilibrium = not tempered

    def __str__(self) -> str:
        flow = "the shipped flow" if self.model is None else f"the flow in {self.model}"
        return f"{self.num_draws} {'tempered' if self.tempered else 'weighted'} draws of {flow}"

    def __call__(self, molecule: Molecule, number: int, seed: int) -> Tensor:
        flow = load_proposal(molecule, [] if self.model is None else [self.model], self.device)
        drawn = sample(flow, molecule, self.num_draws, batch_size=self.batch_size, seed=seed, device=self.device)
        weights, size = drawn.weights, drawn.effective_sample_size
        least = number if self.min_effective is None else self.min_effective
        alive = int(torch.isfinite(drawn.log_weights).sum())
        if self.tempered and size < least < alive:
            rule = AdaptiveTemperatures(conditional_ess=least / alive)
            power = rule.next(0.0, torch.zeros_like(drawn.log_weights), drawn.log_weights)
            weights = torch.softmax(power * drawn.log_weights, 0)
            log.info("Weights of draws of %s are raised to the power %.2f.", molecule.name, power)
        elif size < least:
            raise UnreliableStarts(
                f"{self.num_draws} draws of {molecule.name} are worth {size:.0f} effective samples, not the {least:g} "
                f"wanted for {number} starts; draw more, or start from structures of random torsions."
            )
        log.info("%d draws of %s are worth %.0f effective samples.", self.num_draws, molecule.name, size)
        chosen = resample(weights, number, torch.Generator().manual_seed(seed))
        return drawn.x[chosen]


class EnsembleStarts:
    """Start conformations for `simulate`: frames of an earlier simulation.

    ``starts(molecule, number, seed)`` gives positions ``(number, n, 3)`` in nm. Dynamics at the molecule's temperature
    then adds conformations to an equilibrium that was reached before, at a fraction of the cost: a flow that sees the
    same frames again and again learns them by heart. As many replicas as the earlier simulation has groups start from a
    group each, independent of each other; more of them do not, and what dynamics does not forget of their starts has
    larger errors than groups tell.

    Args:
        folder: that `molecular.dynamics.simulate` wrote, or a corpus of such folders.

    Raises:
        UnreliableStarts: when called, where a corpus has no frames of the molecule.
        ValueError: when called, where the frames are of another molecule, force field or temperature.
    """

    in_equilibrium = True

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def __str__(self) -> str:
        return f"frames of {self.folder}"

    def __call__(self, molecule: Molecule, number: int, seed: int) -> Tensor:
        folder = self.folder
        if (folder / "systems").is_dir():
            folder = folder / "systems" / molecule.name
            if not list_shards(folder):
                raise UnreliableStarts(f"{self.folder} has no frames of it.")
        ensemble = load_ensemble(folder, num_atoms=molecule.num_atoms)
        difference = molecule.difference(load_molecule(folder), temperature=True)
        if difference is not None:
            raise ValueError(f"{folder} holds a simulation of something else: {difference}; name another folder.")
        order = torch.randperm(len(ensemble), generator=torch.Generator().manual_seed(seed))
        groups: dict[int, list[int]] = {}
        for frame, group in zip(order.tolist(), ensemble.replica_group[order].tolist(), strict=True):
            groups.setdefault(group, []).append(frame)
        if number > len(groups):
            log.warning(
                "%d replicas of %s start from %d frames of %d replica groups: those that share a group or a frame are "
                "not independent, as errors take them to be; for errors, use fewer replica groups.",
                *(number, molecule.name, min(number, len(ensemble)), len(groups)),
            )
        # A frame of each group, then a second one of each, and so on: those of one group resemble each other.
        turns = [frame for turn in zip_longest(*groups.values()) for frame in turn if frame is not None]
        return ensemble.positions[[turns[replica % len(turns)] for replica in range(number)]]
