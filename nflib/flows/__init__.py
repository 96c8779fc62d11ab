"""Named flows: settings of the one engine."""

from nflib.flows.tarflow import TARFlow, autoregressive_blocks

__all__ = ["TARFlow", "autoregressive_blocks"]
