"""Weighted equilibrium samples of a molecule, from a flow's exact likelihoods."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from molecular.flows.conformations import ConformationFlow, GivenMolecule
from molecular.flows.mixture import GivenMixture
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology
from molecular.sampling.shipped_flows import beyond_coverage, shipped_flows
from molecular.sampling.targets import energy_for
from nflib.flows import Flow
from nflib.io import read_config
from nflib.montecarlo import BoltzmannDensity, Proposal, SMCSamples, WeightedSamples, importance_sample
from nflib.montecarlo.weighted_samples import MAX_PARETO_K

SHIPPED = Path(__file__).parents[1] / "shipped"
# Published codes remove this share of the largest weights before they report an effective sample size.
PUBLISHED_TRUNCATION = 0.002
# Worth fewer independent draws than that, no error bar can be trusted.
FEWEST = 50
# A flow whose draws are worth that share needs no more than more of them.
GOOD_SHARE = 0.05

log = logging.getLogger(__name__)


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
        seed: of the draws; the same seed gives the same samples.
        device: where the flow is; the energy is computed there too.
        progress: show a progress bar.

    Returns:
        x ``(num_samples, n, 3)`` in nm with their log-weights ``-U(x) / kT - log q(x)``. Samples whose energy is not
        finite have weight zero and are counted.

    Raises:
        ValueError: a flow that was given another molecule.

    >>> from molecular import Peptide
    >>> peptide = Peptide("Ace-A-Nme")
    >>> samples = sample(load_flow(peptide), peptide, 10, seed=0)
    >>> samples.x.shape, samples.log_weights.shape
    (torch.Size([10, 22, 3]), torch.Size([10]))
    """
    target = BoltzmannDensity(energy_for(flow, molecule, device))
    return importance_sample(flow, target, num_samples, batch_size=batch_size, seed=seed, progress=progress)


def load_flow(molecule: Molecule, model: str | Path | None = None, device: str = "cpu") -> GivenMolecule:
    """A trained flow for a molecule, ready to be sampled: one made for it alone, or one of many molecules, given it.

    Args:
        molecule: the molecule to sample.
        model: folder of a saved flow. None takes the shipped one, or the first where several serve the molecule.
        device: that the flow is put on.

    Returns:
        A distribution of positions ``(n, 3)`` in nm. A warning is logged where the molecule is beyond what a
        transferable flow was made for.

    Raises:
        FileNotFoundError: there is no flow in the folder, or none is shipped for the molecule.
        ValueError: a flow of another molecule, or one that does not take this one.
    """
    if model is None:
        model = shipped_flows(molecule, SHIPPED)[0]
    flow = Flow.from_pretrained(model, device)
    if not isinstance(flow, ConformationFlow):
        raise ValueError(f"{model} holds a {type(flow).__name__}, which is no flow of molecules; choose another model.")
    beyond = beyond_coverage(molecule, Path(model))
    if beyond is not None:
        log.warning(beyond)
    try:
        return cast(GivenMolecule, flow.given(molecule))
    except ValueError as error:
        raise ValueError(f"{model}: {error}") from error


def load_proposal(
    molecule: Molecule, models: Sequence[str | Path] = (), device: str = "cpu"
) -> GivenMolecule | GivenMixture:
    """What to sample a molecule with: one trained flow, or the equal mixture of several (`GivenMixture`).

    Args:
        molecule: the molecule to sample.
        models: folders of saved flows. Empty takes all that are shipped for the molecule.
        device: that the flows are put on.

    Raises:
        FileNotFoundError, ValueError: as `load_flow` and `GivenMixture` do.
    """
    flows = [load_flow(molecule, model, device) for model in models or shipped_flows(molecule, SHIPPED)]
    return flows[0] if len(flows) == 1 else GivenMixture(flows)


def reference_positions(molecule: Molecule) -> torch.Tensor | None:
    """Positions ``(N, n, 3)`` in nm of the reference ensemble shipped for a molecule; None where there is none."""
    sequence = molecule.topology.sequence
    path = SHIPPED / (sequence or "") / "reference.npz"
    if not path.is_file():
        return None
    # A file may have the atoms of the same molecule in another order.
    config = read_config(path.parent)["config"]
    if Topology.from_dict(config["topology"]).difference(molecule.topology) is not None:
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
    """What `summarize` gave, with "molecule" and "temperature_K", as sentences for a user."""
    k = "unknown" if summary["pareto_k"] is None else f"{summary['pareto_k']:.2f}"
    yield (
        f"{summary['num_samples']} samples of {summary['molecule']} at {summary['temperature_K']:g} K: effective "
        f"sample size {summary['effective_sample_size']:.0f} "
        f"({summary['effective_sample_size_fraction']:.3f} of them), worth "
        f"{summary['effective_num_ancestors']:.0f} independent draws, Pareto k {k}, {summary['num_rejected']} rejected."
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
    yield verdict(summary)


def verdict(summary: dict[str, Any]) -> str:
    """Whether the weights can be used, and if not, which command helps; a sentence or two."""
    reason = unusable(summary)
    if reason is None:
        return "The weights can be used: averages over them have errors that can be trusted."
    if "history" in summary:
        return f"The samples cannot be relied on ({reason}): run smc with more --num_draws, --moves or --final_moves."
    size, number, k = summary["effective_num_ancestors"], summary["num_samples"], summary["pareto_k"]
    if size > GOOD_SHARE * number and (k is None or k <= MAX_PARETO_K):
        needed = 10 * math.ceil(1.2 * FEWEST * number / size / 10)
        return f"The draws are too few for averages with errors ({reason}): draw {needed} or more."
    return (
        f"The weights cannot be used ({reason}): move the samples to the force field with --sampler smc, draw more, or "
        "fit the flow to this molecule with `python -m molecular improve`, or `train --initial` on a simulation of it."
    )


def unusable(summary: dict[str, Any]) -> str | None:
    """Why averages over the weights have no error that can be trusted; None where they have one."""
    if summary["effective_num_ancestors"] < FEWEST:
        return f"they are worth fewer than {FEWEST} independent draws"
    return None if summary["refusal"] is None else f"Pareto k is above {MAX_PARETO_K}"
