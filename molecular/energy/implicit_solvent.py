"""Reads the parameters of a generalized Born model from the OpenMM forces that express one."""

import math
import re
from dataclasses import dataclass

import numpy as np
import openmm

from molecular.energy.born_parameters import BornParameters, NeckParameters
from molecular.energy.generalized_born import PROBE_RADIUS
from molecular.energy.units import COULOMB, ELEMENTARY_CHARGE, NANOMETRE, plain
from molecular.energy.unsupported import UnsupportedForce

# Constants inside OpenMM's GBSAOBCForce (OBC2).
_OFFSET = 0.009
_OBC2 = (1.0, 0.8, 4.85)

# Expressions are recognised as a whole, spaces removed; numbers are read off them.
_NUMBER = r"([-+]?\d+\.?\d*(?:e[-+]?\d+)?)"
_SETTINGS = r"((?:;[A-Za-z]\w*=[-+]?\d+\.?\d*(?:e[-+]?\d+)?)*)"
_PAIR_INTEGRAL = "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);"
_LIMITS = "U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
_NECK_INTEGRAL = re.compile(
    re.escape(
        "Ivdw+neckScale*Ineck;Ineck=step(radius1+radius2+neckCut-r)*getm0(radindex1,radindex2)/"
        "(1+100*(r-getd0(radindex1,radindex2))^2+0.3*1000000*(r-getd0(radindex1,radindex2))^6);"
        f"Ivdw={_PAIR_INTEGRAL}{_LIMITS};radius1=or1+offset;radius2=or2+offset"
    )
    + _SETTINGS
)
_HAWKINS = "1/(1/or-I)"
_ONUFRIEV = re.compile(rf"1/\(1/or-tanh\((.+)\)/radius\);psi=I\*or;radius=or\+offset;offset={_NUMBER}")
_POLYNOMIAL = re.compile(rf"(?:{_NUMBER}\*)?psi(?:-{_NUMBER}\*psi\^2)?\+{_NUMBER}\*psi\^3")
_POLYNOMIAL_OF_ATOMS = "alpha*psi-beta*psi^2+gamma*psi^3"
_STRENGTH = r"\(1/soluteDielectric-(1|exp\(-kappa\*{}\))/solventDielectric\)"
_SELF = re.compile(rf"-0\.5\*{_NUMBER}\*{_STRENGTH.format('B')}\*charge\^2/B{_SETTINGS}")
_PAIR = re.compile(
    rf"-{_NUMBER}\*{_STRENGTH.format('f')}\*charge1\*charge2(?:/f|\*\(1/f-{_NUMBER}\));"
    rf"f=sqrt\(r\^2\+B1\*B2\*exp\(-r\^2/\(4\*B1\*B2\)\)\){_SETTINGS}"
)
_SURFACE = re.compile(rf"{_NUMBER}\*\(radius\+{_NUMBER}\)\^2\*\(radius/B\)\^6;radius=or\+offset{_SETTINGS}")
_SUPPORTED = (
    "compile_system supports the HCT, OBC1, OBC2, GBn and GBn2 models of openmm.app, with or without salt and the ACE "
    "surface term"
)


def read_gbsa_obc(force: openmm.GBSAOBCForce) -> BornParameters:
    """Parameters of OpenMM's built-in OBC2 model."""
    cutoff = _cutoff(force)
    particles = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
    radius = np.array([plain(value, NANOMETRE) for _, value, _ in particles])
    offset_radius = radius - _OFFSET
    tension = plain(force.getSurfaceAreaEnergy(), force.getSurfaceAreaEnergy().unit)
    return BornParameters(
        charge=np.array([plain(value, ELEMENTARY_CHARGE) for value, _, _ in particles]),
        radius=radius,
        offset_radius=offset_radius,
        scaled_radius=offset_radius * np.array([float(scale) for _, _, scale in particles]),
        polynomial=_same_for_all(_OBC2, len(radius)),
        neck=None,
        solute=COULOMB / force.getSoluteDielectric(),
        solvent=COULOMB / force.getSolventDielectric(),
        kappa=0.0,
        surface=4.0 * math.pi * tension,
        cutoff=cutoff,
        shift=0.0 if cutoff is None else 1.0 / cutoff,
        swallowed=True,
    )


