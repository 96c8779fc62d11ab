"""Markov kernels that move particles at one temperature: small objects with `init` and `step`."""

from typing import Any

from nflib.montecarlo.kernels.hamiltonian import HMC
from nflib.montecarlo.kernels.independent import IndependentMetropolis
from nflib.montecarlo.kernels.interface import Kernel, Move
from nflib.montecarlo.kernels.langevin import MALA, ULA

__all__ = ["HMC", "MALA", "ULA", "IndependentMetropolis", "Kernel", "Move", "as_kernel"]


def as_kernel(kernel: Any) -> Kernel:
    """The kernel, HMC by default. Raises ValueError for what is none, such as the class in place of an object."""
    kernel = HMC() if kernel is None else kernel
    if isinstance(kernel, type) or not (hasattr(kernel, "init") and hasattr(kernel, "step")):
        raise ValueError(f"kernel is {kernel!r}; pass an object with init and step, such as HMC().")
    return kernel
