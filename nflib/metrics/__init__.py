"""Distances between samples, with errors: Wasserstein, of features, Fréchet and kernel; and entropy production."""

from nflib.metrics.entropy_production import (
    ImplicitScoreMatching,
    entropy_production_bound,
    entropy_production_rate,
    linear_entropy_production_rate,
)
from nflib.metrics.estimates import Estimate, bootstrap, grouped_jackknife
from nflib.metrics.features import PrecisionRecall, frechet_distance, kernel_distance, precision_recall
from nflib.metrics.one_dimensional import wasserstein_1d
from nflib.metrics.ranking import auroc
from nflib.metrics.sliced import SlicedWasserstein, sliced_wasserstein
from nflib.metrics.transport import torus, wasserstein

__all__ = [
    "Estimate",
    "ImplicitScoreMatching",
    "PrecisionRecall",
    "SlicedWasserstein",
    "auroc",
    "bootstrap",
    "entropy_production_bound",
    "entropy_production_rate",
    "frechet_distance",
    "grouped_jackknife",
    "kernel_distance",
    "linear_entropy_production_rate",
    "precision_recall",
    "sliced_wasserstein",
    "torus",
    "wasserstein",
    "wasserstein_1d",
]
