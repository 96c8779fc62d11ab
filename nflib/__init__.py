"""Exact likelihoods and samples from transformer autoregressive normalizing flows."""

from importlib import import_module
from typing import Any

from nflib import flows
from nflib.decoding import GaussSeidelJacobi, Jacobi, Sequential
from nflib.flows.flow import Flow
from nflib.io.arguments import keep_arguments, keep_arguments_of_parts
from nflib.transforms import LinearGuidance, ProductGuidance
from nflib.version import __version__

__all__ = ["Flow", "__version__", "flows"]

_PACKAGES = ("continuous", "decoding", "io", "metrics", "montecarlo", "networks", "training", "transforms")

# So that flows composed of these parts can be saved and loaded as the named ones can.
for _package in ("nflib.distributions", "nflib.networks", "nflib.transforms", "nflows"):
    keep_arguments_of_parts(_package)
for _class in (LinearGuidance, ProductGuidance, GaussSeidelJacobi, Jacobi, Sequential):
    keep_arguments(_class)


def __getattr__(name: str) -> Any:
    """The packages of this one, imported when they are first used."""
    if name in _PACKAGES:
        return import_module(f"nflib.{name}")
    raise AttributeError(f"module 'nflib' has no attribute {name!r}")
