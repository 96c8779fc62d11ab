"""What energies and engines refuse."""

import openmm

# They act on motion alone: energies do not know them, and a simulation here brings a thermostat of its own.
MOTION_ONLY = (openmm.CMMotionRemover, openmm.AndersenThermostat)


class UnsupportedForce(ValueError):
    """A force that has no batched form here; its message names it."""


def refuse_constraints(system: openmm.System) -> None:
    """ValueError if the system has constraints or virtual sites: its distribution is not over all positions."""
    if system.getNumConstraints():
        raise ValueError("The system has constraints; molecular.energy supports systems built with constraints=None.")
    for index in range(system.getNumParticles()):
        if system.isVirtualSite(index):
            raise ValueError(f"Particle {index} is a virtual site; molecular.energy supports ordinary particles only.")


def refuse_unknown_platform(platform: str) -> None:
    """ValueError for a platform that this OpenMM lacks."""
    known = [openmm.Platform.getPlatform(index).getName() for index in range(openmm.Platform.getNumPlatforms())]
    if platform not in known:
        raise ValueError(f"OpenMM has no platform {platform!r} here; it has {', '.join(known)}.")
