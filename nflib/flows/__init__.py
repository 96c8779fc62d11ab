"""Flows, and named ones, which are settings of the one engine."""

from nflib.flows.flow import Flow
from nflib.flows.given import GivenFlow
from nflib.flows.tarflow import TARFlow, autoregressive_blocks

__all__ = ["Flow", "GivenFlow", "TARFlow", "autoregressive_blocks"]
