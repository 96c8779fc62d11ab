"""Collective variables: numbers that describe a conformation, by name, by atoms, or by a function of positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from molecular.analysis.table import with_unit
from molecular.molecule.geometry import dihedrals
from molecular.molecule.molecule import Molecule
from molecular.molecule.topology import Topology
from molecular.molecule.torsions import reported_torsions

RADIUS_OF_GYRATION = "rg"
# How names of torsions begin, which are no atoms.
_TORSIONS = ("phi", "psi", "omega", "chi")
_BATCH = 4096


@dataclass(frozen=True)
class CollectiveVariable:
    """A collective variable: a number for each conformation.

    Attributes:
        name: for figures and files.
        function: positions (B, n, 3), nm, float64 -> (B,).
        unit: of its values, "" for none.
        period: after which values repeat, such as 360 degrees; values are taken to [-period / 2, period / 2). None for
            a variable that is not periodic.

    >>> length = CollectiveVariable("length", lambda x: (x[:, 0] - x[:, 1]).norm(dim=-1), "nm")
    >>> length(torch.tensor([[[0.0, 0.0, 0.0], [0.0, 3.0, 4.0]]])).tolist()
    [5.0]
    """

    name: str
    function: Callable[[Tensor], Tensor]
    unit: str = ""
    period: float | None = None

    @classmethod
    def of(cls, description: str | Callable[[Tensor], Tensor] | CollectiveVariable, molecule: Molecule) -> Self:
        """A collective variable from its description, as `analyse` takes it.

        Args:
            description: a torsion's name, such as "phi 2", "psi 2" or "CA-CB of VAL 2" (`reported_torsions`); "rg", the
                radius of gyration, weighted by mass; or two atoms (their distance, nm), three (their angle, degrees) or
                four (their torsion, degrees), each an index from 0, or NAME:RESIDUE, or NAME:RESIDUE:CHAIN, or a NAME
                that is unique: "0 4 6 8", "C:1 N:2 CA:2 C:2". Or a function of positions (B, n, 3), nm, that returns
                (B,); its name is the variable's. Or a `CollectiveVariable`.
            molecule: whose torsions, atoms and masses are meant.

        Raises:
            ValueError: a text that is none of these, or an atom that is not there.
        """
        if isinstance(description, cls):
            return description
        if not isinstance(description, str):
            return cls(getattr(description, "__name__", "function").strip("<>"), description)
        name = " ".join(description.split())
        if name == RADIUS_OF_GYRATION:
            return cls(name, _radius_of_gyration(torch.as_tensor(molecule.masses)), "nm")
        torsions = reported_torsions(molecule)
        if name in torsions:
            return cls(name, _torsion(torch.as_tensor(torsions[name])), "degrees", 360.0)
        words = name.split()
        if not 2 <= len(words) <= 4 or words[0] in _TORSIONS or "of" in words:
            raise ValueError(
                f"{description!r} is no variable of {molecule.name}; give {RADIUS_OF_GYRATION!r}, two to four atoms "
                f"such as 'C:1 N:2 CA:2 C:2', or one of {', '.join(map(repr, torsions)) or 'no named torsions'}."
            )
        atoms = torch.tensor([_atom(word, molecule.topology, description) for word in words])
        if len(atoms.unique()) < len(atoms):
            raise ValueError(f"variable {description!r} names an atom twice; give {len(atoms)} different ones.")
        if len(atoms) == 4:
            return cls(name, _torsion(atoms), "degrees", 360.0)
        return cls(name, _angle(atoms), "degrees") if len(atoms) == 3 else cls(name, _distance(atoms), "nm")

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Tensor:
        """Values (N,), float64, of conformations (N, n, 3), nm.

        Raises ValueError where the function returns another shape, or a value that is not finite.
        """
        parts = []
        for part in positions.split(_BATCH):
            values = torch.as_tensor(self.function(part.double()))
            if values.shape != (len(part),):
                raise ValueError(
                    f"variable {self.name!r} returned shape {tuple(values.shape)} for {len(part)} conformations; "
                    f"return one number each, ({len(part)},)."
                )
            parts.append(values.detach().cpu().double())
        found = torch.cat(parts)
        if not (finite := torch.isfinite(found)).all():
            raise ValueError(
                f"variable {self.name!r} is not finite for {int((~finite).sum())} of {len(found)} conformations; "
                "choose one that every conformation has."
            )
        return found if self.period is None else self.wrapped(found)

    def wrapped(self, values: Tensor) -> Tensor:
        """Values in [-period / 2, period / 2)."""
        if self.period is None:
            return values
        half = self.period / 2
        # A remainder of a tiny negative number rounds to the period itself.
        return torch.where((inside := (values + half) % self.period) < self.period, inside, 0.0) - half

    @property
    def label(self) -> str:
        """For axes and columns: "phi 1 / degrees"."""
        return with_unit(self.name, self.unit)


def _torsion(atoms: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda positions: dihedrals(positions, atoms[None])[:, 0].rad2deg()


def _angle(atoms: Tensor) -> Callable[[Tensor], Tensor]:
    def angle(positions: Tensor) -> Tensor:
        end, centre, other = positions[:, atoms].unbind(dim=1)
        one, two = end - centre, other - centre
        # Exact near 0 and 180 degrees too, where the arc cosine is not.
        return torch.atan2(torch.linalg.cross(one, two).norm(dim=-1), (one * two).sum(-1)).rad2deg()

    return angle


def _distance(atoms: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda positions: (positions[:, atoms[0]] - positions[:, atoms[1]]).norm(dim=-1)


def _radius_of_gyration(masses: Tensor) -> Callable[[Tensor], Tensor]:
    shares = (masses / masses.sum())[:, None]

    def radius(positions: Tensor) -> Tensor:
        centred = positions - (shares * positions).sum(dim=1, keepdim=True)
        return (shares * centred.square()).sum(dim=(1, 2)).sqrt()

    return radius


def _atom(word: str, topology: Topology, description: str) -> int:
    """The index of one atom: "4", "CA:2", "CA:2:A", or "CA" where there is one of that name."""
    if word.isascii() and word.isdigit():
        if int(word) < topology.num_atoms:
            return int(word)
        raise ValueError(
            f"variable {description!r}: there is no atom {word}; the last of {topology.num_atoms} is "
            f"{topology.num_atoms - 1}, for indices begin at 0."
        )
    name, *place = word.split(":")
    found = [
        atom
        for atom in range(topology.num_atoms)
        if topology.atom_names[atom] == name
        and place == [(own := topology.residues[topology.residue_indices[atom]]).number, own.chain][: len(place)]
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"variable {description!r}: {len(found)} atoms are called {word}, such as "
            f"{topology.label(found[0])} and {topology.label(found[1])}; give indices, or NAME:RESIDUE:CHAIN."
        )
    residues = ", ".join(f"{residue.name}:{residue.number}" for residue in topology.residues[:8])
    raise ValueError(
        f"variable {description!r}: there is no atom {word}; write NAME:RESIDUE, such as CA:2, with residues {residues}"
        f"{' and so on' if len(topology.residues) > 8 else ''}, or an index from 0."
    )
