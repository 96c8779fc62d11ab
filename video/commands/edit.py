"""A clip under other prompts, into files."""

from __future__ import annotations

from pathlib import Path

from video.commands.options import DrawingOptions, ModelOptions, OutputOptions, read_filled, read_prompts
from video.threads import threads_for


def edit(
    clip: Path,
    model: ModelOptions,
    drawing: DrawingOptions,
    output: OutputOptions,
    prompt: list[str] | None = None,
    prompts: Path | None = None,
    source_prompt: str = "",
    keep_frames: int = 0,
    strength: float = 0.0,
) -> list[Path]:
    """Edit a clip: its noise under one prompt, decoded under another.

    Args:
        clip: a video, GIF or image.
        model: which one.
        drawing: how.
        output: where to; a gallery shows the clip itself first.
        prompt: of what the clip is to become; may be given again, for a clip each; default: without one.
        prompts: a text file of prompts, one a line.
        source_prompt: of what the clip is; empty: without one.
        keep_frames: how many of the first latent frames stay as they are.
        strength: share of new noise in 0 … 1: 0 keeps all of the clip's own, 1 none of it.

    Returns:
        The files.

    Raises:
        FileNotFoundError: files are missing.
        OSError: files cannot be written; those of the same names then stay.
        ValueError: files or settings that do not fit.
    """
    output.check()
    wanted = read_prompts(prompt, prompts)
    pipeline = model.load()
    given = read_filled(pipeline, clip)
    with threads_for(pipeline, len(wanted)):
        clips = pipeline.edit(
            given,
            [source_prompt] * len(wanted),
            wanted,
            keep_frames=keep_frames,
            strength=strength,
            **drawing.settings(pipeline),
        )
    heading = {"clip": str(clip), "source prompt": repr(source_prompt), "kept frames": keep_frames}
    heading |= {"strength": strength, "seed": drawing.seed} | drawing.heading(pipeline)
    heading |= {"model": str(model.model or "shipped")}
    return output.write(pipeline, [clips], wanted, seed=drawing.seed, heading=heading, source=(given, source_prompt))
