"""Markov kernels that move particles at one temperature: small objects with `init` and `step`."""

from nflib.montecarlo.kernels.hamiltonian import HMC
from nflib.montecarlo.kernels.independent import IndependentMetropolis
from nflib.montecarlo.kernels.interface import Kernel, Move
from nflib.montecarlo.kernels.langevin import MALA, ULA

__all__ = ["HMC", "MALA", "ULA", "IndependentMetropolis", "Kernel", "Move"]
