"""Batched potential energies and forces of peptides."""

from molecular.energy.compiled import CompiledEnergy, compile_system

__all__ = ["CompiledEnergy", "compile_system"]
