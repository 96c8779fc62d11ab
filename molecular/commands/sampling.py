"""Weighted equilibrium samples, into a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molecular.analysis.ensembles import WeightedConformations
from molecular.analysis.plots import ramachandran
from molecular.analysis.sources import read_reference
from molecular.commands.options import MoleculeOptions
from molecular.molecule.geometry import dihedrals
from molecular.molecule.molecule import Molecule
from molecular.molecule.storage import refuse_other_content, save_molecule
from molecular.molecule.torsions import ramachandran_torsions
from molecular.molecule.trajectories import FORMATS, MOST_UNROUNDED, check_format, writable, write_trajectory
from molecular.sampling.importance import sample as draw
from molecular.sampling.proposals import load_proposal
from molecular.sampling.sequential import named_kernel, smc
from molecular.sampling.shipped import reference_positions
from molecular.sampling.summary import describe, summarize, unusable
from nflib.command_line import refuse_given
from nflib.io import check_writable, complete_folder, only_run, write_json
from nflib.montecarlo import AdaptiveTemperatures, SMCSamples, WeightedSamples, check_smc_options
from nflib.montecarlo.plots import plot_history

SAMPLERS = ("importance", "smc", "auto")
# Of the files that a run writes, those that another one may not.
OPTIONAL = (*(f"samples.{name}" for name in FORMATS), "history.png", "ramachandran.png")
# What `smc` goes on from when it was stopped; it lies in the output folder until the run is over.
CHECKPOINT = "smc-checkpoint.npz"

log = logging.getLogger(__name__)


def sample(
    output: Path,
    molecule: MoleculeOptions,
    num_samples: int = 10_000,
    model: Path | None = None,
    mixed_with: list[Path] | None = None,
    reference: Path | None = None,
    sampler: str = "importance",
    kernel: str | None = None,
    moves: int | None = None,
    final_moves: int | None = None,
    num_draws: int | None = None,
    conditional_ess: float | None = None,
    batch_size: int = 1000,
    trajectory_format: str = "xtc",
    seed: int = 0,
    device: str = "cpu",
) -> WeightedSamples:
    """Draw weighted equilibrium samples: exact likelihoods from a flow, reweighted to the force field or moved to it.

    Args:
        output: folder for weights.npz, summary.json, the molecule, a trajectory and ramachandran.png.
        molecule: what to sample, by default what the model was trained on; its temperature is the one weighted to.
        num_samples: how many conformations to draw.
        model: folder of a trained flow; default: the one shipped for this peptide, or the average of those shipped for
            peptides like it.
        mixed_with: folders of further flows, with which it is averaged, number by number, or, where that cannot be,
            mixed. Flows trained apart err apart, so the weights spread less than those of any of them.
        reference: folder of a simulation for the plot, reweighted where it is of another temperature; default: the one
            shipped for this peptide, if any.
        sampler: importance (weights alone), or smc: the draws are moved to the force field in steps, by sequential
            Monte Carlo; the folder also gets history.png, and a run that was stopped goes on. auto weights num_draws
            draws, and where these weights cannot be used, moves num_samples from them by smc.
        kernel: of smc (and of auto, as all the following): mala (default), hmc, ula or independent.
        moves: of smc: steps of the kernel at each intermediate temperature; default 1.
        final_moves: of smc: further steps in the force field alone, which cost no pass through the flow; default 0.
        num_draws: of smc: how many to draw, of which the better num_samples are kept early on; default num_samples.
        conditional_ess: of smc: effective samples kept from one temperature to the next, a fraction; closer to 1, more
            temperatures; default 0.9.
        batch_size: conformations decoded at once.
        trajectory_format: of the samples: xtc (rounded to 0.001 nm), dcd, npz, or h5 (which needs PyTables);
            weights.npz has them in full.
        seed: of the random numbers, which batch_size belongs to: another one gives other draws.
        device: cpu, cuda or mps.

    Raises:
        FileNotFoundError: no flow is shipped for the molecule, or files are missing.
        OSError: the folder cannot be written, or another run is at work in it.
        ValueError: a flow of another molecule, an option out of range or of another sampler, a folder of frames, or a
            checkpoint of other settings.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"there is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    check_format(trajectory_format)
    if model is None:
        refuse_given({"mixed_with": mixed_with}, "goes with --model")
    moving: dict[str, Any] = {"kernel": kernel, "moves": moves, "final_moves": final_moves}
    if sampler == "importance":
        of_smc = moving | {"num_draws": num_draws, "conditional_ess": conditional_ess}
        refuse_given(of_smc, "goes with --sampler smc or auto")
    number = num_samples if num_draws is None else num_draws
    moving["kernel"] = named_kernel(kernel or "mala")
    moving = {name: value for name, value in moving.items() if value is not None}
    if sampler != "importance":
        check_smc_options(num_samples, number, **moving)  # told before the work
    elif num_samples < 2:
        raise ValueError(f"num_samples is {num_samples}; ask for 2 samples or more.")
    temperatures = None if conditional_ess is None else AdaptiveTemperatures(conditional_ess)
    target = molecule.build(model)
    flow = load_proposal(target, [] if model is None else [model, *(mixed_with or [])], device)
    if sampler == "auto":
        flow.split_coordinates()  # so are draws that cannot be moved
    compared: WeightedConformations | None = None
    if reference is not None or reference_positions(target) is not None:
        compared, notes = read_reference(reference, target)
        for note in notes:
            log.info(note)
    checkpoint = Path(output) / CHECKPOINT
    samples: WeightedSamples
    draws: WeightedSamples | None = None

    def move(draws: WeightedSamples | None) -> SMCSamples:
        return smc(
            flow,
            target,
            num_samples,
            **moving,
            temperatures=temperatures,
            num_draws=number if draws is None else None,
            draws=draws,
            batch_size=batch_size,
            seed=seed if sampler == "smc" else seed + 1,
            device=device,
            checkpoint=checkpoint,
            progress=True,
        )

    refuse_other_content(output, but="weighted samples")
    with only_run(output):
        check_writable(output)
        # What auto goes on with needs no draws: a checkpoint of other settings is refused before there are any.
        goes_on = sampler == "auto" and checkpoint.is_file()
        if sampler == "smc" or goes_on:
            samples = move(None)
        if sampler != "smc":
            draws = draw(flow, target, number, batch_size=batch_size, seed=seed, device=device, progress=True)
        if draws is not None and not goes_on:
            reason = unusable(draws.summary()) if sampler == "auto" else None
            if reason is not None:
                log.info(
                    "The weights of %d draws cannot be used (%s): moving %d of them to the force field by sequential "
                    "Monte Carlo.",
                    *(number, reason, num_samples),
                )
            samples = draws if reason is None else move(draws)
        summary = summarize(samples) | {
            "molecule": target.name,
            "temperature_K": target.temperature,
            "sampler": "smc" if isinstance(samples, SMCSamples) else "importance",
            "seed": seed,
        }
        if draws is not None and draws is not samples:
            summary["importance"] = summarize(draws)
        _write(output, target, samples, summary, compared, trajectory_format)
    return samples


