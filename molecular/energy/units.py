"""Plain numbers out of OpenMM quantities."""

from typing import Any

from openmm import unit

KILOJOULE = unit.kilojoule_per_mole
NANOMETRE = unit.nanometer
RADIAN = unit.radian
ELEMENTARY_CHARGE = unit.elementary_charge

# OpenMM's Coulomb constant 1 / (4 pi eps0) in kJ nm / (mol e^2), from the CODATA 2018 constants it uses.
COULOMB = 138.93545764438198


def plain(value: Any, in_unit: Any) -> float:
    """The number that `value` is in `in_unit`."""
    return float(value.value_in_unit(in_unit)) if unit.is_quantity(value) else float(value)
