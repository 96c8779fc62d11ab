"""Peptides: systems, energies, coordinates and Boltzmann sampling. OpenMM and RDKit load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molecular.peptide import Peptide
    from molecular.prose import Prose
    from molecular.prose_checkpoint import load_prose
    from molecular.transferable import InternalProse

__all__ = ["InternalProse", "Peptide", "Prose", "load_prose"]

_MODULES = {
    "InternalProse": "molecular.transferable",
    "Peptide": "molecular.peptide",
    "Prose": "molecular.prose",
    "load_prose": "molecular.prose_checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
