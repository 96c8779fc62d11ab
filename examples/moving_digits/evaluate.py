"""How good a model of moving digits is: prompts followed, roll-outs that last, likelihoods that know what is wrong."""

from __future__ import annotations

import functools
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from examples.moving_digits.data import (
    DIGIT,
    DIRECTIONS,
    STRAIGHT,
    Clips,
    MovingDigits,
    light,
    light_centres,
    sharp_light,
)
from nflib.io.documents import finite_or_none, write_json
from nflib.metrics import auroc
from video.evaluation import score
from video.pipeline import Pipeline

log = logging.getLogger(__name__)


def crops(frames: Tensor) -> Tensor:
    """The brightest square of a digit's size in each frame: ``(N, H, W)`` in 0 … 1 to ``(N, 14, 14)``."""
    total = avg_pool2d(sharp_light(frames).unsqueeze(1), DIGIT, stride=1, padding=DIGIT // 2).squeeze(1)
    # Many squares may hold all of a thin digit: the middle one of them is taken.
    best = (total >= 0.999 * total.amax((1, 2), keepdim=True)).float()
    size = total.shape[-1]
    places = torch.arange(size, dtype=frames.dtype)
    count = best.sum((1, 2))
    row, column = (best.sum(axis) @ places / count for axis in (2, 1))
    padded = torch.nn.functional.pad(frames, (DIGIT // 2,) * 4)
    offsets = torch.arange(DIGIT)
    # Halves go up everywhere, so that a digit's crop does not depend on where it is.
    rows, columns = ((middle + 0.501).long()[:, None] + offsets for middle in (row, column))
    return padded[torch.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None, :]]


class DigitClassifier:
    """Reads digits in frames: a support vector machine on `crops`, trained on frames of the held-out handwriting."""

    def __init__(self, num_clips: int = 1500, seed: int = 0):
        from sklearn.svm import SVC

        clips = MovingDigits("held_out", num_clips, 2, seed=seed).clips()
        frames = light(clips.frames)[:, 1]
        self._machine = SVC(C=10.0, gamma=0.02, decision_function_shape="ovr", random_state=0)
        self._machine.fit(crops(frames).flatten(1).numpy(), clips.digits.numpy())

    def __call__(self, clips: Tensor) -> Tensor:
        """The digit of each clip ``(B, T, 1, H, W)``, by the sum of the scores of its frames: ``(B,)``."""
        frames = light(clips.cpu().float())
        scores = self._machine.decision_function(crops(frames.flatten(0, 1)).flatten(1).numpy())
        return torch.from_numpy(scores).unflatten(0, clips.shape[:2]).sum(1).argmax(-1)


def motion(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of direction and speed, ``(B,)``, of the first steps, by the centre of light; -1 for one that is none."""
    centres = light_centres(clips[:, : STRAIGHT + 1].cpu().float())
    velocity = (centres[:, -1] - centres[:, 0]) / (centres.shape[1] - 1)
    # Half a pixel a frame lies between standing still and the slower speed.
    signs = torch.where(velocity.abs() > 0.5, velocity.sign(), 0.0).long()
    table = torch.tensor(list(DIRECTIONS.values()))
    matches = (signs[:, None] == table).all(-1)
    direction = torch.where(matches.any(-1), matches.float().argmax(-1), -1)
    fastest = velocity.abs().amax(-1)
    speed = torch.where(fastest > 1.5, 1, torch.where(fastest > 0.5, 0, -1))
    return direction, speed


def sharpness(frames: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of frames ``(B, 1, H, W)``: ``(B,)``."""
    across, down = frames.diff(dim=-1).abs(), frames.diff(dim=-2).abs()
    return across.flatten(1).mean(1) + down.flatten(1).mean(1)


def spoiled(clips: Clips, seed: int = 0) -> dict[str, Tensor]:
    """The frames of clips played backwards, in random order, and with another clip's digit in their second half."""
    generator = torch.Generator().manual_seed(seed)
    frames = clips.frames
    order = torch.stack([torch.randperm(frames.shape[1], generator=generator) for _ in range(len(frames))])
    half = frames.shape[1] // 2
    other = torch.arange(len(frames))
    for row in range(len(frames)):
        others = (clips.digits != clips.digits[row]).nonzero().squeeze(1)
        if not len(others):
            raise ValueError("all clips show one digit: there is no other to splice in; take more clips.")
        other[row] = others[torch.randint(len(others), (), generator=generator)]
    return {
        "reversed": frames.flip(1),
        "shuffled": frames[torch.arange(len(frames))[:, None], order],
        "spliced": torch.cat([frames[:, :half], frames[other, half:]], dim=1),
    }


def likelihoods(model: Pipeline, num_clips: int = 200, seed: int = 0, batch_size: int = 50) -> dict[str, float]:
    """Of held-out clips under their prompts: the negative log-density in nats and bits a dimension of the noisy
    latents, and the AUROC of the log-density against each kind of `spoiled` clip.
    """
    clips = MovingDigits("held_out", num_clips, model.settings.clip_shape[0], cuts=0.0, seed=seed).clips()

    def bits(frames: Tensor) -> Tensor:
        parts = [slice(first, first + batch_size) for first in range(0, num_clips, batch_size)]
        return score(model, ((frames[part], clips.prompts[part]) for part in parts), seed=seed).bits

    own = bits(clips.frames)
    mean = float(own.mean())
    values = {"nats_per_dim": mean * math.log(2), "bits_per_dim": mean}
    for name, frames in spoiled(clips, seed).items():
        values[f"auroc_{name}"] = auroc(-own, -bits(frames))
    return values


def prompt_fidelity(
    model: Pipeline,
    num_clips: int = 200,
    *,
    guidance: float = 0.0,
    denoise: Sequence[str] = ("score",),
    seed: int = 0,
    batch_size: int = 50,
    classifier: DigitClassifier | None = None,
) -> dict[str, dict[str, float]]:
    """Shares of generated clips that show the digit, the direction and the speed of their prompts, for each way of
    denoising the very same draws.
    """
    classifier = shared_classifier() if classifier is None else classifier
    asked = MovingDigits("held_out", num_clips, 1, cuts=0.0, seed=seed).clips()
    clips: dict[str, list[Tensor]] = {way: [] for way in denoise}
    for first in range(0, num_clips, batch_size):
        drawn = model.draw(asked.prompts[first : first + batch_size], guidance=guidance, seed=seed + first)
        for way in denoise:
            clips[way].append(model.finish(drawn, way))
    return {way: _fidelity(torch.cat(parts), asked, classifier) for way, parts in clips.items()}


def reference_fidelity(num_clips: int = 200, seed: int = 0, model: Pipeline | None = None) -> dict[str, float]:
    """The same of validation clips, which bounds what can be reached; with a model, once through its autoencoder."""
    clips = MovingDigits("validation", num_clips, 16, cuts=0.0, seed=seed).clips()
    frames = clips.frames if model is None else model.latents.decode(model.latents.encode(clips.frames))
    return _fidelity(frames, clips, shared_classifier())


def roll_out(
    model: Pipeline,
    num_clips: int = 40,
    *,
    times: int = 4,
    guidance: float = 0.0,
    denoise: str = "score",
    overlap: int | None = None,
    candidates: int = 1,
    seed: int = 0,
    classifier: DigitClassifier | None = None,
) -> dict[str, Any]:
    """Shares of right digits along roll-outs `times` as long as training's clips, and how what they end with compares
    with what training's length ends with.

    "digits": by the number of the later of the two frames that a digit is read in, from the end of training's length on
    in steps of half of it. overlap, candidates: as for `Pipeline.generate`.
    """
    classifier = shared_classifier() if classifier is None else classifier
    asked = MovingDigits("held_out", num_clips, 1, cuts=0.0, seed=seed).clips()
    length = model.window
    clips = model.generate(
        asked.prompts,
        times * length,
        guidance=guidance,
        denoise=denoise,
        overlap=overlap,
        candidates=candidates,
        seed=seed,
    )
    end = times * length
    digits = {
        stop: (classifier(clips[:, max(stop - 2, 0) : stop]) == asked.digits).float().mean().item()
        for stop in [*range(length, end, max(length // 2, 1)), end]
    }
    early, late = digits[length], digits[end]
    return {
        "sharpness_ratio": finite_or_none(
            float(sharpness(clips[:, -1]).mean() / sharpness(clips[:, length - 1]).mean())
        ),
        "digits": digits,
        "digit_ratio": late / early if early else None,
    }


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
) -> dict[str, Any]:
    """Judge a model of moving digits: prompts followed, roll-outs, likelihoods against spoiled clips.

    Args:
        output: a JSON file for the figures, written as they are found.
        model: folder of a trained model; default: the shipped one.
        num_clips: clips generated for each setting, and held-out clips scored; 0 for none: roll-outs alone.
        roll_outs: clips of four times the length; 0 for none.
        guidance: weight that is compared with none.
        overlap: frames of a window of roll-outs that the next one is given; default half of it.
        candidates: of each window of roll-outs, compared with one.
        seed: of the random numbers.
        device: cpu, cuda or mps.

    Raises:
        FileNotFoundError, ValueError: there is no such model, it is damaged, or settings do not fit.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be a positive number, got {candidates}.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a JSON file for the figures.")
    pipeline = Pipeline.load(model, device)
    denoisers = ["score", "none"] + (["learned"] if pipeline.flow.denoiser is not None else [])
    settings: dict[str, Any] = {"num_clips": num_clips, "roll_outs": roll_outs, "guidance": guidance}
    settings |= {"overlap": overlap, "candidates": candidates, "seed": seed}
    result: dict[str, Any] = {"settings": settings}

    def keep(name: str, figures: dict[str, Any]) -> None:
        result[name] = figures
        write_json(output, result)

    if num_clips:
        keep("validation_clips", reference_fidelity(num_clips, seed))
        keep("validation_clips_decoded", reference_fidelity(num_clips, seed, pipeline))
        keep("likelihood", likelihoods(pipeline, num_clips, seed))
        for weight in (0.0, guidance):
            found = prompt_fidelity(pipeline, num_clips, guidance=weight, denoise=denoisers, seed=seed)
            for denoise, shares in found.items():
                keep(f"guidance {weight:g}, denoise {denoise}", shares)
                log.info("guidance %g, denoise %s: %s", weight, denoise, shares)
    if roll_outs:
        for count in sorted({1, candidates}):
            name = "roll_out" if count == 1 else f"roll_out, {count} candidates"
            found = roll_out(pipeline, roll_outs, guidance=guidance, overlap=overlap, candidates=count, seed=seed)
            keep(name, found)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return result


@functools.cache
def shared_classifier() -> DigitClassifier:
    """The classifier at its own settings."""
    return DigitClassifier()


def _fidelity(clips: Tensor, asked: Clips, classifier: DigitClassifier) -> dict[str, float]:
    direction, speed = motion(clips)
    found = {"digit": classifier(clips), "direction": direction, "speed": speed}
    wanted = {"digit": asked.digits, "direction": asked.directions, "speed": asked.speeds}
    shares = {name: float((found[name] == wanted[name]).float().mean()) for name in found}
    return shares | {"sharpness": float(sharpness(clips[:, -1]).mean())}
