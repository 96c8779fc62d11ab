"""How an autoregressive map is inverted."""

from nflib.decoding.sequential import Sequential

__all__ = ["Sequential"]
