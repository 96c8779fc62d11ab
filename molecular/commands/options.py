"""Which molecule a command is about: the options that commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from molecular.molecule.storage import DESCRIPTION, load_molecule
from nflib.command_line import refuse_given

if TYPE_CHECKING:
    from molecular.molecule.molecule import Molecule


@dataclass
class MoleculeOptions:
    """A molecule in a force field at a temperature, from a sequence or from files.

    Args:
        peptide: sequence, such as Ace-A-Nme or AAA.
        structure: instead of a peptide, a file with the molecule: PDB, mmCIF, Amber prmtop or GROMACS top.
        coordinates: with a prmtop or a top, the file with its positions: inpcrd, rst7, gro or PDB.
        force_field: OpenMM force-field files, or XML files of your own; default: AMBER with implicit water.
        system: with a PDB or mmCIF file, an OpenMM System as XML in place of a force field.
        temperature: K; default 310 for peptides without caps, 300 for all else.
        implicit_solvent: with a prmtop, HCT, OBC1, OBC2, GBn or GBn2, each with the surface term ACE, which Amber's own
            programs leave out by default (gbsa=0); default: none, a vacuum.
        cutoff: of nonbonded interactions, nm, or the word none; default (or null) 2 for peptides without caps from a
            sequence, a PDB or an mmCIF file, none for all else.
        hydrogen_mass: amu, taken from the bonded heavy atoms, so that longer steps are stable; natural without it.
    """

    peptide: str | None = None
    structure: Path | None = None
    coordinates: Path | None = None
    force_field: list[str] | None = None
    system: Path | None = None
    implicit_solvent: str | None = None
    temperature: float | None = None
    cutoff: float | str | None = None
    hydrogen_mass: float | None = None

    def build(self, model: Path | None = None) -> Molecule:
        """The molecule; where neither peptide nor structure is given, the one saved with a model or frames, if any.

        Raises ValueError for both, or neither and no such model, options that do not go together, and as the files do.
        """
        if self.peptide is None and self.structure is None and model is not None and (model / DESCRIPTION).is_file():
            replace(self, temperature=None).check_unused("goes with --peptide or --structure")
            molecule = load_molecule(model)
            return molecule if self.temperature is None else molecule.at(self.temperature)
        if self.peptide is None and self.structure is None and model is not None:
            raise ValueError(
                f"{model} has no molecule of its own; name the folder 'model' that a training of one molecule wrote, "
                "or give --peptide or --structure as well."
            )
        if (self.peptide is None) == (self.structure is None):
            raise ValueError("give either --peptide or --structure.")
        cutoff = "default" if self.cutoff is None else self.cutoff
        if self.peptide is not None:
            from molecular.molecule.peptide import Peptide

            others = ("coordinates", "system", "implicit_solvent")
            refuse_given({name: getattr(self, name) for name in others}, "goes with --structure, not with --peptide")
            return Peptide(
                self.peptide,
                force_field=self.force_field,
                temperature=self.temperature,
                cutoff=cutoff,
                hydrogen_mass=self.hydrogen_mass,
            )
        from molecular.molecule.files import read_molecule

        assert self.structure is not None
        return read_molecule(
            self.structure,
            coordinates=self.coordinates,
            force_field=self.force_field,
            system=self.system,
            implicit_solvent=self.implicit_solvent,
            temperature=self.temperature,
            cutoff=cutoff,
            hydrogen_mass=self.hydrogen_mass,
        )

    def check_unused(self, reason: str) -> None:
        """Raise ValueError, with the reason, for the first option that was given."""
        refuse_given(vars(self), reason)
