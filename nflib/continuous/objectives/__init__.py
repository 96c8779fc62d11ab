"""Objectives of `nflib.training.fit` for velocity fields and flow maps."""

from nflib.continuous.objectives.dispersive import Dispersive
from nflib.continuous.objectives.distill import Distill
from nflib.continuous.objectives.flow_matching import FlowMatching, PseudoHuber, Reflow, squared_error
from nflib.continuous.objectives.interpolant_matching import InterpolantMatching
from nflib.continuous.objectives.invertible import Invertible
from nflib.continuous.objectives.mean_flow import MeanFlow
from nflib.continuous.objectives.near_reference import NearReference
from nflib.continuous.objectives.policy import PathPolicyGradient, Rollouts
from nflib.continuous.objectives.refiner_matching import RefinerMatching
from nflib.continuous.objectives.symmetric_matching import SymmetricMatching
from nflib.continuous.objectives.twin_flow import TwinFlow

__all__ = [
    "Dispersive",
    "Distill",
    "FlowMatching",
    "InterpolantMatching",
    "Invertible",
    "MeanFlow",
    "NearReference",
    "PathPolicyGradient",
    "PseudoHuber",
    "RefinerMatching",
    "Reflow",
    "Rollouts",
    "SymmetricMatching",
    "TwinFlow",
    "squared_error",
]
