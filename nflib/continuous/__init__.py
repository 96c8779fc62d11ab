"""Continuous flows: velocity fields, interpolants and flow maps, under the contract of every other flow."""

from nflib.continuous.couplings import (
    Coupling,
    FlowCoupling,
    IndependentCoupling,
    OptimalTransportCoupling,
    Pairs,
    pairs_of,
)
from nflib.continuous.diffusion import DiffusionProposal
from nflib.continuous.fields import (
    BlockwiseVelocity,
    FromDenoiser,
    FromNoise,
    FromScore,
    GuidedVelocity,
    RatioAware,
    RefinedVelocity,
    Velocity,
)
from nflib.continuous.interpolants import InterpolantFlow
from nflib.continuous.maps import AverageVelocity, FlowMap, FlowMapTransform, MLPFlowMap
from nflib.continuous.networks import AdaptiveRMSNorm, MLPVelocity, TimeFeatures, TransformerVelocity
from nflib.continuous.objectives import (
    Dispersive,
    Distill,
    FlowMatching,
    InterpolantMatching,
    Invertible,
    MeanFlow,
    NearReference,
    PathPolicyGradient,
    PseudoHuber,
    RefinerMatching,
    Reflow,
    Rollouts,
    SymmetricMatching,
    TwinFlow,
)
from nflib.continuous.ode import ODEFlow, ODETransform
from nflib.continuous.paths import (
    Coefficients,
    LinearPath,
    Path,
    TrigonometricPath,
    TwoSidedPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from nflib.continuous.potentials import potential_step, wave_residual
from nflib.continuous.refined import RefinedSteps
from nflib.continuous.solvers import RK4, Dopri5, Euler, FixedStep, Heun, PseudoCorrector, Solution, Solver
from nflib.continuous.times import LogitNormalTimes, ModeTimes, Times, UniformTimes, UShapedTimes, cosmap
from nflib.io.arguments import keep_arguments_of_parts

__all__ = [
    "RK4",
    "AdaptiveRMSNorm",
    "AverageVelocity",
    "BlockwiseVelocity",
    "Coefficients",
    "Coupling",
    "DiffusionProposal",
    "Dispersive",
    "Distill",
    "Dopri5",
    "Euler",
    "FixedStep",
    "FlowCoupling",
    "FlowMap",
    "FlowMapTransform",
    "FlowMatching",
    "FromDenoiser",
    "FromNoise",
    "FromScore",
    "GuidedVelocity",
    "Heun",
    "IndependentCoupling",
    "InterpolantFlow",
    "InterpolantMatching",
    "Invertible",
    "LinearPath",
    "LogitNormalTimes",
    "MLPFlowMap",
    "MLPVelocity",
    "MeanFlow",
    "ModeTimes",
    "NearReference",
    "ODEFlow",
    "ODETransform",
    "OptimalTransportCoupling",
    "Pairs",
    "Path",
    "PathPolicyGradient",
    "PseudoCorrector",
    "PseudoHuber",
    "RatioAware",
    "RefinedSteps",
    "RefinedVelocity",
    "RefinerMatching",
    "Reflow",
    "Rollouts",
    "Solution",
    "Solver",
    "SymmetricMatching",
    "TimeFeatures",
    "Times",
    "TransformerVelocity",
    "TrigonometricPath",
    "TwinFlow",
    "TwoSidedPath",
    "UShapedTimes",
    "UniformTimes",
    "VarianceExplodingPath",
    "VariancePreservingPath",
    "Velocity",
    "cosmap",
    "pairs_of",
    "potential_step",
    "wave_residual",
]

keep_arguments_of_parts("nflib.continuous")
