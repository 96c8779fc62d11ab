"""Markov kernels that move particles at one temperature: small objects with `init` and `step`."""

from typing import Any

from nflib.errors import check_object
from nflib.montecarlo.kernels.hamiltonian import HMC
from nflib.montecarlo.kernels.independent import IndependentMetropolis
from nflib.montecarlo.kernels.interface import Kernel, Move, Traits
from nflib.montecarlo.kernels.langevin import MALA, ULA

__all__ = ["HMC", "MALA", "ULA", "IndependentMetropolis", "Kernel", "Move", "Traits", "as_kernel"]


def as_kernel(kernel: Any) -> Kernel:
    """The kernel, HMC by default. Raises ValueError for what is none, such as the class in place of an object."""
    kernel = HMC() if kernel is None else kernel
    check_object("kernel", kernel, "HMC()", "init", "step")
    return kernel  # type: ignore[no-any-return]