def read_custom_gb(force: openmm.CustomGBForce) -> BornParameters:
    """Parameters of a model written as a `CustomGBForce`, recognised by its expressions.

    Raises UnsupportedForce that names the expression if the force is anything else than openmm.app's models.
    """
    columns = _read_columns(force)
    if (
        not {"charge", "or", "sr"} <= columns.keys()
        or force.getNumGlobalParameters()
        or force.getNumComputedValues() != 2
    ):
        raise UnsupportedForce(
            f"CustomGBForce with per-particle parameters {list(columns)} is no model of openmm.app; {_SUPPORTED}."
        )
    neck_settings = _read_integral(force)
    polynomial, offset = _read_radii(force, columns)
    energies = _read_energy_terms(force)
    offsets = {value for value in (offset, energies.offset, (neck_settings or {}).get("offset")) if value is not None}
    if len(offsets) > 1:
        raise UnsupportedForce(f"CustomGBForce has several radius offsets {sorted(offsets)}; {_SUPPORTED}.")
    # Hawkins radii without surface term are the one model in which the offset plays no part.
    radius = columns["or"] + (offsets.pop() if offsets else 0.0)
    return BornParameters(
        charge=columns["charge"],
        radius=radius,
        offset_radius=columns["or"],
        scaled_radius=columns["sr"],
        polynomial=polynomial,
        neck=None if neck_settings is None else _read_neck(force, columns, neck_settings),
        solute=energies.solute,
        solvent=energies.solvent,
        kappa=energies.kappa,
        surface=energies.surface,
        cutoff=_cutoff(force),
        shift=energies.shift,
        swallowed=False,
    )


def _read_columns(force: openmm.CustomGBForce) -> dict[str, np.ndarray]:
    """Per-particle parameters (n,) by name."""
    names = [force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())]
    rows = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
    return dict(zip(names, np.array(rows, dtype=np.float64).reshape(len(rows), len(names)).T, strict=True))


def _read_integral(force: openmm.CustomGBForce) -> dict[str, float] | None:
    """The settings of the neck correction, None in a model without one."""
    name, expression, kind = force.getComputedValueParameters(0)
    if (name, kind) == ("I", openmm.CustomGBForce.ParticlePairNoExclusions):
        text = _squeeze(expression)
        if text == _PAIR_INTEGRAL + _LIMITS:
            return None
        match = _NECK_INTEGRAL.fullmatch(text)
        if match and (settings := _settings(match[1])).keys() == {"neckScale", "neckCut", "offset"}:
            return settings
    raise _unknown(name, expression)


def _read_radii(force: openmm.CustomGBForce, columns: dict[str, np.ndarray]) -> tuple[np.ndarray | None, float | None]:
    """The polynomials (3, n), None for Hawkins radii, and the offset of the radii where they depend on it."""
    name, expression, kind = force.getComputedValueParameters(1)
    if (name, kind) == ("B", openmm.CustomGBForce.SingleParticle):
        text = _squeeze(expression)
        if text == _HAWKINS:
            return None, None
        if match := _ONUFRIEV.fullmatch(text):
            offset = float(match[2])
            if match[1] == _POLYNOMIAL_OF_ATOMS and {"alpha", "beta", "gamma"} <= columns.keys():
                return np.stack([columns["alpha"], columns["beta"], columns["gamma"]]), offset
            if inner := _POLYNOMIAL.fullmatch(match[1]):
                alpha, beta, gamma = float(inner[1] or 1.0), float(inner[2] or 0.0), float(inner[3])
                return _same_for_all((alpha, beta, gamma), len(columns["or"])), offset
    raise _unknown(name, expression)


