"""Monte Carlo with exact proposal densities: importance sampling, sequential Monte Carlo, resampling."""

from nflib.montecarlo.adaptation import AcceptanceTarget, FixedStepSizes, StepSizes
from nflib.montecarlo.chains import Chains, run_chains
from nflib.montecarlo.coordinates import TransformedProposal, TransformedTarget, score_scales, transform_back
from nflib.montecarlo.densities import BoltzmannDensity, Proposal, Target, as_proposal, as_target
from nflib.montecarlo.diagnostics import effective_sample_size, normalized_weights, pareto_k
from nflib.montecarlo.history import History
from nflib.montecarlo.importance import importance_sample
from nflib.montecarlo.kernels import HMC, MALA, ULA, IndependentMetropolis, Kernel, Move
from nflib.montecarlo.mixture import Mixture
from nflib.montecarlo.resampling import resample
from nflib.montecarlo.sequential import SMCSamples, check_smc_options, smc
from nflib.montecarlo.temperatures import AdaptiveTemperatures, FixedTemperatures, Temperatures
from nflib.montecarlo.weighted_samples import WeightedSamples

__all__ = [
    "HMC",
    "MALA",
    "ULA",
    "AcceptanceTarget",
    "AdaptiveTemperatures",
    "BoltzmannDensity",
    "Chains",
    "FixedStepSizes",
    "FixedTemperatures",
    "History",
    "IndependentMetropolis",
    "Kernel",
    "Mixture",
    "Move",
    "Proposal",
    "SMCSamples",
    "StepSizes",
    "Target",
    "Temperatures",
    "TransformedProposal",
    "TransformedTarget",
    "WeightedSamples",
    "as_proposal",
    "as_target",
    "check_smc_options",
    "effective_sample_size",
    "importance_sample",
    "normalized_weights",
    "pareto_k",
    "resample",
    "run_chains",
    "score_scales",
    "smc",
    "transform_back",
]
