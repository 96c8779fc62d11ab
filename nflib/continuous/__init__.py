"""Continuous flows: velocity fields, interpolants and flow maps, under the contract of every other flow."""

from nflib.continuous.couplings import Coupling, Independent
from nflib.continuous.networks import AdaptiveRMSNorm, MLPVelocity, TimeFeatures, TransformerVelocity
from nflib.continuous.objectives import FlowMatching
from nflib.continuous.ode import ODEFlow, ODETransform, Velocity
from nflib.continuous.paths import (
    Coefficients,
    Linear,
    Path,
    Trigonometric,
    TwoSided,
    VarianceExploding,
    VariancePreserving,
)
from nflib.continuous.solvers import RK4, Dopri5, Euler, FixedStep, Heun, Solution, Solver
from nflib.continuous.times import Times, Uniform
from nflib.io.arguments import keep_arguments_of_parts

__all__ = [
    "RK4",
    "AdaptiveRMSNorm",
    "Coefficients",
    "Coupling",
    "Dopri5",
    "Euler",
    "FixedStep",
    "FlowMatching",
    "Heun",
    "Independent",
    "Linear",
    "MLPVelocity",
    "ODEFlow",
    "ODETransform",
    "Path",
    "Solution",
    "Solver",
    "TimeFeatures",
    "Times",
    "TransformerVelocity",
    "Trigonometric",
    "TwoSided",
    "Uniform",
    "VarianceExploding",
    "VariancePreserving",
    "Velocity",
]

keep_arguments_of_parts("nflib.continuous")
