"""Images and video: STARFlow and STARFlow-V on the engine of nflib."""

from video.conversion import load_starflow, load_tarflow
from video.flows import Denoiser, STARFlow, STARFlowV
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings

__all__ = ["Denoiser", "Pipeline", "PipelineSettings", "STARFlow", "STARFlowV", "load_starflow", "load_tarflow"]
