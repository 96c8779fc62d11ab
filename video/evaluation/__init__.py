"""How good a model is: densities of held-out clips, distances of its samples from them, a page that shows both."""

from video.evaluation.features import EncodedFrames, PooledPixels, load_features
from video.evaluation.folders import FolderBatches
from video.evaluation.judgement import Judgement, judge, scored_quantity
from video.evaluation.page import write_judgement
from video.evaluation.scores import ClipBatches, PassedOver, Scores, bits_per_dim, pass_over, score

__all__ = [
    "ClipBatches",
    "EncodedFrames",
    "FolderBatches",
    "Judgement",
    "PassedOver",
    "PooledPixels",
    "Scores",
    "bits_per_dim",
    "judge",
    "load_features",
    "pass_over",
    "score",
    "scored_quantity",
    "write_judgement",
]
