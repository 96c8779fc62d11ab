"""Released weights and configurations, as models of ours."""

from video.conversion.released import load_starflow, load_tarflow
from video.conversion.released_config import read_released_config

__all__ = ["load_starflow", "load_tarflow", "read_released_config"]
