"""How an autoregressive map is inverted: one windowed fixed-point solver, chosen by the caller, and its report."""

from nflib.decoding.choice import Decoder, current, using
from nflib.decoding.fixed_point import GaussSeidelJacobi, Jacobi, Sequential
from nflib.decoding.reports import BlockReport, DecodingReport, report
from nflib.decoding.starts import PreviousFrame

__all__ = [
    "BlockReport",
    "Decoder",
    "DecodingReport",
    "GaussSeidelJacobi",
    "Jacobi",
    "PreviousFrame",
    "Sequential",
    "current",
    "report",
    "using",
]
