"""Distances between samples: exact Wasserstein, on tori too, and sliced Wasserstein with control variates."""

from nflib.metrics.one_dimensional import wasserstein_1d
from nflib.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from nflib.metrics.transport import torus, wasserstein

__all__ = ["SlicedWasserstein", "sliced_wasserstein", "torus", "wasserstein", "wasserstein_1d"]
