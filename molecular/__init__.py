"""Molecules: systems, energies, coordinates and Boltzmann sampling. OpenMM and RDKit load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molecular.flows.averaged import AveragedProse
    from molecular.flows.convert_prose import load_prose
    from molecular.flows.internal_prose import InternalProse
    from molecular.flows.molecule_flow import MoleculeFlow
    from molecular.flows.prose import Prose
    from molecular.molecule.molecule import Molecule
    from molecular.molecule.peptide import Peptide
    from molecular.molecule.topology import Topology

__all__ = ["AveragedProse", "InternalProse", "Molecule", "MoleculeFlow", "Peptide", "Prose", "Topology", "load_prose"]

_MODULES = {
    "AveragedProse": "molecular.flows.averaged",
    "InternalProse": "molecular.flows.internal_prose",
    "Molecule": "molecular.molecule.molecule",
    "MoleculeFlow": "molecular.flows.molecule_flow",
    "Peptide": "molecular.molecule.peptide",
    "Prose": "molecular.flows.prose",
    "Topology": "molecular.molecule.topology",
    "load_prose": "molecular.flows.convert_prose",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        try:
            return getattr(import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            message = f'{name} needs {error.name}: pip install "nflib[molecular]".'
            raise ModuleNotFoundError(message, name=error.name) from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
