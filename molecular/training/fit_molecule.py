"""Train a flow on a simulated ensemble, and refine it against the force field."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from molecular.data.ensembles import Ensemble, load_ensemble, split_by_replica_group
from molecular.energy.reduced import ReducedEnergy
from molecular.flows.conformations import ConformationFlow
from molecular.flows.molecule_flow import MoleculeFlow
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import load_molecule, refuse_another_molecule, save_molecule
from molecular.sampling.proposals import load_flow
from molecular.training.beginnings import check_initial, refuse_another_beginning, some_rows
from molecular.training.labels import CLIP, as_labels
from nflib.io import fingerprint
from nflib.processes import is_first_process
from nflib.training import LogVariance, TrainingConfig, TrainingResult, alone, fit, maximum_likelihood
from nflib.transforms import GaussianizeMarginals

SPLIT = (0.9, 0.05, 0.05)
SPLIT_SEED = 0


def train_on_ensemble(
    data: str | Path,
    output: str | Path,
    config: TrainingConfig,
    *,
    start_ps: float = 0.0,
    initial: str | Path | None = None,
    refit_marginals: bool = False,
    energy_weight: float = 0.0,
    **architecture: Any,
) -> TrainingResult:
    """Train a flow of one molecule on the frames in a folder; run again, it goes on. See `train_flow`.

    Args:
        data: folder that `simulate` or `import` wrote.
        output: folder for the model, with its molecule, checkpoints and logs.
        config: of the training.
        start_ps: drop frames before this time, ps.
        initial: folder of a trained flow to start from, of this molecule or of many; None makes a new one.
        refit_marginals: fit the fixed part of an initial flow of this molecule alone anew.
        energy_weight: of the log-variance of the importance weights beside the likelihood; 0 for likelihood alone.
        architecture: settings of a new `MoleculeFlow`, such as ``channels``.

    Raises:
        FileNotFoundError: a folder without frames, or no initial flow.
        ValueError: an initial flow of another molecule, an output with a flow of another molecule or temperature, a
            System with constraints, or settings that do not fit.
    """
    check_initial(initial, architecture, refit_marginals)
    molecule = load_molecule(data)
    model = Path(output) / "model"
    refuse_another_molecule(model, molecule)
    if molecule.system.getNumConstraints():
        raise ValueError(
            f"the System of {data} has constraints, under which conformations have no density; simulate with one that "
            "has none (constraints=None), or `import` a trajectory into it."
        )
    ensemble = load_ensemble(data, num_atoms=molecule.num_atoms, start_ps=start_ps)
    training, validation, _ = split_by_replica_group(ensemble, SPLIT, SPLIT_SEED)
    flow: ConformationFlow
    if initial is None:
        torch.manual_seed(config.seed)
        flow = MoleculeFlow.of(molecule, **architecture)
    else:
        flow = load_flow(molecule, initial).flow
    begun = None if initial is None else fingerprint(flow.state_dict().values())
    if initial is None or refit_marginals:
        if not isinstance(flow, MoleculeFlow):
            raise ValueError(f"{initial} is a flow of many molecules, fitted to a corpus: leave refit_marginals out.")
        if len(training) < (fewest := GaussianizeMarginals.min_samples):
            raise ValueError(
                f"{data} has {len(training)} frames to train on, where a new flow takes {fewest} or more: simulate for "
                "longer."
            )
        flow.fit_coordinates(training.positions)
    positions = ensemble.positions[some_rows(len(ensemble))]
    with alone(output):
        refuse_another_beginning(Path(output), data, fingerprint([positions]), begun, {"energy_weight": energy_weight})
        # So that sampling needs the model alone, of a run that was stopped too.
        if is_first_process():
            save_molecule(molecule, model)
        return train_flow(flow, molecule, training, validation, output, config, energy_weight=energy_weight)


def train_flow(
    flow: ConformationFlow,
    molecule: Molecule,
    training: Ensemble,
    validation: Ensemble,
    output: str | Path,
    config: TrainingConfig,
    *,
    energy_weight: float = 0.0,
) -> TrainingResult:
    """Train a flow of one molecule by maximum likelihood on simulated frames, or by likelihood and energies together.

    Rotations of methyl and ammonium groups and half turns, symmetries of the force field, multiply the frames. With an
    energy_weight every row has its energy as a label (`nflib.training.LogVariance`) and, from the first
    `config.refresh_interval` on, half of each batch are the flow's own samples: this teaches the flow what its
    importance weights are made of.

    Args:
        flow: to train, in place; its fixed part is fitted already.
        molecule: what it is of.
        training: frames to learn.
        validation: frames that training is judged by.
        output: folder for the model, checkpoints and logs.
        config: of the training.
        energy_weight: of the log-variance of the importance weights beside the likelihood; 0 for likelihood alone.
    """
    augment = flow.augmentation(molecule)
    context = flow.context(molecule)
    generator = torch.Generator().manual_seed(config.seed)
    training, validation = (_placed(frames, flow, generator) for frames in (training, validation))
    train: Any = _rows(training.positions, context)
    # A flow may know one naming of equivalent atoms alone.
    held_out = _rows(augment(validation.positions, generator), context)
    objective: Any = maximum_likelihood
    if energy_weight:
        train = FramesAndSamples(training, molecule, flow)
        held_out["energy"] = train.labels(validation)
        objective = LogVariance(energy_weight=energy_weight, clip=CLIP)
    return fit(flow, train, held_out, config=config, objective=objective, output=Path(output), augment=augment)


def _placed(frames: Ensemble, flow: ConformationFlow, generator: torch.Generator) -> Ensemble:
    """Frames whose positions are where the flow's density has them; a label belongs to its place."""
    mask = torch.ones(frames.positions.shape[:2], dtype=torch.bool)
    return replace(frames, positions=flow.placed(frames.positions, mask, generator))