def _read_neck(
    force: openmm.CustomGBForce, columns: dict[str, np.ndarray], settings: dict[str, float]
) -> NeckParameters:
    tables = {}
    for index in range(force.getNumTabulatedFunctions()):
        function = force.getTabulatedFunction(index)
        if isinstance(function, openmm.Discrete2DFunction):
            rows, columns_, values = function.getFunctionParameters()
            # The first argument runs fastest.
            tables[force.getTabulatedFunctionName(index)] = np.array(values).reshape(columns_, rows).T
    if not {"getd0", "getm0"} <= tables.keys() or "radindex" not in columns:
        raise UnsupportedForce(f"CustomGBForce lacks the tables getd0, getm0 or the parameter radindex; {_SUPPORTED}.")
    kind = columns["radindex"].astype(np.int64)
    return NeckParameters(
        scale=settings["neckScale"],
        window=settings["neckCut"],
        height=tables["getm0"][np.ix_(kind, kind)],
        distance=tables["getd0"][np.ix_(kind, kind)],
    )


@dataclass
class _Energies:
    """What the energy terms say; solute, solvent and kappa are of the self term and of the pair term alike."""

    solute: float = 0.0
    solvent: float = 0.0
    kappa: float = 0.0
    shift: float = 0.0
    surface: float = 0.0
    offset: float | None = None


def _read_energy_terms(force: openmm.CustomGBForce) -> _Energies:
    found: dict[str, _Energies] = {}
    for index in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(index)
        name, values = _match_energy_term(_squeeze(expression), kind)
        if values is None or name in found:
            raise UnsupportedForce(
                f"CustomGBForce has the energy term {expression!r}, which is not known; {_SUPPORTED}."
            )
        found[name] = values
    if not {"self", "pair"} <= found.keys():
        raise UnsupportedForce(f"CustomGBForce lacks the self or the pair term of its polar energy; {_SUPPORTED}.")
    itself, pair = found["self"], found["pair"]
    if (itself.solute, itself.solvent, itself.kappa) != (pair.solute, pair.solvent, pair.kappa):
        raise UnsupportedForce(f"CustomGBForce has self and pair terms of different strengths; {_SUPPORTED}.")
    if surface := found.get("surface"):
        pair.surface, pair.offset = surface.surface, surface.offset
    return pair


def _match_energy_term(text: str, kind: int) -> tuple[str, _Energies | None]:
    """Which energy term this is, and what it says; None if it is none of the models'."""
    single = kind == openmm.CustomGBForce.SingleParticle
    if kind == openmm.CustomGBForce.ParticlePairNoExclusions and (match := _PAIR.fullmatch(text)):
        energies = _polar(match[1], match[2], match[4])
        if energies is not None:
            energies.shift = float(match[3] or 0.0)
        return "pair", energies
    if single and (match := _SELF.fullmatch(text)):
        return "self", _polar(match[1], match[2], match[3])
    if single and (match := _SURFACE.fullmatch(text)) and float(match[2]) == PROBE_RADIUS:
        offset = _settings(match[3]).get("offset")
        return "surface", None if offset is None else _Energies(surface=float(match[1]), offset=offset)
    return "unknown", None


def _polar(coulomb: str, screening: str, settings: str) -> _Energies | None:
    values = _settings(settings)
    needed = {"soluteDielectric", "solventDielectric"} | (set() if screening == "1" else {"kappa"})
    if not needed <= values.keys():
        return None
    return _Energies(
        solute=float(coulomb) / values["soluteDielectric"],
        solvent=float(coulomb) / values["solventDielectric"],
        kappa=0.0 if screening == "1" else values["kappa"],
    )


def _settings(text: str) -> dict[str, float]:
    """The numbers in ";name=value;name=value"."""
    pairs = (item.split("=", 1) for item in text.split(";") if item)
    return {name: float(value) for name, value in pairs}


def _same_for_all(polynomial: tuple[float, float, float], count: int) -> np.ndarray:
    return np.repeat(np.array(polynomial)[:, None], count, axis=1)


def _unknown(name: str, expression: str) -> UnsupportedForce:
    return UnsupportedForce(f"CustomGBForce computes {name} = {expression!r}, which is not known; {_SUPPORTED}.")


def _squeeze(expression: str) -> str:
    return "".join(expression.split())


def _cutoff(force: openmm.GBSAOBCForce | openmm.CustomGBForce) -> float | None:
    if force.getNonbondedMethod() == type(force).NoCutoff:
        return None
    return plain(force.getCutoffDistance(), NANOMETRE)
