"""Training of flows: one loop for one process or many, its objectives, and what it writes.

Lightning Fabric is imported inside `fit`, so that `import nflib.training` needs torch alone.
"""

from nflib.training.checkpoints import has_begun
from nflib.training.config import TrainingConfig
from nflib.training.context_dropout import ContextDropout
from nflib.training.data import BatchSource
from nflib.training.ema import ExponentialMovingAverage
from nflib.training.fabric import alone
from nflib.training.loop import fit
from nflib.training.objectives import LogVariance, Objective, ReverseKL, maximum_likelihood
from nflib.training.state import TrainingResult, TrainingState

__all__ = [
    "BatchSource",
    "ContextDropout",
    "ExponentialMovingAverage",
    "LogVariance",
    "Objective",
    "ReverseKL",
    "TrainingConfig",
    "TrainingResult",
    "TrainingState",
    "alone",
    "fit",
    "has_begun",
    "maximum_likelihood",
]
