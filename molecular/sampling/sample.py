"""Weighted equilibrium samples of a peptide, from a flow's exact likelihoods, into a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import mdtraj
import numpy as np
import torch

from molecular.analysis.plots import ramachandran
from molecular.data.ensembles import load_ensemble
from molecular.flows import InternalProse
from molecular.flows.peptide_flow import PeptideFlow
from molecular.flows.prose import Prose
from molecular.molecule.geometry import dihedrals
from molecular.molecule.peptide import Peptide
from molecular.molecule.torsions import phi_psi_torsions
from molecular.sampling.shipped_flows import shipped_flow
from molecular.sampling.smc import SplitFlow, smc
from molecular.sampling.targets import energy_for
from nflib.flows import Flow, GivenFlow
from nflib.io import complete_folder
from nflib.montecarlo import (
    AdaptiveTemperatures,
    BoltzmannDensity,
    SMCSamples,
    WeightedSamples,
    importance_sample,
)
from nflib.montecarlo.plots import plot_history

SHIPPED = Path(__file__).parents[1] / "shipped"
# Published codes remove this share of the largest weights before they report an effective sample size.
PUBLISHED_TRUNCATION = 0.002
SAMPLERS = ("importance", "smc")
# What `smc` goes on from when it was stopped; it lies in the output folder until the run is over.
CHECKPOINT = "smc-checkpoint.npz"

log = logging.getLogger(__name__)


def sample_to_folder(
    sequence: str,
    output: str | Path,
    num_samples: int,
    *,
    model: str | Path | None = None,
    reference: str | Path | None = None,
    sampler: str = "importance",
    kernel: str = "mala",
    moves: int = 1,
    final_moves: int = 0,
    num_draws: int | None = None,
    conditional_ess: float = 0.9,
    batch_size: int = 1000,
    temperature: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> WeightedSamples:
    """Draw, weight and write; the arguments are those of the command line.

    Writes topology.pdb, samples.xtc, weights.npz (positions in nm, log-weights, log-densities), summary.json and
    ramachandran.png, of the sampler "smc" history.png as well, all of them or none. An smc that was stopped goes on
    where it was. Raises FileNotFoundError where no flow is shipped for the peptide, and ValueError for a flow of
    another peptide, num_samples < 1, an unknown sampler or kernel, or a checkpoint of other settings.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"there is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    peptide = Peptide(sequence, temperature=temperature)
    flow = load_flow(sequence, model, device)
    checkpoint = Path(output) / CHECKPOINT
    with complete_folder(output) as folder:
        samples: WeightedSamples
        if sampler == "smc":
            samples = smc(
                cast(SplitFlow, flow),  # if it is none, that is what smc says
                peptide,
                num_samples,
                kernel=kernel,
                temperatures=AdaptiveTemperatures(conditional_ess),
                moves=moves,
                final_moves=final_moves,
                num_draws=num_draws,
                batch_size=batch_size,
                seed=seed,
                device=device,
                checkpoint=checkpoint,
                progress=True,
            )
            plot_history(samples.history, folder / "history.png")
        else:
            samples = sample(flow, peptide, num_samples, batch_size=batch_size, seed=seed, device=device, progress=True)
        summary = summarize(samples) | {
            "peptide": sequence,
            "temperature_K": peptide.temperature,
            "sampler": sampler,
            "seed": seed,
        }
        samples.save(folder / "weights.npz")
        peptide.save_pdb(folder / "topology.pdb")
        mdtraj.Trajectory(samples.x.numpy(), peptide.topology.to_mdtraj()).save_xtc(str(folder / "samples.xtc"))
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        plot_torsions(peptide, samples, reference_positions(sequence, reference), folder / "ramachandran.png")
        written = ", ".join(sorted(path.name for path in folder.iterdir()))
    checkpoint.unlink(missing_ok=True)
    for line in describe(summary):
        log.info(line)
    log.info("Written to %s: %s.", output, written)
    return samples