def _write(
    output: Path,
    molecule: Molecule,
    samples: WeightedSamples,
    summary: dict[str, Any],
    reference: WeightedConformations | None,
    trajectory_format: str,
) -> None:
    """Samples, trajectory and figures into the folder, and what they are into the log."""
    # First what cannot be had again without sampling again; a figure or trajectory that fails loses none of it.
    with complete_folder(output) as folder:
        save_molecule(molecule, folder)
        samples.save(folder / "weights.npz")
        write_json(folder / "summary.json", summary)
    (Path(output) / CHECKPOINT).unlink(missing_ok=True)
    with complete_folder(output, replaces=OPTIONAL) as folder:
        positions = samples.x.numpy()
        kept = writable(positions)
        write_trajectory(folder / f"samples.{trajectory_format}", positions[kept], molecule.topology)
        if isinstance(samples, SMCSamples):
            plot_history(samples.history, folder / "history.png")
        plot_torsions(molecule, samples, reference, folder / "ramachandran.png")
        written = ", ".join(sorted(path.name for path in folder.glob("[!.]*")))
    for line in describe(summary):
        log.info(line)
    if not kept.all():
        log.info("%d conformations are not finite and were left out of samples.%s.", (~kept).sum(), trajectory_format)
    if trajectory_format == "xtc" and molecule.num_atoms > MOST_UNROUNDED:
        log.info("samples.xtc is rounded to 0.001 nm, which moves a log-density by tenths; weights.npz has all digits.")
    log.info("Written to %s: weights.npz, summary.json, the molecule, %s.", output, written)


def plot_torsions(
    molecule: Molecule, samples: WeightedSamples, reference: WeightedConformations | None, path: Path
) -> None:
    """Free-energy map of the first residue's (phi, psi): the flow, its samples reweighted, and the reference; of
    sequential Monte Carlo, the moved samples instead of the first two.

    Writes nothing for a molecule without a residue that has both torsions.
    """
    pairs = ramachandran_torsions(molecule.topology)
    if not len(pairs):
        return

    def angles(positions: torch.Tensor) -> np.ndarray:
        return dihedrals(positions, pairs[0]).numpy()

    finite = torch.from_numpy(writable(samples.x.numpy()))
    own, weights = angles(samples.x[finite]), samples.weights[finite].numpy()
    panels: dict[str, tuple[np.ndarray, Any]] = {}
    if isinstance(samples, SMCSamples):
        panels["sequential Monte Carlo"] = (own, weights)
    else:
        panels = {"flow": (own, None), "reweighted": (own, weights)}
    if reference is not None:
        panels["reference"] = (angles(reference.positions), reference.weights().numpy())
    ramachandran(panels, path, title=molecule.name, temperature=molecule.temperature)
