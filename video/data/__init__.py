"""Clips with prompts: what sources of them offer, and their latents."""

from video.data.clips import CaptionedClips, ClipSource, encode_clips

__all__ = ["CaptionedClips", "ClipSource", "encode_clips"]
