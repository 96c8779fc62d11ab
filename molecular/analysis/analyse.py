"""Free energies of an ensemble: profiles, maps and basins, with errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from molecular.analysis.ensembles import WeightedConformations
from molecular.analysis.free_energy import (
    Basin,
    Condition,
    FreeEnergy,
    bin_edges,
    difference,
    energy_unit,
    free_energy,
    population,
)
from molecular.analysis.observables import CollectiveVariable
from molecular.analysis.reweighting import reweight_to
from molecular.analysis.shares import Shares, shares_of
from molecular.molecule.constants import MOLAR_GAS_CONSTANT
from molecular.molecule.molecule import Molecule
from molecular.molecule.torsions import ramachandran_names, reported_torsions
from nflib.metrics import Estimate
from nflib.montecarlo import effective_sample_size

Variable = str | Callable[[Tensor], Tensor] | CollectiveVariable

PROFILE_BINS = 60
MAP_BINS = 36
# The second of a pair whose first is one basin: all conformations that are not in it.
ELSEWHERE = "elsewhere"
# Of an ensemble outside of the bins: more is worth a note.
_OUTSIDE = 0.005


@dataclass(frozen=True)
class Analysis:
    """The result of `analyse`: free-energy profiles, maps and basins; printed, it says the basins and the notes.

    Attributes:
        molecule: its name.
        temperature: K.
        source_temperature: K, at which the conformations were drawn; the same unless they are weighted to another.
        unit: of free energies.
        num_samples: conformations, those without a weight included.
        effective_sample_size: Kish's, of the weights.
        num_independent: how many conformations, or groups of correlated ones, the errors take to be independent.
        profiles: by the names of their variables: "phi 1".
        maps: by the names of their two variables: "phi 1, psi 1".
        conditions: of each basin, as text; "" for a function.
        populations: share of each basin.
        differences: free energy of the first basin less that of the second, which is `ELSEWHERE` for all else.
        notes: what a reader must know, in sentences.
    """

    molecule: str
    temperature: float
    source_temperature: float
    unit: str
    num_samples: int
    effective_sample_size: float
    num_independent: int
    profiles: Mapping[str, FreeEnergy]
    maps: Mapping[str, FreeEnergy]
    conditions: Mapping[str, str]
    populations: Mapping[str, Estimate]
    differences: Mapping[tuple[str, str], Estimate]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.molecule} at {self.temperature:g} K: {self.num_samples} conformations, effective sample size "
            f"{self.effective_sample_size:.0f}."
        ]
        lines += [f"Population of {name}: {estimate}" for name, estimate in self.populations.items()]
        lines += [
            f"Free energy of {first} less that of {second}: {estimate} {self.unit}"
            for (first, second), estimate in self.differences.items()
        ]
        return "\n".join([*lines, *self.notes])

    @property
    def kT(self) -> float:
        """The molar gas constant times the temperature, kJ/mol."""
        return MOLAR_GAS_CONSTANT * self.temperature

    def summary(self) -> dict[str, Any]:
        """The results but profiles and maps as plain values for JSON; None for an error that cannot be told."""
        return {
            "molecule": self.molecule,
            "temperature_K": self.temperature,
            "source_temperature_K": self.source_temperature,
            "unit": self.unit,
            "num_samples": self.num_samples,
            "effective_sample_size": self.effective_sample_size,
            "num_independent": self.num_independent,
            "conditions": dict(self.conditions),
            "populations": {name: estimate.summary() for name, estimate in self.populations.items()},
            "differences": [
                {"first": first, "second": second} | estimate.summary()
                for (first, second), estimate in self.differences.items()
            ],
            "outside": {name: surface.outside for name, surface in {**self.profiles, **self.maps}.items()},
            "notes": list(self.notes),
        }


def analyse(
    source: Any,
    molecule: Molecule,
    variables: Sequence[Variable] | None = None,
    *,
    maps: Sequence[tuple[Variable, Variable]] | None = None,
    basins: Mapping[str, str | Condition] | None = None,
    target: Molecule | None = None,
    energies: Tensor | None = None,
    bins: int | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    unit: str = "kJ/mol",
) -> Analysis:
    """Free-energy profiles, maps and basin populations of an ensemble, each with its standard error.

    Args:
        source: what `evaluate` takes: positions (N, n, 3) in nm, which are taken to be independent, `(positions,
            log_weights)`, `WeightedSamples`, an `Ensemble` of one temperature, or `WeightedConformations`. The frames
            of a trajectory need their time, by which their correlation is judged.
        molecule: what the conformations are of, at the temperature and in the force field that they are weighted to.
        variables: a profile is made along each; each is what `CollectiveVariable.of` takes. None: every phi and psi, or
            every torsion that turns where there are none.
        maps: pairs of variables. None: (phi, psi) of each residue where `variables` is None, otherwise no maps.
        basins: name -> what `Basin.of` takes: "0 < phi 1 < 150", {"phi 1": (0, 150)}, or a function of positions.
        target: the same molecule at another temperature (`molecule.at(330.0)`) or in another force field: all
            conformations are weighted to it.
        energies: (N,) kJ/mol, of `molecule`, for that reweighting; None: computed, or, to another temperature, those of
            an `Ensemble`.
        bins: on every axis; default 60, on those of maps 36.
        limits: name of a variable -> (low, high) of its axis, such as (0, 360) for a torsion, whose values are taken
            to there; default: its period about zero, or what holds all but 0.2 % of the weight.
        unit: of free energies: "kJ/mol", "kcal/mol" or "kT".

    Returns:
        An `Analysis`, which `molecular.analysis.report.save_analysis` writes into a folder.

    Raises:
        ValueError: an unknown variable, atom, basin or unit, an interval that holds nothing, arrays of the wrong shape,
            plain positions that are not in nm, or no conformation with a weight.

    >>> from molecular import Peptide
    >>> peptide = Peptide("Ace-A-Nme")
    >>> positions = torch.as_tensor(peptide.positions).repeat(100, 1, 1)
    >>> analysis = analyse(positions, peptide, ["phi 1", "rg", "C:1 N:2 CA:2 C:2"], basins={"left": "phi 1 > 0"})
    >>> analysis.populations["left"].value
    0.0
    """
    at = molecule if target is None else target
    energy_unit(unit, at.kT)  # a wrong one is told before any work
    if bins is not None and bins < 1:
        raise ValueError(f"analyse: bins is {bins}; give 1 or more.")
    if energies is not None and target is None:
        raise ValueError("analyse: energies are for reweighting to a target; give one, or leave them out.")
    conformations = WeightedConformations.of("the ensemble", source, molecule)
    notes = []
    if target is not None:
        # An ensemble's are of positions before they were rounded for storage; another force field sees these rounded.
        if energies is None and target.system is molecule.system:
            energies = getattr(source, "energies", None)
        changed = reweight_to(conformations, molecule, target, energies)
        conformations = changed.conformations
        share = changed.effective_sample_size / len(conformations)
        temperatures = f"{molecule.temperature:g} K to {target.temperature:g} K"
        same = target.system is molecule.system or molecule.difference(target) is None
        other = "" if same else ", in another force field"
        tail = "" if math.isnan(changed.pareto_k) else f", Pareto k {changed.pareto_k:.2f}"  # equal weights have none
        notes.append(
            f"Weighted from {temperatures}{other}: effective sample size {share:.3f} of the conformations{tail}."
            + (f" {changed.warning}" if changed.warning else "")
        )
    num_samples, conformations = len(conformations), conformations.usable()
    if not conformations.num_weighted():
        raise ValueError("analyse: no conformation is finite and has a weight; sample or simulate again.")
    named = _Named(molecule, conformations.positions)
    chosen_maps = ramachandran_names(molecule.topology) if maps is None and variables is None else maps or ()
    profiles = [named(one) for one in (_default_variables(molecule) if variables is None else variables)]
    pairs = [(named(first), named(second)) for first, second in chosen_maps]
    regions = {name: Basin.of(name, condition, molecule) for name, condition in (basins or {}).items()}
    if ELSEWHERE in regions:
        raise ValueError(f"a basin is named {ELSEWHERE!r}, which is the name of all that is in no basin; rename it.")
    inside = {name: region(conformations.positions) for name, region in regions.items()}
    if strange := set(limits or {}) - set(named.values):
        raise ValueError(f"limits are given for {', '.join(sorted(strange))}, of which there is no profile or map.")

    series = [_as_angle(variable, values) for variable, values in named.found()]
    series += [math.pi * mask.double() for mask in inside.values()]
    shares, refusal = shares_of(conformations, series)
    if refusal and not any(refusal in note for note in notes):
        notes.append(refusal)

    def surface(variables: Sequence[CollectiveVariable], default: int) -> FreeEnergy:
        values = [named.values[variable.name] for variable in variables]
        edges = [
            bin_edges(variable, value, conformations.weights(), bins or default, (limits or {}).get(variable.name))
            for variable, value in zip(variables, values, strict=True)
        ]
        return free_energy(shares, variables, values, edges, at.kT, unit)

    made = {variable.name: surface([variable], PROFILE_BINS) for variable in profiles}
    made_maps = {f"{one.name}, {two.name}": surface([one, two], MAP_BINS) for one, two in pairs}
    for name, one in {**made, **made_maps}.items():
        if one.outside > _OUTSIDE:
            notes.append(f"{100 * one.outside:.1f} % of the ensemble lie outside of the bins of {name}.")
    return Analysis(
        molecule=at.name,
        temperature=at.temperature,
        source_temperature=molecule.temperature,
        unit=unit,
        num_samples=num_samples,
        effective_sample_size=_effective_size(conformations),
        num_independent=shares.num_families,
        profiles=made,
        maps=made_maps,
        conditions={name: str(region) for name, region in regions.items()},
        populations={name: population(shares, mask) for name, mask in inside.items()},
        differences=_differences(shares, inside, at.kT, unit),
        notes=tuple(notes),
    )


class _Named:
    """Variables by name, each evaluated once."""

    def __init__(self, molecule: Molecule, positions: Tensor) -> None:
        self.molecule, self.positions = molecule, positions
        self.variables: dict[str, CollectiveVariable] = {}
        self.values: dict[str, Tensor] = {}
        self.descriptions: dict[str, Variable] = {}

    def __call__(self, description: Variable) -> CollectiveVariable:
        variable = CollectiveVariable.of(description, self.molecule)
        name = variable.name
        if isinstance(description, str):
            description = name
        if self.descriptions.setdefault(name, description) != description:
            raise ValueError(f"two variables are named {name!r}; name one, as in CollectiveVariable('mine', function).")
        if name not in self.values:
            self.variables[name], self.values[name] = variable, variable(self.positions)
        return self.variables[name]

    def found(self) -> list[tuple[CollectiveVariable, Tensor]]:
        """All variables with their values."""
        return [(self.variables[name], values) for name, values in self.values.items()]


def _default_variables(molecule: Molecule) -> list[str]:
    torsions = list(reported_torsions(molecule))
    return [name for name in torsions if name.startswith(("phi ", "psi "))] or torsions


def _as_angle(variable: CollectiveVariable, values: Tensor) -> Tensor:
    """For autocorrelation, which is that of angles: a variable without a period takes half a turn, by its ranks."""
    if variable.period is not None:
        return values * (2.0 * math.pi / variable.period)
    return math.pi * torch.unique(values, return_inverse=True)[1].double() / len(values)


def _differences(shares: Shares, inside: Mapping[str, Tensor], kT: float, unit: str) -> dict[tuple[str, str], Estimate]:
    found = {(name, ELSEWHERE): difference(shares, mask, ~mask, kT, unit) for name, mask in inside.items()}
    for first, second in combinations(inside, 2):
        found[second, first] = difference(shares, inside[second], inside[first], kT, unit)
    return found


def _effective_size(conformations: WeightedConformations) -> float:
    log_weights = conformations.log_weights
    return float(len(conformations)) if log_weights is None else effective_sample_size(log_weights)
