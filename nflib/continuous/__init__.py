"""Continuous flows: velocity fields, interpolants and flow maps, under the contract of every other flow."""

from nflib.continuous.couplings import Coupling, Independent
from nflib.continuous.diffusion import DiffusionProposal
from nflib.continuous.fields import Blockwise, FromDenoiser, FromNoise, FromScore, Guided, RatioAware, Velocity
from nflib.continuous.interpolants import InterpolantFlow, InterpolantMatching, SymmetricMatching
from nflib.continuous.networks import MLPVelocity, TimeFeatures
from nflib.continuous.objectives import FlowMatching
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
from nflib.continuous.solvers import RK4, Dopri5, Euler, FixedStep, Heun, PseudoCorrector, Solution, Solver
from nflib.continuous.times import Times, Uniform
from nflib.io.arguments import keep_arguments_of_parts

__all__ = [
    "RK4",
    "Blockwise",
    "Coefficients",
    "Coupling",
    "DiffusionProposal",
    "Dopri5",
    "Euler",
    "FixedStep",
    "FlowMatching",
    "FromDenoiser",
    "FromNoise",
    "FromScore",
    "Guided",
    "Heun",
    "Independent",
    "InterpolantFlow",
    "InterpolantMatching",
    "Linear",
    "MLPVelocity",
    "ODEFlow",
    "ODETransform",
    "Path",
    "PseudoCorrector",
    "RatioAware",
    "Solution",
    "Solver",
    "SymmetricMatching",
    "TimeFeatures",
    "Times",
    "Trigonometric",
    "TwoSided",
    "Uniform",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
]

keep_arguments_of_parts("nflib.continuous")
