"""STARFlow and STARFlow-V: shallow maps inside each frame under one deep, conditional map over frames."""

from video.flows.decoding import FramesAtOnce
from video.flows.denoiser import Denoiser
from video.flows.starflow import STARFlow
from video.flows.starflow_v import STARFlowV

__all__ = ["Denoiser", "FramesAtOnce", "STARFlow", "STARFlowV"]
