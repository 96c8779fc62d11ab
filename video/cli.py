"""The command line of `video`: options of functions become arguments, in YAML files too (``--config``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nflib.command_line import run_command
from nflib.training.config import TrainingConfig

# The words of a command line that are no names in Python.
ALIASES = {"--continue": "--continue_clip"}


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one sentence on standard error and exit status 1."""
    description = "Video from text, with likelihoods."
    run_command("python -m video", description, COMMANDS, arguments, positional=POSITIONAL, aliases=ALIASES)


def train_autoencoder(
    output: Path,
    training: TrainingConfig,
    initial: str | None = None,
    decoder_only: bool = False,
    noise: float = 0.15,
    divergence_weight: float = 1e-4,
    latent_channels: int = 8,
    channels: list[int] = [8, 16, 32, 48],  # noqa: B006 jsonargparse shows it, nobody changes it
) -> None:
    """Train a tiny AutoencoderKL on frames of moving digits; run again, it goes on from its last checkpoint.

    Args:
        output: folder for autoencoder/ (a folder of diffusers), checkpoints and logs.
        training: length, learning rate and everything else of the loop.
        initial: an autoencoder to start from: a folder or a name on the hub; its architecture then holds.
        decoder_only: leave its encoder, and so its latents, as they are: fine-tune the decoder on noisy latents.
        noise: standard deviation added to latents, as a fraction of theirs.
        divergence_weight: weight of the KL divergence of the latents from N(0, 1).
        latent_channels: channels of the latents.
        channels: of the levels; each but the first halves height and width.
    """
    from video.autoencoder import train_autoencoder as run

    run(
        output,
        training,
        initial=initial,
        decoder_only=decoder_only,
        noise=noise,
        divergence_weight=divergence_weight,
        latent_channels=latent_channels,
        channels=tuple(channels),
    )


def train(
    output: Path,
    autoencoder: str,
    training: TrainingConfig,
    text: str | None = None,
    initial: str | None = None,
    noise: float = 0.15,
    text_dropout: float = 0.1,
    num_frames: int = 16,
    frames_shown: int | None = None,
    clips: int = 8000,
    stills: int = 0,
    cuts: float = 0.3,
    drifted: float = 0.0,
    anchored: float = 0.0,
    recovery: list[str] = [],  # noqa: B006
    channels: int = 128,
    layers_per_block: list[int] = [1, 1, 1, 5],  # noqa: B006
    head_dim: int = 32,
    patch_size: int = 1,
    denoiser_layers: int = 0,
    more_layers: int = 0,
    learn_denoiser: bool = True,
    emphasis: float = 1.0,
    context_noise: float = 0.0,
) -> None:
    """Train a STARFlow-V on latents of moving digits; run again, it goes on from its last checkpoint.

    Args:
        output: folder for pipeline/ (the model with its parts), checkpoints and logs.
        autoencoder: folder of diffusers or name on the hub.
        training: length, learning rate and everything else of the loop.
        text: folder or name on the hub of a T5 encoder; default: the closed vocabulary of the prompts.
        initial: folder of a model to start from; its architecture then holds.
        noise: standard deviation added to latents.
        text_dropout: share of prompts that are left out, for guidance.
        num_frames: frames of a clip.
        frames_shown: how many of them training sees, to begin with short ones, which are quicker; default: all.
        clips: of moving digits, which are coded once, before training.
        stills: so many single frames of other clips are learnt beside each clip; they show what prompts look like.
        cuts: share of clips that are cut out of a longer motion, which is what continuing a clip takes.
        drifted: share of the cuts that begin with a digit gone astray, from which roll-outs learn to come back.
        anchored: share of the cuts that begin with the first frame of the whole motion, which roll-outs then keep.
        recovery: files of clips, made by the command of that name, that are learnt as well.
        channels: width of the transformers.
        layers_per_block: transformer layers of each block; the last is the deep one.
        head_dim: channels of an attention head.
        patch_size: latents to a token, along height and width.
        denoiser_layers: layers of the denoiser that is trained beside the flow; 0 for none (or the initial model's).
        more_layers: so many are added to the deep block of the initial model; at first they change nothing.
        learn_denoiser: false leaves the initial model's denoiser as it is, and takes less time.
        emphasis: how often the frame counts that follows what an anchored or a recovery clip is given.
        context_noise: largest deviation of more noise on what such a clip is given, but for the anchor itself.
    """
    from video.train import train_on_digits

    train_on_digits(
        output,
        training,
        autoencoder=autoencoder,
        text=text,
        initial=initial,
        noise=noise,
        text_dropout=text_dropout,
        num_frames=num_frames,
        frames_shown=frames_shown,
        num_clips=clips,
        stills=stills,
        cuts=cuts,
        drifted=drifted,
        anchored=anchored,
        recovery=recovery,
        channels=channels,
        layers_per_block=layers_per_block,
        head_dim=head_dim,
        patch_size=patch_size,
        denoiser_layers=denoiser_layers,
        more_layers=more_layers,
        learn_denoiser=learn_denoiser,
        emphasis=emphasis,
        context_noise=context_noise,
    )


def recovery(
    output: Path,
    model: Path | None = None,
    clips: int = 1000,
    windows: int = 4,
    guidance: float = 0.0,
    seed: int = 0,
) -> None:
    """Make clips that a model begins, on roll-outs from true first frames, and that end as they should.

    Args:
        output: a .safetensors file, which train takes by --recovery.
        model: folder of a trained model; default: the shipped one of moving digits.
        clips: how many are rolled out.
        windows: how many of each, every one of which begins a clip.
        guidance: weight of classifier-free guidance; 0 for none.
        seed: of the random numbers.
    """
    from video.generate import load_model
    from video.recovery import recovery_clips, save_recovery_clips

    made = recovery_clips(load_model(model, "cpu"), clips, windows, guidance=guidance, seed=seed)
    save_recovery_clips(made, output)
    sys.stdout.write(f"{len(made['inputs'])} clips written to {output}\n")


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


def evaluate(
    output: Path,
    model: Path | None = None,
    num_clips: int = 200,
    roll_outs: int = 40,
    guidance: float = 1.0,
    overlap: int | None = None,
    candidates: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Judge a model of moving digits: prompts followed, roll-outs, likelihoods against spoiled clips.

    Args:
        output: a JSON file for the figures.
        model: folder of a trained model; default: the shipped one.
        num_clips: clips generated for each setting, and held-out clips scored; 0 for none: roll-outs alone.
        roll_outs: clips of four times the length; 0 for none.
        guidance: weight that is compared with none.
        overlap: frames of a window of roll-outs that the next one is given; default half of it.
        candidates: of each window of roll-outs, compared with one.
        seed: of the random numbers.
        device: cpu, cuda or mps.
    """
    import json

    from video.evaluate import evaluate as run
    from video.generate import load_model

    figures = run(
        load_model(model, device),
        num_clips=num_clips,
        roll_outs=roll_outs,
        guidance=guidance,
        overlap=overlap,
        candidates=candidates,
        seed=seed,
    )
    text = json.dumps(figures, indent=1) + "\n"
    output.write_text(text)
    sys.stdout.write(text)


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "train_autoencoder": train_autoencoder,
    "recovery": recovery,
    "generate": generate,
    "edit": edit,
    "likelihood": likelihood,
    "evaluate": evaluate,
}
POSITIONAL = ("likelihood", "edit")
