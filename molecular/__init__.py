"""Peptides: systems, energies, coordinates and Boltzmann sampling. OpenMM and RDKit load on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molecular.peptide import Peptide

__all__ = ["Peptide"]


def __getattr__(name: str) -> Any:
    if name == "Peptide":
        from molecular.peptide import Peptide

        return Peptide
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