def sample(
    flow: PeptideFlow | GivenFlow,
    peptide: Peptide,
    num_samples: int,
    *,
    batch_size: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> WeightedSamples:
    """Samples of the flow, weighted to the Boltzmann distribution of the peptide's System at its temperature."""
    target = BoltzmannDensity(energy_for(flow, peptide, device))
    return importance_sample(flow, target, num_samples, batch_size=batch_size, seed=seed, progress=progress)


def load_flow(sequence: str, model: str | Path | None = None, device: str = "cpu") -> PeptideFlow | GivenFlow:
    """The flow saved in `model`, or the shipped one (`shipped_flows`): of this peptide alone, or of many.

    Raises FileNotFoundError where there is none, ValueError for a flow of another peptide, or that does not take it.
    """
    if model is None:
        model = shipped_flow(sequence, SHIPPED)
    flow = Flow.from_pretrained(model, device)
    if isinstance(flow, InternalProse | Prose):
        return flow.given(Peptide(sequence))
    if not isinstance(flow, PeptideFlow):
        raise ValueError(f"{model} holds a {type(flow).__name__}, which is no flow of a peptide; choose another model.")
    flow.check_sequence(sequence)
    return flow


def reference_positions(sequence: str, folder: str | Path | None = None) -> torch.Tensor | None:
    """Positions of a reference ensemble: a simulation's folder, or the one shipped for `sequence`, if there is one."""
    if folder is not None:
        return load_ensemble(folder).positions
    path = SHIPPED / sequence / "reference.npz"
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["positions"].astype(np.float32))


def summarize(samples: WeightedSamples) -> dict[str, Any]:
    """The figures of `WeightedSamples.summary`; for importance sampling also the effective sample size as published
    codes report it, for sequential Monte Carlo the history of the run."""
    if isinstance(samples, SMCSamples):
        return samples.summary() | {"history": samples.history.summary()}
    truncated = samples.truncate(PUBLISHED_TRUNCATION)
    return samples.summary() | {
        "truncated": {
            "removed_fraction": PUBLISHED_TRUNCATION,
            "effective_sample_size_fraction": truncated.effective_sample_size_fraction,
        }
    }


def describe(summary: dict[str, Any]) -> Iterator[str]:
    """A summary as sentences."""
    yield (
        f"{summary['num_samples']} samples of {summary['peptide']} at {summary['temperature_K']:g} K: effective sample "
        f"size {summary['effective_sample_size']:.0f} ({summary['effective_sample_size_fraction']:.3f} of them), worth "
        f"{summary['effective_num_ancestors']:.0f} independent draws, "
        f"Pareto k {'unknown' if summary['pareto_k'] is None else format(summary['pareto_k'], '.2f')}, "
        f"{summary['num_rejected']} rejected."
    )
    if "history" in summary:
        history = summary["history"]
        yield (
            f"{len(history['inverse_temperatures'])} temperatures, {history['num_evaluations'][-1]} energies, mean "
            f"acceptance {np.mean([value or 0.0 for value in history['acceptance']]):.2f}; the particles descend from "
            f"{history['num_ancestors'][-1]} draws."
        )
    if "truncated" in summary:
        truncated = summary["truncated"]
        yield (
            f"Without the largest {100 * truncated['removed_fraction']:g} % of weights, as published codes report it: "
            f"{truncated['effective_sample_size_fraction']:.3f}."
        )
    if summary["warning"]:
        yield summary["warning"]


def plot_torsions(peptide: Peptide, samples: WeightedSamples, reference: torch.Tensor | None, path: str | Path) -> None:
    """Free-energy maps of the first residue's (phi, psi): the flow, its samples reweighted, and the reference; of
    sequential Monte Carlo, the moved samples instead of the first two.

    Writes nothing for a peptide without a residue that has both torsions.
    """
    phi, psi = phi_psi_torsions(peptide.topology)
    if not (len(phi) and len(psi)):
        return
    # psi of an uncapped chain begins at its first residue, phi at its second.
    quadruples = torch.as_tensor(np.stack([phi[0], psi[min(len(psi) - 1, 0 if peptide.capped else 1)]]))

    def angles(positions: torch.Tensor) -> np.ndarray:
        return dihedrals(positions, quadruples).numpy()

    own = angles(samples.x)
    panels: dict[str, tuple[np.ndarray, np.ndarray | None]] = {}
    if isinstance(samples, SMCSamples):
        panels["sequential Monte Carlo"] = (own, samples.weights.numpy())
    else:
        panels = {"flow": (own, None), "reweighted": (own, samples.weights.numpy())}
    if reference is not None:
        panels["reference"] = (angles(reference), None)
    ramachandran(panels, path, title=peptide.sequence, temperature=peptide.temperature)
