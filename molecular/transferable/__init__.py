"""The transferable flow on internal coordinates: Prose, exactly blind to translation and rotation."""

from molecular.transferable.flow import InternalProse

__all__ = ["InternalProse"]
