"""A molecule: its topology, its force field as an OpenMM System, a structure and a temperature."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from numpy.typing import ArrayLike, NDArray
from openmm import app, unit

from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from molecular.molecule.force_fields import check_system
from molecular.molecule.structure_checks import named_by_hand, odd_bond
from molecular.molecule.topology import Topology
from nflib.errors import first_line
from nflib.io import complete_file

if TYPE_CHECKING:
    import mdtraj

# Beyond these it is no temperature of a molecule in a force field, but degrees Celsius or a slip.
COLDEST, HOTTEST = 50.0, 5000.0
SAME_ENERGY = 1e-3  # kJ/mol
SAME_TEMPERATURE = 1e-3  # K: settings are written in decimals
# They cannot tell where a molecule is, nor how it is turned.
INTERNAL_FORCES = (
    openmm.HarmonicBondForce,
    openmm.HarmonicAngleForce,
    openmm.PeriodicTorsionForce,
    openmm.RBTorsionForce,
    openmm.CMAPTorsionForce,
    openmm.NonbondedForce,
    openmm.GBSAOBCForce,
    openmm.CMMotionRemover,
    openmm.AndersenThermostat,
    openmm.CustomBondForce,
    openmm.CustomAngleForce,
    openmm.CustomTorsionForce,
    openmm.CustomNonbondedForce,
    openmm.CustomGBForce,
)

log = logging.getLogger(__name__)


class Molecule:
    """One molecule in a force field at a temperature: what simulation, learning and sampling need to know.

    `Peptide` builds one from a sequence, `molecular.molecule.files` from files.

    Args:
        topology: a `Topology`, or OpenMM's or mdtraj's. One connected molecule of three atoms or more.
        system: `openmm.System` of the same atoms. Constraints are for simulation by OpenMM alone.
        positions: (n, 3) nm, a structure whose handedness and bonds are right.
        temperature: K, of the Boltzmann distribution.
        name: for messages, file names and figures.

    Attributes:
        topology, system, positions (float64), temperature, name: as given, but that amino acids of the other hand than
            their name says get the name of theirs (an ALA with the hand of a D-residue is DAL).
        kT: kJ/mol.

    Raises:
        ValueError: parts that do not belong together, more than one molecule, virtual sites, atoms without mass, a
            periodic system or one that OpenMM does not take, a structure that is not finite or whose bonds are no
            bonds, forces that hold atoms in place, or a temperature out of range.

    >>> from molecular import Peptide
    >>> peptide = Peptide("AA")
    >>> Molecule(peptide.topology, peptide.system, peptide.positions, 350.0, name="my molecule")
    Molecule('my molecule', 23 atoms, 350 K)
    """

    def __init__(
        self,
        topology: Topology | app.Topology | mdtraj.Topology,
        system: openmm.System,
        positions: ArrayLike,
        temperature: float = 300.0,
        *,
        name: str = "molecule",
    ) -> None:
        self.topology = Topology.of(topology)
        self.system = system
        self.positions: NDArray[np.float64] = np.array(_in_unit(unit.nanometer, positions), dtype=np.float64)
        self.temperature = float(_in_unit(unit.kelvin, temperature))
        self.name = name
        self.kT = MOLAR_GAS_CONSTANT * self.temperature
        self._check()
        named = named_by_hand(self.topology, self.positions)
        for before, after in zip(self.topology.residues, named.residues, strict=True):
            if before != after:
                log.warning("%s: %s %s is called %s, whose hand it has.", name, before.name, before.number, after.name)
        self.topology = named

    def _check(self) -> None:
        topology, system = self.topology, self.system
        check_system(system)
        if not COLDEST <= self.temperature <= HOTTEST:
            raise ValueError(
                f"temperature is {self.temperature:g} K; give one between {COLDEST:g} and {HOTTEST:g} K (a room: 298)."
            )
        if system.getNumParticles() != topology.num_atoms:
            raise ValueError(
                f"the System of {self.name} has {system.getNumParticles()} particles but its topology has "
                f"{topology.num_atoms} atoms; they are of different molecules."
            )
        if self.positions.shape != (topology.num_atoms, 3):
            raise ValueError(
                f"positions of {self.name} have shape {self.positions.shape}; {topology.num_atoms} atoms need "
                f"({topology.num_atoms}, 3), in nm."
            )
        if not np.isfinite(self.positions).all():
            raise ValueError(f"positions of {self.name} are not finite; give a structure.")
        if topology.num_atoms < 3:
            raise ValueError(f"{self.name} has {topology.num_atoms} atoms; a molecule here has three or more.")
        if len(topology.components) > 1:
            raise ValueError(
                f"{self.name} is {len(topology.components)} molecules; give one connected molecule, without water "
                "and ions."
            )
        odd = odd_bond(topology, self.positions, system)
        if odd is not None:
            raise ValueError(
                f"{self.name} is no whole structure in nm: {odd}; its atoms may be in another order than the "
                "topology's, or lie across a box, or a residue between them is missing."
            )
        virtual = [i for i in range(topology.num_atoms) if system.isVirtualSite(i)]
        if virtual:
            raise ValueError(
                f"{self.name} has a virtual site ({topology.label(virtual[0])}), which carries no density of its own; "
                "choose a force field without virtual sites."
            )
        massless = [i for i in range(topology.num_atoms) if not system.getParticleMass(i)._value > 0.0]
        if massless:
            raise ValueError(
                f"{topology.label(massless[0])} of {self.name} has no mass in the System, by which OpenMM holds it in "
                "place; give each atom its mass."
            )
        if system.usesPeriodicBoundaryConditions():
            raise ValueError(
                f"the System of {self.name} is periodic; a single molecule needs one without a box, such as "
                "nonbondedMethod=NoCutoff gives."
            )
        if _held_in_place(system, self.positions):
            raise ValueError(
                f"the energy of {self.name} changes where the molecule is moved and turned as a whole, which flows and "
                "simulations here do not heed; leave out what holds atoms in place, such as a CustomExternalForce."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.num_atoms} atoms, {self.temperature:g} K)"

    @property
    def num_atoms(self) -> int:
        """How many atoms."""
        return self.topology.num_atoms

    @property
    def masses(self) -> NDArray[np.float64]:
        """(n,) amu, natural even where hydrogen mass repartitioning changed those of the System."""
        elements = [app.Element.getBySymbol(symbol) for symbol in self.topology.elements]
        return np.array([element.mass.value_in_unit(unit.dalton) for element in elements])

    def difference(self, other: Molecule, *, masses: bool = False, temperature: bool = False) -> str | None:
        """How another molecule differs from this one, in words for a reader; None for the same atoms and forces.

        Structure and name may differ, and the order in which a System lists its terms: forces are the same where
        energies are, of the structure and of some around it.

        Args:
            other: the molecule to compare with.
            masses: compare the masses in the Systems too, which matter to dynamics alone.
            temperature: compare the temperatures too.
        """
        difference = self.topology.difference(other.topology)
        if difference is not None:
            return difference
        mine, theirs = self.system, other.system
        if masses and any(mine.getParticleMass(i) != theirs.getParticleMass(i) for i in range(self.num_atoms)):
            return "its masses are others"
        if _constrained(mine) != _constrained(theirs):
            return "its constraints are others"
        generator = np.random.default_rng(0)
        around = [width * generator.standard_normal(self.positions.shape) for width in (0.0, 0.003, 0.01, 0.03)]
        own, others = (_energies(system, self.positions + np.stack(around)) for system in (mine, theirs))
        if not np.allclose(own, others, rtol=1e-9, atol=SAME_ENERGY):
            return "its force field is another"
        if temperature and abs(self.temperature - other.temperature) > SAME_TEMPERATURE:
            return f"its temperature is {other.temperature:g} K, not {self.temperature:g} K"
        return None

    def at(self, temperature: float) -> Molecule:
        """The same molecule at another temperature, K."""
        return Molecule(self.topology, self.system, self.positions, temperature, name=self.name)

    def pdb_string(self, positions: ArrayLike | None = None) -> str:
        """A structure as PDB text; positions (n, 3) in nm, by default the molecule's own.

        Raises ValueError for positions of another shape.
        """
        xyz = self.positions if positions is None else np.asarray(_in_unit(unit.nanometer, positions), dtype=np.float64)
        if xyz.shape != (self.num_atoms, 3):
            raise ValueError(f"positions have shape {xyz.shape}; {self.name} needs ({self.num_atoms}, 3), in nm.")
        text = io.StringIO()
        app.PDBFile.writeFile(self.topology.to_openmm(), xyz * unit.nanometer, text, keepIds=True)
        return text.getvalue()

    def save_pdb(self, path: str | Path, positions: ArrayLike | None = None) -> None:
        """Write `pdb_string(positions)` to a file, whole or not at all."""
        with complete_file(path) as temporary:
            temporary.write_text(self.pdb_string(positions))


def _in_unit(wanted: unit.Unit, value: Any) -> Any:
    """A value, which may be an OpenMM Quantity, as a number or numbers."""
    return value.value_in_unit(wanted) if unit.is_quantity(value) else value


def _constrained(system: openmm.System) -> set[tuple[int, int]]:
    pairs = (system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints()))
    return {(min(i, j), max(i, j)) for i, j in pairs}


def _held_in_place(system: openmm.System, positions: NDArray[np.float64]) -> bool:
    """Whether the energy is not that of distances, angles and torsions alone."""
    if all(isinstance(force, INTERNAL_FORCES) for force in system.getForces()):
        return False
    moved = positions[:, [1, 2, 0]] + 1.0  # turned by a third
    before, after = _energies(system, np.stack([positions, moved]))
    return not np.isclose(before, after, rtol=1e-5, atol=0.1, equal_nan=True)  # forces may be of single precision


def _energies(system: openmm.System, frames: NDArray[np.float64]) -> list[float]:
    """kJ/mol of conformations (N, n, 3); raises ValueError for a System of which OpenMM makes none."""
    platform = openmm.Platform.getPlatformByName("Reference")
    try:
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    except openmm.OpenMMException as error:
        raise ValueError(f"OpenMM cannot use the System ({first_line(error)}); take out what it names.") from error
    energies = []
    for positions in frames:
        context.setPositions(positions)
        energies.append(context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    return energies
