"""Normalizing flows: the general `Flow`, the `TARFlow`, and `GivenFlow`, a flow with its context fixed."""

from nflib.flows.flow import Flow
from nflib.flows.given import GivenFlow
from nflib.flows.tarflow import TARFlow, autoregressive_blocks

__all__ = ["Flow", "GivenFlow", "TARFlow", "autoregressive_blocks"]
