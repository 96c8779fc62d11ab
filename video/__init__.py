"""Images and video: STARFlow and STARFlow-V on the engine of nflib."""

from video.checkpoints import load_starflow, load_tarflow
from video.denoiser import Denoiser
from video.model import VideoModel
from video.starflow import STARFlow
from video.starflow_v import STARFlowV

__all__ = ["Denoiser", "STARFlow", "STARFlowV", "VideoModel", "load_starflow", "load_tarflow"]
