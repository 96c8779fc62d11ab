"""Reads the parameters of an OBC model from the OpenMM forces that express one."""

import math
import re

import numpy as np
import openmm

from molecular.energy.generalized_born import PROBE_RADIUS, BornParameters
from molecular.energy.units import COULOMB, ELEMENTARY_CHARGE, NANOMETRE, plain

# Constants inside OpenMM's GBSAOBCForce (OBC2).
_OFFSET = 0.009
_OBC2 = (1.0, 0.8, 4.85)

_NUMBER = r"([-+.0-9e]+)"
_INTEGRAL = (
    "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);"
    "U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
)
_RADIUS = re.compile(rf"1/\(1/or-tanh\((.+)\)/radius\);psi=I\*or;radius=or\+offset;offset={_NUMBER}")
_POLYNOMIALS = {"0.8*psi+2.909125*psi^3": (0.8, 0.0, 2.909125), "psi-0.8*psi^2+4.85*psi^3": _OBC2}
_SELF = re.compile(rf"-0\.5\*{_NUMBER}\*\(1/soluteDielectric-1/solventDielectric\)\*charge\^2/B((?:;.*)?)")
_SURFACE = re.compile(rf"{_NUMBER}\*\(radius\+{_NUMBER}\)\^2\*\(radius/B\)\^6;radius=or\+offset((?:;.*)?)")
_PAIR = re.compile(
    rf"-{_NUMBER}\*\(1/soluteDielectric-1/solventDielectric\)\*charge1\*charge2(?:/f|\*\(1/f-{_NUMBER}\));"
    r"f=sqrt\(r\^2\+B1\*B2\*exp\(-r\^2/\(4\*B1\*B2\)\)\)((?:;.*)?)"
)
_SUPPORTED = (
    "compile_system supports the OBC1 and OBC2 models of openmm.app without salt, with or without the ACE surface term"
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
        polynomial=_OBC2,
        strength=COULOMB * (1.0 / force.getSoluteDielectric() - 1.0 / force.getSolventDielectric()),
        surface=4.0 * math.pi * tension,
        cutoff=cutoff,
        shift=0.0 if cutoff is None else 1.0 / cutoff,
        swallowed=True,
    )


def read_custom_gb(force: openmm.CustomGBForce) -> BornParameters:
    """Parameters of an OBC model written as a `CustomGBForce`, recognised by its expressions.

    Raises ValueError that names the expression if the force is anything else than openmm.app's OBC1 or OBC2.
    """
    names = [force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())]
    extras = force.getNumGlobalParameters() + force.getNumTabulatedFunctions() + force.getNumFunctions()
    if names != ["charge", "or", "sr"] or extras or force.getNumExclusions() or force.getNumComputedValues() != 2:
        raise ValueError(f"CustomGBForce with per-particle parameters {names} is not an OBC model; {_SUPPORTED}.")
    polynomial, offset = _read_computed_values(force)
    terms = _read_energy_terms(force, offset)
    cutoff = _cutoff(force)
    parameters = np.array([force.getParticleParameters(index) for index in range(force.getNumParticles())])
    return BornParameters(
        charge=parameters[:, 0],
        radius=parameters[:, 1] + offset,
        offset_radius=parameters[:, 1],
        scaled_radius=parameters[:, 2],
        polynomial=polynomial,
        strength=terms["strength"],
        surface=terms["surface"],
        cutoff=cutoff,
        shift=terms["shift"],
        swallowed=False,
    )


def _read_computed_values(force: openmm.CustomGBForce) -> tuple[tuple[float, float, float], float]:
    (name_i, integral, kind_i), (name_b, radius, kind_b) = (force.getComputedValueParameters(k) for k in range(2))
    match = _RADIUS.fullmatch(_squeeze(radius))
    directed = (name_i, kind_i) == ("I", openmm.CustomGBForce.ParticlePairNoExclusions)
    if not directed or _squeeze(integral) != _INTEGRAL:
        raise ValueError(f"CustomGBForce computes {name_i} = {integral!r}, which is not OBC; {_SUPPORTED}.")
    single = (name_b, kind_b) == ("B", openmm.CustomGBForce.SingleParticle)
    if not single or match is None or match[1] not in _POLYNOMIALS:
        raise ValueError(f"CustomGBForce computes {name_b} = {radius!r}, which is not OBC; {_SUPPORTED}.")
    return _POLYNOMIALS[match[1]], float(match[2])


def _read_energy_terms(force: openmm.CustomGBForce, offset: float) -> dict[str, float]:
    """Strength and shift of the polar energy, and the factor of the surface energy."""
    found: dict[str, float] = {}
    for index in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(index)
        values = _match_energy_term(_squeeze(expression), kind, offset)
        if not values or found.keys() & values.keys():
            raise ValueError(f"CustomGBForce has the energy term {expression!r}, which is not known; {_SUPPORTED}.")
        found |= values
    if "self" not in found or found["self"] != found.get("strength"):
        raise ValueError(f"CustomGBForce lacks the self or the pair term of an OBC model; {_SUPPORTED}.")
    return {"surface": 0.0} | found


def _match_energy_term(text: str, kind: int, offset: float) -> dict[str, float]:
    """What an energy term says; empty if it is none of OBC's."""
    if kind == openmm.CustomGBForce.ParticlePairNoExclusions and (match := _PAIR.fullmatch(text)):
        return {"strength": _strength(match[1], match[3]), "shift": float(match[2] or 0.0)}
    if kind != openmm.CustomGBForce.SingleParticle:
        return {}
    if match := _SELF.fullmatch(text):
        return {"self": _strength(match[1], match[2])}
    match = _SURFACE.fullmatch(text)
    if match and float(match[2]) == PROBE_RADIUS and math.isclose(_assignments(match[3])["offset"], offset):
        return {"surface": float(match[1])}
    return {}


def _strength(coulomb: str, assignments: str) -> float:
    values = _assignments(assignments)
    return float(coulomb) * (1.0 / values["soluteDielectric"] - 1.0 / values["solventDielectric"])


def _assignments(text: str) -> dict[str, float]:
    """The numbers in ";name=value;name=value"."""
    pairs = (item.split("=", 1) for item in text.split(";") if item)
    return {name: float(value) for name, value in pairs}


def _squeeze(expression: str) -> str:
    return "".join(expression.split())


def _cutoff(force: openmm.GBSAOBCForce | openmm.CustomGBForce) -> float | None:
    if force.getNonbondedMethod() == type(force).NoCutoff:
        return None
    return plain(force.getCutoffDistance(), NANOMETRE)
