"""What an import of trajectories found and did."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ImportReport:
    """What `import_trajectory` found and did; `lines` tells it to a reader.

    Args:
        molecule: its name.
        temperature: K.
        files: of each trajectory "file", "frames", "atoms", how many "other_atoms" of these are not the molecule's,
            "unit" of length, how the atoms were "matched", "rounding" of positions in nm, 0 for floating point, the
            "spacing" in ps that new times were given by, None for its own, and how many "drawn_bonds" were constrained
            and drawn anew.
        frames_read: of all files.
        frames_kept: that were written.
        left_out: frames by the reason.
        unwrapped: frames that were made whole across a periodic box.
        relabelled: frames in which equivalent atoms changed places.
        exchanged: how often, by the pair.
        unequal_energies: kT (root mean square) that exchanging a pair changes the energy by, where that is not zero.
        not_equivalent: the same of pairs that were left as they are for it.
        cis_amides: frames with each cis amide bond.
        turned_bonds: frames in which another planar bond, such as a double bond, is not cis or trans as in the
            structure.
        energy_mean: of the frames written, kJ/mol.
        energy_deviation: their standard deviation, kJ/mol.
        warnings: sentences on what else should be known.
    """

    molecule: str
    temperature: float
    files: list[dict[str, Any]] = field(default_factory=list)
    frames_read: int = 0
    frames_kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    unwrapped: int = 0
    relabelled: int = 0
    exchanged: dict[str, int] = field(default_factory=dict)
    unequal_energies: dict[str, float] = field(default_factory=dict)
    not_equivalent: dict[str, float] = field(default_factory=dict)
    cis_amides: dict[str, int] = field(default_factory=dict)
    turned_bonds: dict[str, int] = field(default_factory=dict)
    energy_mean: float = math.nan
    energy_deviation: float = math.nan
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The report for a reader, line by line."""
        for file in self.files:
            yield (
                f"{file['file']}: {file['frames']} frames of {file['atoms']} atoms in {file['unit']}; "
                f"{self.molecule} found by {file['matched']}."
            )
            if file["other_atoms"]:
                yield (
                    f"    Left out: {file['other_atoms']} atoms of water, ions or other molecules; `sample` weights to "
                    "the force field given here, without them."
                )
            if file["rounding"]:
                yield f"    Positions were stored to {file['rounding']:g} nm, which energies and densities feel."
            if file["spacing"] is not None:
                spacing = f"{file['spacing']:g} ps apart"
                yield f"    It has no times that increase from 0 or later on; frames are put {spacing}."
            if file["drawn_bonds"]:
                yield (
                    f"    {file['drawn_bonds']} bonds were constrained; their lengths were drawn from the force "
                    f"field's thermal distribution at {self.temperature:g} K, each on its own, which leaves energies a "
                    "little high where bonds between heavy atoms are among them."
                )
        yield f"{self.frames_kept} of {self.frames_read} frames kept."
        for reason, count in self.left_out.items():
            yield f"Left out: {count} {reason}."
        if self.unwrapped:
            yield f"Made whole across the periodic box: {self.unwrapped} frames."
        if self.relabelled:
            pairs = ", ".join(f"{pair} ({count})" for pair, count in self.exchanged.items())
            yield f"Equivalent atoms exchanged in {self.relabelled} frames: {pairs}."
        for pair, change in self.unequal_energies.items():
            yield f"Exchanging {pair} changes the energy by {change:.2g} kT: the force field tells them apart a little."
        for pair, change in self.not_equivalent.items():
            yield f"Not exchanged: {pair}, which the force field tells apart by {change:.2g} kT."
        for bond, count in self.cis_amides.items():
            yield f"Cis amide {bond}: {count} frames, kept."
        for bond, count in self.turned_bonds.items():
            yield (
                f"{bond}: {count} of {self.frames_kept} frames are cis where the structure is trans, or trans where it "
                "is cis, and kept; a double bond makes them another isomer."
            )
        if self.frames_kept:
            yield f"Energy: {self.energy_mean:.1f} ± {self.energy_deviation:.1f} kJ/mol (mean, standard deviation)."
        yield from (f"Note: {sentence}" for sentence in self.warnings)
