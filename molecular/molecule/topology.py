"""The one neutral topology: atoms, residues and bonds of a molecule, whatever program they come from."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from molecular.molecule.sequences import LETTERS, VARIANTS, PeptideSequence, SequenceResidue

if TYPE_CHECKING:
    import mdtraj
    from openmm import app

    class HasTopology(Protocol):
        """Such as a `molecular.molecule.molecule.Molecule`."""

        topology: Topology

    AnyTopology: TypeAlias = "HasTopology | Topology | app.Topology | mdtraj.Topology"

# Of D-residues by the letter of their mirror image, as the PDB has them.
D_NAMES = {
    **{"A": "DAL", "C": "DCY", "D": "DAS", "E": "DGL", "F": "DPN", "H": "DHI", "I": "DIL", "K": "DLY", "L": "DLE"},
    **{"M": "MED", "N": "DSG", "P": "DPR", "Q": "DGN", "R": "DAR", "S": "DSN", "T": "DTH", "V": "DVA", "W": "DTR"},
    **{"Y": "DTY"},
}
# Of residues with the other hand at CB alone, L and D, likewise; no sequence here has them.
ALLO_NAMES = {"I": ("IIL", "28J"), "T": ("ALO", "2TL")}
RESIDUES = {name.upper(): SequenceResidue(letter) for letter, name in LETTERS.items()}
RESIDUES |= {name: SequenceResidue(letter, is_d=True) for letter, name in D_NAMES.items()}
RESIDUES |= {name.upper(): SequenceResidue(letter) for name, letter in VARIANTS.items()}
"""What a residue is, by its name."""
CAPS = ("ACE", "NME", "NHE", "NH2")
# A residue's number and its insertion code.
_NUMBER = re.compile(r"(-?\d+)([A-Za-z])")


@dataclass(frozen=True)
class Residue:
    """A residue of a topology.

    Args:
        name: such as "ALA".
        number: as its file has it, with any insertion code: "52A".
        chain: the name of its chain.
    """

    name: str
    number: str = "1"
    chain: str = "A"


@dataclass(frozen=True)
class Topology:
    """Atoms, residues and bonds of one molecule, in one order.

    Args:
        atom_names: of each of the n atoms, such as "CA"; unique within a residue.
        elements: symbols, such as "C".
        residues: in the order of their first atoms.
        residue_indices: the place in `residues` of each atom's residue.
        bonds: pairs (i, j) of atom indices, i < j, sorted.

    Raises:
        ValueError: lists of different lengths, no atoms, or a bond or residue of no atom.

    >>> water = Topology(("O", "H1", "H2"), ("O", "H", "H"), (Residue("HOH"),), (0, 0, 0), ((0, 1), (0, 2)))
    >>> water.num_atoms, water.neighbours[0]
    (3, (1, 2))
    """

    atom_names: tuple[str, ...]
    elements: tuple[str, ...]
    residues: tuple[Residue, ...]
    residue_indices: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        count = len(self.atom_names)
        if not count:
            raise ValueError("a topology needs atoms, but has none.")
        if not count == len(self.elements) == len(self.residue_indices):
            raise ValueError(
                f"a topology needs a name, an element and a residue for each atom, but has {count} names, "
                f"{len(self.elements)} elements and {len(self.residue_indices)} residue indices."
            )
        for i, j in self.bonds:
            if not 0 <= i < j < count:
                raise ValueError(f"bond ({i}, {j}) does not join two of the {count} atoms, the lower index first.")
        if not all(0 <= index < len(self.residues) for index in self.residue_indices):
            raise ValueError(f"an atom belongs to none of the {len(self.residues)} residues.")

    @classmethod
    def of(cls, molecule: AnyTopology) -> Topology:
        """The topology of a molecule, or what OpenMM or mdtraj calls one, as a `Topology`.

        Raises ValueError for anything else, and for atoms without an element.
        """
        topology: Any = getattr(molecule, "topology", molecule)
        if isinstance(topology, cls):
            return topology
        if not all(hasattr(topology, name) for name in ("atoms", "bonds", "residues", "chains")):
            raise ValueError(f"expected a molecule or a topology, got {molecule!r}.")
        residues, residue_indices, names, elements = [], [], [], []
        for residue in _items(topology.residues):
            # OpenMM has the number of the file in `id`, mdtraj in `resSeq`.
            number = getattr(residue, "id", None) or getattr(residue, "resSeq", residue.index + 1)
            code = getattr(residue, "insertionCode", "").strip()
            chain = getattr(residue.chain, "id", None) or getattr(residue.chain, "chain_id", None) or "A"
            residues.append(Residue(residue.name, f"{number}{code}", str(chain)))
        for atom in _items(topology.atoms):
            if atom.element is None or atom.element.symbol in ("", "VS"):
                raise ValueError(f"atom {atom.name} of {atom.residue.name} {atom.residue.index + 1} has no element.")
            names.append(atom.name)
            elements.append(atom.element.symbol)
            residue_indices.append(atom.residue.index)
        bonds = {_pair(bond[0].index, bond[1].index) for bond in _items(topology.bonds)}
        return cls(tuple(names), tuple(elements), tuple(residues), tuple(residue_indices), tuple(sorted(bonds)))

    @property
    def num_atoms(self) -> int:
        """How many atoms."""
        return len(self.atom_names)

    @property
    def residue_names(self) -> tuple[str, ...]:
        """The name of each atom's residue."""
        return tuple(self.residues[index].name for index in self.residue_indices)

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """The atoms that each atom is bonded to."""
        found: list[list[int]] = [[] for _ in self.atom_names]
        for i, j in self.bonds:
            found[i].append(j)
            found[j].append(i)
        return tuple(map(tuple, map(sorted, found)))

    @cached_property
    def atoms_by_name(self) -> tuple[dict[str, int], ...]:
        """Of each residue, the index of each atom by its name."""
        found: tuple[dict[str, int], ...] = tuple({} for _ in self.residues)
        for index, (name, residue) in enumerate(zip(self.atom_names, self.residue_indices, strict=True)):
            found[residue][name] = index
        return found

    @cached_property
    def components(self) -> tuple[tuple[int, ...], ...]:
        """The atoms of each connected molecule, in the order of their first atoms."""
        found, seen = [], set[int]()
        for start in range(self.num_atoms):
            if start in seen:
                continue
            queue, members = deque([start]), {start}
            while queue:
                for other in self.neighbours[queue.popleft()]:
                    if other not in members:
                        members.add(other)
                        queue.append(other)
            seen |= members
            found.append(tuple(sorted(members)))
        return tuple(found)

    @cached_property
    def symmetry_classes(self) -> tuple[int, ...]:
        """A number for each atom, the same for atoms that the bonds and elements alone cannot tell apart."""
        return tuple(refined(self.elements, self.neighbours))

    @cached_property
    def stereocentres(self) -> tuple[tuple[int, int, int, int], ...]:
        """Atoms with four neighbours of which no two are alike: each with three of these, heavy ones first."""
        found = []
        for atom, others in enumerate(self.neighbours):
            if len(others) == 4 and len({self.symmetry_classes[other] for other in others}) == 4:
                first, second, third, _ = sorted(others, key=lambda other: (self.elements[other] == "H", other))
                found.append((atom, first, second, third))
        return tuple(found)

    @property
    def sequence(self) -> str | None:
        """The sequence as `Peptide` takes it, such as "AAA" or "Ace-A-Nme"; None for anything but a peptide it builds.

        D-residues are told by their names, and protonation by the atoms.
        """
        names = [residue.name for residue in self.residues]
        head = "Ace" if names[0] == "ACE" else None
        tail = {"NME": "Nme", "NHE": "NH2", "NH2": "NH2"}.get(names[-1])  # the amide's name in AMBER and in the PDB
        inner = range(int(head is not None), len(names) - int(tail is not None))
        found = [self._sequence_residue(index) for index in inner]
        residues = tuple(residue for residue in found if residue is not None)
        if not residues or len(residues) < len(found) or not self._is_linear():
            return None
        return str(PeptideSequence(residues, head, tail))

    def _sequence_residue(self, index: int) -> SequenceResidue | None:
        atoms = self.atoms_by_name[index]
        known = RESIDUES.get(self.residues[index].name)
        if known is None or "CA" not in atoms:
            return None
        variant = None
        match known.letter:
            case "H":
                variant = {(True, True): "Hip", (True, False): "Hid"}.get(("HD1" in atoms, "HE2" in atoms))
            case "D":
                variant = "Ash" if "HD2" in atoms else None
            case "E":
                variant = "Glh" if "HE2" in atoms else None
            case "K":
                variant = None if {"HZ1", "HZ2", "HZ3"} <= atoms.keys() else "Lyn"
            case "C" if "HG" not in atoms:
                bridged = any(self.atom_names[other] == "SG" for other in self.neighbours[atoms["SG"]])
                if not bridged:  # a thiolate, which `Peptide` does not build
                    return None
                variant = "Cyx"
        return replace(known, variant=variant)

    def _is_linear(self) -> bool:
        """Whether residues are bonded to the next ones alone, and disulfides as `parse_sequence` pairs them."""
        between = {
            (self.residue_indices[i], self.residue_indices[j], self.atom_names[i])
            for i, j in self.bonds
            if self.residue_indices[i] != self.residue_indices[j]
        }
        chain = sorted((a, b) for a, b, name in between if name != "SG")
        bridged = sorted((a, b) for a, b, name in between if name == "SG")
        ends = [residue for bridge in bridged for residue in bridge]
        return chain == [(k, k + 1) for k in range(len(self.residues) - 1)] and ends == sorted(ends)

    def label(self, atom: int) -> str:
        """An atom for a reader, such as "CA of ALA 2"."""
        return f"{self.atom_names[atom]} of {self.residue_label(atom)}"

    def residue_label(self, atom: int) -> str:
        """An atom's residue for a reader, such as "ALA 2"; "ALA 2 of chain B" where there are several chains."""
        residue = self.residues[self.residue_indices[atom]]
        several = any(other.chain != residue.chain for other in self.residues)
        return f"{residue.name} {residue.number}" + (f" of chain {residue.chain}" if several else "")

    def select(self, atoms: Sequence[int]) -> Topology:
        """The topology of some atoms alone, in the order given; residues in the order in which they first come."""
        place = {atom: number for number, atom in enumerate(atoms)}
        order = {
            index: number for number, index in enumerate(dict.fromkeys(map(self.residue_indices.__getitem__, atoms)))
        }
        bonds = {_pair(place[i], place[j]) for i, j in self.bonds if i in place and j in place}
        return Topology(
            tuple(self.atom_names[atom] for atom in atoms),
            tuple(self.elements[atom] for atom in atoms),
            tuple(self.residues[index] for index in order),
            tuple(order[self.residue_indices[atom]] for atom in atoms),
            tuple(sorted(bonds)),
        )

    def difference(self, other: Topology) -> str | None:
        """How another topology differs from this one, in words for a reader; None where they are the same.

        Chains and numbers of residues may differ: they are labels.
        """
        if self.num_atoms != other.num_atoms:
            return f"it has {other.num_atoms} atoms, not {self.num_atoms}"
        for what, mine, theirs in (
            ("the element", self.elements, other.elements),
            ("the name", self.atom_names, other.atom_names),
            ("the residue", self.residue_names, other.residue_names),
        ):
            for index, (one, two) in enumerate(zip(mine, theirs, strict=True)):
                if one != two:
                    return f"{what} of atom {index + 1} is {two}, not {one}"
        if self.bonds != other.bonds:
            i, j = min(set(self.bonds) ^ set(other.bonds))
            has = "lacks" if (i, j) in self.bonds else "has"
            return f"it {has} the bond {self.label(i)} - {self.label(j)}"
        return None

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, for JSON."""
        return {
            "atom_names": list(self.atom_names),
            "elements": list(self.elements),
            "residues": [[residue.name, residue.number, residue.chain] for residue in self.residues],
            "residue_indices": list(self.residue_indices),
            "bonds": [list(bond) for bond in self.bonds],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Topology:
        """What `to_dict` gave; raises ValueError for anything else."""
        try:
            return cls(
                tuple(map(str, content["atom_names"])),
                tuple(map(str, content["elements"])),
                tuple(Residue(*map(str, residue)) for residue in content["residues"]),
                tuple(map(int, content["residue_indices"])),
                tuple((int(i), int(j)) for i, j in content["bonds"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no topology ({error!r}).") from error

    def to_openmm(self) -> app.Topology:
        """The same atoms, residues and bonds for OpenMM."""
        from openmm import app

        topology = app.Topology()
        residues: list[Any] = []
        for residue in self.residues:
            # A chain that goes on after another one is a new one to OpenMM.
            if not residues or residues[-1].chain.id != residue.chain:
                chain = topology.addChain(residue.chain)
            number = _NUMBER.fullmatch(residue.number)
            number_and_code = (residue.number, "") if number is None else number.groups()
            residues.append(topology.addResidue(residue.name, chain, *number_and_code))
        atoms = [
            topology.addAtom(name, app.Element.getBySymbol(element), residues[residue])
            for name, element, residue in zip(self.atom_names, self.elements, self.residue_indices, strict=True)
        ]
        for i, j in self.bonds:
            topology.addBond(atoms[i], atoms[j])
        return topology

    def to_mdtraj(self) -> mdtraj.Topology:
        """The same atoms, residues and bonds for mdtraj."""
        import mdtraj

        return mdtraj.Topology.from_openmm(self.to_openmm())


def refined(colours: Sequence[Any], neighbours: Sequence[Sequence[int]]) -> list[int]:
    """Numbers for the colours of atoms and of their neighbours, until neighbours tell no more atoms apart."""
    count = len(set(colours))
    while True:
        around = [
            (colour, tuple(sorted(colours[atom] for atom in near)))
            for colour, near in zip(colours, neighbours, strict=True)
        ]
        numbers = {colour: number for number, colour in enumerate(sorted(set(around)))}
        colours = [numbers[colour] for colour in around]
        if len(numbers) == count:
            return colours
        count = len(numbers)


def beyond_bond(neighbours: Sequence[Collection[int]], i: int, j: int) -> set[int]:
    """Atoms reached from j without crossing the bond to i; i is among them where the bond is in a ring."""
    reached, edge = {j}, [atom for atom in neighbours[j] if atom != i]
    while edge:
        atom = edge.pop()
        if atom not in reached:
            reached.add(atom)
            edge += [other for other in neighbours[atom] if other not in reached]
    return reached


def _pair(i: int, j: int) -> tuple[int, int]:
    return min(i, j), max(i, j)


def _items(members: Callable[[], Iterator[Any]] | Iterator[Any]) -> Iterator[Any]:
    """OpenMM's topologies list their parts by a method, mdtraj's by a property."""
    return iter(members() if callable(members) else members)
