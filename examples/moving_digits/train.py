"""Training on moving digits, stage by stage: an autoencoder, then a flow on its latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from examples.moving_digits.data import CUTS, ON_AND_ON, WORDS, MovingDigits
from examples.moving_digits.grown import grown, with_more_layers
from examples.moving_digits.recovery import load_recovery_clips
from nflib.training import TrainingResult
from nflib.training.config import TrainingConfig
from video.flows.starflow_v import STARFlowV
from video.latents.load import load_latents
from video.pipeline import Pipeline
from video.pipeline_settings import PipelineSettings
from video.text.encoders import TextEncoder, Words, load_text
from video.training.autoencoder import AutoencoderOptions
from video.training.autoencoder import train_autoencoder as train_on_frames
from video.training.clips import train_on_clips

FRAME_RATE = 8.0
# The prompts of a clip's later windows: directions in prompts are those of a clip's beginning.
LATER = (r"moving (?:up|down|left|right)(?: and (?:left|right))?", "moving on")
# The same of windows that have the clip's first frame, whatever the prompt says of the motion, if anything.
ANCHORED = (r"(?: ?moving (?:up|down|left|right|on)(?: and (?:left|right|on))?)?(?=,|$)", f" moving {ON_AND_ON}")
TEXT_LENGTH = 8
VALIDATION_CLIPS = 256


class Frames:
    """Single frames of moving digits, most of them with an afterglow; a `nflib.training.BatchSource`."""

    def __init__(self, split: str, num_frames: int, seed: int = 0):
        self.clips = MovingDigits(split, num_frames, 1, cuts=0.7, seed=seed)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Tensor) -> dict[str, Tensor]:
        return {"inputs": self.clips.clips(indices).frames[:, 0]}


def train_autoencoder(
    output: Path,
    training: TrainingConfig,
    channels: list[int] = [8, 16, 32, 48],  # noqa: B006 jsonargparse shows it, nobody changes it
    **options: Any,
) -> TrainingResult:
    """Train a tiny AutoencoderKL on frames of moving digits; run again, it goes on from its last checkpoint.

    Args:
        output: folder for autoencoder/ (a folder of diffusers), checkpoints and logs.
        training: length, learning rate and everything else of the loop.
        channels: of the levels; each but the first halves height and width.
        options: of `video.training.AutoencoderOptions`.
    """
    chosen = AutoencoderOptions(channels=channels, **options)
    return train_on_frames(
        chosen.latents(1, training.seed),
        Frames("train", 1_000_000, training.seed),
        Frames("validation", 512, training.seed + 1),
        output,
        training,
        chosen,
    )


def train(
    output: Path,
    autoencoder: str,
    training: TrainingConfig,
    text: str | None = None,
    initial: str | None = None,
    noise: float = 0.15,
    prompt_dropout: float = 0.1,
    num_frames: int = 16,
    frames_shown: int | None = None,
    clips: int = 8000,
    stills: int = 0,
    cuts: float = CUTS,
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
) -> TrainingResult:
    """Train a STARFlow-V on latents of moving digits; run again, it goes on from its last checkpoint.

    Args:
        output: folder for pipeline/ (the model with its parts), checkpoints and logs.
        autoencoder: folder of diffusers or name on the hub.
        training: length, learning rate and everything else of the loop.
        text: folder or name on the hub of a T5 encoder; default: the closed vocabulary of the prompts.
        initial: folder of a model to start from; its architecture and its text then hold.
        noise: standard deviation added to latents.
        prompt_dropout: share of prompts that are left out, for guidance.
        num_frames: frames of a clip.
        frames_shown: how many of them training sees, to begin with short ones, which are quicker; default: all.
        clips: of moving digits, which are encoded once, before training.
        stills: so many single frames of other clips, half of them first ones, are learnt beside each clip; they show
            what prompts look like, and candidates are chosen by likelihoods of single frames.
        cuts: share of clips that are cut out of a longer motion, which is what continuing a clip takes.
        drifted: share of the cuts whose first frames show another digit mixed in (exposure bias), from which roll-outs
            learn to come back.
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

    Raises:
        FileNotFoundError: parts are missing.
        ValueError: parts that do not fit, or settings out of range.
    """
    frames_shown = num_frames if frames_shown is None else frames_shown
    if stills < 0:
        raise ValueError(f"stills must be zero or more, got {stills}.")
    if more_layers < 0 or (more_layers and initial is None):
        raise ValueError(
            f"more_layers are added to an initial model: name one, and give a positive number, not {more_layers}."
        )
    if not 0 < frames_shown <= num_frames:
        raise ValueError(f"frames_shown must lie in 1 … num_frames ({num_frames}), got {frames_shown}.")
    latents = load_latents(autoencoder)
    source = MovingDigits(
        "train", clips, frames_shown, cuts=cuts, drifted=drifted, anchored=anchored, seed=training.seed
    )
    clip_shape = (num_frames, *source.clips(torch.zeros(1, dtype=torch.long)).frames.shape[2:])
    settings = PipelineSettings(clip_shape, noise, FRAME_RATE, LATER, ANCHORED if anchored else None)
    torch.manual_seed(training.seed)
    denoiser = {"num_layers": denoiser_layers, "past": 4} if denoiser_layers else None
    if initial is None:
        encoder: TextEncoder = Words(WORDS, TEXT_LENGTH) if text is None else load_text(text)
        flow = STARFlowV(
            latents.latent_shape(clip_shape),
            patch_size,
            channels,
            layers_per_block,
            text_length=encoder.shape[0],
            text_channels=encoder.shape[1],
            layer={"head_dim": head_dim},
            denoiser=denoiser,
        )
    else:
        begun = Pipeline.load(initial)
        flow, encoder = begun.flow, begun.text
        if settings.anchored is None:
            settings = replace(settings, anchored=begun.settings.anchored)
        if flow.denoiser is None and denoiser is not None:
            flow = grown(flow, denoiser=denoiser)
        if more_layers:
            flow = with_more_layers(flow, more_layers)
    recovering = load_recovery_clips(recovery) if recovery else None
    count = clips + (0 if recovering is None else len(recovering["inputs"]))
    result = train_on_clips(
        flow,
        latents,
        encoder,
        source,
        MovingDigits("validation", VALIDATION_CLIPS, frames_shown, seed=training.seed + 1),
        output,
        training,
        noise=noise,
        prompt_dropout=prompt_dropout,
        unconditional=("", settings.anchored_prompt("")),
        stills=MovingDigits("train", count * stills, 1, cuts=0.5, seed=training.seed + 2) if stills else None,
        encoded=recovering,
        learn_denoiser=learn_denoiser,
        emphasis=emphasis,
        context_noise=context_noise,
    )
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        Pipeline(flow.cpu(), latents, encoder, settings).save(Path(output) / "pipeline")
    return result
