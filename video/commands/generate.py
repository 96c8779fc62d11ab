"""Clips and images from prompts, into files."""

from __future__ import annotations

import math
from pathlib import Path

from video.commands.options import DrawingOptions, ModelOptions, OutputOptions, read_prompts
from video.media import read_clip, read_image
from video.threads import threads_for


def generate(
    model: ModelOptions,
    drawing: DrawingOptions,
    output: OutputOptions,
    prompt: list[str] | None = None,
    prompts: Path | None = None,
    first_frame: Path | None = None,
    continue_clip: Path | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    candidates: int = 1,
    num_clips: int = 1,
) -> list[Path]:
    """Generate clips from prompts, from a first frame, or as the continuation of a clip.

    Args:
        model: which one.
        drawing: how.
        output: where to.
        prompt: in plain words; may be given again, for a clip each; default: without one.
        prompts: a text file of prompts, one a line.
        first_frame: an image that clips begin with.
        continue_clip: a video that clips continue; for short --continue.
        frames: how many, those given included; beyond the model's length, window after window.
        seconds: how long, in the place of frames.
        candidates: so many of each window are drawn, and the one is kept whose frames tell most of the prompt.
        num_clips: clips of each prompt.

    Returns:
        The files.

    Raises:
        FileNotFoundError: files are missing.
        OSError: files cannot be written; those of the same names then stay.
        ValueError: files or settings that do not fit.
    """
    output.check()
    if first_frame is not None and continue_clip is not None:
        raise ValueError("a clip begins with --first-frame or continues --continue, not both.")
    if frames is not None and seconds is not None:
        raise ValueError("the length of a clip is given in --frames or --seconds, not both.")
    if num_clips < 1:
        raise ValueError(f"num_clips, of each prompt, must be a positive number, got {num_clips}.")
    wanted = [text for text in read_prompts(prompt, prompts) for _ in range(num_clips)]
    pipeline = model.load()
    if seconds is not None:
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds must be a positive number, got {seconds}.")
        frames = max(round(seconds * pipeline.settings.frame_rate), 1)
    shape = pipeline.settings.clip_shape[1:]
    given = None
    if first_frame is not None:
        given = read_image(first_frame, shape).unsqueeze(0)
    elif continue_clip is not None:
        given = read_clip(continue_clip, shape, pipeline.settings.frame_rate).unsqueeze(0)
    heading = {"seed": drawing.seed} | drawing.heading(pipeline)
    heading |= {"model": str(model.model or "shipped")}
    with threads_for(pipeline, len(wanted) * candidates):
        clips = pipeline.stream(wanted, frames, given, candidates=candidates, **drawing.settings(pipeline))
        return output.write(pipeline, clips, wanted, seed=drawing.seed, heading=heading)
