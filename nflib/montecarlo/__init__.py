"""Monte Carlo with exact proposal densities: importance sampling, sequential Monte Carlo, resampling."""

from nflib.montecarlo.adaptation import AcceptanceTarget, FixedStepSizes
from nflib.montecarlo.chains import Chains, run_chains
from nflib.montecarlo.coordinates import TransformedProposal, TransformedTarget, score_scales, transform_back
from nflib.montecarlo.densities import BoltzmannDensity, Proposal, Target, as_proposal, as_target
from nflib.montecarlo.history import History
from nflib.montecarlo.importance import importance_sample
from nflib.montecarlo.kernels import HMC, MALA, ULA, IndependentMetropolis
from nflib.montecarlo.mixture import Mixture
from nflib.montecarlo.resampling import resample
from nflib.montecarlo.smc import SMCSamples, check_smc_options, smc
from nflib.montecarlo.temperatures import AdaptiveTemperatures, FixedTemperatures
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
    "Mixture",
    "Proposal",
    "SMCSamples",
    "Target",
    "TransformedProposal",
    "TransformedTarget",
    "WeightedSamples",
    "as_proposal",
    "as_target",
    "check_smc_options",
    "importance_sample",
    "resample",
    "run_chains",
    "score_scales",
    "smc",
    "transform_back",
]
