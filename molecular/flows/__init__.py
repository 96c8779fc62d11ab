"""The transferable flow on internal coordinates: Prose, exactly blind to translation and rotation."""

from molecular.flows.internal_prose import InternalProse

__all__ = ["InternalProse"]
