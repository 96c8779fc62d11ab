"""Distances between samples: Wasserstein, exact, on tori and sliced; of features, Fréchet and kernel; with errors."""

from nflib.metrics.estimates import Estimate, bootstrap, grouped_jackknife
from nflib.metrics.features import PrecisionRecall, frechet_distance, kernel_distance, precision_recall
from nflib.metrics.one_dimensional import wasserstein_1d
from nflib.metrics.ranking import auroc
from nflib.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from nflib.metrics.transport import torus, wasserstein

__all__ = [
    "Estimate",
    "PrecisionRecall",
    "SlicedWasserstein",
    "auroc",
    "bootstrap",
    "frechet_distance",
    "grouped_jackknife",
    "kernel_distance",
    "precision_recall",
    "sliced_wasserstein",
    "torus",
    "wasserstein",
    "wasserstein_1d",
]
