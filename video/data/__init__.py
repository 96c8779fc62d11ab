"""Clips to train on: a user's own folder, its captions and labels, sizes, and latents that are encoded once."""

from video.data.clips import CaptionedClips, ClipSource, encode_clips
from video.data.dataset import ClipFolder
from video.data.folders import read_folder
from video.data.latent_cache import LatentCache, encode_clip_folder
from video.data.prompt_cache import PromptCache, encode_prompts
from video.data.samples import Listing, Sample
from video.data.sizes import Bucket, buckets, random_flip

__all__ = [
    "Bucket",
    "CaptionedClips",
    "ClipFolder",
    "ClipSource",
    "LatentCache",
    "Listing",
    "PromptCache",
    "Sample",
    "buckets",
    "encode_clip_folder",
    "encode_clips",
    "encode_prompts",
    "random_flip",
    "read_folder",
]
