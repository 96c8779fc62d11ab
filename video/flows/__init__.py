"""STARFlow and STARFlow-V, shallow maps inside each frame under one deep, conditional map; other flows of images."""

from video.flows.decoding import FramesAtOnce
from video.flows.denoiser import Denoiser
from video.flows.images import GaussianizedTARFlow, ImageClips, ScaledTARFlow, as_clips
from video.flows.starflow import STARFlow
from video.flows.starflow_v import STARFlowV

__all__ = [
    "Denoiser",
    "FramesAtOnce",
    "GaussianizedTARFlow",
    "ImageClips",
    "STARFlow",
    "STARFlowV",
    "ScaledTARFlow",
    "as_clips",
]
