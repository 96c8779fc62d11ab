"""Exact likelihoods and samples from transformer autoregressive normalizing flows."""

from nflib import flows
from nflib.flows.flow import Flow
from nflib.version import __version__

__all__ = ["Flow", "__version__", "flows"]
