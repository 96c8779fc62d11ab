"""Force fields: OpenMM's by the names of their files, and the bonds of a System."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openmm
from openmm import app, unit

from nflib.errors import first_line

CAPPED_FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
UNCAPPED_FORCE_FIELD = ("amber14-all.xml", "implicit/obc1.xml")


def load_force_field(files: Sequence[str]) -> app.ForceField:
    """The force field of these files, OpenMM's own or XML files of the user's.

    Raises:
        ValueError: a file that is not there, or is no force field.
    """
    try:
        return app.ForceField(*files)
    except Exception as error:  # its reader fails in as many ways as files are wrong
        raise ValueError(f"cannot load the force field {', '.join(files)}: {first_line(error)}.") from error


class SeveralTemplates(ValueError):
    """A residue that a force field knows by several names, with other parameters for each."""


@contextmanager
def refusals_of_openmm() -> Iterator[None]:
    """ValueError where a force field does not fit: for residues that several templates match OpenMM has no class.

    That one is `SeveralTemplates`, with a sentence that needs no words around it.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:
            raise
        several = re.match(r"Multiple non-identical matching templates found for .*: (.*)", first_line(error))
        if several is None:
            raise ValueError(first_line(error)) from error
        raise SeveralTemplates(
            f"several templates of the force field match the same atoms ({several[1]}); make the System in OpenMM with "
            "the one that is meant (ForceField.registerTemplateMatcher), and give it by --system with the structure."
        ) from error


def check_system(system: Any) -> None:
    """Raise ValueError unless this is an OpenMM System."""
    if not isinstance(system, openmm.System):
        raise ValueError(f"expected an openmm.System, got {system!r:.100}; read one from XML by openmm.XmlSerializer.")


def harmonic_bonds(system: openmm.System) -> dict[tuple[int, int], tuple[float, float]]:
    """k in kJ/mol/nm² and r₀ in nm of each harmonic bond, by its atoms, the lower index first.

    Several between the same two atoms are one, which is their sum.
    """
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                i, j, *parameters = force.getBondParameters(index)
                length, k = (value.value_in_unit_system(unit.md_unit_system) for value in parameters)
                pair = min(i, j), max(i, j)
                before, rest = found.get(pair, (0.0, length))
                found[pair] = before + k, (before * rest + k * length) / (before + k) if before + k else length
    return found
