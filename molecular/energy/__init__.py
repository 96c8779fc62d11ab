"""Batched potential energies and forces of molecules."""

from molecular.energy.compiled import CompiledEnergy, compile_system
from molecular.energy.openmm_energy import OpenMMEnergy
from molecular.energy.potential import PotentialEnergy
from molecular.energy.unsupported import UnsupportedForce

__all__ = ["CompiledEnergy", "OpenMMEnergy", "PotentialEnergy", "UnsupportedForce", "compile_system"]
