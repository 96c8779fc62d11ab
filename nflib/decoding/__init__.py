"""Decoders, which invert autoregressive maps by one windowed fixed-point solver, and reports of what they did."""

from nflib.decoding.auto import Auto, plan
from nflib.decoding.fixed_point import GaussSeidelJacobi, Jacobi, Sequential
from nflib.decoding.initial_guesses import AffineGuess, PreviousFrame
from nflib.decoding.plans import DecodingPlan
from nflib.decoding.reports import DecodingReport, report
from nflib.interfaces import BlockReport, Decoder, Inversion

__all__ = [
    "AffineGuess",
    "Auto",
    "BlockReport",
    "Decoder",
    "DecodingPlan",
    "DecodingReport",
    "GaussSeidelJacobi",
    "Inversion",
    "Jacobi",
    "PreviousFrame",
    "Sequential",
    "plan",
    "report",
]
