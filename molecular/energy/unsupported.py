"""What compile_system refuses."""

import openmm


class UnsupportedForce(ValueError):
    """A force that has no batched form here; its message names it."""


def refuse_constraints(system: openmm.System) -> None:
    """ValueError if the system has constraints or virtual sites: its distribution is not over all positions."""
    if system.getNumConstraints():
        raise ValueError("The system has constraints; molecular.energy supports systems built with constraints=None.")
    for index in range(system.getNumParticles()):
        if system.isVirtualSite(index):
            raise ValueError(f"Particle {index} is a virtual site; molecular.energy supports ordinary particles only.")
