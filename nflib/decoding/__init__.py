"""How an autoregressive map is inverted: one windowed fixed-point solver, chosen by the caller, and its report."""

from nflib.decoding.auto import Auto, plan
from nflib.decoding.choice import Decoder, current, using
from nflib.decoding.compiled import Compiled
from nflib.decoding.fixed_point import GaussSeidelJacobi, Jacobi, Sequential
from nflib.decoding.plans import DecodingPlan
from nflib.decoding.reports import BlockReport, DecodingReport, report
from nflib.decoding.starts import AffineStart, PreviousFrame

__all__ = [
    "AffineStart",
    "Auto",
    "BlockReport",
    "Compiled",
    "Decoder",
    "DecodingPlan",
    "DecodingReport",
    "GaussSeidelJacobi",
    "Jacobi",
    "PreviousFrame",
    "Sequential",
    "current",
    "plan",
    "report",
    "using",
]
