"""Trained flows, given the molecule that is to be sampled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from molecular.flows.averaged import AveragedProse, why_not_averaged
from molecular.flows.conformations import ConformationFlow, GivenMolecule
from molecular.flows.mixture import GivenMixture
from molecular.molecule.molecule import Molecule
from molecular.sampling.shipped import SHIPPED, beyond_coverage, shipped_flows
from nflib.flows import Flow

log = logging.getLogger(__name__)


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
    molecule: Molecule, models: str | Path | Sequence[str | Path] = (), device: str = "cpu"
) -> GivenMolecule | GivenMixture:
    """What to sample a molecule with: one trained flow, or several, `combined`.

    Args:
        molecule: the molecule to sample.
        models: folder of a saved flow, or several. Empty takes all that are shipped for the molecule.
        device: that the flows are put on.

    Raises:
        FileNotFoundError, ValueError: as `load_flow` and `combined` do.
    """
    folders = [models] if isinstance(models, str | Path) else models or shipped_flows(molecule, SHIPPED)
    return combined([load_flow(molecule, model, device) for model in folders])


def combined(flows: Sequence[GivenMolecule]) -> GivenMolecule | GivenMixture:
    """Several flows given one molecule as one proposal: their average (`AveragedProse`), else their equal mixture.

    Args:
        flows: one or more; those that are averaged go into evaluation mode.

    Raises:
        ValueError: flows of different molecules, or of densities over different spaces.
    """
    if len(flows) == 1:
        return flows[0]
    mixture = GivenMixture(flows)
    own = [given.flow for given in flows]
    if why_not_averaged(own) is not None:
        return mixture
    return cast(GivenMolecule, AveragedProse(own).eval().given(mixture.first.topology))