def _rows(positions: Tensor, context: Tensor | None) -> dict[str, Tensor]:
    """Conformations of one molecule, with its context ``(1, n, k)``, if any, in each row."""
    rows = {"inputs": positions}
    return rows if context is None else rows | {"context": context.expand(len(positions), -1, -1)}


class FramesAndSamples:
    """Simulated frames and, in equal number, samples of the flow, with energies as labels; a `BatchSource`.

    Index i < N is frame i; index N + j is sample j, modulo the number of samples, which `refresh` replaces; before the
    first time, frame j.

    Args:
        frames: to learn.
        molecule: what they are of.
        flow: in training.
        num_samples: of the flow, kept at a time.
    """

    def __init__(self, frames: Ensemble, molecule: Molecule, flow: ConformationFlow, num_samples: int = 8192) -> None:
        self.molecule, self.context, self.reduced = molecule, flow.context(molecule), ReducedEnergy(molecule)
        self.target_energy = flow.target_energy
        self.positions, self.energies = frames.positions, self.labels(frames)
        self.samples = frames.positions[:1].expand(num_samples, -1, -1).clone()
        self.sample_energies = torch.full((num_samples,), torch.inf, dtype=torch.float64)

    def labels(self, frames: Ensemble) -> Tensor:
        """Reduced energies of frames over the space of the flow's density, ``(N,)``."""
        return self.target_energy(partial(self.reduced.of_frames, energies=frames.energies))(frames.positions)

    def __len__(self) -> int:
        return 2 * len(self.positions)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        has_samples = bool(torch.isfinite(self.sample_energies).any())
        is_frame = (indices < len(self.positions)) | (not has_samples)
        frame = indices % len(self.positions)
        sample = indices % len(self.samples)
        mask = is_frame.view(-1, 1, 1)
        rows = _rows(torch.where(mask, self.positions[frame], self.samples[sample]), self.context)
        return rows | {
            "energy": torch.where(is_frame, self.energies[frame], self.sample_energies[sample]),
            "is_data": is_frame,
        }

    @torch.no_grad()
    def refresh(self, flow: nn.Module, step: int, generator: torch.Generator) -> None:
        """Draw the samples anew, and label those in reach of the thermal range with their energies."""
        given = cast(ConformationFlow, flow).given(self.molecule)
        samples = given.sample((len(self.samples),), batch_size=1024, generator=generator).cpu()
        energies = self.target_energy(self.reduced)(samples)
        self.samples, self.sample_energies = samples, as_labels(energies, self.energies.median())

    def state_dict(self) -> dict[str, Tensor]:
        return {"samples": self.samples, "sample_energies": self.sample_energies}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.samples, self.sample_energies = state["samples"], state["sample_energies"]
