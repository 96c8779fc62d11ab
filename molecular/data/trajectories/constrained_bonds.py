"""Bonds that a simulation held at one length, drawn anew from the flexible force field's thermal distribution."""

from __future__ import annotations

import numpy as np
import openmm
from numpy.typing import NDArray

from molecular.molecule.force_fields import harmonic_bonds
from molecular.molecule.topology import Topology, beyond_bond

FEWEST_FRAMES = 20
"""Fewer cannot tell a constraint from chance."""
RIGID = 1e-4
"""nm, and in this many radians of an angle: a smaller deviation is no thermal motion."""


def constrained_bonds(positions: NDArray[np.floating], topology: Topology, grid: float = 0.0) -> list[tuple[int, int]]:
    """The bonds whose lengths do not vary: none, all those of hydrogens, or all.

    Args:
        positions: (N, n, 3) nm.
        topology: of the molecule.
        grid: nm, that positions are rounded to.

    Raises:
        ValueError: angles do not vary either, as with the option HAngles or rigid groups.
    """
    if len(positions) < FEWEST_FRAMES:
        return []
    # Rounding two ends moves a length by that much.
    most = RIGID + 1.5 * np.sqrt(2.0 / 12.0) * grid
    with_hydrogen = [bond for bond in topology.bonds if "H" in (topology.elements[bond[0]], topology.elements[bond[1]])]
    heavy = [bond for bond in topology.bonds if bond not in with_hydrogen]
    if not with_hydrogen or _spread(lengths(positions, with_hydrogen)) > most:
        return []
    angles = _hydrogen_angles(topology)
    if angles and _spread(_cosines(positions, angles)) < 10.0 * most:  # a length of 0.1 nm
        raise ValueError(
            "angles of hydrogens do not vary over the frames, so the simulation constrained them; simulate with "
            "constraints of bonds alone (HBonds), or none."
        )
    rigid = heavy and _spread(lengths(positions, heavy)) < most
    return with_hydrogen + heavy if rigid else with_hydrogen


def draw_lengths(
    positions: NDArray[np.floating],
    topology: Topology,
    bonds: list[tuple[int, int]],
    system: openmm.System,
    kT: float,
    generator: np.random.Generator,
) -> NDArray[np.floating]:
    """Frames (N, n, 3) whose bonds have lengths r of density r² exp(-k (r - r₀)² / 2 kT), directions as they were.

    The smaller side of each bond moves along it as a whole: r² is the volume that its other end can be in. Lengths are
    drawn one by one, without what the rest of the force field would add, a small part of a stiff bond's spread.

    Args:
        positions: (N, n, 3) nm.
        topology: of the molecule.
        bonds: to be drawn.
        system: its harmonic bonds give k and r₀.
        kT: kJ/mol.
        generator: of the random numbers.

    Raises:
        ValueError: a bond in a ring, or one that is not harmonic.
    """
    parameters = harmonic_bonds(system)
    shift = np.zeros(positions.shape)
    for bond in bonds:
        if bond not in parameters:
            raise ValueError(
                f"the simulation held the bond {topology.label(bond[0])} - {topology.label(bond[1])} at one length, "
                "but the force field has no harmonic bond there to draw it from; simulate without constraints."
            )
        i, j = bond
        beyond = beyond_bond(topology.neighbours, i, j)
        if i in beyond:
            raise ValueError(
                f"the simulation held the bond {topology.label(i)} - {topology.label(j)} of a ring at one length, "
                "which cannot be drawn anew; simulate with constraints of hydrogens alone (HBonds), or none."
            )
        if 2 * len(beyond) > topology.num_atoms:
            i, j, beyond = j, i, set(range(topology.num_atoms)) - beyond
        vector = positions[:, j] - positions[:, i]
        length = np.linalg.norm(vector, axis=-1, keepdims=True)
        drawn = thermal_lengths(*parameters[bond], kT, len(positions), generator)
        shift[:, sorted(beyond)] += ((drawn[:, None] / length - 1.0) * vector)[:, None]
    return positions + shift


def thermal_lengths(
    k: float, rest: float, kT: float, number: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(number,) lengths r of density r² exp(-k (r - rest)² / 2 kT), by rejection from a Gaussian.

    >>> drawn = thermal_lengths(284512.0, 0.109, 2.494, 100_000, np.random.default_rng(0))
    >>> print(f"{drawn.mean():.3f} {drawn.std():.4f}")
    0.109 0.0030
    """
    width = np.sqrt(kT / k)
    most = rest + 8.0 * width  # beyond it the Gaussian has 1e-15
    found = np.empty(0)
    while len(found) < number:
        trial = generator.normal(rest, width, number)
        kept = generator.random(number) * most**2 < np.where(trial > 0.0, trial, 0.0) ** 2
        found = np.concatenate([found, trial[kept]])
    return found[:number]


def lengths(positions: NDArray[np.floating], bonds: list[tuple[int, int]] | tuple) -> NDArray[np.floating]:
    """(N, bonds) lengths of bonds in frames (N, n, 3)."""
    pairs = np.array(bonds, dtype=np.int64).reshape(-1, 2)
    return np.linalg.norm(positions[:, pairs[:, 0]] - positions[:, pairs[:, 1]], axis=-1)


def _spread(values: NDArray[np.floating]) -> float:
    """The largest standard deviation of the columns of (N, k), by the median deviation, which no stray frame moves."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values, axis=0)), axis=0).max())


def _hydrogen_angles(topology: Topology) -> list[tuple[int, int, int]]:
    """Angles H-X-H, or, in a molecule without any, H-O-X: those that OpenMM's HAngles constrains."""
    pairs = [
        (one, centre, two)
        for centre, near in enumerate(topology.neighbours)
        for place, one in enumerate(near)
        for two in near[place + 1 :]
    ]
    hydrogens = [sum(topology.elements[atom] == "H" for atom in (one, two)) for one, _, two in pairs]
    return [angle for angle, count in zip(pairs, hydrogens, strict=True) if count == 2] or [
        angle
        for angle, count in zip(pairs, hydrogens, strict=True)
        if count == 1 and topology.elements[angle[1]] == "O"
    ]


def _cosines(positions: NDArray[np.floating], angles: list[tuple[int, int, int]]) -> NDArray[np.floating]:
    index = np.array(angles)
    one, two = (positions[:, index[:, end]] - positions[:, index[:, 1]] for end in (0, 2))
    return (one * two).sum(-1) / (np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1))
