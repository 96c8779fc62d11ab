"""Monte Carlo with exact proposal densities: importance sampling, weighted samples, resampling."""

from nflib.montecarlo.importance import BoltzmannDensity, Proposal, Target, importance_sample
from nflib.montecarlo.resampling import resample
from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = ["BoltzmannDensity", "Proposal", "Target", "WeightedSamples", "importance_sample", "resample"]
