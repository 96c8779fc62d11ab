"""Continuous flows: velocity fields, interpolants and flow maps, under the contract of every other flow."""

from nflib.continuous.couplings import Coupling, FromFlow, Independent, OptimalTransport, Pairs, pairs_of
from nflib.continuous.diffusion import DiffusionProposal
from nflib.continuous.fields import Blockwise, FromDenoiser, FromNoise, FromScore, Guided, RatioAware, Refined, Velocity
from nflib.continuous.interpolants import InterpolantFlow, InterpolantMatching, SymmetricMatching
from nflib.continuous.maps import AverageVelocity, FlowMap, FlowMapTransform, MLPFlowMap
from nflib.continuous.networks import AdaptiveRMSNorm, MLPVelocity, TimeFeatures, TransformerVelocity
from nflib.continuous.objectives import (
    Dispersive,
    Distill,
    FlowMatching,
    Invertible,
    MeanFlow,
    NearReference,
    PathPolicyGradient,
    PseudoHuber,
    RefinerMatching,
    Reflow,
    Rollouts,
    TwinFlow,
)
from nflib.continuous.ode import ODEFlow, ODETransform
from nflib.continuous.paths import (
    Coefficients,
    Linear,
    Path,
    Trigonometric,
    TwoSided,
    VarianceExploding,
    VariancePreserving,
)
from nflib.continuous.potentials import potential_step, wave_residual
from nflib.continuous.refined import RefinedSteps
from nflib.continuous.solvers import RK4, Dopri5, Euler, FixedStep, Heun, PseudoCorrector, Solution, Solver
from nflib.continuous.times import LogitNormal, Mode, Times, Uniform, UShaped, cosmap
from nflib.io.arguments import keep_arguments_of_parts

__all__ = [
    "RK4",
    "AdaptiveRMSNorm",
    "AverageVelocity",
    "Blockwise",
    "Coefficients",
    "Coupling",
    "DiffusionProposal",
    "Dispersive",
    "Distill",
    "Dopri5",
    "Euler",
    "FixedStep",
    "FlowMap",
    "FlowMapTransform",
    "FlowMatching",
    "FromDenoiser",
    "FromFlow",
    "FromNoise",
    "FromScore",
    "Guided",
    "Heun",
    "Independent",
    "InterpolantFlow",
    "InterpolantMatching",
    "Invertible",
    "Linear",
    "LogitNormal",
    "MLPFlowMap",
    "MLPVelocity",
    "MeanFlow",
    "Mode",
    "NearReference",
    "ODEFlow",
    "ODETransform",
    "OptimalTransport",
    "Pairs",
    "Path",
    "PathPolicyGradient",
    "PseudoCorrector",
    "PseudoHuber",
    "RatioAware",
    "Refined",
    "RefinedSteps",
    "RefinerMatching",
    "Reflow",
    "Rollouts",
    "Solution",
    "Solver",
    "SymmetricMatching",
    "TimeFeatures",
    "Times",
    "TransformerVelocity",
    "Trigonometric",
    "TwinFlow",
    "TwoSided",
    "UShaped",
    "Uniform",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
    "cosmap",
    "pairs_of",
    "potential_step",
    "wave_residual",
]

keep_arguments_of_parts("nflib.continuous")
