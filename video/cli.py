"""The command line of `video`: options of functions become arguments, in YAML files too (``--config``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nflib.command_line import run_command

# The words of a command line that are no names in Python.
ALIASES = {"--continue": "--continue_clip"}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    description = "Video from text, with likelihoods."
    run_command("python -m video", description, COMMANDS, arguments, positional=POSITIONAL, aliases=ALIASES)


def generate(
    prompt: str = "",
    out: Path | None = None,
    gallery: Path | None = None,
    model: Path | None = None,
    first_frame: Path | None = None,
    continue_clip: Path | None = None,
    frames: int | None = None,
    guidance: float = 0.0,
    denoise: str = "score",
    overlap: int | None = None,
    candidates: int = 1,
    num_clips: int = 1,
    decoding: str = "auto",
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Generate clips from a prompt, from a first frame, or as the continuation of a clip.

    Args:
        prompt: in plain words; several, one clip each, are separated by semicolons. Empty: without one.
        out: .mp4 (.mkv, .webm …), .gif, or .png for a strip of frames; several clips are numbered.
        gallery: a page of HTML with all clips, prompts and likelihoods.
        model: folder of a trained model; default: the shipped one of moving digits.
        first_frame: an image that clips begin with.
        continue_clip: a video that clips continue; for short --continue.
        frames: how many, those given included; beyond the model's length, window after window.
        guidance: weight of classifier-free guidance; 0 for none.
        denoise: how noise is taken off the latents: score, learned or none.
        overlap: frames of a window that the next one is given; default half of it, 0 for a single window.
        candidates: so many of each window are drawn, and the one is kept whose frames tell most of the prompt.
        num_clips: clips of each prompt.
        decoding: sequential, jacobi (a few frames at once, from the one before), or auto: the faster of the two.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    from video.generate import generate_to_files

    prompts = [part.strip() for part in prompt.split(";")]
    generate_to_files(
        [part for part in prompts for _ in range(num_clips)],
        out,
        gallery=gallery,
        model=model,
        first_frame=first_frame,
        continue_clip=continue_clip,
        frames=frames,
        guidance=guidance,
        denoise=denoise,
        overlap=overlap,
        candidates=candidates,
        decoding=decoding,
        seed=seed,
        device=device,
    )


def edit(
    clip: Path,
    prompt: str = "",
    source_prompt: str = "",
    out: Path | None = None,
    gallery: Path | None = None,
    model: Path | None = None,
    keep_frames: int = 0,
    fresh: float = 0.0,
    guidance: float = 0.0,
    denoise: str = "score",
    overlap: int | None = None,
    decoding: str = "auto",
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Edit a clip: its noise under one prompt, decoded under another.

    Args:
        clip: a video, GIF or image.
        prompt: of what the clip is to become; several, one clip each, are separated by semicolons. Empty: without one.
        source_prompt: of what the clip is; empty: without one.
        out: .mp4 (.mkv, .webm …), .gif, or .png for a strip of frames; several clips are numbered.
        gallery: a page of HTML with the clip, what became of it, prompts and likelihoods.
        model: folder of a trained model; default: the shipped one of moving digits.
        keep_frames: how many of the first latent frames stay as they are.
        fresh: share of new noise in 0 … 1: 0 keeps all of the clip's own, 1 none of it.
        guidance: weight of classifier-free guidance; 0 for none.
        denoise: how noise is taken off the latents: score, learned or none.
        overlap: frames of a window that the next one is given; default half of it, 0 for a single window.
        decoding: sequential, jacobi (a few frames at once, from the one before), or auto: the faster of the two.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    from video.generate import edit_to_files

    edit_to_files(
        clip,
        [part.strip() for part in prompt.split(";")],
        source_prompt,
        out,
        gallery=gallery,
        model=model,
        keep_frames=keep_frames,
        fresh=fresh,
        guidance=guidance,
        denoise=denoise,
        overlap=overlap,
        decoding=decoding,
        seed=seed,
        device=device,
    )


def likelihood(clip: Path, prompt: str = "", model: Path | None = None, seed: int = 0, device: str = "cpu") -> None:
    """Print the negative log-density of a clip, in nats per dimension of its noisy latents, frame by frame.

    Args:
        clip: a video, GIF or image.
        prompt: given which; empty: without one.
        model: folder of a trained model; default: the shipped one of moving digits.
        seed: of the noise on the latents.
        device: cpu, cuda or mps.
    """
    from video.generate import likelihood_of_file

    values = likelihood_of_file(clip, prompt, model=model, seed=seed, device=device).tolist()
    lines = [f"{number:5d}  {value:8.4f}" for number, value in enumerate(values, 1)]
    mean = sum(values) / len(values)
    sys.stdout.write("\n".join(["frame  nats per dimension", *lines, f" mean  {mean:8.4f}"]) + "\n")


COMMANDS: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "edit": edit,
    "likelihood": likelihood,
}
POSITIONAL = ("likelihood", "edit")
