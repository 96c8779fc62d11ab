"""How good a model is: densities of held-out clips, distances of its samples from them, a page that shows both."""

from video.evaluation.features import EncodedFrames, PooledPixels, load_features
from video.evaluation.folders import FolderBatches
from video.evaluation.judgement import Judgement, judge, scored_quantity
from video.evaluation.page import write_judgement
from video.evaluation.scores import ClipBatches, HeldOutScores, Scores, bits_per_dim, score, score_held_out

__all__ = [
    "ClipBatches",
    "EncodedFrames",
    "FolderBatches",
    "HeldOutScores",
    "Judgement",
    "PooledPixels",
    "Scores",
    "bits_per_dim",
    "judge",
    "load_features",
    "score",
    "score_held_out",
    "scored_quantity",
    "write_judgement",
]
