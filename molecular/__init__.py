"""Peptides: systems, energies, coordinates and Boltzmann sampling. OpenMM and RDKit load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molecular.flows import InternalProse
    from molecular.flows.convert_prose import load_prose
    from molecular.flows.prose import Prose
    from molecular.molecule.peptide import Peptide

__all__ = ["InternalProse", "Peptide", "Prose", "load_prose"]

_MODULES = {
    "InternalProse": "molecular.flows",
    "Peptide": "molecular.molecule.peptide",
    "Prose": "molecular.flows.prose",
    "load_prose": "molecular.flows.convert_prose",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
