"""Weighted equilibrium samples: importance sampling and sequential Monte Carlo."""

from molecular.sampling.importance import sample
from molecular.sampling.proposals import load_flow, load_proposal
from molecular.sampling.sequential import smc

__all__ = ["load_flow", "load_proposal", "sample", "smc"]
